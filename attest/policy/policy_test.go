package policy_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/edgelesssys/ego/attestation/tcbstatus"
	"github.com/goccy/go-yaml"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy"
)

var at = time.Date(2026, 1, 15, 0, 0, 0, 0, time.UTC)

func number(n uint16) *uint16 { return &n }

func repeat(b byte, n int) policy.Hex { return bytes.Repeat([]byte{b}, n) }

// enclave are claims that every policy below is about.
func enclave() attest.Claims {
	return attest.Claims{
		Type: attest.SGX,
		SGX: &attest.SGXClaims{
			MREnclave: [32]byte(repeat(1, 32)), MRSigner: [32]byte(repeat(2, 32)), ProductID: 3, SVN: 4,
			Attributes: attest.AttributeInit | attest.AttributeMode64Bit,
		},
		TCB: attest.TCB{
			Status: tcbstatus.UpToDate, EvaluationNumber: 17, Date: at.AddDate(0, -3, 0),
			Advisories: []string{"INTEL-SA-00001", "INTEL-SA-00002"},
		},
	}
}

func domain() attest.Claims {
	c := enclave()
	c.Type, c.SGX = attest.TDX, nil
	c.TDX = &attest.TDXClaims{MRTD: [48]byte(repeat(1, 48)), RTMR: [4][48]byte{2: [48]byte(repeat(2, 48))}}
	return c
}

