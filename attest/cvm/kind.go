package cvm

import (
	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/trust"
)

// SNP says how evidence of SEV-SNP guests is verified. That of trust domains is a quote.
func SNP() trust.Kind {
	return trust.Kind{Type: attest.SNP, Verifier: func(trust.Config) attest.Verifier { return &SNPVerifier{} }}
}
