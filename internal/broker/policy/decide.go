package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest"
	appraisal "github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/internal/raconfig"
)

// appraiser is what an appraisal policy and Occlum's file have in common.
type appraiser interface {
	Appraise(claims attest.Claims, at time.Time) appraisal.Appraisal
}

// Occlum is the policy that Occlum's dynamic_config.json says: one workload, which may use the legacy wire and have
// every secret. Reasons call it name.
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
	if a.Proved {
		a.Told = append(unmet(spans), a.Told...)
	}
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

func unmet(reasons []appraisal.Reason) []appraisal.Reason {
	return slices.DeleteFunc(slices.Clone(reasons), func(r appraisal.Reason) bool { return r.Passed })
}

// verdict is what a workload says about claims.
type verdict struct {
	matched *Version // nil: none
	wrap    []int
	proved  bool
	told    []string           // what a peer may hear of why none matches; of one version whose identity it has proved
	reasons []appraisal.Reason // of the version that matches, or of all
}

// judge appraises claims by every version of a workload.
func (w *Workload) judge(claims attest.Claims, at time.Time) verdict {
	var v verdict
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
			return verdict{matched: &w.Versions[i], wrap: a.Wrap, proved: true, reasons: own}
		}
		v.reasons = append(v.reasons, own...)
		if a.Proved && !v.proved {
			v.proved = true
			for _, r := range a.Told {
				v.told = append(v.told, prefix+r.Rule+": "+r.Text)
			}
		}
	}
	return v
}

// Matched is what a policy says about a peer's claims at one moment.
type Matched struct {
	Workloads []*Workload // that the peer is
	// Wrap is what they demand of a release: to encrypt it to the TPM of the claims and to these registers. Nil: none
	// demands it.
	Wrap []int
	At   time.Time // of the judgement
	// Proved is set if the claims have the strongest identity of an entry (see [appraisal.Appraisal]).
	Proved bool
	// Told is what the peer may hear of why it is no workload: the rules that one entry fails whose strongest identity
	// it has proved. Nil: it has proved none.
	Told []string
	// Challenge is set if the answer to a challenge, which the claims lack, may match an entry.
	Challenge bool
}

// Match finds the workloads that a peer with these claims is, of those that may use the wire. The error's code is
// [attest.CodePolicy] if it is none, with every rule that it fails: it is for the broker's log, not for the peer.
func (p *Policy) Match(claims attest.Claims, at time.Time, wire string) (Matched, error) {
	m := Matched{At: at, Challenge: wire == WireSession && p.challenges(claims)}
	var why []string
	for _, name := range p.order {
		w := p.Workloads[name]
		if wire == WireLegacy && w.Wire != WireLegacy {
			continue
		}
		v := w.judge(claims, at)
		m.Proved = m.Proved || v.proved
		switch {
		case v.matched != nil && wire == WireLegacy && v.wrap != nil:
			why = append(why, "workloads."+name+": its secrets must be wrapped, which the legacy wire cannot")
		case v.matched != nil:
			m.Workloads = append(m.Workloads, w)
			m.Wrap = append(m.Wrap, v.wrap...)
		case m.Told == nil:
			m.Told = v.told
		}
		if v.matched != nil {
			continue
		}
		for _, r := range v.reasons {
			if !r.Passed {
				why = append(why, r.Rule+": "+r.Text)
			}
		}
	}
	slices.Sort(m.Wrap)
	m.Wrap = slices.Compact(m.Wrap)
	if len(m.Workloads) > 0 {
		m.Told = nil
		return m, nil
	}
	if len(why) == 0 {
		why = []string{"no workload is served on the legacy wire"}
	}
	return m, attest.Errorf(attest.CodePolicy, "appraising peer",
		"If this peer is wanted, add its measurement to the policy.", "%s", strings.Join(why, "; "))
}

// challenges reports whether claims are of a TPM whose endorsement key has proved nothing yet, and some workload names
// such keys. A challenge depends on nothing else, so that it does not tell which keys are wanted.
func (p *Policy) challenges(claims attest.Claims) bool {
	if claims.TPM == nil || claims.TPM.EKProved || len(claims.TPM.EKPublic) == 0 {
		return false
	}
	for _, w := range p.Workloads {
		for i := range w.Versions {
			if slices.ContainsFunc(w.Versions[i].TPM, func(t appraisal.TPM) bool { return t.Challenged() }) {
				return true
			}
		}
	}
	return false
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
		v := w.judge(claims, at)
		if v.matched != nil {
			return appraisal.Appraisal{Accepted: true, Entry: "workloads." + name, Reasons: v.reasons}
		}
		a.Reasons = append(a.Reasons, v.reasons...)
	}
	if len(a.Reasons) == 0 {
		a.Reasons = append(a.Reasons, appraisal.Reason{Rule: "workloads", Text: "none is marked by broker: true"})
	}
	return a
}

// A Grant is the answer to a peer that asks for one secret.
type Grant struct {
	Workload string  // that the peer is and that may have the secret
	Rule     string  // that decided: "secrets.model_key.workloads"
	Releases *uint64 // most releases of the secret, ever; nil is no limit, 0 is none
	Version  string  // id of the version; "" is the newest
}

// Grant decides whether one of the workloads that a peer is may have a secret, at the moment for which it was matched.
// The error's code is [attest.CodeDenied]; the grant beside it has the rule
// that forbids.
func (p *Policy) Grant(m Matched, secret string) (Grant, error) {
	peer := m.Workloads
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
	for _, r := range spanReasons(s.From, s.Until, m.At) {
		if !r.Passed {
			return Grant{Workload: peer[i].name, Rule: key + "." + r.Rule}, attest.Errorf(attest.CodeDenied, step,
				"Change the secret's span of time in the policy.", "it %s", r.Text)
		}
	}
	if s.Wrap && m.Wrap == nil {
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

// grantReserved gives the root key to other replicas of the broker, and nothing else of the broker's own to anyone.
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
	// Secrets are those that the peer may have, if none is named.
	Secrets []string `json:"secrets,omitempty"`
}

// Explain decides as the broker does and says why. secret may be empty.
func (p *Policy) Explain(claims attest.Claims, at time.Time, secret string) Explanation {
	if claims.TPM != nil { // the machine answers the broker's challenge, or gets nothing
		answered := *claims.TPM
		answered.EKProved = len(answered.EKPublic) > 0
		claims.TPM = &answered
	}
	e := Explanation{Secret: secret}
	for _, name := range p.order {
		v := p.Workloads[name].judge(claims, at)
		e.Rules = append(e.Rules, v.reasons...)
		if v.matched != nil {
			e.Workloads = append(e.Workloads, name)
		}
	}
	matched, _ := p.Match(claims, at, WireSession) // its error is in the rules
	e.Accepted = len(e.Workloads) > 0
	if secret == "" {
		for _, name := range sortedKeys(p.Secrets) {
			if _, err := p.Grant(matched, name); err == nil {
				e.Secrets = append(e.Secrets, name)
			}
		}
		return e
	}
	grant, err := p.Grant(matched, secret)
	e.Accepted = err == nil
	text := fmt.Sprintf("%s may have it", grant.Workload)
	if err != nil {
		text = err.Error()
	} else if grant.Releases != nil {
		text += fmt.Sprintf(", %d times in all; the broker's store knows how often it did", *grant.Releases)
	}
	if grant.Version != "" {
		text += ", in version " + grant.Version
	}
	e.Rules = append(e.Rules, appraisal.Reason{Rule: grant.Rule, Passed: err == nil, Text: text})
	return e
}
