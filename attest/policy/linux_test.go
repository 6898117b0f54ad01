package policy_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy"
)

func guestPolicy(n policy.GuestPolicy) *policy.GuestPolicy { return &n }

func guest() attest.Claims {
	return attest.Claims{Type: attest.SNP, SNP: &attest.SNPClaims{
		Measurement: [48]byte(repeat(1, 48)), Policy: 0x30000, GuestSVN: 2,
		ReportedTCB: attest.SNPTCB{Bootloader: 3, SNP: 8, Microcode: 115},
	}}
}

func wantedGuest() policy.SNP {
	return policy.SNP{
		Measurement: repeat(1, 48), GuestPolicy: guestPolicy(0x30000),
		MinTCB: &policy.SNPTCB{Bootloader: 3, SNP: 8, Microcode: 115},
	}
}

func machine() attest.Claims {
	return attest.Claims{Type: attest.TPM, TPM: &attest.TPMClaims{
		AK: [32]byte(repeat(1, 32)), EK: [32]byte(repeat(2, 32)), EKRoot: [32]byte(repeat(3, 32)), EKPublic: []byte{1},
		PCRs:     map[int][32]byte{0: [32]byte(repeat(4, 32)), 7: [32]byte(repeat(5, 32))},
		EventLog: true, SecureBoot: true,
	}}
}

func wantedMachine() policy.TPM {
	return policy.TPM{AK: repeat(1, 32), PCRs: map[int]policy.Hex{7: repeat(5, 32)}}
}

// judged appraises claims that are changed against an entry that is changed, and returns the rules that fail.
func judged[E any](claims func() attest.Claims, entry func() E, policyOf func(E) policy.Policy,
	change func(*attest.Claims, *E)) string {
	c, e := claims(), entry()
	if change != nil {
		change(&c, &e)
	}
	p := policyOf(e)
	var failed []string
	for _, r := range p.Appraise(c, at).Reasons {
		if !r.Passed {
			failed = append(failed, r.Rule)
		}
	}
	return strings.Join(failed, " ")
}

func TestRulesOfSNP(t *testing.T) {
	svn := uint32(3)
	for _, test := range []struct {
		name   string
		change func(*attest.Claims, *policy.SNP)
		failed string
	}{
		{"guest", nil, ""},
		{"newer firmware", func(c *attest.Claims, _ *policy.SNP) { c.SNP.ReportedTCB.Microcode = 200 }, ""},
		{"other guest", func(c *attest.Claims, _ *policy.SNP) { c.SNP.Measurement[0]++ }, "snp[0].measurement"},
		{"another bit of policy", func(c *attest.Claims, _ *policy.SNP) { c.SNP.Policy |= attest.SNPPolicyMigrate },
			"snp[0].guest_policy"},
		{"debug", func(c *attest.Claims, _ *policy.SNP) { c.SNP.Policy |= attest.SNPPolicyDebug },
			"snp[0].guest_policy snp[0].debug"},
		{"debug named", func(c *attest.Claims, e *policy.SNP) {
			c.SNP.Policy |= attest.SNPPolicyDebug
			e.GuestPolicy, e.Debug = guestPolicy(0xb0000), true
		}, ""},
		{"old firmware", func(c *attest.Claims, _ *policy.SNP) { c.SNP.ReportedTCB = attest.SNPTCB{Bootloader: 2, SNP: 7} },
			"snp[0].min_tcb.bootloader snp[0].min_tcb.snp snp[0].min_tcb.microcode"},
		{"old guest", func(_ *attest.Claims, e *policy.SNP) { e.MinGuestSVN = &svn }, "snp[0].min_guest_svn"},
		{"lower privilege", func(c *attest.Claims, _ *policy.SNP) { c.SNP.VMPL = 1 }, "snp[0].max_vmpl"},
		{"lower privilege named", func(c *attest.Claims, e *policy.SNP) { c.SNP.VMPL, e.MaxVMPL = 1, 1 }, ""},
		{"host data that nobody named", func(c *attest.Claims, _ *policy.SNP) { c.SNP.HostData[31] = 1 }, "snp[0].host_data"},
		{"host data", func(c *attest.Claims, e *policy.SNP) {
			c.SNP.HostData, e.HostData = [32]byte{1}, append(policy.Hex{1}, make([]byte, 31)...)
		}, ""},
		{"chip, family, image, signer", func(_ *attest.Claims, e *policy.SNP) {
			e.ChipID, e.FamilyID, e.ImageID, e.IDKeyDigest = repeat(9, 64), repeat(9, 16), repeat(9, 16), repeat(9, 48)
		}, "snp[0].family_id snp[0].image_id snp[0].id_key_digest snp[0].chip_id"},
		{"claims without a body", func(c *attest.Claims, _ *policy.SNP) { c.SNP = nil }, "snp"},
		{"entry that pins nothing", func(_ *attest.Claims, e *policy.SNP) { *e = policy.SNP{} }, "policy"},
	} {
		got := judged(guest, wantedGuest, func(e policy.SNP) policy.Policy { return policy.Policy{SNP: []policy.SNP{e}} }, test.change)
		if got != test.failed {
			t.Errorf("%s: failed are %q, want %q", test.name, got, test.failed)
		}
	}
}

