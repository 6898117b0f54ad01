// Package sgxconfig holds the entry of an appraisal policy for an enclave.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning. The keys of
// policies stay.
package sgxconfig

import (
	"bytes"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy/rule"
)

// Entry describes an enclave. All fields that are set must match.
type Entry struct {
	Name         string   `json:"name,omitempty" yaml:"name,omitempty"`             // for people and logs only
	MREnclave    rule.Hex `json:"mr_enclave,omitempty" yaml:"mr_enclave,omitempty"` // 32 bytes
	MRSigner     rule.Hex `json:"mr_signer,omitempty" yaml:"mr_signer,omitempty"`   // 32 bytes
	ProductID    *uint16  `json:"product_id,omitempty" yaml:"product_id,omitempty"` // ISVPRODID
	MinSVN       *uint16  `json:"min_svn,omitempty" yaml:"min_svn,omitempty"`       // least ISVSVN
	Debug        bool     `json:"debug,omitempty" yaml:"debug,omitempty"`           // accept debug enclaves, too
	ConfigID     rule.Hex `json:"config_id,omitempty" yaml:"config_id,omitempty"`   // 64 bytes; absent: all zero
	MinConfigSVN *uint16  `json:"min_config_svn,omitempty" yaml:"min_config_svn,omitempty"`
	FamilyID     rule.Hex `json:"family_id,omitempty" yaml:"family_id,omitempty"`     // 16 bytes, ISVFAMILYID
	ExtProdID    rule.Hex `json:"ext_prod_id,omitempty" yaml:"ext_prod_id,omitempty"` // 16 bytes, ISVEXTPRODID
	// Binding is "legacy" for servers whose certificates bind their key without Sesame's label: see LegacyBindings of package attest/policy.
	Binding attest.Binding `json:"binding,omitempty" yaml:"binding,omitempty"`
}

// occlumSigner is the MRSIGNER of the key that Occlum ships for everybody (etc/template/Enclave.pem).
var occlumSigner = rule.Hex{
	0x83, 0xd7, 0x19, 0xe7, 0x7d, 0xea, 0xca, 0x14, 0x70, 0xf6, 0xba, 0xf6, 0x2a, 0x4d, 0x77, 0x43,
	0x03, 0xc8, 0x99, 0xdb, 0x69, 0x02, 0x0f, 0x9c, 0x70, 0xee, 0x1d, 0xfc, 0x08, 0xc7, 0xce, 0x9e,
}

// Validate implements [rule.Entry].
func (s *Entry) Validate(fault rule.Fault) {
	fault.Binding(s.Binding)
	fault.Size("mr_enclave", s.MREnclave, 32)
	fault.Size("mr_signer", s.MRSigner, 32)
	fault.Size("config_id", s.ConfigID, 64)
	fault.Size("family_id", s.FamilyID, 16)
	fault.Size("ext_prod_id", s.ExtProdID, 16)
	if bytes.Equal(s.MRSigner, occlumSigner) {
		fault("mr_signer %s is Occlum's default signer, whose private key is public: anyone can sign with it", s.MRSigner)
	}
	if s.MREnclave != nil {
		return
	}
	if s.MRSigner == nil {
		fault("mr_enclave is missing (or mr_signer with product_id and min_svn)")
		return
	}
	if s.ProductID == nil {
		fault("product_id is missing: mr_signer alone accepts everything that this signer ever signs")
	}
	if s.MinSVN == nil {
		fault("min_svn is missing: without it old versions stay accepted")
	}
}

// Appraise implements [rule.Entry].
func (s *Entry) Appraise(j *rule.Judge, claims attest.Claims) {
	c := claims.Details().(*attest.SGXClaims)
	j.Equal("mr_enclave", c.MREnclave[:], s.MREnclave)
	j.Equal("mr_signer", c.MRSigner[:], s.MRSigner)
	if s.ProductID != nil {
		if c.ProductID == *s.ProductID {
			j.Rule("product_id", true, "%d, as wanted", c.ProductID)
		} else {
			j.Rule("product_id", false, "%d, want %d", c.ProductID, *s.ProductID)
		}
	}
	j.AtLeast("min_svn", c.SVN, s.MinSVN)
	identity := bytes.Equal(c.MREnclave[:], s.MREnclave)
	if s.MREnclave == nil {
		identity = bytes.Equal(c.MRSigner[:], s.MRSigner)
	}
	j.Strongest(identity, c.Debug(), s.Debug)
	j.Debug(c.Debug(), s.Debug)

	kss := c.Attributes&attest.AttributeKSS != 0
	if s.ConfigID != nil || s.MinConfigSVN != nil || s.FamilyID != nil || s.ExtProdID != nil {
		if kss {
			j.Rule("kss", true, "the enclave has key separation and sharing")
		} else {
			j.Rule("kss", false, "the enclave has no key separation and sharing, so its config and family ids mean nothing")
		}
	}
	if s.ConfigID != nil {
		j.Equal("config_id", c.ConfigID[:], s.ConfigID)
	} else if c.ConfigID == [64]byte{} {
		j.Rule("config_id", true, "all zero, as where none is named")
	} else {
		j.Rule("config_id", false, "%s, want all zero, since the policy names none", rule.Hex(c.ConfigID[:]))
	}
	j.AtLeast("min_config_svn", c.ConfigSVN, s.MinConfigSVN)
	j.Equal("family_id", c.FamilyID[:], s.FamilyID)
	j.Equal("ext_prod_id", c.ExtProdID[:], s.ExtProdID)
	j.Binding(claims.Binding, s.Binding)
}

// Type implements [rule.Entry].
func (*Entry) Type() attest.EvidenceType { return attest.SGX }

// LegacyBinding implements [rule.Binder].
func (s *Entry) LegacyBinding() bool { return s.Binding != "" }
