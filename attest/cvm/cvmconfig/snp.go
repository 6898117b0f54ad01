package cvmconfig

import (
	"bytes"
	"fmt"
	"strconv"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy/rule"
)

// SNP describes an AMD SEV-SNP guest. All fields that are set must match.
type SNP struct {
	Name        string       `json:"name,omitempty" yaml:"name,omitempty"`                 // for people and logs only
	Measurement rule.Hex     `json:"measurement,omitempty" yaml:"measurement,omitempty"`   // 48 bytes, MEASUREMENT
	GuestPolicy *GuestPolicy `json:"guest_policy,omitempty" yaml:"guest_policy,omitempty"` // every bit counts
	MinTCB      *TCB         `json:"min_tcb,omitempty" yaml:"min_tcb,omitempty"`           // of REPORTED_TCB, each part
	MinGuestSVN *uint32      `json:"min_guest_svn,omitempty" yaml:"min_guest_svn,omitempty"`
	MaxVMPL     uint32       `json:"max_vmpl,omitempty" yaml:"max_vmpl,omitempty"`           // default 0
	HostData    rule.Hex     `json:"host_data,omitempty" yaml:"host_data,omitempty"`         // 32 bytes; absent: all zero
	FamilyID    rule.Hex     `json:"family_id,omitempty" yaml:"family_id,omitempty"`         // 16 bytes
	ImageID     rule.Hex     `json:"image_id,omitempty" yaml:"image_id,omitempty"`           // 16 bytes
	IDKeyDigest rule.Hex     `json:"id_key_digest,omitempty" yaml:"id_key_digest,omitempty"` // 48 bytes
	ChipID      rule.Hex     `json:"chip_id,omitempty" yaml:"chip_id,omitempty"`             // 64 bytes: this processor only
	Debug       bool         `json:"debug,omitempty" yaml:"debug,omitempty"`                 // accept debug guests, too
}

// TCB are least security versions of the firmware's parts.
type TCB struct {
	Bootloader uint8 `json:"bootloader" yaml:"bootloader"`
	TEE        uint8 `json:"tee" yaml:"tee"`
	SNP        uint8 `json:"snp" yaml:"snp"`
	Microcode  uint8 `json:"microcode" yaml:"microcode"`
}

// GuestPolicy is an SEV-SNP guest policy as a number, written as hypervisors take it: "0x30000".
type GuestPolicy uint64

// String prints it as it is written.
func (g GuestPolicy) String() string { return fmt.Sprintf("%#x", uint64(g)) }

// MarshalText implements [encoding.TextMarshaler].
func (g GuestPolicy) MarshalText() ([]byte, error) { return []byte(g.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (g *GuestPolicy) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 0, 64)
	if err != nil {
		return fmt.Errorf("%.40q is not a guest policy like 0x30000", text)
	}
	*g = GuestPolicy(n)
	return nil
}

// UnmarshalYAML takes the text as it is written, with or without quotes.
func (g *GuestPolicy) UnmarshalYAML(text []byte) error {
	return g.UnmarshalText(bytes.Trim(text, " \"'\n"))
}

// Validate implements [rule.Entry].
func (s *SNP) Validate(fault rule.Fault) {
	fault.Size("measurement", s.Measurement, 48)
	fault.Size("host_data", s.HostData, 32)
	fault.Size("family_id", s.FamilyID, 16)
	fault.Size("image_id", s.ImageID, 16)
	fault.Size("id_key_digest", s.IDKeyDigest, 48)
	fault.Size("chip_id", s.ChipID, 64)
	if s.Measurement == nil {
		fault("measurement is missing")
	}
	switch {
	case s.GuestPolicy == nil:
		fault("guest_policy is missing: the host could choose one that lets it read the guest's memory")
	case uint64(*s.GuestPolicy)&attest.SNPPolicyDebug != 0 && !s.Debug:
		fault("guest_policy %s has the debug bit, but the entry does not say debug: true", s.GuestPolicy)
	}
	if s.MinTCB == nil {
		fault("min_tcb is missing: without it firmware with known holes stays accepted")
	}
	if s.MaxVMPL > 3 {
		fault("max_vmpl is %d, there are levels 0 to 3", s.MaxVMPL)
	}
}

// Type implements [rule.Entry].
func (*SNP) Type() attest.EvidenceType { return attest.SNP }

// Appraise implements [rule.Entry].
func (s *SNP) Appraise(j *rule.Judge, claims attest.Claims) {
	c := claims.Details().(*attest.SNPClaims)
	j.Equal("measurement", c.Measurement[:], s.Measurement)
	if got := GuestPolicy(c.Policy); got == *s.GuestPolicy {
		j.Rule("guest_policy", true, "%s, as wanted", got)
	} else {
		j.Rule("guest_policy", false, "%s, want %s", got, s.GuestPolicy)
	}
	j.Debug(c.Debug(), s.Debug)
	j.Strongest(bytes.Equal(c.Measurement[:], s.Measurement), c.Debug(), s.Debug)
	for _, part := range []struct {
		name        string
		got, wanted uint8
	}{
		{"bootloader", c.ReportedTCB.Bootloader, s.MinTCB.Bootloader},
		{"tee", c.ReportedTCB.TEE, s.MinTCB.TEE},
		{"snp", c.ReportedTCB.SNP, s.MinTCB.SNP},
		{"microcode", c.ReportedTCB.Microcode, s.MinTCB.Microcode},
	} {
		wanted := uint16(part.wanted)
		j.AtLeast("min_tcb."+part.name, uint16(part.got), &wanted)
	}
	if s.MinGuestSVN != nil {
		if c.GuestSVN >= *s.MinGuestSVN {
			j.Rule("min_guest_svn", true, "%d, at least %d", c.GuestSVN, *s.MinGuestSVN)
		} else {
			j.Rule("min_guest_svn", false, "%d, less than %d", c.GuestSVN, *s.MinGuestSVN)
		}
	}
	if c.VMPL <= s.MaxVMPL {
		j.Rule("max_vmpl", true, "asked at privilege level %d", c.VMPL)
	} else {
		j.Rule("max_vmpl", false, "asked at privilege level %d, accepted are levels up to %d", c.VMPL, s.MaxVMPL)
	}
	hostData(j, c.HostData, s.HostData)
	j.Equal("family_id", c.FamilyID[:], s.FamilyID)
	j.Equal("image_id", c.ImageID[:], s.ImageID)
	j.Equal("id_key_digest", c.IDKeyDigest[:], s.IDKeyDigest)
	j.Equal("chip_id", c.ChipID[:], s.ChipID)
}

func hostData(j *rule.Judge, got [32]byte, want rule.Hex) {
	switch {
	case want != nil:
		j.Equal("host_data", got[:], want)
	case got == [32]byte{}:
		j.Rule("host_data", true, "all zero, as where none is named")
	default:
		j.Rule("host_data", false, "%s, want all zero, since the policy names none", rule.Hex(got[:]))
	}
}
