// Package broker is the key broker: it holds secrets and releases each of them only to a peer whose evidence is
// genuine and what the policy of a workload wants.
//
// It speaks two wires on one port. The session protocol (package session) has fresh evidence of both sides, bound to
// the connection, and releases all secrets in one stream. GRPC-RATLS, the legacy wire of Occlum's init_ra_server and
// of its C++ clients (package wire), has evidence in both certificates and one call per secret; it proves no
// freshness (see package ratls) and is served only to workloads that ask for it. There a peer's evidence is verified
// and appraised in the handshake and again at each call, and a connection whose peer was refused never carries a call for
// a secret. What a connection or session has established belongs to it and to nothing else.
//
// A fault of the broker's own side (collateral, store, own evidence) is no verdict: the peer hears UNAVAILABLE with the
// fault's class, on both wires, and no refusal is recorded.
//
// A peer whose evidence is not genuine learns nothing about why it is refused; the log says it, with what to do. To
// an accepted peer a secret that does not exist and one that its workload may not have are the same answer.
//
// Deciding and keeping are apart: package policy decides, by one policy from the beginning of a request to its end
// ([Policies]), and a [Keeper] records the decision before it hands out a secret. What cannot be recorded is not released.
//
// Secrets are wiped once they are sent, as far as Go lets it: gRPC's buffers are beyond reach.
package broker

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls/wire"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
	"github.com/sesame-init/sesame/internal/broker/admission"
	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/internal/fault"
)

// Identity is what a broker shows in the TLS handshake: a [ratls.Identity] in an enclave, a [BareIdentity] elsewhere.
type Identity interface {
	Certificate(ctx context.Context) (*tls.Certificate, error)
}

// Config of a [Server]. All fields without a default are needed.
type Config struct {
	Identity Identity
	Policies *Policies
	Keeper   Keeper
	// Quoter makes evidence for sessions. Nil: the broker runs outside an enclave, has none, and its clients pin its
	// key; then no workload may use the legacy wire.
	Quoter  *session.Quoter
	Now     func() time.Time // default time.Now
	Metrics *Metrics         // default: nothing is counted
	Logger  logrus.FieldLogger
}

// Server is a key broker. Make it with [New].
type Server struct {
	config     Config
	settings   policy.Settings
	door       *admission.Door
	health     *health.Server
	metrics    *Metrics
	lacking    missingLog
	handshakes chan struct{} // places for those whose evidence is verified
	sessions   chan struct{} // places for those of the session protocol
	wire.UnimplementedGrSecretServer
}

// New makes a server. The error's code is [attest.CodeConfig].
func New(c Config) (*Server, error) {
	const step = "configuring broker"
	if c.Identity == nil || c.Policies == nil || c.Keeper == nil || c.Logger == nil {
		return nil, attest.Errorf(attest.CodeConfig, step, "", "identity, policies, keeper and logger are needed")
	}
	if c.Quoter == nil && c.Policies.Current().Legacy() {
		return nil, attest.Errorf(attest.CodeConfig, step, "Take wire: legacy out of the policy, or run the broker in an enclave.",
			"clients of the legacy wire take no broker without evidence")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics()
	}
	settings := c.Policies.Current().Broker
	limits := settings.Limits
	s := &Server{
		config: c, settings: settings, health: health.NewServer(), metrics: c.Metrics,
		handshakes: make(chan struct{}, limits.Handshakes), sessions: make(chan struct{}, limits.Sessions),
	}
	s.door = &admission.Door{Options: admission.Options{
		Pool:   admission.NewPool(admission.PoolOptions{Common: limits.Connections, Proved: limits.Proved}),
		Shake:  s.shake,
		Server: s.serverOf,
		Begin:  time.Duration(limits.Begin),
		Idle:   time.Duration(limits.Idle),
		Drain:  time.Duration(limits.Drain),
		Now:    c.Now,
		Opened: s.metrics.connections, Evicted: func() { s.metrics.overload("connections") },
	}}
	return s, nil
}

// serverOf is the gRPC server of one connection.
func (s *Server) serverOf(info credentials.AuthInfo, given []grpc.ServerOption) *grpc.Server {
	streams := uint32(1)
	if info.(*connection).evidence.Raw != nil {
		streams = maxStreams
	}
	rpc := grpc.NewServer(append(append(thrift(), given...),
		grpc.MaxConcurrentStreams(streams),
		grpc.ConnectionTimeout(time.Duration(s.settings.Limits.Begin)),
		grpc.WaitForHandlers(true), // they hold secrets, which are wiped after the server has stopped
	)...)
	wire.RegisterGrSecretServer(rpc, s)
	sessionpb.RegisterKeyBrokerServer(rpc, &sessionService{server: s})
	grpc_health_v1.RegisterHealthServer(rpc, s.health)
	return rpc
}

// Serve answers on a listener, which it closes, until ctx ends. Then it takes no more connections, and lets calls in
// flight finish within the time to drain.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var watched sync.WaitGroup
	watch, stop := context.WithCancel(ctx)
	watched.Go(fault.Guard(func() {
		s.watch(watch)
		s.health.Shutdown()
	}))
	drained, err := s.door.Serve(ctx, l)
	stop()
	watched.Wait()
	switch {
	case err != nil:
		return attest.Errorf(attest.CodeInternal, "serving", "", "%w", err)
	case !drained:
		s.config.Logger.Warn("calls in flight are cut off: the time to drain is over")
	}
	return nil
}

// GetSecret implements the service of GRPC-RATLS.
func (s *Server) GetSecret(ctx context.Context, asked *wire.SecretRequest) (*wire.SecretReply, error) {
	from := connectionOf(ctx)
	if from == nil || from.evidence.Raw == nil {
		return nil, status.Error(codes.PermissionDenied, "")
	}
	defer from.life.Call()()
	if err := from.over(s.config.Now()); err != nil {
		return nil, err
	}
	r := s.newRequest(from.remote, policy.WireLegacy)
	r.shown(from.binder(), from.digest)
	leave, err := s.verifying(ctx)
	if err != nil {
		return nil, status.Error(codes.Unavailable, "too many peers at once")
	}
	claims, matched, err := s.judge(ctx, from, r)
	leave()
	r.claim(claims)
	switch {
	case err != nil && ownFault(err):
		return nil, s.unavailable(ctx, r, err)
	case err != nil:
		s.refuse(ctx, r, err)
		from.life.Leave()
		return nil, status.Error(codes.PermissionDenied, "")
	}
	secrets, _, err := s.release(ctx, r, matched, []string{asked.GetName()})
	switch {
	case err == nil:
	case errors.Is(err, ErrStale): // the next call decides again
		return nil, status.Error(codes.Unavailable, err.Error())
	case attest.CodeOf(err) == attest.CodeUnreachable:
		return nil, session.Unavailable(attest.CodeUnreachable, err.Error(), hintStore)
	default:
		return nil, status.Error(codes.Canceled, "") // what Occlum's server answers
	}
	defer secrets[0].Wipe()
	return &wire.SecretReply{Secret: wire.EncodeSecret(secrets[0])}, nil
}

// legacyBinder names the n-th call of a connection that a random seed names.
func legacyBinder(seed [32]byte, n uint64) [32]byte {
	data := append([]byte("sesame-legacy/call"), seed[:]...)
	return sha256.Sum256(binary.BigEndian.AppendUint64(data, n))
}

func connectionOf(ctx context.Context) *connection {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	c, _ := p.AuthInfo.(*connection)
	return c
}
