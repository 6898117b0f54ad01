package attest

import (
	"encoding/hex"
	"fmt"
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

// Type implements [Details].
func (c *SNPClaims) Type() EvidenceType { return SNP }

// Rated implements [Details]: the report itself names the firmware.
func (c *SNPClaims) Rated() bool { return false }

// Identity implements [Details].
func (c *SNPClaims) Identity() (name, value string) {
	return "measurement", hex.EncodeToString(c.Measurement[:])
}

// String implements [Details].
func (c *SNPClaims) String() string {
	return fmt.Sprintf("an SEV-SNP guest with measurement %x", c.Measurement)
}

// Record implements [Details].
func (c *SNPClaims) Record() any {
	return struct {
		Measurement string `json:"measurement"`
		HostData    string `json:"host_data"`
		ChipID      string `json:"chip_id"`
	}{hex.EncodeToString(c.Measurement[:]), hex.EncodeToString(c.HostData[:]), hex.EncodeToString(c.ChipID[:])}
}
