package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest"
	appraisal "github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/ratls/raconfig"
)

// appraiser is what an appraisal policy and Occlum's file have in common.
type appraiser interface {
	Appraise(claims attest.Claims, at time.Time) appraisal.Appraisal
}

// Occlum is the policy that Occlum's dynamic_config.json says: one workload, which may use the legacy wire and have
// every secret. name stands for it in reasons.
func Occlum(name string, peers *raconfig.Config) *Policy {
	w := &Workload{Wire: WireLegacy, Versions: []Version{{appraiser: peers}}, name: name}
	return &Policy{
		Workloads: map[string]*Workload{name: w}, order: []string{name}, all: true, Broker: DefaultSettings(),
	}
}

// Appraise judges claims by the version: by its span of time first.
func (v *Version) Appraise(claims attest.Claims, at time.Time) appraisal.Appraisal {
	spans := spanReasons(v.From, v.Until, at)
	var judge appraiser = &v.Policy
	if v.appraiser != nil {
		judge = v.appraiser
	}
	a := judge.Appraise(claims, at)
	a.Reasons = append(spans, a.Reasons...)
	a.Accepted = a.Accepted && !failed(spans)
	return a
}

func spanReasons(from, until Time, at time.Time) []appraisal.Reason {
	var out []appraisal.Reason
	if !from.IsZero() {
		out = append(out, appraisal.Reason{Rule: "from", Passed: !at.Before(from.Time),
			Text: fmt.Sprintf("counts from %s on, and now is %s", stamp(from.Time), stamp(at))})
	}
	if !until.IsZero() {
		out = append(out, appraisal.Reason{Rule: "until", Passed: at.Before(until.Time),
			Text: fmt.Sprintf("counts until %s, and now is %s", stamp(until.Time), stamp(at))})
	}
	return out
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func failed(reasons []appraisal.Reason) bool {
	return slices.ContainsFunc(reasons, func(r appraisal.Reason) bool { return !r.Passed })
}

// judge appraises claims by every version of a workload and says which one matches, -1 where none does. The reasons
// are of that one, or of all.
func (w *Workload) judge(claims attest.Claims, at time.Time) (matched int, reasons []appraisal.Reason) {
	for i := range w.Versions {
		a := w.Versions[i].Appraise(claims, at)
		prefix := fmt.Sprintf("workloads.%s.versions[%d].", w.name, i)
		if w.Versions[i].appraiser != nil {
			prefix = w.name + ": "
		}
		own := make([]appraisal.Reason, len(a.Reasons))
		for j, r := range a.Reasons {
			r.Rule = prefix + r.Rule
			own[j] = r
		}
		if a.Accepted {
			return i, own
		}
		reasons = append(reasons, own...)
	}
	return -1, reasons
}

// Match finds the workloads that a peer with these claims is, of those that may use the wire. The error's code is
// [attest.CodePolicy] where it is none, with every rule that it fails.
func (p *Policy) Match(claims attest.Claims, at time.Time, wire string) ([]*Workload, error) {
	var matched []*Workload
	var why []string
	for _, name := range p.order {
		w := p.Workloads[name]
		if wire == WireLegacy && w.Wire != WireLegacy {
			continue
		}
		i, reasons := w.judge(claims, at)
		if i >= 0 {
			matched = append(matched, w)
			continue
		}
		for _, r := range reasons {
			if !r.Passed {
				why = append(why, r.Rule+": "+r.Text)
			}
		}
	}
	if len(matched) > 0 {
		return matched, nil
	}
	if len(why) == 0 {
		why = []string{"no workload is served on the legacy wire"}
	}
	return nil, attest.Errorf(attest.CodePolicy, "appraising peer",
		"If this peer is wanted, add its measurement to the policy.", "%s", strings.Join(why, "; "))
}

// Wrap is what the workloads that a peer is demand of a release to it: to encrypt it to the TPM of the claims and to
// these registers. Nil: none demands it.
func (p *Policy) Wrap(peer []*Workload, claims attest.Claims, at time.Time) (registers []int) {
	for _, w := range peer {
		if i, _ := w.judge(claims, at); i >= 0 {
			registers = append(registers, w.Versions[i].Appraise(claims, at).Wrap...)
		}
	}
	slices.Sort(registers)
	return slices.Compact(registers)
}

// Legacy reports whether any workload may use the legacy wire.
func (p *Policy) Legacy() bool {
	return slices.ContainsFunc(p.order, func(name string) bool { return p.Workloads[name].Wire == WireLegacy })
}

// Replicas accepts what the policy marks as another replica of the broker.
func (p *Policy) Replicas() *Replicas { return &Replicas{p} }

// Replicas is an appraiser: see [Policy.Replicas].
type Replicas struct{ policy *Policy }

// Appraise judges claims by every workload that is a broker.
func (r *Replicas) Appraise(claims attest.Claims, at time.Time) appraisal.Appraisal {
	a := appraisal.Appraisal{Reasons: []appraisal.Reason{}}
	for _, name := range r.policy.order {
		w := r.policy.Workloads[name]
		if !w.Broker {
			continue
		}
		i, reasons := w.judge(claims, at)
		if i >= 0 {
			return appraisal.Appraisal{Accepted: true, Entry: "workloads." + name, Reasons: reasons}
		}
		a.Reasons = append(a.Reasons, reasons...)
	}
	if len(a.Reasons) == 0 {
		a.Reasons = append(a.Reasons, appraisal.Reason{Rule: "workloads", Text: "none is marked by broker: true"})
	}
	return a
}

// A Grant is the answer to a peer that asks for one secret.
type Grant struct {
	Workload string // that the peer is and that may have the secret
	Rule     string // that decided: "secrets.model_key.workloads"
	Releases uint64 // most releases of the secret, ever; 0 is no limit
	Version  string // id of the version; "" is the newest
}

// Grant decides whether one of the workloads that a peer is may have a secret now; wrapped says that it leaves encrypted
// to the peer's hardware (see [Policy.Wrap]). The error's code is [attest.CodeDenied]; the grant beside it has the rule
// that forbids.
func (p *Policy) Grant(peer []*Workload, secret string, wrapped bool, at time.Time) (Grant, error) {
	const step = "deciding on secret"
	if len(peer) == 0 {
		return Grant{Rule: "workloads"}, attest.Errorf(attest.CodeDenied, step, "", "the peer is no workload")
	}
	if strings.HasPrefix(secret, Reserved) {
		return grantReserved(peer, secret)
	}
	if p.all {
		return Grant{Workload: peer[0].name, Rule: peer[0].name}, nil
	}
	key := "secrets." + secret
	s := p.Secrets[secret]
	if s == nil {
		return Grant{Workload: peer[0].name, Rule: "secrets"}, attest.Errorf(attest.CodeDenied, step,
			"Add it to the policy, with the workloads that may have it.", "the policy does not name it")
	}
	i := slices.IndexFunc(peer, func(w *Workload) bool { return slices.Contains(s.Workloads, w.name) })
	if i < 0 {
		return Grant{Workload: peer[0].name, Rule: key + ".workloads"}, attest.Errorf(attest.CodeDenied, step,
			"Add the workload to the secret's workloads, if it may have it.", "%s may not have it", peer[0].name)
	}
	for _, r := range spanReasons(s.From, s.Until, at) {
		if !r.Passed {
			return Grant{Workload: peer[i].name, Rule: key + "." + r.Rule}, attest.Errorf(attest.CodeDenied, step,
				"Change the secret's span of time in the policy.", "it %s", r.Text)
		}
	}
	if s.Wrap && !wrapped {
		return Grant{Workload: peer[i].name, Rule: key + ".wrap"}, attest.Errorf(attest.CodeDenied, step,
			"Let the workload's tpm entry say wrap: true.",
			"it may leave only encrypted to the peer's TPM, and the entry that the peer matches does not demand that")
	}
	g := Grant{Workload: peer[i].name, Rule: key + ".workloads", Releases: s.Releases, Version: s.Versions[peer[i].name]}
	if g.Version != "" {
		g.Rule = key + ".versions." + g.Workload
	}
	return g, nil
}

// grantReserved gives the root key to other replicas of the broker, and nothing else of the broker's own to anybody.
func grantReserved(peer []*Workload, secret string) (Grant, error) {
	for _, w := range peer {
		if secret == RootKey && w.Broker {
			return Grant{Workload: w.name, Rule: "workloads." + w.name + ".broker"}, nil
		}
	}
	return Grant{Workload: peer[0].name, Rule: "workloads." + peer[0].name + ".broker"}, attest.Errorf(attest.CodeDenied,
		"deciding on secret", "Mark the workload by broker: true, if it is another replica.", "it is the broker's own")
}

// An Explanation is what a policy says about claims, rule by rule.
type Explanation struct {
	Accepted  bool     `json:"accepted"`            // for Secret where one is named, else as any workload
	Workloads []string `json:"workloads,omitempty"` // that the peer is
	Secret    string   `json:"secret,omitempty"`
	// Rules are those of every workload and then of the secret, in the order of the policy.
	Rules []appraisal.Reason `json:"rules"`
	// Secrets are those that the peer may have, where none is named.
	Secrets []string `json:"secrets,omitempty"`
}

// Explain decides as the broker does and says why. secret may be empty.
func (p *Policy) Explain(claims attest.Claims, at time.Time, secret string) Explanation {
	e := Explanation{Secret: secret}
	var matched []*Workload
	for _, name := range p.order {
		w := p.Workloads[name]
		i, reasons := w.judge(claims, at)
		e.Rules = append(e.Rules, reasons...)
		if i >= 0 {
			matched = append(matched, w)
			e.Workloads = append(e.Workloads, name)
		}
	}
	e.Accepted = len(matched) > 0
	wrapped := p.Wrap(matched, claims, at) != nil
	if secret == "" {
		for _, name := range sortedKeys(p.Secrets) {
			if _, err := p.Grant(matched, name, wrapped, at); err == nil {
				e.Secrets = append(e.Secrets, name)
			}
		}
		return e
	}
	grant, err := p.Grant(matched, secret, wrapped, at)
	e.Accepted = err == nil
	text := fmt.Sprintf("%s may have it", grant.Workload)
	if err != nil {
		text = err.Error()
	} else if grant.Releases > 0 {
		text += fmt.Sprintf(", %d times in all; the broker's store knows how often it did", grant.Releases)
	}
	if grant.Version != "" {
		text += ", in version " + grant.Version
	}
	e.Rules = append(e.Rules, appraisal.Reason{Rule: grant.Rule, Passed: err == nil, Text: text})
	return e
}
