package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/edgelesssys/ego/attestation/tcbstatus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy/rule"
)

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

// unmet are the rules that failed.
func unmet(reasons []Reason) []Reason {
	return slices.DeleteFunc(slices.Clone(reasons), func(r Reason) bool { return r.Passed })
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
	if i := slices.IndexFunc(entries, func(j *rule.Judge) bool { return !j.Failed }); i >= 0 {
		a.Entry = strings.TrimSuffix(entries[i].Prefix, ".")
		a.Wrap = entries[i].Wrap
		entries = entries[i : i+1]
	}
	for _, j := range entries {
		a.Reasons = append(a.Reasons, j.Reasons...)
	}
	a.Accepted = a.Entry != ""
	if i := slices.IndexFunc(entries, func(j *rule.Judge) bool { return j.Proved }); i >= 0 {
		a.Proved, a.Told = true, unmet(entries[i].Reasons)
	}
	if d := c.Details(); d != nil && d.Type() == c.Type && !d.Rated() {
		return a // their entries name the least state themselves
	}
	if c.TCB.VerifiedAt.After(at) {
		at = c.TCB.VerifiedAt
	}
	tcb := p.TCB.appraise(c.TCB, at)
	a.Reasons = append(a.Reasons, tcb.Reasons...)
	a.Accepted = a.Accepted && !tcb.Failed
	if a.Proved {
		a.Told = append(a.Told, unmet(tcb.Reasons)...)
	}
	return a
}

// entries are what each entry for the claims' type says.
func (p *Policy) entries(c attest.Claims) []*rule.Judge {
	if d := c.Details(); d == nil || d.Type() != c.Type {
		return nil
	}
	var out []*rule.Judge
	p.each(func(key string, entry rule.Entry) {
		if entry.Type() != c.Type {
			return
		}
		j := &rule.Judge{Prefix: key + "."}
		entry.Appraise(j, c)
		out = append(out, j)
	})
	return out
}

func (t *TCB) appraise(c attest.TCB, at time.Time) *rule.Judge {
	j := &rule.Judge{Prefix: "tcb."}
	accept := t.Accept
	if len(accept) == 0 {
		accept = []string{"UpToDate"}
	}
	name := c.StatusName()
	switch {
	case c.Status == tcbstatus.Revoked || !slices.Contains(statuses, name):
		j.Rule("accept", false, "TCB status %s is never accepted", name)
	case slices.Contains(accept, name):
		j.Rule("accept", true, "TCB status %s is in the policy", name)
	default:
		j.Rule("accept", false, "TCB status %s is not in the policy", name)
	}
	if t.Advisories != nil {
		missing := slices.DeleteFunc(slices.Clone(c.Advisories), func(id string) bool { return slices.Contains(t.Advisories, id) })
		if len(missing) == 0 {
			j.Rule("advisories", true, "all %d that apply are in the policy", len(c.Advisories))
		} else {
			j.Rule("advisories", false, "%s not in the policy", strings.Join(missing, ", "))
		}
	}
	outOfDate := c.Status == tcbstatus.OutOfDate || c.Status == tcbstatus.OutOfDateConfigurationNeeded
	if t.GracePeriod != nil && outOfDate {
		end := c.Date.Add(time.Duration(*t.GracePeriod)).UTC()
		j.Rule("grace_period", !at.After(end), "TCB level of %s, accepted until %s",
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
			j.Minimum(m.name, m.got, m.want)
		}
	}
	return j
}
