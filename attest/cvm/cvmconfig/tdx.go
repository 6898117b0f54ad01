// Package cvmconfig holds the entries of an appraisal policy for confidential VMs: trust domains of TDX and guests of SEV-SNP.
// It needs nothing that verifies evidence, so that every program can read a policy.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning. The keys of
// policies stay.
package cvmconfig

import (
	"bytes"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy/rule"
)

// TDX describes a trust domain. All fields that are set must match.
type TDX struct {
	Name          string   `json:"name,omitempty" yaml:"name,omitempty"`   // for people and logs only
	MRTD          rule.Hex `json:"mr_td,omitempty" yaml:"mr_td,omitempty"` // 48 bytes, as all that follow
	RTMR0         rule.Hex `json:"rtmr0,omitempty" yaml:"rtmr0,omitempty"`
	RTMR1         rule.Hex `json:"rtmr1,omitempty" yaml:"rtmr1,omitempty"`
	RTMR2         rule.Hex `json:"rtmr2,omitempty" yaml:"rtmr2,omitempty"`
	RTMR3         rule.Hex `json:"rtmr3,omitempty" yaml:"rtmr3,omitempty"`
	MRSeam        rule.Hex `json:"mr_seam,omitempty" yaml:"mr_seam,omitempty"`
	MRConfigID    rule.Hex `json:"mr_config_id,omitempty" yaml:"mr_config_id,omitempty"`
	MROwner       rule.Hex `json:"mr_owner,omitempty" yaml:"mr_owner,omitempty"`
	MROwnerConfig rule.Hex `json:"mr_owner_config,omitempty" yaml:"mr_owner_config,omitempty"`
	Debug         bool     `json:"debug,omitempty" yaml:"debug,omitempty"` // accept debug trust domains, too
	// Binding is as in the entry of an enclave.
	Binding attest.Binding `json:"binding,omitempty" yaml:"binding,omitempty"`
}

// Validate implements [rule.Entry].
func (t *TDX) Validate(fault rule.Fault) {
	fault.Binding(t.Binding)
	if t.MRTD == nil {
		fault("mr_td is missing")
	}
	for _, m := range t.measurements(&attest.TDXClaims{}) {
		fault.Size(m.name, m.want, 48)
	}
}

type measurement struct {
	name string
	got  []byte
	want rule.Hex
}

func (t *TDX) measurements(c *attest.TDXClaims) []measurement {
	return []measurement{
		{"mr_td", c.MRTD[:], t.MRTD},
		{"rtmr0", c.RTMR[0][:], t.RTMR0},
		{"rtmr1", c.RTMR[1][:], t.RTMR1},
		{"rtmr2", c.RTMR[2][:], t.RTMR2},
		{"rtmr3", c.RTMR[3][:], t.RTMR3},
		{"mr_seam", c.MRSeam[:], t.MRSeam},
		{"mr_config_id", c.MRConfigID[:], t.MRConfigID},
		{"mr_owner", c.MROwner[:], t.MROwner},
		{"mr_owner_config", c.MROwnerConfig[:], t.MROwnerConfig},
	}
}

// Appraise implements [rule.Entry].
func (t *TDX) Appraise(j *rule.Judge, claims attest.Claims) {
	c := claims.Details().(*attest.TDXClaims)
	for _, m := range t.measurements(c) {
		j.Equal(m.name, m.got, m.want)
	}
	j.Debug(c.Debug(), t.Debug)
	j.Strongest(bytes.Equal(c.MRTD[:], t.MRTD), c.Debug(), t.Debug)
	j.Binding(claims.Binding, t.Binding)
}

// Type implements [rule.Entry].
func (*TDX) Type() attest.EvidenceType { return attest.TDX }

// LegacyBinding implements [rule.Binder].
func (t *TDX) LegacyBinding() bool { return t.Binding != "" }
