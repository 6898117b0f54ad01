package sqlite_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/store"
	"github.com/sesame-init/sesame/internal/broker/store/sqlite"
	"github.com/sesame-init/sesame/internal/privatefile"
	"github.com/sesame-init/sesame/lab/storetest"
)

func TestSQLiteIsAStore(t *testing.T) {
	storetest.Run(t, func(t testing.TB) storetest.Kind {
		file := filepath.Join(t.TempDir(), "broker.db")
		return storetest.Kind{
			Open: func(t testing.TB) store.Store {
				s, err := sqlite.Open(t.Context(), file, privatefile.Rule{})
				if err != nil {
					t.Fatal(err)
				}
				return s
			},
			Second: func(t testing.TB) error {
				_, err := sqlite.Open(t.Context(), file, privatefile.Rule{})
				return err
			},
		}
	})
}

func TestFileIsForItsOwnerOnly(t *testing.T) {
	file := filepath.Join(t.TempDir(), "broker.db")
	s, err := sqlite.Open(t.Context(), file, privatefile.Rule{})
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

func TestFileThatOthersMayReadIsRefusedAtTheStartAndWhileItRuns(t *testing.T) {
	file := filepath.Join(t.TempDir(), "broker.db")
	s, err := sqlite.Open(t.Context(), file, privatefile.Rule{})
	if err != nil {
		t.Fatal(err)
	}
	put := func() error {
		return s.Update(t.Context(), func(w store.Writer) error { return w.Put("x", store.Row{Key: []byte("k")}) })
	}
	if err := errors.Join(put(), os.WriteFile(file+"-wal", nil, 0o600), os.WriteFile(file+"-shm", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	refused := func(doing, name string, err error) {
		t.Helper()
		if attest.CodeOf(err) != attest.CodeConfig || !strings.Contains(attest.HintOf(err), "chmod 600 "+name) {
			t.Errorf("%s with an open %s: %v, hint %q", doing, filepath.Base(name), err, attest.HintOf(err))
		}
	}
	if err := os.Chmod(file, 0o644); err != nil { // as a restore may leave it
		t.Fatal(err)
	}
	refused("writing", file, put())
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(put(), s.Close()); err != nil {
		t.Errorf("after it was mended: %v", err)
	}
	for _, name := range []string{file, file + "-journal", file + "-wal", file + "-shm"} {
		if err := os.Chmod(name, 0o644); err != nil {
			t.Fatal(err)
		}
		s, err := sqlite.Open(t.Context(), file, privatefile.Rule{})
		if err == nil {
			s.Close()
		}
		refused("opening", name, err)
		refused("checking", name, sqlite.Check(file, privatefile.Rule{}))
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o644 {
			t.Errorf("%s was mended: %v, %v", filepath.Base(name), info.Mode(), err)
		}
		if err := os.Chmod(name, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := sqlite.Check(filepath.Join(t.TempDir(), "none.db"), privatefile.Rule{}); err != nil {
		t.Errorf("checking what is not there: %v", err)
	}
}

func TestWhatIsNoStoreIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "broker.db")
	if err := os.WriteFile(file, []byte("this is a letter to my aunt, who keeps no database, and it is long enough"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := sqlite.Open(t.Context(), file, privatefile.Rule{}); err == nil {
		s.Close()
		t.Error("a letter was opened as a store")
	} else if attest.HintOf(err) == "" {
		t.Errorf("no hint: %v", err)
	}
	if text, _ := os.ReadFile(file); string(text[:4]) != "this" {
		t.Error("the letter was changed")
	}
}