func TestRules(t *testing.T) {
	pinned := policy.SGX{MREnclave: repeat(1, 32)}
	signed := policy.SGX{MRSigner: repeat(2, 32), ProductID: number(3), MinSVN: number(4)}
	for _, test := range []struct {
		name   string
		policy policy.Policy
		claims func() attest.Claims
		change func(*attest.Claims)
		failed string // the rules that fail; "" for an accepted appraisal
	}{
		{"enclave", policy.Policy{SGX: []policy.SGX{pinned}}, enclave, nil, ""},
		{"other enclave", policy.Policy{SGX: []policy.SGX{pinned}}, enclave,
			func(c *attest.Claims) { c.SGX.MREnclave[31]++ }, "sgx[0].mr_enclave"},
		{"signer, product, version", policy.Policy{SGX: []policy.SGX{signed}}, enclave, nil, ""},
		{"newer version", policy.Policy{SGX: []policy.SGX{signed}}, enclave, func(c *attest.Claims) { c.SGX.SVN = 500 }, ""},
		{"older version", policy.Policy{SGX: []policy.SGX{signed}}, enclave,
			func(c *attest.Claims) { c.SGX.SVN = 3 }, "sgx[0].min_svn"},
		{"other product", policy.Policy{SGX: []policy.SGX{signed}}, enclave,
			func(c *attest.Claims) { c.SGX.ProductID = 4 }, "sgx[0].product_id"},
		{"other signer", policy.Policy{SGX: []policy.SGX{signed}}, enclave,
			func(c *attest.Claims) { c.SGX.MRSigner[0]++ }, "sgx[0].mr_signer"},
		{"any of the entries", policy.Policy{SGX: []policy.SGX{{MREnclave: repeat(9, 32)}, signed}}, enclave, nil, ""},
		{"none of the entries", policy.Policy{SGX: []policy.SGX{{MREnclave: repeat(9, 32)}, {MREnclave: repeat(8, 32)}}}, enclave, nil,
			"sgx[0].mr_enclave sgx[1].mr_enclave"},
		{"debug", policy.Policy{SGX: []policy.SGX{pinned}}, enclave,
			func(c *attest.Claims) { c.SGX.Attributes |= attest.AttributeDebug }, "sgx[0].debug"},
		{"debug named", policy.Policy{SGX: []policy.SGX{{MREnclave: repeat(1, 32), Debug: true}}}, enclave,
			func(c *attest.Claims) { c.SGX.Attributes |= attest.AttributeDebug }, ""},

		{"config id that nobody named", policy.Policy{SGX: []policy.SGX{pinned}}, enclave,
			func(c *attest.Claims) { c.SGX.ConfigID[63] = 1 }, "sgx[0].config_id"},
		{"config id", policy.Policy{SGX: []policy.SGX{{MREnclave: repeat(1, 32), ConfigID: repeat(5, 64), MinConfigSVN: number(2)}}}, enclave,
			func(c *attest.Claims) {
				c.SGX.ConfigID, c.SGX.ConfigSVN = [64]byte(repeat(5, 64)), 2
				c.SGX.Attributes |= attest.AttributeKSS
			}, ""},
		{"config id without KSS", policy.Policy{SGX: []policy.SGX{{MREnclave: repeat(1, 32), ConfigID: repeat(5, 64)}}}, enclave,
			func(c *attest.Claims) { c.SGX.ConfigID = [64]byte(repeat(5, 64)) }, "sgx[0].kss"},
		{"other config id and version", policy.Policy{SGX: []policy.SGX{
			{MREnclave: repeat(1, 32), ConfigID: repeat(5, 64), MinConfigSVN: number(2)}}}, enclave,
			func(c *attest.Claims) { c.SGX.Attributes |= attest.AttributeKSS }, "sgx[0].config_id sgx[0].min_config_svn"},
		{"family and product", policy.Policy{SGX: []policy.SGX{
			{MREnclave: repeat(1, 32), FamilyID: repeat(6, 16), ExtProdID: repeat(7, 16)}}}, enclave,
			func(c *attest.Claims) {
				c.SGX.FamilyID, c.SGX.ExtProdID = [16]byte(repeat(6, 16)), [16]byte(repeat(8, 16))
				c.SGX.Attributes |= attest.AttributeKSS
			}, "sgx[0].ext_prod_id"},

		{"trust domain", policy.Policy{TDX: []policy.TDX{{MRTD: repeat(1, 48), RTMR2: repeat(2, 48)}}}, domain, nil, ""},
		{"other trust domain", policy.Policy{TDX: []policy.TDX{{MRTD: repeat(9, 48), RTMR1: repeat(2, 48)}}}, domain, nil,
			"tdx[0].mr_td tdx[0].rtmr1"},
		{"debug trust domain", policy.Policy{TDX: []policy.TDX{{MRTD: repeat(1, 48)}}}, domain,
			func(c *attest.Claims) { c.TDX.Attributes = 1 }, "tdx[0].debug"},
		{"evidence that no entry is about", policy.Policy{SGX: []policy.SGX{pinned}}, domain, nil, "tdx"},
		{"claims without a body", policy.Policy{SGX: []policy.SGX{pinned}}, enclave, func(c *attest.Claims) { c.SGX = nil }, "sgx"},
		{"policy that pins nothing", policy.Policy{SGX: []policy.SGX{{}}}, enclave, nil, "policy"},

		{"status that is not named", policy.Policy{SGX: []policy.SGX{pinned}}, enclave,
			func(c *attest.Claims) { c.TCB.Status = tcbstatus.SWHardeningNeeded }, "tcb.accept"},
		{"status that is named", policy.Policy{SGX: []policy.SGX{pinned}, TCB: policy.TCB{Accept: []string{"SWHardeningNeeded"}}}, enclave,
			func(c *attest.Claims) { c.TCB.Status = tcbstatus.SWHardeningNeeded }, ""},
		{"a list is the whole list", policy.Policy{SGX: []policy.SGX{pinned}, TCB: policy.TCB{Accept: []string{"OutOfDate"}}}, enclave,
			nil, "tcb.accept"},
		{"relaunch by the name UpToDate", policy.Policy{SGX: []policy.SGX{pinned}}, enclave,
			func(c *attest.Claims) { c.TCB.RelaunchAdvised = true }, "tcb.accept"},
		{"relaunch by its name", policy.Policy{SGX: []policy.SGX{pinned}, TCB: policy.TCB{Accept: []string{"TDRelaunchAdvised"}}}, enclave,
			func(c *attest.Claims) { c.TCB.RelaunchAdvised = true }, ""},
		{"revoked", policy.Policy{SGX: []policy.SGX{pinned}, TCB: policy.TCB{Accept: everything}}, enclave,
			func(c *attest.Claims) { c.TCB.Status = tcbstatus.Revoked }, "tcb.accept"},
		{"unknown", policy.Policy{SGX: []policy.SGX{pinned}, TCB: policy.TCB{Accept: everything}}, enclave,
			func(c *attest.Claims) { c.TCB.Status = tcbstatus.Unknown }, "tcb.accept"},

		{"advisories", policy.Policy{SGX: []policy.SGX{pinned}, TCB: policy.TCB{
			Advisories: []string{"INTEL-SA-00002", "INTEL-SA-00001", "INTEL-SA-00003"}}}, enclave, nil, ""},
		{"advisory that is not named", policy.Policy{SGX: []policy.SGX{pinned}, TCB: policy.TCB{Advisories: []string{"INTEL-SA-00002"}}}, enclave,
			nil, "tcb.advisories"},
		{"an empty list of advisories allows none", policy.Policy{SGX: []policy.SGX{pinned}, TCB: policy.TCB{Advisories: []string{}}}, enclave,
			nil, "tcb.advisories"},
		{"within grace", policy.Policy{SGX: []policy.SGX{pinned}, TCB: policy.TCB{
			Accept: []string{"OutOfDate"}, GracePeriod: grace(policy.Duration(100 * 24 * time.Hour))}}, enclave,
			func(c *attest.Claims) { c.TCB.Status = tcbstatus.OutOfDate }, ""},
		{"after grace", policy.Policy{SGX: []policy.SGX{pinned}, TCB: policy.TCB{
			Accept: []string{"OutOfDate"}, GracePeriod: grace(policy.Duration(24 * time.Hour))}}, enclave,
			func(c *attest.Claims) { c.TCB.Status = tcbstatus.OutOfDate }, "tcb.grace_period"},
		{"after grace, by the dates of the collateral", policy.Policy{SGX: []policy.SGX{pinned}, TCB: policy.TCB{
			Accept: []string{"OutOfDate"}, GracePeriod: grace(policy.Duration(100 * 24 * time.Hour))}}, enclave,
			func(c *attest.Claims) { c.TCB.Status, c.TCB.VerifiedAt = tcbstatus.OutOfDate, at.AddDate(1, 0, 0) },
			"tcb.grace_period"},
		{"evaluation reached", policy.Policy{SGX: []policy.SGX{pinned}, TCB: policy.TCB{MinimumEvaluation: 17}}, enclave, nil, ""},
		{"old evaluation", policy.Policy{SGX: []policy.SGX{pinned}, TCB: policy.TCB{MinimumEvaluation: 18}}, enclave, nil,
			"tcb.minimum_evaluation"},
		{"CRL numbers reached", policy.Policy{SGX: []policy.SGX{pinned}, TCB: policy.TCB{MinimumRootCRL: 3, MinimumPCKCRL: 4}}, enclave,
			func(c *attest.Claims) { c.TCB.RootCRLNumber, c.TCB.PCKCRLNumber = 3, 4 }, ""},
		{"old CRLs", policy.Policy{SGX: []policy.SGX{pinned}, TCB: policy.TCB{MinimumRootCRL: 4, MinimumPCKCRL: 5}}, enclave,
			func(c *attest.Claims) { c.TCB.RootCRLNumber, c.TCB.PCKCRLNumber = 3, 4 },
			"tcb.minimum_root_crl tcb.minimum_pck_crl"},
		{"all faults at once", policy.Policy{SGX: []policy.SGX{pinned}, TCB: policy.TCB{MinimumEvaluation: 18}}, enclave,
			func(c *attest.Claims) { c.SGX.MREnclave[0], c.TCB.Status = 9, tcbstatus.OutOfDate },
			"sgx[0].mr_enclave tcb.accept tcb.minimum_evaluation"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := test.claims()
			if test.change != nil {
				test.change(&c)
			}
			a := test.policy.Appraise(c, at)
			var failed []string
			for _, r := range a.Reasons {
				if r.Rule == "" || r.Text == "" {
					t.Errorf("a reason says nothing: %+v", r)
				}
				if !r.Passed {
					failed = append(failed, r.Rule)
				}
			}
			if got := strings.Join(failed, " "); got != test.failed {
				t.Errorf("failed are %q, want %q: %+v", got, test.failed, a.Reasons)
			}
			if a.Accepted != (test.failed == "") || (a.Err() == nil) != a.Accepted || a.Accepted && len(a.Reasons) < 4 {
				t.Errorf("accepted is %t with error %v and %d reasons", a.Accepted, a.Err(), len(a.Reasons))
			}
			for _, rule := range failed {
				if attest.CodeOf(a.Err()) != attest.CodePolicy || !strings.Contains(a.Err().Error(), rule+": ") {
					t.Errorf("error %v does not give %s", a.Err(), rule)
				}
			}
		})
	}
}

