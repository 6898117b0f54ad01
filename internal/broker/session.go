package broker

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
	"github.com/sesame-init/sesame/attest/tpm"
	"github.com/sesame-init/sesame/internal/broker/policy"
)

// sessionService is the session protocol as it is registered.
type sessionService struct {
	sessionpb.UnimplementedKeyBrokerServer
	server *Server
}

// Release implements the session protocol.
func (svc *sessionService) Release(raw session.Stream) error {
	s := svc.server
	from := connectionOf(raw.Context())
	if from == nil {
		return status.Error(codes.PermissionDenied, "")
	}
	stream := s.clocked(raw, from)
	defer stream.end()
	start := time.Now()
	err := s.session(stream, from)
	s.metrics.session(time.Since(start), err)
	if stream.busy {
		s.metrics.overload("sessions")
		return session.Later(raw, retryAfter)
	}
	return err
}

// session runs one session. Its decision is made from one reading, which is taken when the last message that it needs is
// there.
func (s *Server) session(stream *timedStream, from *connection) error {
	ctx := stream.Context()
	if err := from.over(s.config.Now()); err != nil {
		return err
	}
	r := s.newRequest(from.remote, policy.WireSession)
	accept := session.BrokerConfig{Quoter: s.config.Quoter}
	peer, err := accept.Accept(stream, from.State, from.own)
	r.shown(peer.Binder, peer.Digest)
	switch {
	case err != nil && ownFault(err):
		return s.unavailable(ctx, r, err)
	case err != nil:
		s.failed(ctx, r, err)
		return status.Error(codes.PermissionDenied, "")
	}
	for {
		err := s.answer(ctx, r, stream, from, peer)
		if !errors.Is(err, errAgain) {
			return err
		}
		if ctx.Err() != nil {
			return status.Error(codes.Unavailable, "the broker could not decide in time")
		}
	}
}

// errAgain is of a decision that has to be made anew.
var errAgain = errors.New("to be decided again")

// answer decides on a request from a reading of its own and answers it. With [errAgain] it has answered nothing.
func (s *Server) answer(ctx context.Context, r *request, stream *timedStream, from *connection, peer session.Peer) error {
	r.read(s.read())
	if err := from.over(r.at); err != nil {
		return err
	}
	claims, err := peer.Verify(ctx, r.force.trust.Verifier, r.at)
	switch {
	case err != nil && ownFault(err):
		return s.unavailable(ctx, r, err)
	case err != nil:
		s.failed(ctx, r, err)
		return status.Error(codes.PermissionDenied, "")
	}
	if claims.TPM != nil {
		claims.TPM.EKProved = r.challenged && r.refusal == nil
	}
	r.claim(claims)
	matched, err := r.force.policy.Match(claims, r.at, policy.WireSession)
	if matched.Proved {
		from.proved()
		from.life.Until(claims.TCB.EarliestExpiry)
	}
	if matched.Challenge && !r.challenged {
		if peer.Answers {
			return s.challenge(stream, r, peer, claims)
		}
		if err != nil {
			r.refusal = errOldInit()
		}
	}
	if err != nil {
		told := r.told(matched)
		receipt := s.refuseTelling(ctx, r, err, told)
		return session.Deny(stream, told, (*session.Receipt)(receipt))
	}
	secrets, receipt, err := s.release(ctx, r, matched, peer.Names)
	switch {
	case err == nil:
	case errors.Is(err, ErrStale):
		return errAgain
	case attest.CodeOf(err) == attest.CodeUnreachable:
		return session.Unavailable(attest.CodeUnreachable, err.Error(), hintStore)
	default:
		return session.Deny(stream, err, (*session.Receipt)(receipt))
	}
	defer func() {
		for _, secret := range secrets {
			secret.Wipe() // gRPC has its own copy, which is beyond reach
		}
	}()
	var wrapped attest.EvidenceType
	if matched.Wrap != nil {
		wrapped = attest.TPM
		for i, secret := range secrets {
			sealed, err := tpm.Wrap(claims.TPM, matched.Wrap, secret)
			if err != nil {
				r.log.Errorf("released, but not sent: %v", err)
				return session.Deny(stream, err, (*session.Receipt)(receipt))
			}
			secret.Wipe()
			secrets[i] = attest.NewSecret(sealed)
		}
		r.log.WithField("pcrs", matched.Wrap).Info("secrets wrapped to the peer's TPM")
	}
	return session.Release(stream, peer.Names, secrets, (*session.Receipt)(receipt), wrapped)
}

// challengeTimeout bounds the wait for an answer. A TPM that has to make its endorsement key first takes some 10 s.
const challengeTimeout = 30 * time.Second

// challenge asks the peer, once in a session, to prove that the endorsement key in its evidence is its own. What it was
// asked for counts in the decision that follows, and so does an answer that proves nothing.
func (s *Server) challenge(stream *timedStream, r *request, peer session.Peer, claims attest.Claims) error {
	r.challenged = true
	c, secret, err := tpm.NewCredential(claims.TPM)
	if err != nil {
		r.refusal = err
		return errAgain
	}
	stream.within(challengeTimeout)
	err = session.Challenge(stream, peer, c.Blob, c.Seed, secret)
	switch {
	case errors.Is(err, session.ErrAnswer):
		r.refusal = err
	case err != nil:
		s.failed(stream.Context(), r, err)
		return status.Error(codes.PermissionDenied, "")
	}
	return errAgain
}

// failed deals with a session that ended before the client was known. It is a refusal if the client has shown
// evidence; else it went away, or the broker could not show its own.
func (s *Server) failed(ctx context.Context, r *request, err error) {
	switch {
	case r.decision.Evidence != [32]byte{}:
		s.refuse(ctx, r, err)
	case errors.Is(err, io.EOF) || status.Code(errors.Unwrap(err)) == codes.Canceled:
		r.log.Debugf("peer left a session: %v", err)
	default:
		r.log.Infof("session failed: %v", err)
	}
}
