package attack_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/attack"
	"github.com/sesame-init/sesame/lab/postgrestest"
)

var full = flag.Bool("full", false, "the long form, of make attack; a class that cannot run here fails it")

// table is what the run ends with.
var table strings.Builder

var scratch string // folder

const keybroker = "../../cmd/keybroker"

// keybrokerTests is the test's program of keybroker.
var keybrokerTests = sync.OnceValues(func() (string, error) {
	file := filepath.Join(scratch, "keybroker.test")
	if out, err := exec.Command("go", "test", "-c", "-o", file, keybroker).CombinedOutput(); err != nil {
		return "", fmt.Errorf("building: %w\n%s", err, out)
	}
	return file, nil
})

func TestMain(m *testing.M) {
	attack.Victim()
	flag.Parse()
	var err error
	if scratch, err = os.MkdirTemp("", "sesame-attack-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(scratch)
	if table.Len() > 0 {
		fmt.Print("\n", attack.Header, table.String(), "\n")
	}
	os.Exit(code)
}

// class is one kind of attack, and the faults that it must find.
type class struct {
	name, title  string
	short, long  int // attacks, of each kind if there are several
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
	{name: "peers", title: "bad peers of every kind, both wires", short: 5, long: 200, tries: 2, leaks: true,
		run: func(t *testing.T, n int, fault attack.Fault) (attack.Figures, error) {
			return attack.Peers(t, n, fault), nil
		}, faults: []attack.Fault{attack.Foreign}},
	{name: "peers-counted", title: "the same, releases counted", short: 2, long: 20, tries: 2, hides: true,
		run: func(t *testing.T, n int, fault attack.Fault) (attack.Figures, error) {
			return attack.Peers(t, n, fault), nil
		}, faults: []attack.Fault{attack.Silent}},
	{name: "kill-sqlite", title: "keeper killed, SQLite", short: 5, long: 100, tries: 5, hides: true,
		run: func(t *testing.T, n int, fault attack.Fault) (attack.Figures, error) {
			return attack.Kill(t.Context(), place(t), n, fault)
		}, faults: []attack.Fault{attack.Early}},
	{name: "kill-postgres", title: "keeper killed, PostgreSQL", short: 3, long: 50, tries: 3, hides: true,
		run: func(t *testing.T, n int, fault attack.Fault) (attack.Figures, error) {
			p := attack.Place{Postgres: postgrestest.Start(t).URL(), RootKey: filepath.Join(t.TempDir(), "root.key")}
			return attack.Kill(t.Context(), prepared(t, p), n, fault)
		}, faults: []attack.Fault{attack.Early}},
	{name: "restart-postgres", title: "PostgreSQL restarted", short: 2, long: 20, tries: 2, hides: true,
		run: func(t *testing.T, n int, fault attack.Fault) (attack.Figures, error) {
			server := postgrestest.Start(t)
			p := attack.Place{Postgres: server.URL(), RootKey: filepath.Join(t.TempDir(), "root.key")}
			orderly := false
			return attack.Restart(t.Context(), prepared(t, p), n, fault, func() {
				how := syscall.SIGQUIT
				if orderly = !orderly; orderly {
					how = syscall.SIGINT
				}
				server.Stop(how)
				server.Run()
			})
		}, faults: []attack.Fault{attack.Early}},
	{name: "cut-sqlite", title: "power cut, SQLite", short: 12, long: 200, tries: 6, hides: true,
		run: func(t *testing.T, n int, fault attack.Fault) (attack.Figures, error) {
			testenv.Root(t)
			return attack.Cut(t.Context(), t.TempDir(), t.TempDir(), n, fault, 1)
		}, faults: []attack.Fault{attack.NoSync, attack.Early}},
	{name: "restore", title: "older database put back", short: 5, long: 100, tries: 1, leaks: true, hides: true,
		run: func(t *testing.T, n int, fault attack.Fault) (attack.Figures, error) {
			return attack.Restore(t.Context(), place(t), n, fault)
		}, faults: []attack.Fault{attack.Forgetful}},
	{name: "kill-keybroker", title: "program keybroker killed, SQLite", short: 2, long: 100, tries: 2, hides: true,
		run: func(t *testing.T, n int, fault attack.Fault) (attack.Figures, error) {
			tests, err := keybrokerTests()
			if err != nil {
				return attack.Figures{}, err
			}
			return attack.KillProgram(tests, keybroker, n, fault)
		}, faults: []attack.Fault{attack.Forgetful}},
	{name: "starve", title: "crowd from two other addresses", short: 120, long: 2000, tries: 120, leaks: true,
		run: func(t *testing.T, n int, fault attack.Fault) (attack.Figures, error) {
			return attack.Crowd(t.Context(), os.Args[0], n, false, fault)
		}, faults: []attack.Fault{attack.Greedy}},
	{name: "starve-behind", title: "crowd from the honest peer's address", short: 120, long: 2000, tries: 120, leaks: true,
		run: func(t *testing.T, n int, fault attack.Fault) (attack.Figures, error) {
			return attack.Crowd(t.Context(), os.Args[0], n, true, fault)
		}, faults: []attack.Fault{attack.Greedy}},
	{name: "hostile", title: "hostile brokers before an honest one", short: 1, long: 1, tries: 1, leaks: true, hides: true,
		run: func(t *testing.T, n int, fault attack.Fault) (attack.Figures, error) {
			return attack.Brokers(t, n, fault), nil
		}, faults: []attack.Fault{attack.Believing}},
}

// TestNothingLeaksAndNothingIsUnlogged runs every class against the honest broker, and against one with a seeded fault,
// which must be found.
func TestNothingLeaksAndNothingIsUnlogged(t *testing.T) {
	for _, c := range classes {
		t.Run(c.name, func(t *testing.T) {
			defer func() {
				if *full && t.Skipped() {
					fmt.Fprintf(os.Stderr, "%s cannot run here\n", c.name)
					t.Fail()
				}
			}()
			try := func(title string, n int, fault attack.Fault) (f attack.Figures, err error) {
				begin := time.Now()
				f, err = c.run(t, n, fault)
				f.Row(&table, title, time.Since(begin))
				fmt.Fprintf(os.Stderr, "%s: %s\n", title, f)
				return f, err
			}
			n := c.short
			if *full {
				n = c.long
			}
			if f, err := try(c.title, n, attack.None); err != nil || !f.Clean() {
				t.Errorf("%s, %v", f, err)
			}
			for _, fault := range c.faults {
				f, err := try("seeded: "+c.title+", "+string(fault), c.tries, fault)
				if err != nil || c.leaks && f.Leaked == 0 || c.hides && f.Unlogged == 0 {
					t.Errorf("the fault %q is not found: %s, %v", fault, f, err)
				}
			}
		})
	}
}
