package policy

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/edgelesssys/ego/attestation/tcbstatus"

	"github.com/sesame-init/sesame/attest"
)

// Reason is what one rule said.
type Reason struct {
	Rule   string `json:"rule"` // the place of the rule in the policy: "sgx[0].mr_enclave", "tcb.accept"
	Passed bool   `json:"passed"`
	Text   string `json:"text"` // what was compared, in a form to show to people
}

// Appraisal is the answer of a policy.
type Appraisal struct {
	Accepted bool `json:"accepted"`
	// Entry is the rule name of the entry that matched ("sgx[0]"), "" if none did.
	Entry string `json:"entry,omitempty"`
	// Wrap is what the entry demands of a release: to encrypt it to the TPM's endorsement key and to
	// these registers. Nil: nothing.
	Wrap []int `json:"wrap,omitempty"`
	// Proved is set if the claims have the strongest identity of an entry: its measurement (of an enclave without
	// one its signer), its attestation key, or a challenged endorsement key. Told are then the rules that this entry
	// fails, which may be told to the peer. What other entries want is not for it to know.
	Proved bool     `json:"-"`
	Told   []Reason `json:"-"`
	// Reasons has one line per rule, in the order of the policy. Of the entries, an accepted appraisal gives
	// the one that matched, a refused one all.
	Reasons []Reason `json:"reasons"`
}

// Err is nil for an accepted appraisal, else an [attest.Error] of code [attest.CodePolicy] that gives every
// rule that failed.
func (a Appraisal) Err() error {
	if a.Accepted {
		return nil
	}
	var failed []string
	hint := "Compare the measurements with those of the build that should run, and the policy with both."
	for _, r := range a.Reasons {
		if !r.Passed {
			failed = append(failed, r.Rule+": "+r.Text)
			if strings.HasPrefix(r.Rule, "tcb.") && a.Entry != "" {
				hint = "Update the platform (microcode, BIOS, SGX software), or name what you accept under tcb in the policy."
			}
		}
	}
	return attest.Errorf(attest.CodePolicy, "appraising evidence", hint, "%s", strings.Join(failed, "; "))
}

// judge collects the reasons for one entry or for the TCB.
type judge struct {
	prefix  string
	reasons []Reason
	failed  bool
	proved  bool // the claims have the entry's strongest identity
}

// strongest notes whether the claims have the entry's strongest identity. Code in a debug environment is not what its
// measurement says.
func (j *judge) strongest(same, debug, accepted bool) { j.proved = same && (!debug || accepted) }

// unmet are the rules that failed.
func unmet(reasons []Reason) []Reason {
	return slices.DeleteFunc(slices.Clone(reasons), func(r Reason) bool { return r.Passed })
}

func (j *judge) rule(name string, passed bool, format string, args ...any) {
	j.reasons = append(j.reasons, Reason{Rule: j.prefix + name, Passed: passed, Text: fmt.Sprintf(format, args...)})
	j.failed = j.failed || !passed
}

func (j *judge) equal(name string, got []byte, want Hex) {
	if want == nil {
		return
	}
	if bytes.Equal(got, want) {
		j.rule(name, true, "%s, as wanted", want)
	} else {
		j.rule(name, false, "%s, want %s", Hex(got), want)
	}
}

func (j *judge) atLeast(name string, got uint16, want *uint16) {
	if want != nil {
		j.minimum(name, uint64(got), uint64(*want))
	}
}

func (j *judge) minimum(name string, got, want uint64) {
	if got >= want {
		j.rule(name, true, "%d, at least %d", got, want)
	} else {
		j.rule(name, false, "%d, less than %d", got, want)
	}
}

func (j *judge) debug(is, accepted bool) {
	switch {
	case !is:
		j.rule("debug", true, "not a debug environment")
	case accepted:
		j.rule("debug", true, "a debug environment, which the policy accepts")
	default:
		j.rule("debug", false, "a debug environment: the host reads its memory")
	}
}

