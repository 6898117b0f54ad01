package attack_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/attack"
	"github.com/sesame-init/sesame/lab/postgrestest"
)

func TestMain(m *testing.M) {
	attack.Victim()
	os.Exit(m.Run())
}

// full says whether make attack runs.
func full() bool { return os.Getenv("SESAME_ATTACK") == "full" }

// class is one kind of attack, and the faults that it must find.
type class struct {
	name         string
	short, long  int // attacks
	run          func(t *testing.T, n int, fault attack.Fault) (attack.Figures, error)
	faults       []attack.Fault
	tries        int  // attacks on a seeded broker
	leaks, hides bool // what the faults are
}

func place(t *testing.T) attack.Place {
	dir := t.TempDir()
	return prepared(t, attack.Place{SQLite: filepath.Join(dir, "broker.db"), RootKey: filepath.Join(dir, "root.key")})
}

func prepared(t *testing.T, p attack.Place) attack.Place {
	t.Helper()
	if err := p.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

var classes = []class{
	{name: "bad peers of every kind, both wires", short: 5, long: 200, tries: 2, leaks: true,
		run: func(t *testing.T, n int, fault attack.Fault) (attack.Figures, error) {
			return attack.Peers(t, n, fault), nil
		}, faults: []attack.Fault{attack.Foreign}},
	{name: "the same, releases counted", short: 2, long: 20, tries: 2, hides: true,
		run: func(t *testing.T, n int, fault attack.Fault) (attack.Figures, error) {
			return attack.Peers(t, n, fault), nil
		}, faults: []attack.Fault{attack.Silent}},
	{name: "broker killed, SQLite", short: 5, long: 100, tries: 5, hides: true,
		run: func(t *testing.T, n int, fault attack.Fault) (attack.Figures, error) {
			return attack.Kill(t.Context(), place(t), n, fault)
		}, faults: []attack.Fault{attack.Early}},
	{name: "broker killed, PostgreSQL", short: 3, long: 50, tries: 3, hides: true,
		run: func(t *testing.T, n int, fault attack.Fault) (attack.Figures, error) {
			p := attack.Place{Postgres: postgrestest.Start(t).URL(), RootKey: filepath.Join(t.TempDir(), "root.key")}
			return attack.Kill(t.Context(), prepared(t, p), n, fault)
		}, faults: []attack.Fault{attack.Early}},
	{name: "power cut, SQLite", short: 12, long: 200, tries: 6, hides: true,
		run: func(t *testing.T, n int, fault attack.Fault) (attack.Figures, error) {
			testenv.Root(t)
			return attack.Cut(t.Context(), t.TempDir(), t.TempDir(), n, fault, 1)
		}, faults: []attack.Fault{attack.NoSync, attack.Early}},
	{name: "older database put back", short: 5, long: 100, tries: 1, leaks: true, hides: true,
		run: func(t *testing.T, n int, fault attack.Fault) (attack.Figures, error) {
			return attack.Restore(t.Context(), place(t), n, fault)
		}, faults: []attack.Fault{attack.Forgetful}},
}

// TestNothingLeaksAndNothingIsUnlogged runs every class against the honest broker, and against one with a seeded fault,
// which must be found.
func TestNothingLeaksAndNothingIsUnlogged(t *testing.T) {
	var table strings.Builder
	fmt.Fprintln(&table, "| attack | tried | refused or survived | served meanwhile | leaked | unlogged |\n|---|---|---|---|---|---|")
	for _, c := range classes {
		t.Run(c.name, func(t *testing.T) {
			n := c.short
			if full() {
				n = c.long
			}
			f, err := c.run(t, n, attack.None)
			if err != nil || !f.Clean() {
				t.Errorf("%s, %v", f, err)
			}
			f.Row(&table, c.name)
			for _, fault := range c.faults {
				f, err := c.run(t, c.tries, fault)
				if err != nil || c.leaks && f.Leaked == 0 || c.hides && f.Unlogged == 0 {
					t.Errorf("the fault %q is not found: %s, %v", fault, f, err)
				}
				f.Row(&table, "seeded: "+c.name+", "+string(fault))
			}
		})
	}
	t.Log("\n" + table.String())
}
