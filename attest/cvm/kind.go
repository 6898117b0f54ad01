package cvm

import (
	"context"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/trust"
)

// TDX is the attester of trust domains. Its evidence is a quote.
func TDX() trust.Kind {
	return trust.Kind{Type: attest.TDX, Open: func(context.Context, trust.Opening) (trust.Device, error) { return OpenTDX() }}
}

// SNP is the attester of SEV-SNP guests.
func SNP() trust.Kind {
	return trust.Kind{
		Type:     attest.SNP,
		Verifier: func(trust.Config) attest.Verifier { return &SNPVerifier{} },
		Open:     func(context.Context, trust.Opening) (trust.Device, error) { return OpenSNP() },
	}
}
