package maa

import (
	"encoding/json"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy"
)

// condition and authority are Key Vault's release policy grammar, version 1.0.0.
type condition struct {
	Claim          string `json:"claim"`
	Equals         any    `json:"equals,omitempty"`
	GreaterOrEqual any    `json:"greaterOrEquals,omitempty"`
}

type authority struct {
	Authority string      `json:"authority"`
	AllOf     []condition `json:"allOf"`
}

// ReleasePolicy is the release policy of a vault key that only the enclaves of want open, attested by the MAA
// instance issuer. want must pin its enclaves as every policy of Sesame does; debug enclaves and the fields of key
// separation and sharing are refused, which such a policy does not express here.
func ReleasePolicy(issuer string, want []policy.SGX) ([]byte, error) {
	const step = "writing release policy"
	instance, err := serviceURL(issuer)
	if err != nil {
		return nil, attest.Errorf(attest.CodeUsage, step, "Name the MAA instance.", "authority: %w", err)
	}
	p := policy.Policy{SGX: want}
	if err := p.Validate(); err != nil {
		return nil, &attest.Error{Code: attest.CodeUsage, Step: step, Err: err}
	}
	out := struct {
		Version string      `json:"version"`
		AnyOf   []authority `json:"anyOf"`
	}{Version: "1.0.0"}
	for _, w := range want {
		if w.Debug || w.ConfigID != nil || w.MinConfigSVN != nil || w.FamilyID != nil || w.ExtProdID != nil {
			return nil, attest.Errorf(attest.CodeUsage, step, "Name the enclave by measurement, or by signer, product id and SVN.",
				"debug, config_id, min_config_svn, family_id and ext_prod_id cannot be expressed")
		}
		rules := []condition{
			{Claim: "x-ms-attestation-type", Equals: tokenTypeSGX},
			{Claim: "x-ms-sgx-is-debuggable", Equals: false},
		}
		if w.MREnclave != nil {
			rules = append(rules, condition{Claim: "x-ms-sgx-mrenclave", Equals: w.MREnclave.String()})
		}
		if w.MRSigner != nil {
			rules = append(rules, condition{Claim: "x-ms-sgx-mrsigner", Equals: w.MRSigner.String()})
		}
		if w.ProductID != nil {
			rules = append(rules, condition{Claim: "x-ms-sgx-product-id", Equals: *w.ProductID})
		}
		if w.MinSVN != nil {
			rules = append(rules, condition{Claim: "x-ms-sgx-svn", GreaterOrEqual: *w.MinSVN})
		}
		out.AnyOf = append(out.AnyOf, authority{Authority: instance.String(), AllOf: rules})
	}
	return json.MarshalIndent(out, "", "  ")
}
