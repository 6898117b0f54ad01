// Package dcap decides whether a DCAP quote of an SGX enclave or a TDX trust domain is genuine.
package dcap

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/sesame-init/sesame/attest"
)

// Config says what a [Verifier] trusts. It is copied.
type Config struct {
	// Roots are the trusted root certificates, compared by public key. Empty means Intel's.
	Roots []*x509.Certificate
	// Source finds the collateral.
	Source Source
	// MinimumEvaluation is the least tcbEvaluationDataNumber of TCB info and QE identity that is taken.
	MinimumEvaluation uint32
	// MinimumRootCRLNumber and MinimumPCKCRLNumber are the least CRL numbers that are taken.
	MinimumRootCRLNumber, MinimumPCKCRLNumber uint64
	// AllowTrailing accepts bytes after the declared end of a quote. They are signed by nobody and ignored.
	AllowTrailing bool
	// PCKChain is the PCK certificate, its CA and the root in PEM, for quotes that do not carry them
	// (certification data of types 1 to 4). Without it such quotes are refused.
	PCKChain []byte
}

// Verifier verifies quotes. It is safe for concurrent use.
type Verifier struct {
	config Config
}

// NewVerifier makes a Verifier.
func NewVerifier(c Config) *Verifier { return &Verifier{config: c} }

// Verify implements [attest.Verifier].
func (v *Verifier) Verify(ctx context.Context, evidence attest.Evidence, at time.Time) (attest.Claims, error) {
	return attest.Claims{}, attest.Errorf(attest.CodeCollateral, string(StepFetch), "", "no source of collateral is configured")
}
