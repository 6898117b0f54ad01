package dcap

import (
	"errors"
	"slices"

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
	StepQEReportSignature Step = "verifying QE report signature"
	StepAttestationKey    Step = "verifying attestation key binding"
	StepQuoteSignature    Step = "verifying quote signature"
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
	StepMatchQEIdentity   Step = "matching QE identity"
	StepTCBLevel          Step = "evaluating TCB level"
)

// Steps lists all steps in the order in which they are taken.
func Steps() []Step {
	return []Step{
		StepQuote, StepCertificationData, StepPCKChain, StepPCKExtension, StepQEReportSignature, StepAttestationKey,
		StepQuoteSignature, StepFetch, StepRootCRL, StepPCKCRL, StepTCBInfoChain, StepTCBInfo, StepQEIdentityChain,
		StepQEIdentity, StepMinimum, StepValidity, StepRevocation, StepMatchTCBInfo, StepMatchTDXModule,
		StepMatchQEIdentity, StepTCBLevel,
	}
}

// StepOf is the innermost of these steps in the chain of err, "" if there is none.
func StepOf(err error) Step {
	var step Step
	for err != nil {
		var e *attest.Error
		if !errors.As(err, &e) {
			break
		}
		if s := Step(e.Step); slices.Contains(Steps(), s) {
			step = s
		}
		err = e.Err
	}
	return step
}

// notGenuine refuses evidence.
func notGenuine(step Step, hint, format string, args ...any) error {
	return attest.Errorf(attest.CodeEvidence, string(step), hint, format, args...)
}

// badCollateral refuses collateral.
func badCollateral(step Step, hint, format string, args ...any) error {
	return attest.Errorf(attest.CodeCollateral, string(step), hint, format, args...)
}
