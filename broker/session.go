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
	"github.com/sesame-init/sesame/broker/policy"
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
	select {
	case s.sessions <- struct{}{}:
		defer func() { <-s.sessions }()
	default:
		s.metrics.overload("sessions")
		return session.Later(raw, retryAfter)
	}
	ctx, cancel := context.WithTimeout(raw.Context(), time.Duration(s.settings.Limits.Session))
	defer cancel()
	start := time.Now()
	err := s.session(&boundedStream{Stream: raw, ctx: ctx}, from)
	s.metrics.session(time.Since(start), err)
	return err
}

// session runs one session under one policy.
func (s *Server) session(stream session.Stream, from *connection) error {
	ctx := stream.Context()
	force := s.config.Policies.current.Load()
	r := s.newRequest(from.remote, policy.WireSession, force)
	accept := session.BrokerConfig{Quoter: s.config.Quoter, Verifier: force.trust.Verifier, Now: s.config.Now}
	peer, names, err := accept.Accept(stream, from.State, from.own)
	r.shown(peer.Binder, peer.Evidence, peer.Claims)
	if err != nil {
		s.failed(ctx, r, err)
		return status.Error(codes.PermissionDenied, "")
	}
	workloads, err := force.policy.Match(peer.Claims, s.config.Now(), policy.WireSession)
	if err != nil {
		receipt := s.refuse(ctx, r, err)
		return session.Deny(stream, err, (*session.Receipt)(receipt))
	}
	registers := force.policy.Wrap(workloads, peer.Claims, s.config.Now())
	r.wrapped = registers != nil
	secrets, receipt, err := s.release(ctx, r, workloads, names)
	switch {
	case err == nil:
	case attest.CodeOf(err) == attest.CodeUnreachable:
		return status.Error(codes.Unavailable, err.Error())
	default:
		return session.Deny(stream, err, (*session.Receipt)(receipt))
	}
	defer func() {
		for _, secret := range secrets {
			secret.Wipe() // gRPC has its own copy, which is beyond reach
		}
	}()
	var wrapped attest.EvidenceType
	if r.wrapped {
		wrapped = attest.TPM
		for i, secret := range secrets {
			sealed, err := tpm.Wrap(peer.Claims.TPM, registers, secret)
			if err != nil {
				r.log.Errorf("released, but not sent: %v", err)
				return session.Deny(stream, err, (*session.Receipt)(receipt))
			}
			secret.Wipe()
			secrets[i] = attest.NewSecret(sealed)
		}
		r.log.WithField("pcrs", registers).Info("secrets wrapped to the peer's TPM")
	}
	return session.Release(stream, names, secrets, (*session.Receipt)(receipt), wrapped)
}

// failed deals with a session that ended before the client was known. It is a refusal where the client has shown
// evidence; else it went away, or the broker could not show its own.
func (s *Server) failed(ctx context.Context, r *request, err error) {
	switch {
	case r.decision.Evidence != [32]byte{}:
		s.refuse(ctx, r, err)
	case errors.Is(err, io.EOF) || status.Code(errors.Unwrap(err)) == codes.Canceled:
		r.log.Debugf("peer left a session: %v", err)
	case attest.CodeOf(err) == attest.CodeAttester:
		r.log.WithField("hint", attest.HintOf(err)).Errorf("no session without own evidence: %v", err)
	default:
		r.log.Infof("session failed: %v", err)
	}
}

// boundedStream is a stream whose reads end with a context of the broker's.
type boundedStream struct {
	session.Stream
	ctx context.Context
}

// Context implements [grpc.ServerStream].
func (b *boundedStream) Context() context.Context { return b.ctx }

// Recv implements [session.Stream]. A read that is given up ends when the call's handler has returned.
func (b *boundedStream) Recv() (*sessionpb.ClientMessage, error) {
	type result struct {
		message *sessionpb.ClientMessage
		err     error
	}
	read := make(chan result, 1)
	go func() {
		message, err := b.Stream.Recv()
		read <- result{message, err}
	}()
	select {
	case r := <-read:
		return r.message, r.err
	case <-b.ctx.Done():
		return nil, b.ctx.Err()
	}
}
