// Package attest is the vocabulary of remote attestation that the rest of Sesame speaks: evidence, report
// data, claims, attesters and verifiers, in the terms of RFC 9334 (RATS architecture), and the two types that
// cross every boundary: [Error], a refusal that says why, and [Secret], key material that cannot be printed.
//
// The package knows no format, no network and no other package of this module. Formats and verification live
// below it: attest/sgx (reports and quotes), attest/dcap (is a quote genuine), attest/policy (is it wanted),
// attest/ratls (certificates that carry evidence), attest/backend (evidence in, secrets out).
//
// What it does not do: it makes no judgement. A [Claims] value is only ever the output of a [Verifier] and
// says what genuine evidence claims, not whether anyone should accept it.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning. So do codes of
// refusals and the texts of [EvidenceType]. New kinds of evidence, claims and codes may be added, so a switch over them
// needs a default.
package attest

import (
	"context"
	"time"
)

// EvidenceType names a kind of evidence.
type EvidenceType string

// The kinds of evidence. SGX is a DCAP quote of an enclave, TDX of a trust domain; SNP is an attestation report of an
// AMD SEV-SNP guest with its certificates; TPM is a quote of a machine's TPM 2.0 with its event log.
const (
	SGX EvidenceType = "sgx"
	TDX EvidenceType = "tdx"
	SNP EvidenceType = "snp"
	TPM EvidenceType = "tpm"
)

// ReportDataSize is the size in bytes of the data that an attester binds into its evidence (Intel SGX SDM,
// REPORTDATA; the same 64 bytes in TDX and SEV-SNP reports).
const ReportDataSize = 64

// ReportData is what the attester asks the hardware to bind into the evidence: usually a hash over a public
// key or over a session, zero-padded.
type ReportData [ReportDataSize]byte

// Evidence is what an attester hands out about itself, in the attester's own format. It is untrusted until
// a [Verifier] has judged it.
type Evidence struct {
	Type EvidenceType
	// Raw is the evidence in its native format: for SGX and TDX a DCAP quote, for SNP and TPM what attest/cvm and
	// attest/tpm encode.
	Raw []byte
}

// An Attester makes evidence about the environment that it runs in.
type Attester interface {
	// Type is the kind of evidence that this attester makes.
	Type() EvidenceType
	// Evidence returns fresh evidence that binds data. It fails with [CodeAttester].
	Evidence(ctx context.Context, data ReportData) (Evidence, error)
}

// A Verifier decides whether evidence is genuine, that is: signed by hardware below a trusted root, whose
// state the collateral knows. It does not decide whether the claims are wanted; package attest/policy does.
type Verifier interface {
	// Verify returns what genuine evidence claims. The error's code is [CodeEvidence] for evidence that is
	// not genuine and [CodeCollateral] if the collateral is missing, expired or not genuine itself.
	Verify(ctx context.Context, evidence Evidence, at time.Time) (Claims, error)
}
