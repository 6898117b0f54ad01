// Package broker is the key broker: it holds secrets and releases each of them only to a peer whose evidence is
// genuine and what the policy of a workload wants.
//
// It speaks two wires on one port. The session protocol (package session) has fresh evidence of both sides, bound to
// the connection, and releases all secrets in one stream. GRPC-RATLS, the legacy wire of Occlum's init_ra_server and
// of its C++ clients (package wire), has evidence in both certificates and one call per secret; it proves no
// freshness (see package ratls) and is served only to workloads that ask for it. There a peer's evidence is verified
// and appraised in the handshake, and a connection whose peer did not pass never carries a call for a secret. What a
// connection or session has established belongs to it and to nothing else.
//
// A peer whose evidence is not genuine learns nothing about why it is refused; the log says it, with what to do. To
// an accepted peer a secret that does not exist and one that its workload may not have are the same answer.
//
// The broker wipes secrets when it ends, as far as Go lets it: gRPC's buffers are beyond its reach.
package broker

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls/wire"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
)

// A Workload is a kind of peer and what it may have.
type Workload struct {
	Name   string          // for the log
	Policy ratls.Appraiser // what the peer must be
	Legacy bool            // it may use the legacy wire, too
	// Secrets are the names that it may have; AllSecrets is every one that the broker holds.
	Secrets    []string
	AllSecrets bool
}

func (w *Workload) may(secret string) bool { return w.AllSecrets || slices.Contains(w.Secrets, secret) }

// Limits bound what peers can make the broker do. Zero fields take the defaults.
type Limits struct {
	Connections int           // at once, those in the handshake included; further ones wait. Default 1024
	Handshake   time.Duration // TLS handshake with verification. Default 20 s, after which C++ peers give up
	Session     time.Duration // one session, from its greeting to its secrets. Default 30 s
	Idle        time.Duration // without a call in flight. Default 2 min
	Drain       time.Duration // for calls in flight when the broker stops. Default 10 s
}

func (l Limits) withDefaults() Limits {
	if l.Connections == 0 {
		l.Connections = 1024
	}
	if l.Handshake == 0 {
		l.Handshake = 20 * time.Second
	}
	if l.Session == 0 {
		l.Session = 30 * time.Second
	}
	if l.Idle == 0 {
		l.Idle = 2 * time.Minute
	}
	if l.Drain == 0 {
		l.Drain = 10 * time.Second
	}
	return l
}

const (
	maxRequest = 96 << 10 // bytes of a message: evidence and the names of secrets
	maxStreams = 16       // calls at once on one connection
)

// Config of a [Server]. All fields without a default are needed.
type Config struct {
	Identity  *ratls.Identity
	Verifier  attest.Verifier
	Workloads []Workload
	Secrets   *Secrets
	Quoter    *session.Quoter // of sessions; nil: only the legacy wire is served
	Limits    Limits
	Now       func() time.Time // default time.Now
	Logger    logrus.FieldLogger
}

// Server is a key broker. Make it with [New].
type Server struct {
	config   Config
	rpc      *grpc.Server
	health   *health.Server
	sessions *session.BrokerConfig
	wire.UnimplementedGrSecretServer
	sessionpb.UnimplementedKeyBrokerServer
}

// New makes a server. The error's code is [attest.CodeConfig].
func New(c Config) (*Server, error) {
	const step = "configuring broker"
	if c.Identity == nil || c.Verifier == nil || c.Secrets == nil || c.Logger == nil || len(c.Workloads) == 0 {
		return nil, attest.Errorf(attest.CodeConfig, step, "", "identity, verifier, workloads, secrets and logger are needed")
	}
	for _, w := range c.Workloads {
		if w.Policy == nil {
			return nil, attest.Errorf(attest.CodeConfig, step, "", "workload %s has no policy", w.Name)
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	c.Limits = c.Limits.withDefaults()
	s := &Server{config: c, health: health.NewServer()}
	s.rpc = grpc.NewServer(
		grpc.Creds(&gate{server: s}),
		grpc.ConnectionTimeout(c.Limits.Handshake),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(8<<10),
		grpc.WaitForHandlers(true), // they read secrets, which are wiped after the server has stopped
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: c.Limits.Idle}),
	)
	wire.RegisterGrSecretServer(s.rpc, s)
	if c.Quoter != nil {
		s.sessions = &session.BrokerConfig{Quoter: c.Quoter, Verifier: c.Verifier, Now: c.Now}
		sessionpb.RegisterKeyBrokerServer(s.rpc, s)
	}
	grpc_health_v1.RegisterHealthServer(s.rpc, s.health)
	return s, nil
}

// Serve answers on a listener, which it closes, until ctx ends. Then it takes no more connections, lets calls in
// flight finish within Limits.Drain, and wipes the secrets.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer s.config.Secrets.Wipe()
	failed := make(chan error, 1)
	go func() { failed <- s.rpc.Serve(netutil.LimitListener(l, s.config.Limits.Connections)) }()
	select {
	case err := <-failed:
		s.rpc.Stop()
		return attest.Errorf(attest.CodeInternal, "serving", "", "%w", err)
	case <-ctx.Done():
	}
	s.health.Shutdown()
	drained := make(chan struct{})
	go func() {
		s.rpc.GracefulStop()
		close(drained)
	}()
	timer := time.NewTimer(s.config.Limits.Drain)
	defer timer.Stop()
	select {
	case <-drained:
	case <-timer.C:
		s.config.Logger.Warn("calls in flight are cut off: the time to drain is over")
	}
	s.rpc.Stop()
	<-drained
	<-failed
	return nil
}

// GetSecret implements the service of GRPC-RATLS.
func (s *Server) GetSecret(ctx context.Context, request *wire.SecretRequest) (*wire.SecretReply, error) {
	from := connectionOf(ctx)
	if from == nil || len(from.workloads) == 0 {
		return nil, status.Error(codes.PermissionDenied, "")
	}
	log := s.config.Logger.WithFields(from.fields())
	secret, ok := s.release(from.workloads, request.GetName(), log)
	if !ok {
		return nil, status.Error(codes.Canceled, "") // what Occlum's server answers
	}
	return &wire.SecretReply{Secret: wire.EncodeSecret(secret)}, nil
}

// release finds a secret that one of the workloads may have, and logs the decision.
func (s *Server) release(workloads []*Workload, asked string, log logrus.FieldLogger) (attest.Secret, bool) {
	log = log.WithField("secret", printable(asked))
	name, secret, ok := s.config.Secrets.lookup(asked)
	if !ok {
		log.Warn("no such secret")
		return attest.Secret{}, false
	}
	i := slices.IndexFunc(workloads, func(w *Workload) bool { return w.may(name) })
	if i < 0 {
		log.Warn("refused: no workload that this peer matches may have the secret")
		return attest.Secret{}, false
	}
	log.WithField("workload", workloads[i].Name).Info("secret released")
	return secret, true
}

func connectionOf(ctx context.Context) *connection {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	c, _ := p.AuthInfo.(*connection)
	return c
}

var errNotAClient = errors.New("these are credentials of a server")

var _ credentials.TransportCredentials = (*gate)(nil)
