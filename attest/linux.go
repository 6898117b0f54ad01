package attest

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Bits of an SEV-SNP guest policy (AMD 56860, SEV-SNP Firmware ABI Specification, table "Guest Policy").
const (
	SNPPolicySMT     uint64 = 1 << 16
	SNPPolicyMigrate uint64 = 1 << 18
	SNPPolicyDebug   uint64 = 1 << 19
)

// SNPClaims are the fields of an SEV-SNP guest's attestation report (AMD 56860, table "ATTESTATION_REPORT"). The
// verifier has checked that the certificate which signs the report names ReportedTCB and ChipID.
type SNPClaims struct {
	Measurement     [48]byte // of the guest's first memory and state, by the firmware
	HostData        [32]byte // chosen by the host at launch
	FamilyID        [16]byte
	ImageID         [16]byte
	IDKeyDigest     [48]byte // SHA-384 of the key that signed the ID block; zero without one
	AuthorKeyDigest [48]byte
	ChipID          [64]byte // zero where the host masks it
	ReportID        [32]byte
	Policy          uint64
	GuestSVN        uint32
	VMPL            uint32 // privilege level that asked for the report, 0 is the highest
	ReportedTCB     SNPTCB // firmware that the signing key belongs to
	CommittedTCB    SNPTCB // firmware below which the host cannot go back
	SignedBy        string // product line of the signer: "Milan", "Genoa", "Turin"
}

// Debug reports whether the host can read and change the guest's memory.
func (c *SNPClaims) Debug() bool { return c.Policy&SNPPolicyDebug != 0 }

// SNPTCB are the security versions of the firmware's parts (AMD 56860, "TCB_VERSION").
type SNPTCB struct{ Bootloader, TEE, SNP, Microcode uint8 }

// TPMClaims are what a quote of a TPM 2.0 and what came with it say about a machine. A quote is signed by an
// attestation key (AK). That the AK lives in the TPM of a certain endorsement key (EK) the evidence alone does not
// prove: who pins the EK only has to wrap what he releases to EKPublic.
type TPMClaims struct {
	AK [32]byte // SHA-256 of the AK's TPMT_PUBLIC, attributes included: its TPM name without the algorithm
	EK [32]byte // SHA-256 of the EK's DER SubjectPublicKeyInfo; zero where the evidence names none
	// EKRoot is the SHA-256 of the self-signed certificate at which the chain of the EK's certificate ends, zero
	// where there is no complete chain. Whether the root is a vendor's is for a policy to say.
	EKRoot   [32]byte
	EKPublic []byte // DER SubjectPublicKeyInfo of the EK, nil where the evidence names none
	// PCRs are the quoted registers of the SHA-256 bank, by index 0 to 23.
	PCRs map[int][32]byte
	// EventLog is set where the machine's firmware log replays to the quoted registers; SecureBoot then says
	// whether UEFI's Secure Boot was on.
	EventLog   bool
	SecureBoot bool
}

// Verifiers hands evidence to the verifier of its type. It refuses evidence of a type that nobody verifies, with
// [CodeEvidence], and claims of another type than the evidence's, with [CodeInternal]. A verifier that panics, as parsers
// of formats that are not our own have done on crafted bytes, refuses with [CodeEvidence] and harms nobody else.
type Verifiers map[EvidenceType]Verifier

// Verify implements [Verifier].
func (v Verifiers) Verify(ctx context.Context, evidence Evidence, at time.Time) (claims Claims, err error) {
	const step = "verifying evidence"
	defer func() {
		if cause := recover(); cause != nil {
			claims, err = Claims{}, Errorf(CodeEvidence, step, "", "it breaks its verifier: %.200v", cause)
		}
	}()
	verifier := v[evidence.Type]
	if verifier == nil {
		var known []string
		for t := range v {
			known = append(known, string(t))
		}
		slices.Sort(known)
		return Claims{}, Errorf(CodeEvidence, step, fmt.Sprintf("Here are verified: %s.", known),
			"evidence of type %.16q is not verified here", evidence.Type)
	}
	claims, err = verifier.Verify(ctx, evidence, at)
	if err == nil && claims.Type != evidence.Type {
		return Claims{}, Errorf(CodeInternal, step, "", "the verifier of %q answers with claims of %q",
			evidence.Type, claims.Type)
	}
	return claims, err
}
