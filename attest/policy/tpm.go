package policy

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/sesame-init/sesame/attest"
)

// TPM describes a machine with a TPM 2.0. All fields that are set must match. "sesame tpm enroll" prints an entry.
type TPM struct {
	Name string `json:"name,omitempty" yaml:"name,omitempty"` // for people and logs only
	// AK is the SHA-256 of the attestation key's TPMT_PUBLIC (its TPM name without the algorithm): this key of this
	// machine.
	AK Hex `json:"ak,omitempty" yaml:"ak,omitempty"`
	// EK is the SHA-256 of the endorsement key's DER SubjectPublicKeyInfo.
	EK Hex `json:"ek,omitempty" yaml:"ek,omitempty"`
	// EKRoots are SHA-256 fingerprints of root certificates, to one of which the EK's certificate must chain: any
	// machine whose TPM a vendor vouches for.
	EKRoots []Hex `json:"ek_roots,omitempty" yaml:"ek_roots,omitempty"`
	// Wrap makes the broker encrypt every released secret to the EK and to PCRs, so that only this TPM, while its
	// registers have these values, opens it. An entry without AK needs it.
	Wrap bool `json:"wrap,omitempty" yaml:"wrap,omitempty"`
	// PCRs are the registers of the SHA-256 bank by index, 32 bytes each. All of them must have been quoted.
	PCRs PCRs `json:"pcrs,omitempty" yaml:"pcrs,omitempty"`
	// SecureBoot demands a firmware log that replays to the quoted registers and says that Secure Boot was on.
	SecureBoot bool `json:"secure_boot,omitempty" yaml:"secure_boot,omitempty"`
}

// PCRs are values of registers by index.
type PCRs map[int]Hex

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

func (t *TPM) validate(fault faultFunc) {
	fault.size("ak", t.AK, 32)
	fault.size("ek", t.EK, 32)
	for _, root := range t.EKRoots {
		fault.size("ek_roots", root, 32)
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

func (t *TPM) appraise(j *judge, c *attest.TPMClaims) {
	j.equal("ak", c.AK[:], t.AK)
	j.equal("ek", c.EK[:], t.EK)
	j.strongest(bytes.Equal(c.AK[:], t.AK), false, false)
	if t.Challenged() {
		j.challenged(c)
		j.strongest(c.EKProved && t.endorsed(c), false, false)
	}
	if len(t.EKRoots) > 0 {
		root := Hex(c.EKRoot[:])
		switch {
		case c.EKRoot == [32]byte{}:
			j.rule("ek_roots", false, "the endorsement key has no certificate with a complete chain")
		case slices.ContainsFunc(t.EKRoots, func(want Hex) bool { return bytes.Equal(want, root) }):
			j.rule("ek_roots", true, "%s, as wanted", root)
		default:
			j.rule("ek_roots", false, "%s, want %s", root, joinHex(t.EKRoots))
		}
	}
	if t.Wrap {
		if len(c.EKPublic) > 0 {
			j.rule("wrap", true, "the evidence names an endorsement key to encrypt to")
		} else {
			j.rule("wrap", false, "the evidence names no endorsement key to encrypt to")
		}
	}
	for _, i := range slices.Sorted(maps.Keys(t.PCRs)) {
		name := "pcrs." + strconv.Itoa(i)
		if got, ok := c.PCRs[i]; ok {
			j.equal(name, got[:], t.PCRs[i])
		} else {
			j.rule(name, false, "not quoted, want %s", t.PCRs[i])
		}
	}
	if t.SecureBoot {
		switch {
		case !c.EventLog:
			j.rule("secure_boot", false, "there is no firmware log that replays to the quoted registers")
		case !c.SecureBoot:
			j.rule("secure_boot", false, "off")
		default:
			j.rule("secure_boot", true, "on")
		}
	}
}

// Challenged reports whether only the answer to a challenge proves the entry: it names the endorsement key or its roots,
// and evidence is signed by another key.
func (t *TPM) Challenged() bool { return t.AK == nil }

// endorsed reports whether claims have the endorsement key that the entry names.
func (t *TPM) endorsed(c *attest.TPMClaims) bool {
	return (t.EK == nil || bytes.Equal(c.EK[:], t.EK)) &&
		(len(t.EKRoots) == 0 || slices.ContainsFunc(t.EKRoots, func(root Hex) bool { return bytes.Equal(c.EKRoot[:], root) }))
}

func (j *judge) challenged(c *attest.TPMClaims) {
	if c.EKProved {
		j.rule("challenge", true, "the TPM proves that it holds both the attestation key and the endorsement key")
	} else {
		j.rule("challenge", false, "nothing proves yet that the attestation key and the endorsement key are of one TPM")
	}
}

func joinHex(all []Hex) string {
	texts := make([]string, len(all))
	for i, h := range all {
		texts[i] = h.String()
	}
	return strings.Join(texts, " or ")
}
