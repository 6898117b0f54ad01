package tpm

import (
	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/trust"
)

// Kind says how evidence of TPMs is verified.
func Kind() trust.Kind {
	return trust.Kind{Type: attest.TPM, Verifier: func(c trust.Config) attest.Verifier {
		return &Verifier{Certificates: c.Certificates}
	}}
}
