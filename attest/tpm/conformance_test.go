package tpm_test

import (
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/tpm"
	"github.com/sesame-init/sesame/lab/attesttest"
)

func TestConformance(t *testing.T) {
	socket, certificates := machine(t, 0)
	attesttest.Run(t, attesttest.Case{
		Type: attest.TPM, Verifier: verifier, At: time.Now(),
		Attester: open(t, tpm.Options{Path: socket, EK: true, Chain: certificates}),
	})
}
