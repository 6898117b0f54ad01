package broker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/internal/broker/policy"
)

// request is one peer's request on the way to its decision.
type request struct {
	reading
	id       string   // for the log
	decision Decision // as far as it is known
	log      logrus.FieldLogger

	challenged bool
	refusal    error // why a peer under challenge gets nothing, which it may hear
}

// A reading is what one decision is made from: one look at the clock and one policy, with the trust that belongs to it.
// Whatever a decision compares it takes from here.
type reading struct {
	at    time.Time
	force *inForce
}

// maxAge is for how long a reading counts: the commit of what was decided must begin within it.
const maxAge = 5 * time.Second

// read takes a reading.
func (s *Server) read() reading { return reading{s.config.Now(), s.config.Policies.current.Load()} }

// fresh reports whether a reading still counts.
func (s *Server) fresh(read reading) bool {
	age := s.config.Now().Sub(read.at)
	return age >= 0 && age <= maxAge
}

// newRequest begins a request.
func (s *Server) newRequest(remote, wire string) *request {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	r := &request{id: hex.EncodeToString(id[:])}
	r.decision = Decision{Peer: remote, Wire: wire}
	r.log = s.config.Logger.WithFields(logrus.Fields{"request": r.id, "peer": remote, "wire": wire})
	return r
}

// read begins a decision with a reading. Nothing of the one before remains but what the peer has shown.
func (r *request) read(from reading) {
	d := &r.decision
	r.reading = from
	*d = Decision{Peer: d.Peer, Wire: d.Wire, Binder: d.Binder, Evidence: d.Evidence, At: from.at}
}

// shown notes whose request it is.
func (r *request) shown(binder, evidence [32]byte) {
	r.decision.Binder, r.decision.Evidence = binder, evidence
}

// claim notes what the evidence says.
func (r *request) claim(claims attest.Claims) {
	r.decision.Claims = claims
	r.log = r.log.WithFields(claimFields(claims))
}

// errOldInit is the answer to a TPM that cannot be challenged, whether or not an entry would have matched.
func errOldInit() error {
	return attest.Errorf(attest.CodePolicy, "appraising peer", "Build the image anew.",
		"this broker needs init of version %s or newer for TPM evidence", session.ChallengesSince)
}

// told is what a peer may hear of why it is no workload: its own claims, and what an entry wants whose strongest identity
// it has proved.
func (r *request) told(m policy.Matched) error {
	hint := "The broker's log says more under request " + r.id + "."
	switch {
	case m.Proved:
		return attest.Errorf(attest.CodePolicy, "appraising peer", hint, "%s", strings.Join(m.Told, "; "))
	case r.refusal != nil:
		return &attest.Error{Code: attest.CodePolicy, Step: "appraising peer", Err: r.refusal, Hint: hint}
	}
	return attest.Errorf(attest.CodePolicy, "appraising peer", "If this peer is wanted, add it to the policy. "+hint,
		"the policy has no workload that is %s", r.decision.Claims)
}

// claimFields are what the log says of a peer.
func claimFields(c attest.Claims) logrus.Fields {
	f := logrus.Fields{}
	if d := c.Details(); d != nil {
		name, value := d.Identity()
		f[name] = value
		if d.Rated() {
			f["tcb"] = c.TCB.StatusName()
		}
	}
	return f
}

// refuse logs and records why a peer gets nothing. It returns the receipt of the record, nil if there is none.
func (s *Server) refuse(ctx context.Context, r *request, err error) *Receipt {
	return s.refuseTelling(ctx, r, err, err)
}

// refuseTelling is [Server.refuse] for a peer that may hear less than all: told is what the record says, which a peer
// gets with its receipt.
func (s *Server) refuseTelling(ctx context.Context, r *request, err, told error) *Receipt {
	r.decision.Code, r.decision.Reason = attest.CodeOf(told), bounded(told.Error())
	log := r.log.WithField("code", string(r.decision.Code))
	if hint := attest.HintOf(err); hint != "" {
		log = log.WithField("hint", hint)
	}
	log.Warnf("peer refused: %v", err)
	s.metrics.refused(r.decision.Wire, r.decision.Code)
	receipt, err := s.config.Keeper.Refuse(ctx, r.decision)
	if err != nil {
		log.Errorf("the refusal could not be recorded: %v", err)
		return nil
	}
	return proven(receipt)
}

// maxReason bounds what a log entry says, in bytes.
const maxReason = 4 << 10

func bounded(s string) string { return strings.ToValidUTF8(fmt.Sprintf("%.*s", maxReason, s), "") }