// binding judges the form of a certificate, if the evidence came in one that is a matter of policy.
func (j *judge) binding(got, want attest.Binding) {
	switch {
	case got == "":
	case want == "" && got == attest.BindingApplication:
		j.rule("binding", true, "the certificate has the label of an application")
	case want == "":
		j.rule("binding", false, "the certificate binds its key without Sesame's label, as Occlum's, Gramine's and older images' do; "+
			"an entry that means those says binding: legacy")
	case got == want:
		j.rule("binding", true, "%s, as wanted", got)
	default:
		j.rule("binding", false, "the certificate has the label of an application, and the entry takes those without; leave binding out")
	}
}

// Appraise judges claims at a time, or at the time of their verification if that is later. It fails closed: a policy that does not validate, or that has no entry for
// this type of evidence, accepts nothing.
func (p *Policy) Appraise(c attest.Claims, at time.Time) Appraisal {
	if err := p.Validate(); err != nil {
		return Appraisal{Reasons: []Reason{{Rule: "policy", Text: err.Error()}}}
	}
	var a Appraisal
	entries := p.entries(c)
	if len(entries) == 0 {
		text := fmt.Sprintf("the policy has no entry for evidence of type %q", c.Type)
		a.Reasons = []Reason{{Rule: string(c.Type), Text: text}}
	}
	if i := slices.IndexFunc(entries, func(j judge) bool { return !j.failed }); i >= 0 {
		a.Entry = strings.TrimSuffix(entries[i].prefix, ".")
		if c.Type == attest.TPM && p.TPM[i].Wrap {
			a.Wrap = slices.Sorted(maps.Keys(p.TPM[i].PCRs))
		}
		entries = entries[i : i+1]
	}
	for _, j := range entries {
		a.Reasons = append(a.Reasons, j.reasons...)
	}
	a.Accepted = a.Entry != ""
	if i := slices.IndexFunc(entries, func(j judge) bool { return j.proved }); i >= 0 {
		a.Proved, a.Told = true, unmet(entries[i].reasons)
	}
	if c.Type == attest.SNP || c.Type == attest.TPM {
		return a // their entries name the least state themselves
	}
	if c.TCB.VerifiedAt.After(at) {
		at = c.TCB.VerifiedAt
	}
	tcb := p.TCB.appraise(c.TCB, at)
	a.Reasons = append(a.Reasons, tcb.reasons...)
	a.Accepted = a.Accepted && !tcb.failed
	if a.Proved {
		a.Told = append(a.Told, unmet(tcb.reasons)...)
	}
	return a
}

func (p *Policy) entries(c attest.Claims) []judge {
	var out []judge
	switch {
	case c.Type == attest.SGX && c.SGX != nil:
		for i := range p.SGX {
			j := judge{prefix: fmt.Sprintf("sgx[%d].", i)}
			p.SGX[i].appraise(&j, c.SGX)
			j.binding(c.Binding, p.SGX[i].Binding)
			out = append(out, j)
		}
	case c.Type == attest.TDX && c.TDX != nil:
		for i := range p.TDX {
			j := judge{prefix: fmt.Sprintf("tdx[%d].", i)}
			p.TDX[i].appraise(&j, c.TDX)
			j.binding(c.Binding, p.TDX[i].Binding)
			out = append(out, j)
		}
	case c.Type == attest.SNP && c.SNP != nil:
		for i := range p.SNP {
			j := judge{prefix: fmt.Sprintf("snp[%d].", i)}
			p.SNP[i].appraise(&j, c.SNP)
			out = append(out, j)
		}
	case c.Type == attest.TPM && c.TPM != nil:
		for i := range p.TPM {
			j := judge{prefix: fmt.Sprintf("tpm[%d].", i)}
			p.TPM[i].appraise(&j, c.TPM)
			out = append(out, j)
		}
	}
	return out
}