func TestAServerProvesNoEndorsementKey(t *testing.T) {
	entry := func(change func(*policy.TPM)) policy.Policy {
		e := policy.TPM{AK: repeat(1, 32), PCRs: policy.PCRs{7: repeat(7, 32)}}
		change(&e)
		return policy.Policy{TPM: []policy.TPM{e}}
	}
	for name, c := range map[string]struct {
		policy policy.Policy
		says   string
	}{
		"ak":       {entry(func(*policy.TPM) {}), ""},
		"ek":       {entry(func(e *policy.TPM) { e.AK, e.EK, e.Wrap = nil, repeat(2, 32), true }), "tpm[0].ak is missing: a server is not challenged"},
		"ek_roots": {entry(func(e *policy.TPM) { e.AK, e.EKRoots, e.Wrap = nil, []policy.Hex{repeat(2, 32)}, true }), "tpm[0].ak is missing: a server is not challenged"},
		"wrap":     {entry(func(e *policy.TPM) { e.EK, e.Wrap = repeat(2, 32), true }), "tpm[0].wrap says how secrets are released"},
		"nothing":  {policy.Policy{}, "neither sgx"},
	} {
		if err := c.policy.Validate(); (err == nil) != (name != "nothing") {
			t.Errorf("%s: %v", name, err)
		}
		err := policy.CheckServer(&c.policy)
		if (err == nil) != (c.says == "") || err != nil && (attest.CodeOf(err) != attest.CodeConfig || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

// TestOnlyTheEntryThatAPeerHasProvedIsTold has three entries, of which the claims have the identity of one at most.
func TestOnlyTheEntryThatAPeerHasProvedIsTold(t *testing.T) {
	sgx := policy.Policy{SGX: []policy.SGX{{MREnclave: repeat(9, 32), MRSigner: repeat(9, 32)}, {MREnclave: repeat(1, 32), MRSigner: repeat(9, 32)}}}
	byKey := policy.Policy{TPM: []policy.TPM{
		{AK: repeat(9, 32), PCRs: policy.PCRs{7: repeat(9, 32)}}, {AK: repeat(1, 32), PCRs: policy.PCRs{7: repeat(9, 32)}},
	}}
	byEK := policy.Policy{TPM: []policy.TPM{{EK: repeat(2, 32), Wrap: true, PCRs: policy.PCRs{7: repeat(9, 32)}}}}
	claim := func(change func(*attest.Claims)) attest.Claims {
		c := attest.Claims{Type: attest.TPM, TPM: &attest.TPMClaims{EK: [32]byte(repeat(2, 32)), EKPublic: []byte{1}, PCRs: map[int][32]byte{7: {}}}}
		change(&c)
		return c
	}
	for name, test := range map[string]struct {
		policy policy.Policy
		claims attest.Claims
		told   string
	}{
		"measurement": {sgx, claim(func(c *attest.Claims) {
			c.Type, c.SGX = attest.SGX, &attest.SGXClaims{MREnclave: [32]byte(repeat(1, 32))}
		}), "sgx[1].mr_signer"},
		"debug mode": {sgx, claim(func(c *attest.Claims) {
			c.Type, c.SGX = attest.SGX, &attest.SGXClaims{MREnclave: [32]byte(repeat(1, 32)), Attributes: attest.AttributeDebug}
		}), ""},
		"signer alone": {sgx, claim(func(c *attest.Claims) {
			c.Type, c.SGX = attest.SGX, &attest.SGXClaims{MRSigner: [32]byte(repeat(9, 32))}
		}), ""},
		"attestation key":    {byKey, claim(func(c *attest.Claims) { c.TPM.AK = [32]byte(repeat(1, 32)) }), "tpm[1].pcrs.7"},
		"other key":          {byKey, claim(func(*attest.Claims) {}), ""},
		"endorsement key":    {byEK, claim(func(*attest.Claims) {}), ""},
		"proved":             {byEK, claim(func(c *attest.Claims) { c.TPM.EKProved = true }), "tpm[0].pcrs.7"},
		"proved, another EK": {byEK, claim(func(c *attest.Claims) { c.TPM.EKProved, c.TPM.EK = true, [32]byte{} }), ""},
	} {
		a := test.policy.Appraise(test.claims, time.Now())
		var told []string
		for _, r := range a.Told {
			if !strings.HasPrefix(r.Rule, "tcb.") {
				told = append(told, r.Rule)
			}
		}
		if got := strings.Join(told, " "); a.Accepted || got != test.told || a.Proved != (test.told != "") {
			t.Errorf("%s: told are %q, want %q; %+v", name, got, test.told, a)
		}
	}
}

func TestRulesOfTPM(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*attest.Claims, *policy.TPM)
		failed string
	}{
		{"machine", nil, ""},
		{"other key", func(c *attest.Claims, _ *policy.TPM) { c.TPM.AK[0]++ }, "tpm[0].ak"},
		{"other register", func(c *attest.Claims, _ *policy.TPM) { c.TPM.PCRs[7] = [32]byte{} }, "tpm[0].pcrs.7"},
		{"register that was not quoted", func(_ *attest.Claims, e *policy.TPM) { e.PCRs[11] = repeat(5, 32) }, "tpm[0].pcrs.11"},
		{"endorsement key", func(c *attest.Claims, e *policy.TPM) {
			c.TPM.EKProved, e.AK, e.EK, e.Wrap = true, nil, repeat(2, 32), true
		}, ""},
		{"endorsement key without an answer", func(_ *attest.Claims, e *policy.TPM) {
			e.AK, e.EK, e.Wrap = nil, repeat(2, 32), true
		}, "tpm[0].challenge"},
		{"other endorsement key", func(c *attest.Claims, e *policy.TPM) {
			c.TPM.EKProved, e.AK, e.EK, e.Wrap = true, nil, repeat(9, 32), true
		}, "tpm[0].ek"},
		{"endorsement key without wrapping", func(_ *attest.Claims, e *policy.TPM) { e.AK, e.EK = nil, repeat(2, 32) }, "policy"},
		{"vendor", func(c *attest.Claims, e *policy.TPM) {
			c.TPM.EKProved, e.AK, e.EKRoots, e.Wrap = true, nil, []policy.Hex{repeat(8, 32), repeat(3, 32)}, true
		}, ""},
		{"other vendor", func(c *attest.Claims, e *policy.TPM) {
			c.TPM.EKProved, e.AK, e.EKRoots, e.Wrap = true, nil, []policy.Hex{repeat(8, 32)}, true
		}, "tpm[0].ek_roots"},
		{"no certificate", func(c *attest.Claims, e *policy.TPM) {
			c.TPM.EKRoot = [32]byte{}
			e.EKRoots, e.Wrap = []policy.Hex{repeat(3, 32)}, true
		}, "tpm[0].ek_roots"},
		{"nothing to encrypt to", func(c *attest.Claims, e *policy.TPM) {
			c.TPM.EKPublic = nil
			e.EK, e.Wrap = repeat(2, 32), true
		}, "tpm[0].wrap"},
		{"secure boot", func(_ *attest.Claims, e *policy.TPM) { e.SecureBoot = true }, ""},
		{"secure boot off", func(c *attest.Claims, e *policy.TPM) { c.TPM.SecureBoot, e.SecureBoot = false, true }, "tpm[0].secure_boot"},
		{"secure boot without log", func(c *attest.Claims, e *policy.TPM) { c.TPM.EventLog, e.SecureBoot = false, true }, "tpm[0].secure_boot"},
		{"entry that pins no register", func(_ *attest.Claims, e *policy.TPM) { e.PCRs = nil }, "policy"},
		{"claims without a body", func(c *attest.Claims, _ *policy.TPM) { c.TPM = nil }, "tpm"},
	} {
		got := judged(machine, wantedMachine, func(e policy.TPM) policy.Policy { return policy.Policy{TPM: []policy.TPM{e}} }, test.change)
		if got != test.failed {
			t.Errorf("%s: failed are %q, want %q", test.name, got, test.failed)
		}
	}
}

func TestEntriesOfLinuxPinEnough(t *testing.T) {
	good := wantedMachine()
	for name, test := range map[string]struct {
		policy policy.Policy
		want   string
	}{
		"no measurement": {policy.Policy{SNP: []policy.SNP{{}}}, "snp[0].measurement is missing"},
		"no policy":      {policy.Policy{SNP: []policy.SNP{{Measurement: repeat(1, 48)}}}, "snp[0].guest_policy is missing"},
		"no firmware":    {policy.Policy{SNP: []policy.SNP{{Measurement: repeat(1, 48)}}}, "snp[0].min_tcb is missing"},
		"hidden debug": {policy.Policy{SNP: []policy.SNP{{Measurement: repeat(1, 48), GuestPolicy: guestPolicy(0xb0000)}}},
			"does not say debug: true"},
		"level":        {policy.Policy{SNP: []policy.SNP{{MaxVMPL: 4}}}, "max_vmpl is 4"},
		"no key":       {policy.Policy{TPM: []policy.TPM{{PCRs: good.PCRs}}}, "tpm[0].ak is missing"},
		"no wrap":      {policy.Policy{TPM: []policy.TPM{{EKRoots: []policy.Hex{repeat(1, 32)}, PCRs: good.PCRs}}}, "tpm[0].wrap is missing"},
		"wrap to whom": {policy.Policy{TPM: []policy.TPM{{AK: repeat(1, 32), Wrap: true, PCRs: good.PCRs}}}, "wrap needs ek"},
		"no register":  {policy.Policy{TPM: []policy.TPM{good, {AK: repeat(1, 32)}}}, "tpm[1].pcrs is missing"},
		"register 24":  {policy.Policy{TPM: []policy.TPM{{AK: repeat(1, 32), PCRs: map[int]policy.Hex{24: repeat(1, 32)}}}}, "registers 0 to 23"},
		"short":        {policy.Policy{TPM: []policy.TPM{{AK: repeat(1, 32), PCRs: map[int]policy.Hex{7: repeat(1, 20)}}}}, "pcrs.7 has 20 bytes"},
	} {
		err := test.policy.Validate()
		if attest.CodeOf(err) != attest.CodeConfig || err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error is %v, want %q of code config", name, err, test.want)
		}
	}
}

