// Package tpmconfig is what policies and configs say of a machine with a TPM: the entry of an appraisal policy, and the settings
// with which init opens the TPM. It needs nothing that talks to a TPM or verifies evidence, so that every program can read them.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning. The keys of
// policies and of init's config stay.
package tpmconfig

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy/rule"
)

// Entry describes a machine with a TPM 2.0. All fields that are set must match. "sesame tpm enroll" prints an entry.
type Entry struct {
	Name string `json:"name,omitempty" yaml:"name,omitempty"` // for people and logs only
	// AK is the SHA-256 of the attestation key's TPMT_PUBLIC (its TPM name without the algorithm): this key of this
	// machine.
	AK rule.Hex `json:"ak,omitempty" yaml:"ak,omitempty"`
	// EK is the SHA-256 of the endorsement key's DER SubjectPublicKeyInfo.
	EK rule.Hex `json:"ek,omitempty" yaml:"ek,omitempty"`
	// EKRoots are SHA-256 fingerprints of root certificates, to one of which the EK's certificate must chain: any
	// machine whose TPM a vendor vouches for.
	EKRoots []rule.Hex `json:"ek_roots,omitempty" yaml:"ek_roots,omitempty"`
	// Wrap makes the broker encrypt every released secret to the EK and to PCRs, so that only this TPM, while its
	// registers have these values, opens it. An entry without AK needs it.
	Wrap bool `json:"wrap,omitempty" yaml:"wrap,omitempty"`
	// PCRs are the registers of the SHA-256 bank by index, 32 bytes each. All of them must have been quoted.
	PCRs PCRs `json:"pcrs,omitempty" yaml:"pcrs,omitempty"`
	// SecureBoot demands a firmware log that replays to the quoted registers and says that Secure Boot was on.
	SecureBoot bool `json:"secure_boot,omitempty" yaml:"secure_boot,omitempty"`
}

// PCRs are values of registers by index.
type PCRs map[int]rule.Hex

// MarshalYAML writes the indexes as numbers, as they are read.
func (p PCRs) MarshalYAML() ([]byte, error) {
	var b []byte
	for _, i := range slices.Sorted(maps.Keys(p)) {
		b = fmt.Appendf(b, "%d: %q\n", i, p[i].String())
	}
	return b, nil
}

// PCRCount is the number of registers that a bank has.
const PCRCount = 24

// Validate implements [rule.Entry].
func (t *Entry) Validate(fault rule.Fault) {
	fault.Size("ak", t.AK, 32)
	fault.Size("ek", t.EK, 32)
	for _, root := range t.EKRoots {
		fault.Size("ek_roots", root, 32)
	}
	if len(t.PCRs) == 0 {
		fault("pcrs is missing: a key alone does not say what has been booted")
	}
	for _, i := range slices.Sorted(maps.Keys(t.PCRs)) {
		name := "pcrs." + strconv.Itoa(i)
		if i < 0 || i >= PCRCount {
			fault("%s: there are registers 0 to %d", name, PCRCount-1)
		}
		if len(t.PCRs[i]) != 32 {
			fault("%s has %d bytes, want 32", name, len(t.PCRs[i]))
		}
	}
	switch {
	case t.AK == nil && t.EK == nil && len(t.EKRoots) == 0:
		fault("ak is missing (or ek or ek_roots, with wrap: true)")
	case t.AK == nil && !t.Wrap:
		fault("wrap is missing: evidence does not prove that its key lives beside the endorsement key, " +
			"only encrypting to the latter binds a release to it")
	case t.Wrap && t.EK == nil && len(t.EKRoots) == 0:
		fault("wrap needs ek or ek_roots: else the machine itself names the key to encrypt to")
	}
}

// Type implements [rule.Entry].
func (*Entry) Type() attest.EvidenceType { return attest.TPM }

// ValidateServer implements [rule.Server].
func (t *Entry) ValidateServer(fault rule.Fault) {
	switch {
	case t.Challenged():
		fault("ak is missing: a server is not challenged, so ek and ek_roots prove nothing of it")
	case t.Wrap:
		fault("wrap says how secrets are released, and nothing is released to a server")
	}
}

// Appraise implements [rule.Entry].
func (t *Entry) Appraise(j *rule.Judge, claims attest.Claims) {
	c := claims.Details().(*attest.TPMClaims)
	j.Equal("ak", c.AK[:], t.AK)
	j.Equal("ek", c.EK[:], t.EK)
	j.Strongest(bytes.Equal(c.AK[:], t.AK), false, false)
	if t.Challenged() {
		challenged(j, c)
		j.Strongest(c.EKProved && t.endorsed(c), false, false)
	}
	if len(t.EKRoots) > 0 {
		root := rule.Hex(c.EKRoot[:])
		switch {
		case c.EKRoot == [32]byte{}:
			j.Rule("ek_roots", false, "the endorsement key has no certificate with a complete chain")
		case slices.ContainsFunc(t.EKRoots, func(want rule.Hex) bool { return bytes.Equal(want, root) }):
			j.Rule("ek_roots", true, "%s, as wanted", root)
		default:
			j.Rule("ek_roots", false, "%s, want %s", root, joinHex(t.EKRoots))
		}
	}
	if t.Wrap {
		j.Wrap = slices.Sorted(maps.Keys(t.PCRs))
		if len(c.EKPublic) > 0 {
			j.Rule("wrap", true, "the evidence names an endorsement key to encrypt to")
		} else {
			j.Rule("wrap", false, "the evidence names no endorsement key to encrypt to")
		}
	}
	for _, i := range slices.Sorted(maps.Keys(t.PCRs)) {
		name := "pcrs." + strconv.Itoa(i)
		if got, ok := c.PCRs[i]; ok {
			j.Equal(name, got[:], t.PCRs[i])
		} else {
			j.Rule(name, false, "not quoted, want %s", t.PCRs[i])
		}
	}
	if t.SecureBoot {
		switch {
		case !c.EventLog:
			j.Rule("secure_boot", false, "there is no firmware log that replays to the quoted registers")
		case !c.SecureBoot:
			j.Rule("secure_boot", false, "off")
		default:
			j.Rule("secure_boot", true, "on")
		}
	}
}

// Challenged reports whether only the answer to a challenge proves the entry: it names the endorsement key or its roots,
// and evidence is signed by another key.
func (t *Entry) Challenged() bool { return t.AK == nil }

// endorsed reports whether claims have the endorsement key that the entry names.
func (t *Entry) endorsed(c *attest.TPMClaims) bool {
	return (t.EK == nil || bytes.Equal(c.EK[:], t.EK)) &&
		(len(t.EKRoots) == 0 || slices.ContainsFunc(t.EKRoots, func(root rule.Hex) bool { return bytes.Equal(c.EKRoot[:], root) }))
}

func challenged(j *rule.Judge, c *attest.TPMClaims) {
	if c.EKProved {
		j.Rule("challenge", true, "the TPM proves that it holds both the attestation key and the endorsement key")
	} else {
		j.Rule("challenge", false, "nothing proves yet that the attestation key and the endorsement key are of one TPM")
	}
}

func joinHex(all []rule.Hex) string {
	texts := make([]string, len(all))
	for i, h := range all {
		texts[i] = h.String()
	}
	return strings.Join(texts, " or ")
}