// errNothing is the one answer for a secret that does not exist and for one that the peer may not have.
func errNothing(asked string) error {
	return attest.Errorf(attest.CodeSecret, "looking up secret "+printable(asked),
		"Check the name, and which workloads may have the secret.", "there is none for this workload")
}

// release decides on the secrets that a peer asks for, all or none of them, and has the decision recorded before it
// returns them. The error is [ErrStale], or for the peer to see; what it may not see is in the log.
func (s *Server) release(ctx context.Context, r *request, peer policy.Matched, names []string) (
	[]attest.Secret, *Receipt, error) {
	r.decision.Workload = peer.Workloads[0].Name()
	grants, err := s.grants(ctx, r, peer, names)
	if err != nil {
		return nil, nil, err
	}
	r.decision.Grants = grants.allowed
	if grants.forbidden != nil {
		s.refuse(ctx, r, grants.forbidden)
		return nil, nil, errNothing(grants.asked) // without the receipt, whose entry says which of the two it is
	}
	read := r.reading
	r.decision.Fresh = func() bool { return s.fresh(read) }
	start := time.Now()
	secrets, receipt, err := s.config.Keeper.Release(ctx, r.decision)
	s.metrics.kept(time.Since(start), err)
	switch {
	case errors.Is(err, ErrStale):
		return nil, nil, err
	case err != nil:
		return nil, nil, s.notReleased(r, err)
	}
	log := r.log.WithFields(logrus.Fields{"workload": r.decision.Workload, "entry": receipt.Index})
	for _, g := range r.decision.Grants {
		log.WithFields(logrus.Fields{"secret": g.Secret, "rule": g.Rule}).Info("secret released")
	}
	s.metrics.released(r.decision.Wire, r.decision.Workload, len(secrets))
	return secrets, proven(receipt), nil
}

// grantResult is the verdict on the names of a request.
type grantResult struct {
	allowed   []Grant // of all names; where one is forbidden, up to it
	forbidden error   // why; nil where all are allowed
	asked     string  // the name that is forbidden
}

// grants decides on each name. The error is for the peer to see.
func (s *Server) grants(ctx context.Context, r *request, peer policy.Matched, names []string) (
	grantResult, error) {
	var d grantResult
	for _, asked := range names {
		name, ok, err := s.config.Keeper.Resolve(ctx, asked)
		if err != nil {
			r.log.Errorf("looking up secret %s: %v", printable(asked), err)
			return d, errUnavailable()
		}
		if !ok || r.decision.Wire == policy.WireSession && name != asked {
			d.asked = asked
			shown := strings.ToValidUTF8(fmt.Sprintf("%.*s", maxSecretName, asked), "?")
			d.allowed = append(d.allowed, Grant{Secret: shown, Rule: "store"})
			d.forbidden = attest.Errorf(attest.CodeSecret, "looking up secret "+printable(asked), "", "there is no such secret")
			return d, nil
		}
		g, err := r.force.policy.Grant(peer, name)
		d.allowed = append(d.allowed, Grant{Secret: name, Rule: g.Rule, Limit: g.Releases, Version: g.Version})
		if err != nil {
			d.asked = asked
			d.forbidden = &attest.Error{Code: attest.CodeDenied, Step: "secret " + name, Err: err}
			return d, nil
		}
		r.decision.Workload = g.Workload
	}
	return d, nil
}

// notReleased is what a peer may know of a keeper's failure.
func (s *Server) notReleased(r *request, err error) error {
	code := attest.CodeOf(err)
	r.log.WithField("code", string(code)).Errorf("nothing released: %v", err)
	switch code {
	case attest.CodeDenied:
		s.metrics.refused(r.decision.Wire, code)
		return err
	case attest.CodeSecret:
		s.metrics.refused(r.decision.Wire, code)
		return attest.Errorf(attest.CodeSecret, "reading secret", "The broker's log says which.", "it is not there or damaged")
	}
	s.metrics.undecided(r.decision.Wire, code)
	return errUnavailable()
}

func errUnavailable() error {
	return attest.Errorf(attest.CodeUnreachable, "asking the store", "", "the broker cannot reach its store")
}

// proven is a receipt that proves something, nil for one of a keeper without a log.
func proven(r Receipt) *Receipt {
	if r.Checkpoint == nil {
		return nil
	}
	return &r
}

// printable is a name chosen by a peer, for the log.
func printable(name string) string { return fmt.Sprintf("%.64q", name) }
