package attest

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
)

// TPMClaims are what a quote of a TPM 2.0 and what came with it say about a machine. A quote is signed by an
// attestation key (AK). Evidence alone does not prove that the AK lives in the TPM of a certain endorsement key (EK): a
// verifier that pins only the EK must encrypt what it releases to EKPublic.
type TPMClaims struct {
	AK [32]byte // SHA-256 of the AK's TPMT_PUBLIC, attributes included: its TPM name without the algorithm
	EK [32]byte // SHA-256 of the EK's DER SubjectPublicKeyInfo; zero where the evidence names none
	// EKRoot is the SHA-256 of the self-signed certificate at which the chain of the EK's certificate ends, zero
	// if there is no complete chain. Whether the root is a vendor's is for a policy to say.
	EKRoot   [32]byte
	EKPublic []byte // DER SubjectPublicKeyInfo of the EK, nil where the evidence names none
	// AKName is the AK's TPM name, computed from its TPMT_PUBLIC: the algorithm in 2 bytes, then the digest.
	AKName []byte
	// EKProved is set once the TPM has proved to the verifier of a session, by the answer to a challenge, that it holds
	// AK and EK. Evidence alone cannot prove it, so no [Verifier] sets it.
	EKProved bool
	// PCRs are the quoted registers of the SHA-256 bank, by index 0 to 23.
	PCRs map[int][32]byte
	// EventLog is set if the machine's firmware log replays to the quoted registers; SecureBoot then says
	// whether UEFI's Secure Boot was on.
	EventLog   bool
	SecureBoot bool
}

// Debug implements [Details]: there is no such mode.
func (c *TPMClaims) Debug() bool { return false }

// Type implements [Details].
func (c *TPMClaims) Type() EvidenceType { return TPM }

// Rated implements [Details]: a TPM has no collateral.
func (c *TPMClaims) Rated() bool { return false }

// Identity implements [Details].
func (c *TPMClaims) Identity() (name, value string) { return "ak", hex.EncodeToString(c.AK[:]) }

// String implements [Details].
func (c *TPMClaims) String() string { return fmt.Sprintf("a machine with ak %x, ek %x", c.AK, c.EK) }

// Record implements [Details].
func (c *TPMClaims) Record() any {
	var pcrs []string // "7=…", by index
	for _, i := range slices.Sorted(maps.Keys(c.PCRs)) {
		pcrs = append(pcrs, fmt.Sprintf("%d=%x", i, c.PCRs[i]))
	}
	return struct {
		AK   string   `json:"ak"`
		EK   string   `json:"ek"`
		PCRs []string `json:"pcrs,omitempty"`
	}{hex.EncodeToString(c.AK[:]), hex.EncodeToString(c.EK[:]), pcrs}
}
