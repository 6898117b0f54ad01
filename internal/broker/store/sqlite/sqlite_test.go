package sqlite_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/store"
	"github.com/sesame-init/sesame/internal/broker/store/sqlite"
	"github.com/sesame-init/sesame/lab/storetest"
)

func TestSQLiteIsAStore(t *testing.T) {
	storetest.Run(t, func(t testing.TB) storetest.Kind {
		file := filepath.Join(t.TempDir(), "broker.db")
		return storetest.Kind{
			Open: func(t testing.TB) store.Store {
				s, err := sqlite.Open(t.Context(), file)
				if err != nil {
					t.Fatal(err)
				}
				return s
			},
			Second: func(t testing.TB) error {
				_, err := sqlite.Open(t.Context(), file)
				return err
			},
		}
	})
}

func TestFileIsForItsOwnerOnly(t *testing.T) {
	file := filepath.Join(t.TempDir(), "broker.db")
	s, err := sqlite.Open(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = s.Update(t.Context(), func(w store.Writer) error { return w.Put("x", store.Row{Key: []byte("k")}) })
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{file, file + "-journal"} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has permissions %o", filepath.Base(name), info.Mode().Perm())
		}
	}
	for _, suffix := range []string{"-wal", "-shm"} {
		if _, err := os.Stat(file + suffix); err == nil {
			t.Errorf("there is a file %s, which needs shared memory", suffix)
		}
	}
}

func TestWhatIsNoStoreIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "broker.db")
	if err := os.WriteFile(file, []byte("this is a letter to my aunt, who keeps no database, and it is long enough"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := sqlite.Open(t.Context(), file); err == nil {
		s.Close()
		t.Error("a letter was opened as a store")
	} else if attest.HintOf(err) == "" {
		t.Errorf("no hint: %v", err)
	}
	if text, _ := os.ReadFile(file); string(text[:4]) != "this" {
		t.Error("the letter was changed")
	}
}
