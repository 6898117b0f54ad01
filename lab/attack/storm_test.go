package attack_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/attack"
)

func TestMain(m *testing.M) {
	attack.Victim()
	flag.Parse()
	os.Exit(m.Run())
}

func TestPowerCutsLoseNothing(t *testing.T) {
	testenv.Root(t)
	f, err := attack.Cut(t.Context(), t.TempDir(), t.TempDir(), 12, attack.None, 1)
	if err != nil {
		t.Fatal(err)
	}
	if !f.Clean() {
		t.Error(f)
	}
	t.Log(f)
}

func TestPowerCutsFindAStoreThatDoesNotSync(t *testing.T) {
	testenv.Root(t)
	f, err := attack.Cut(t.Context(), t.TempDir(), t.TempDir(), 3, attack.NoSync, 1)
	if err != nil {
		t.Fatal(err)
	}
	if f.Unlogged == 0 {
		t.Error(f)
	}
	t.Log(f)
}

func TestKillsLoseNothing(t *testing.T) {
	for fault, clean := range map[attack.Fault]bool{attack.None: true, attack.Early: false} {
		dir := t.TempDir()
		p := attack.Place{SQLite: filepath.Join(dir, "broker.db"), RootKey: filepath.Join(dir, "root.key")}
		if err := p.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		f, err := attack.Kill(t.Context(), p, 6, fault)
		if err != nil {
			t.Fatal(err)
		}
		if f.Clean() != clean {
			t.Errorf("fault %q: %s", fault, f)
		}
		t.Logf("fault %q: %s", fault, f)
	}
}
