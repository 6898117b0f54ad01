package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpmutil"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/swtpm"
)

// TestTPMCommands runs the scripts that need a TPM.
func TestTPMCommands(t *testing.T) {
	testenv.Program(t, "swtpm", swtpm.Program, "swtpm swtpm-tools")
	dir, err := os.MkdirTemp("", "tpm") // the socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // the scripts run in parallel, after this function has returned
	machine, err := swtpm.New(t.Context(), filepath.Join(dir, "m"))
	if err != nil {
		t.Fatal(err)
	}
	certificates, err := machine.CertificatesFile()
	if err != nil {
		t.Fatal(err)
	}
	running, err := machine.Start(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = running.Stop() })
	// swtpm_setup lets the TPM keep its endorsement key; a machine as it is bought may not.
	rw, err := tpm2.OpenTPM(running.Socket)
	if err != nil {
		t.Fatal(err)
	}
	const reserved = tpmutil.Handle(0x81010001)
	if err := tpm2.EvictControl(rw, "", tpm2.HandleOwner, reserved, reserved); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/tpm", RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("TPM", running.Socket)
			e.Setenv("CERTIFICATES", certificates)
			return nil
		},
	})
}