func (s *SGX) appraise(j *judge, c *attest.SGXClaims) {
	j.equal("mr_enclave", c.MREnclave[:], s.MREnclave)
	j.equal("mr_signer", c.MRSigner[:], s.MRSigner)
	if s.ProductID != nil {
		if c.ProductID == *s.ProductID {
			j.rule("product_id", true, "%d, as wanted", c.ProductID)
		} else {
			j.rule("product_id", false, "%d, want %d", c.ProductID, *s.ProductID)
		}
	}
	j.atLeast("min_svn", c.SVN, s.MinSVN)
	identity := bytes.Equal(c.MREnclave[:], s.MREnclave)
	if s.MREnclave == nil {
		identity = bytes.Equal(c.MRSigner[:], s.MRSigner)
	}
	j.strongest(identity, c.Debug(), s.Debug)
	j.debug(c.Debug(), s.Debug)

	kss := c.Attributes&attest.AttributeKSS != 0
	if s.ConfigID != nil || s.MinConfigSVN != nil || s.FamilyID != nil || s.ExtProdID != nil {
		if kss {
			j.rule("kss", true, "the enclave has key separation and sharing")
		} else {
			j.rule("kss", false, "the enclave has no key separation and sharing, so its config and family ids mean nothing")
		}
	}
	if s.ConfigID != nil {
		j.equal("config_id", c.ConfigID[:], s.ConfigID)
	} else if c.ConfigID == [64]byte{} {
		j.rule("config_id", true, "all zero, as where none is named")
	} else {
		j.rule("config_id", false, "%s, want all zero, since the policy names none", Hex(c.ConfigID[:]))
	}
	j.atLeast("min_config_svn", c.ConfigSVN, s.MinConfigSVN)
	j.equal("family_id", c.FamilyID[:], s.FamilyID)
	j.equal("ext_prod_id", c.ExtProdID[:], s.ExtProdID)
}

type measurement struct {
	name string
	got  []byte
	want Hex
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

func (t *TDX) appraise(j *judge, c *attest.TDXClaims) {
	for _, m := range t.measurements(c) {
		j.equal(m.name, m.got, m.want)
	}
	j.debug(c.Debug(), t.Debug)
	j.strongest(bytes.Equal(c.MRTD[:], t.MRTD), c.Debug(), t.Debug)
}

func (t *TCB) appraise(c attest.TCB, at time.Time) judge {
	j := judge{prefix: "tcb."}
	accept := t.Accept
	if len(accept) == 0 {
		accept = []string{"UpToDate"}
	}
	name := c.StatusName()
	switch {
	case c.Status == tcbstatus.Revoked || !slices.Contains(statuses, name):
		j.rule("accept", false, "TCB status %s is never accepted", name)
	case slices.Contains(accept, name):
		j.rule("accept", true, "TCB status %s is in the policy", name)
	default:
		j.rule("accept", false, "TCB status %s is not in the policy", name)
	}
	if t.Advisories != nil {
		missing := slices.DeleteFunc(slices.Clone(c.Advisories), func(id string) bool { return slices.Contains(t.Advisories, id) })
		if len(missing) == 0 {
			j.rule("advisories", true, "all %d that apply are in the policy", len(c.Advisories))
		} else {
			j.rule("advisories", false, "%s not in the policy", strings.Join(missing, ", "))
		}
	}
	outOfDate := c.Status == tcbstatus.OutOfDate || c.Status == tcbstatus.OutOfDateConfigurationNeeded
	if t.GracePeriod != nil && outOfDate {
		end := c.Date.Add(time.Duration(*t.GracePeriod)).UTC()
		j.rule("grace_period", !at.After(end), "TCB level of %s, accepted until %s",
			c.Date.UTC().Format(time.DateOnly), end.Format(time.RFC3339))
	}
	for _, m := range []struct {
		name      string
		got, want uint64
	}{
		{"minimum_evaluation", uint64(c.EvaluationNumber), uint64(t.MinimumEvaluation)},
		{"minimum_root_crl", c.RootCRLNumber, t.MinimumRootCRL},
		{"minimum_pck_crl", c.PCKCRLNumber, t.MinimumPCKCRL},
	} {
		if m.want != 0 {
			j.minimum(m.name, m.got, m.want)
		}
	}
	return j
}
