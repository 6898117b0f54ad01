package dcap

import (
	"errors"

	"github.com/sesame-init/sesame/attest"
)

// Step names a step of the verification. The names are stable: they are the Step of the [attest.Error] that
// [Verifier.Verify] returns, and programs may compare them.
type Step string

// The steps, in the order in which they are taken.
const (
	StepQuote             Step = "parsing quote"
	StepCertificationData Step = "reading certification data"
	StepPCKChain          Step = "verifying PCK chain"
	StepPCKExtension      Step = "reading PCK extension"
	StepFetch             Step = "fetching collateral"
	StepRootCRL           Step = "verifying root CA CRL"
	StepPCKCRL            Step = "verifying PCK CRL"
	StepTCBInfoChain      Step = "verifying TCB info issuer chain"
	StepTCBInfo           Step = "verifying TCB info"
	StepQEIdentityChain   Step = "verifying QE identity issuer chain"
	StepQEIdentity        Step = "verifying QE identity"
	StepMinimum           Step = "checking collateral minimums"
	StepValidity          Step = "checking validity periods"
	StepRevocation        Step = "checking revocation"
	StepMatchTCBInfo      Step = "matching TCB info"
	StepMatchTDXModule    Step = "matching TDX module"
	StepQEReportSignature Step = "verifying QE report signature"
	StepAttestationKey    Step = "verifying attestation key binding"
	StepMatchQEIdentity   Step = "matching QE identity"
	StepQuoteSignature    Step = "verifying quote signature"
	StepTCBLevel          Step = "evaluating TCB level"
)

// StepOf is the innermost step named in the chain of err, "" where there is none.
func StepOf(err error) Step {
	var step Step
	for err != nil {
		var e *attest.Error
		if !errors.As(err, &e) {
			break
		}
		step, err = Step(e.Step), e.Err
	}
	return step
}