const linuxText = `
snp:
  - measurement: "010101010101010101010101010101010101010101010101010101010101010101010101010101010101010101010101"
    guest_policy: 0x30000
    min_tcb: {bootloader: 3, tee: 0, snp: 8, microcode: 115}
tpm:
  - ak: "0101010101010101010101010101010101010101010101010101010101010101"
    ek_roots: ["0303030303030303030303030303030303030303030303030303030303030303"]
    wrap: true
    pcrs:
      0: 0404040404040404040404040404040404040404040404040404040404040404
      7: 0505050505050505050505050505050505050505050505050505050505050505
`

func TestEntriesOfLinuxAreTheSameInYAMLAndJSON(t *testing.T) {
	var fromYAML, fromJSON policy.Policy
	if err := yaml.NewDecoder(strings.NewReader(linuxText), yaml.Strict()).Decode(&fromYAML); err != nil {
		t.Fatal(err)
	}
	encoded, err := json.Marshal(fromYAML)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(encoded))
	d.DisallowUnknownFields()
	if err := d.Decode(&fromJSON); err != nil {
		t.Fatal(err)
	}
	for _, p := range []policy.Policy{fromYAML, fromJSON} {
		if err := p.Validate(); err != nil {
			t.Error(err)
		}
		for _, c := range []attest.Claims{guest(), machine()} {
			if err := p.Appraise(c, at).Err(); err != nil {
				t.Errorf("%s: %v", c.Type, err)
			}
		}
	}
	again, err := yaml.Marshal(fromYAML)
	if err != nil {
		t.Fatal(err)
	}
	var third policy.Policy
	if err := yaml.NewDecoder(bytes.NewReader(again), yaml.Strict()).Decode(&third); err != nil {
		t.Fatalf("%s does not read back: %v", again, err)
	}
	if same, err := json.Marshal(third); err != nil || !slices.Equal(encoded, same) {
		t.Errorf("%s became %s (%v)", encoded, same, err)
	}
}
