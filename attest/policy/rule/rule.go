// Package rule holds what entries of an appraisal policy are made of: byte strings in hexadecimal, rules that say why, and the
// interface of an entry. Each attester's package has its own entry; attest/policy lists them.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning.
package rule

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/sesame-init/sesame/attest"
)

// An Entry describes environments of one type of evidence. It is a struct whose members have names in JSON and YAML.
type Entry interface {
	// Type is the type of evidence, and the key of such entries in a policy.
	Type() attest.EvidenceType
	// Validate reports what keeps the entry from pinning an environment.
	Validate(fault Fault)
	// Appraise judges claims whose details have the entry's type, rule by rule. It is called for entries that Validate has no
	// fault with.
	Appraise(j *Judge, c attest.Claims)
}

// A Server is an [Entry] with more to say about a policy that judges a server.
type Server interface {
	// ValidateServer reports what a server cannot prove, or what has no meaning for one.
	ValidateServer(fault Fault)
}

// A Binder is an [Entry] for environments whose certificates bind a key in one of several forms.
type Binder interface {
	// LegacyBinding reports whether the entry takes certificates that bind their key without Sesame's label.
	LegacyBinding() bool
}

// Reason is what one rule said.
type Reason struct {
	Rule   string `json:"rule"` // the place of the rule in the policy: "sgx[0].mr_enclave", "tcb.accept"
	Passed bool   `json:"passed"`
	Text   string `json:"text"` // what was compared, in a form to show to people
}

// Fault reports one thing that is wrong with an entry. The text begins with the key below the entry.
type Fault func(format string, args ...any)

// Size reports a byte string that is named and has another size than want bytes.
func (f Fault) Size(name string, h Hex, want int) {
	if h != nil && len(h) != want {
		f("%s has %d bytes, want %d", name, len(h), want)
	}
}

// Binding reports a form of binding that an entry cannot ask for.
func (f Fault) Binding(b attest.Binding) {
	if b != "" && b != attest.BindingLegacy {
		f(`binding is %.20q, want "legacy" or nothing`, b)
	}
}

// Judge collects the reasons for one entry or for the TCB.
type Judge struct {
	// Prefix is that of the rules: "sgx[0].".
	Prefix  string
	Reasons []Reason
	// Failed is set once a rule has failed.
	Failed bool
	// Proved is set if the claims have the entry's strongest identity: see [Judge.Strongest].
	Proved bool
	// Wrap is what the entry demands of a release: to encrypt it to the TPM's endorsement key and to these registers.
	Wrap []int
}

// Strongest notes whether the claims have the entry's strongest identity. Code in a debug environment is not what its
// measurement says.
func (j *Judge) Strongest(same, debug, accepted bool) { j.Proved = same && (!debug || accepted) }

// Rule adds what one rule says. format and args make the text that is shown to people.
func (j *Judge) Rule(name string, passed bool, format string, args ...any) {
	j.Reasons = append(j.Reasons, Reason{Rule: j.Prefix + name, Passed: passed, Text: fmt.Sprintf(format, args...)})
	j.Failed = j.Failed || !passed
}

// Equal is the rule that a byte string has a value. It says nothing of one that the entry does not name.
func (j *Judge) Equal(name string, got []byte, want Hex) {
	if want == nil {
		return
	}
	if bytes.Equal(got, want) {
		j.Rule(name, true, "%s, as wanted", want)
	} else {
		j.Rule(name, false, "%s, want %s", Hex(got), want)
	}
}

// AtLeast is [Judge.Minimum] for a number that the entry may leave out.
func (j *Judge) AtLeast(name string, got uint16, want *uint16) {
	if want != nil {
		j.Minimum(name, uint64(got), uint64(*want))
	}
}

// Minimum is the rule that a number is at least another.
func (j *Judge) Minimum(name string, got, want uint64) {
	if got >= want {
		j.Rule(name, true, "%d, at least %d", got, want)
	} else {
		j.Rule(name, false, "%d, less than %d", got, want)
	}
}

// Debug is the rule about debug environments.
func (j *Judge) Debug(is, accepted bool) {
	switch {
	case !is:
		j.Rule("debug", true, "not a debug environment")
	case accepted:
		j.Rule("debug", true, "a debug environment, which the policy accepts")
	default:
		j.Rule("debug", false, "a debug environment: the host reads its memory")
	}
}

// Binding judges the form of a certificate, if the evidence came in one that is a matter of policy.
func (j *Judge) Binding(got, want attest.Binding) {
	switch {
	case got == "":
	case want == "" && got == attest.BindingApplication:
		j.Rule("binding", true, "the certificate has the label of an application")
	case want == "":
		j.Rule("binding", false, "the certificate binds its key without Sesame's label, as Occlum's, Gramine's and older images' do; "+
			"an entry that means those says binding: legacy")
	case got == want:
		j.Rule("binding", true, "%s, as wanted", got)
	default:
		j.Rule("binding", false, "the certificate has the label of an application, and the entry takes those without; leave binding out")
	}
}

// Hex is a byte string that reads and prints as hexadecimal digits of either case. Nil means: not named, as does
// null in YAML.
type Hex []byte

// String prints lower-case digits.
func (h Hex) String() string { return hex.EncodeToString(h) }

// MarshalText implements [encoding.TextMarshaler].
func (h Hex) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler]. An empty string is an error: a measurement that is
// named must have a value.
func (h *Hex) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) == 0 {
		return fmt.Errorf("%q is not a string of hexadecimal digits", text)
	}
	*h = b
	return nil
}

// UnmarshalJSON refuses null, which [json.Unmarshal] would else take for a field that is not named.
func (h *Hex) UnmarshalJSON(text []byte) error {
	var s string
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	return h.UnmarshalText([]byte(s))
}

// UnmarshalYAML takes the text as it is written: digits without quotes are no number.
func (h *Hex) UnmarshalYAML(text []byte) error {
	return h.UnmarshalText(bytes.Trim(text, " \"'\n"))
}
