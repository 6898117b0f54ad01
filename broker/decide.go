package broker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/broker/policy"
)

// request is one peer's request on the way to its decision.
type request struct {
	id       string // for the log
	force    *inForce
	decision Decision // as far as it is known
	wrapped  bool     // what is released is encrypted to the peer's hardware
	log      logrus.FieldLogger
}

// newRequest begins a request under the policy in force.
func (s *Server) newRequest(remote, wire string, force *inForce) *request {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	r := &request{id: hex.EncodeToString(id[:]), force: force}
	r.decision = Decision{Peer: remote, Wire: wire}
	r.log = s.config.Logger.WithFields(logrus.Fields{"request": r.id, "peer": remote, "wire": wire})
	return r
}

// shown notes whose request it is.
func (r *request) shown(binder, evidence [32]byte, claims attest.Claims) {
	r.decision.Binder, r.decision.Evidence, r.decision.Claims = binder, evidence, claims
	r.log = r.log.WithFields(claimFields(claims))
}

func claimFields(c attest.Claims) logrus.Fields {
	f := logrus.Fields{}
	switch {
	case c.SGX != nil:
		f["mr_enclave"] = hex.EncodeToString(c.SGX.MREnclave[:])
		f["tcb"] = c.TCB.StatusName()
	case c.TDX != nil:
		f["mr_td"] = hex.EncodeToString(c.TDX.MRTD[:])
		f["tcb"] = c.TCB.StatusName()
	case c.SNP != nil:
		f["measurement"] = hex.EncodeToString(c.SNP.Measurement[:])
	case c.TPM != nil:
		f["ak"] = hex.EncodeToString(c.TPM.AK[:])
	}
	return f
}

// refuse records and logs why a peer gets nothing. It returns the receipt of the record, nil where there is none.
func (s *Server) refuse(ctx context.Context, r *request, err error) *Receipt {
	r.decision.At = s.config.Now()
	r.decision.Code, r.decision.Reason = attest.CodeOf(err), bounded(err.Error())
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
// returns them. The error is for the peer to see; what it may not see is in the log.
func (s *Server) release(ctx context.Context, r *request, peer []*policy.Workload, names []string) (
	[]attest.Secret, *Receipt, error) {
	at := s.config.Now()
	r.decision.At, r.decision.Workload = at, peer[0].Name()
	grants, err := s.grants(ctx, r, peer, names, at)
	if err != nil {
		return nil, nil, err
	}
	r.decision.Grants = grants.allowed
	if grants.forbidden != nil {
		return nil, s.refuse(ctx, r, grants.forbidden), errNothing(grants.asked)
	}
	start := time.Now()
	secrets, receipt, err := s.config.Keeper.Release(ctx, r.decision)
	s.metrics.kept(time.Since(start), err)
	if err != nil {
		return nil, nil, s.notReleased(r, err)
	}
	log := r.log.WithFields(logrus.Fields{"workload": r.decision.Workload, "entry": receipt.Index})
	for _, g := range r.decision.Grants {
		log.WithFields(logrus.Fields{"secret": g.Secret, "rule": g.Rule}).Info("secret released")
	}
	s.metrics.released(r.decision.Wire, r.decision.Workload, len(secrets))
	return secrets, proven(receipt), nil
}

// decided are the grants of a request.
type decided struct {
	allowed   []Grant // of all names; where one is forbidden, up to it
	forbidden error   // why; nil where all are allowed
	asked     string  // the name that is forbidden
}

// grants decides on each name. The error is for the peer to see.
func (s *Server) grants(ctx context.Context, r *request, peer []*policy.Workload, names []string, at time.Time) (
	decided, error) {
	var d decided
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
		g, err := r.force.policy.Grant(peer, name, r.wrapped, at)
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
	s.metrics.refused(r.decision.Wire, code)
	switch code {
	case attest.CodeDenied:
		return err
	case attest.CodeSecret:
		return attest.Errorf(attest.CodeSecret, "reading secret", "The broker's log says which.", "it is not there or damaged")
	}
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
