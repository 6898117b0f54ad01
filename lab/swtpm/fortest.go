package swtpm

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/sesame-init/sesame/internal/testenv"
)

// ForTest makes a TPM and runs it until the test, with its subtests, has ended.
func ForTest(t testing.TB) (*Machine, *Running) {
	t.Helper()
	testenv.Program(t, "swtpm", Program, "swtpm swtpm-tools")
	dir, err := os.MkdirTemp("", "tpm") // the socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	machine, err := New(t.Context(), filepath.Join(dir, "m"))
	if err != nil {
		t.Fatal(err)
	}
	running, err := machine.Start(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = running.Stop() })
	return machine, running
}