// everything is all that a policy can accept.
var everything = []string{
	"UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate",
	"OutOfDateConfigurationNeeded", "TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded",
}

func TestPoliciesThatPinTooLittleDoNotValidate(t *testing.T) {
	occlum := policy.Hex{}
	if err := occlum.UnmarshalText([]byte("83d719e77deaca1470f6baf62a4d774303c899db69020f9c70ee1dfc08c7ce9e")); err != nil {
		t.Fatal(err)
	}
	enclave := policy.SGX{MREnclave: repeat(1, 32)}
	for _, test := range []struct {
		name   string
		policy policy.Policy
		want   string
	}{
		{"nothing", policy.Policy{}, "neither sgx nor tdx, snp or tpm"},
		{"empty entry", policy.Policy{SGX: []policy.SGX{{}}}, "sgx[0].mr_enclave is missing"},
		{"signer alone", policy.Policy{SGX: []policy.SGX{enclave, {MRSigner: repeat(1, 32)}}}, "sgx[1].product_id is missing"},
		{"signer and product", policy.Policy{SGX: []policy.SGX{{MRSigner: repeat(1, 32), ProductID: number(0)}}}, "sgx[0].min_svn is missing"},
		{"Occlum's signer", policy.Policy{SGX: []policy.SGX{{MRSigner: occlum, ProductID: number(1), MinSVN: number(1)}}}, "private key is public"},
		{"Occlum's signer beside an enclave", policy.Policy{SGX: []policy.SGX{{MREnclave: repeat(1, 32), MRSigner: occlum}}}, "private key is public"},
		{"short measurement", policy.Policy{SGX: []policy.SGX{{MREnclave: repeat(1, 31)}}}, "mr_enclave has 31 bytes, want 32"},
		{"empty measurement", policy.Policy{SGX: []policy.SGX{{MREnclave: policy.Hex{}}}}, "mr_enclave has 0 bytes, want 32"},
		{"short config id", policy.Policy{SGX: []policy.SGX{{MREnclave: repeat(1, 32), ConfigID: repeat(1, 32)}}}, "config_id has 32"},
		{"trust domain", policy.Policy{TDX: []policy.TDX{{RTMR0: repeat(1, 48)}}}, "tdx[0].mr_td is missing"},
		{"trust domain, short", policy.Policy{TDX: []policy.TDX{{MRTD: repeat(1, 32)}}}, "tdx[0].mr_td has 32 bytes"},
		{"revoked", policy.Policy{SGX: []policy.SGX{enclave}, TCB: policy.TCB{Accept: []string{"Revoked"}}}, `tcb.accept: "Revoked"`},
		{"misspelled", policy.Policy{SGX: []policy.SGX{enclave}, TCB: policy.TCB{Accept: []string{"Uptodate"}}}, `"Uptodate" is not one of`},
		{"grace for nothing", policy.Policy{SGX: []policy.SGX{enclave}, TCB: policy.TCB{GracePeriod: grace(policy.Duration(1))}}, "limits nothing"},
	} {
		err := test.policy.Validate()
		if attest.CodeOf(err) != attest.CodeConfig || err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error is %v, want %q of code config", test.name, err, test.want)
		}
	}
	both := policy.Policy{SGX: []policy.SGX{{}}, TDX: []policy.TDX{{}}}
	if err := both.Validate(); !strings.Contains(err.Error(), "sgx[0]") || !strings.Contains(err.Error(), "tdx[0]") {
		t.Errorf("%v does not say everything at once", err)
	}
	for _, good := range []policy.Policy{
		{SGX: []policy.SGX{enclave}},
		{SGX: []policy.SGX{{MRSigner: repeat(1, 32), ProductID: number(0), MinSVN: number(0)}}},
		{TDX: []policy.TDX{{MRTD: repeat(1, 48)}}, TCB: policy.TCB{Accept: everything, GracePeriod: grace(policy.Duration(1))}},
	} {
		if err := good.Validate(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
}

const text = `
sgx:
  - name: broker
    mr_signer: 0202020202020202020202020202020202020202020202020202020202020202
    product_id: 3
    min_svn: 4
  - mr_enclave: "0101010101010101010101010101010101010101010101010101010101010101"
    debug: true
tdx:
  - mr_td: ABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABAB
tcb:
  accept: [UpToDate, OutOfDate]
  advisories: [INTEL-SA-00001]
  grace_period: 30d
  minimum_evaluation: 17
`

func TestYAMLAndJSONSayTheSame(t *testing.T) {
	var fromYAML policy.Policy
	if err := yaml.NewDecoder(strings.NewReader(text), yaml.Strict()).Decode(&fromYAML); err != nil {
		t.Fatal(err)
	}
	if err := fromYAML.Validate(); err != nil {
		t.Fatal(err)
	}
	encoded, err := json.Marshal(fromYAML)
	if err != nil {
		t.Fatal(err)
	}
	var fromJSON policy.Policy
	d := json.NewDecoder(bytes.NewReader(encoded))
	d.DisallowUnknownFields()
	if err := d.Decode(&fromJSON); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(fromJSON)
	if err != nil || !bytes.Equal(encoded, again) {
		t.Errorf("%s became %s (%v)", encoded, again, err)
	}
	if s := fromYAML.SGX[0]; s.Name != "broker" || !bytes.Equal(s.MRSigner, repeat(2, 32)) || *s.ProductID != 3 || *s.MinSVN != 4 {
		t.Errorf("entry is %+v", s)
	}
	if got := time.Duration(*fromYAML.TCB.GracePeriod); got != 30*24*time.Hour {
		t.Errorf("grace period is %s", got)
	}
	yamlAgain, err := yaml.Marshal(fromYAML)
	if err != nil {
		t.Fatal(err)
	}
	var third policy.Policy
	if err := yaml.NewDecoder(bytes.NewReader(yamlAgain), yaml.Strict()).Decode(&third); err != nil {
		t.Errorf("%s does not read back: %v", yamlAgain, err)
	}
	if same, err := json.Marshal(third); err != nil || !bytes.Equal(encoded, same) {
		t.Errorf("%s became %s (%v)", encoded, same, err)
	}
}

func TestUnreadableValuesAreRefused(t *testing.T) {
	both := []string{
		`{"sgx":[{"mr_enclave":""}]}`, `{"sgx":[{"mr_enclave":"xy"}]}`, `{"sgx":[{"mr_enclave":"012"}]}`,
		`{"sgx":[{"product_id":65536}]}`, `{"sgx":[{"min_svn":-1}]}`, `{"sgx":[{"debug":"on"}]}`,
		`{"tcb":{"grace_period":"-1h"}}`, `{"tcb":{"grace_period":"soon"}}`, `{"tcb":{"grace_period":"2000000d"}}`,
		`{"tcb":{"grace_period":30}}`, `{"sgx":[{"mrenclave":"01"}]}`,
	}
	for _, bad := range append(both, `{"sgx":[{"mr_enclave":null}]}`, `{"tcb":{"minimum_evaluation":"17"}}`) {
		var p policy.Policy
		d := json.NewDecoder(strings.NewReader(bad))
		d.DisallowUnknownFields()
		if err := d.Decode(&p); err == nil {
			t.Errorf("%s was read as %+v", bad, p)
		}
	}
	for _, bad := range both {
		var p policy.Policy
		if err := yaml.NewDecoder(strings.NewReader(bad), yaml.Strict()).Decode(&p); err == nil {
			t.Errorf("%s was read as %+v from YAML", bad, p)
		}
	}
}

func TestHexMayLookLikeANumber(t *testing.T) {
	for _, digits := range []string{
		strings.Repeat("10", 32), strings.Repeat("01", 32), "5e" + strings.Repeat("10", 31), strings.Repeat("0", 64),
	} {
		var p policy.Policy
		if err := yaml.NewDecoder(strings.NewReader("sgx: [{mr_enclave: "+digits+"}]"), yaml.Strict()).Decode(&p); err != nil {
			t.Fatal(err)
		}
		if got := p.SGX[0].MREnclave.String(); got != digits {
			t.Errorf("%s was read as %s", digits, got)
		}
	}
}

func TestAnEntryTakesOneBinding(t *testing.T) {
	for _, legacy := range []bool{false, true} {
		var want attest.Binding
		keys := ""
		if legacy {
			want, keys = attest.BindingLegacy, "sgx[0].binding tdx[0].binding"
		}
		p := policy.Policy{SGX: []policy.SGX{{MREnclave: repeat(1, 32), Binding: want}}, TDX: []policy.TDX{{MRTD: repeat(1, 48), Binding: want}}}
		if got := strings.Join(p.LegacyBindings(), " "); got != keys {
			t.Errorf("legacy %v: keys are %q", legacy, got)
		}
		for _, claims := range []attest.Claims{enclave(), domain()} {
			for binding, taken := range map[attest.Binding]bool{
				"": true, attest.BindingApplication: !legacy, attest.BindingLegacy: legacy, "other": false,
			} {
				claims.Binding = binding
				err := p.Appraise(claims, at).Err()
				if (err == nil) != taken || err != nil && !strings.Contains(err.Error(), string(claims.Type)+"[0].binding: ") {
					t.Errorf("legacy %v, %q: %v", legacy, binding, err)
				}
			}
		}
	}
	for text, ok := range map[string]bool{"legacy": true, "application": false, "any": false} {
		p := policy.Policy{SGX: []policy.SGX{{MREnclave: repeat(1, 32), Binding: attest.Binding(text)}}}
		if err := p.Validate(); (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "sgx[0].binding") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func grace(d policy.Duration) *policy.Duration { return &d }

func TestAGracePeriodOfZeroGivesNone(t *testing.T) {
	for text, accepted := range map[string]bool{"": true, `,"grace_period":"0d"`: false} {
		var p policy.Policy
		if err := json.Unmarshal([]byte(`{"sgx":[{"mr_enclave":"`+strings.Repeat("00", 32)+`"}],"tcb":{"accept":["OutOfDate"]`+text+`}}`), &p); err != nil {
			t.Fatal(err)
		}
		claims := attest.Claims{Type: attest.SGX, SGX: &attest.SGXClaims{}, TCB: attest.TCB{Status: tcbstatus.OutOfDate, Date: time.Unix(1_700_000_000, 0)}}
		if a := p.Appraise(claims, time.Unix(1_700_000_001, 0)); a.Accepted != accepted {
			t.Errorf("with %q: accepted is %t: %+v", text, a.Accepted, a.Reasons)
		}
	}
}

// TestClaimsMustBeOfTheTypeThatTheySay: what a verifier mixes up is refused, by every list of entries.
func TestClaimsMustBeOfTheTypeThatTheySay(t *testing.T) {
	p := policy.Policy{
		SGX: []policy.SGX{{MREnclave: make([]byte, 32)}}, TDX: []policy.TDX{{MRTD: make([]byte, 48)}},
		TPM: []policy.TPM{{AK: make([]byte, 32), PCRs: policy.PCRs{7: make([]byte, 32)}}},
	}
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	machine := &attest.TPMClaims{PCRs: map[int][32]byte{7: {}}}
	if !p.Appraise(attest.Claims{Type: attest.TPM, TPM: machine}, time.Now()).Accepted {
		t.Error("the machine is refused")
	}
	for _, of := range append(policy.Types(), "", "toy") {
		for _, c := range []attest.Claims{{}, {TPM: machine}, {SGX: &attest.SGXClaims{}}, {Other: machine}} {
			c.Type = of
			d := c.Details()
			if a := p.Appraise(c, time.Now()); a.Accepted && (d == nil || d.Type() != of) {
				t.Errorf("%q accepts %+v", of, c)
			}
		}
	}
}

// TestEveryTypeIsAKey: the key of a list of entries is the type of their evidence.
func TestEveryTypeIsAKey(t *testing.T) {
	for _, of := range policy.Types() {
		var p policy.Policy
		if err := json.Unmarshal(fmt.Appendf(nil, `{%q: [{}]}`, of), &p); err != nil {
			t.Fatal(err)
		}
		if faults := strings.Join(p.Faults(), "; "); !strings.HasPrefix(faults, string(of)+"[0].") {
			t.Errorf("%s: %s", of, faults)
		}
	}
}
