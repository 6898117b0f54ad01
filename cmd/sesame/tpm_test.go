package main

import (
	"testing"

	"github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpmutil"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sesame-init/sesame/lab/swtpm"
)

// TestTPMCommands runs the scripts that need a TPM.
func TestTPMCommands(t *testing.T) {
	machine, running := swtpm.ForTest(t)
	certificates, err := machine.CertificatesFile()
	if err != nil {
		t.Fatal(err)
	}
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
