package broker

import (
	"context"
	"crypto/x509"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
)

// Release implements the session protocol.
func (s *Server) Release(raw session.Stream) error {
	from := connectionOf(raw.Context())
	if from == nil {
		return status.Error(codes.PermissionDenied, "")
	}
	ctx, cancel := context.WithTimeout(raw.Context(), s.config.Limits.Session)
	defer cancel()
	stream := &boundedStream{Stream: raw, ctx: ctx}
	peer, names, err := s.sessions.Accept(stream, from.State, from.own)
	if err != nil {
		s.logRefusal(from, err)
		return status.Error(codes.PermissionDenied, "")
	}
	log := s.config.Logger.WithFields(peerFields(from.remote, peer.Claims))
	workloads, err := s.match(peer.Claims, s.config.Now(), false)
	if err != nil {
		s.logRefusal(&connection{remote: from.remote, claims: peer.Claims}, err)
		return session.Deny(stream, err, nil)
	}
	log.Info("peer accepted in a session")
	secrets := make([]attest.Secret, len(names))
	for i, name := range names {
		secret, ok := s.release(workloads, name, log)
		if !ok {
			return session.Deny(stream, attest.Errorf(attest.CodeSecret, "looking up secret "+printable(name),
				"Check the name, and which workloads may have the secret.", "there is none for this workload"), nil)
		}
		secrets[i] = secret
	}
	return session.Release(stream, names, secrets, nil)
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

// Collateral finds the collateral of the broker's own evidence, for [session.QuoterOptions]: whatever verifying it
// asks a source for. So only evidence that is genuine gets collateral.
func Collateral(source dcap.Source, roots []*x509.Certificate, now func() time.Time) func(context.Context,
	attest.Evidence) (*dcap.Collateral, error) {
	own := &recorder{source: source}
	verifier := dcap.NewVerifier(dcap.Config{Roots: roots, Source: own})
	return func(ctx context.Context, evidence attest.Evidence) (*dcap.Collateral, error) {
		if _, err := verifier.Verify(ctx, evidence, now()); err != nil {
			return nil, err
		}
		return own.latest(), nil
	}
}

// recorder remembers the collateral that a source gave last.
type recorder struct {
	source dcap.Source

	mu   sync.Mutex
	last *dcap.Collateral
}

// Collateral implements [dcap.Source].
func (r *recorder) Collateral(ctx context.Context, request dcap.Request) (*dcap.Collateral, error) {
	c, err := r.source.Collateral(ctx, request)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		r.last = c
	}
	return c, err
}

func (r *recorder) latest() *dcap.Collateral {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}
