// Package admin is the administrators' channel of the key broker: secrets, policy, root key and release log over gRPC,
// on a port of its own.
//
// Both sides prove themselves before anything is sent that is secret. The administrator has a client certificate below
// a root that the broker's measured config names (mutual TLS 1.3); what he does is recorded in the release log under
// his certificate's subject and hash. The broker shows evidence made for this very connection, in the way of the
// session protocol (package session, [session.Prover]), or, outside an enclave, the key that the administrator has
// pinned. [Dial] verifies it before it returns, and the connection is never replaced by another one.
//
// Every administrator may do everything. Values of secrets go in and never come out.
package admin

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
	"github.com/sesame-init/sesame/internal/broker/admin/adminpb"
	"github.com/sesame-init/sesame/internal/broker/admission"
	"github.com/sesame-init/sesame/internal/broker/keystore"
)

// Bounds. The administrators' port has places of its own, and strangers cannot take those of administrators.
const (
	strangers      = 64 // connections at once that have not shown an administrator's certificate
	administrators = 64 // connections at once that have
	maxMessage     = keystore.MaxValue + 64<<10
	handshake      = 20 * time.Second // that the TLS handshake may wait for the peer
	preface        = 5 * time.Second  // for HTTP/2's greeting
	idle           = 5 * time.Minute  // without a call
	maxAge         = time.Hour        // of a connection
	drain          = 10 * time.Second
	buffer         = 4 << 10 // bytes of a connection's buffers for reading and for writing
)

// An Identity gives the certificate that the broker shows.
type Identity interface {
	Certificate(ctx context.Context) (*tls.Certificate, error)
}

// A PolicyStore puts policies in force.
type PolicyStore interface {
	// Replace puts the policy of a text in force, and refuses one that it does not take. by says who brings it.
	Replace(ctx context.Context, text []byte, by string) error
}

// Options of a [Server]. All are needed, except Policies: without them no policy can be pushed.
type Options struct {
	Keystore *keystore.Keystore
	Policies PolicyStore
	Identity Identity
	// Session says how the broker proves itself; without a Quoter it runs outside an enclave.
	Session session.BrokerConfig
	Roots   *x509.CertPool // of administrators' certificates
	Now     func() time.Time
	Logger  logrus.FieldLogger
}

// Server is the broker's side of the channel. Make it with [New].
type Server struct {
	options Options
	door    *admission.Door
	adminpb.UnimplementedAdminServer
}

// New makes a server. The error's code is [attest.CodeConfig].
func New(o Options) (*Server, error) {
	if o.Keystore == nil || o.Identity == nil || o.Roots == nil || o.Now == nil || o.Logger == nil {
		return nil, attest.Errorf(attest.CodeConfig, "configuring admin channel", "", "keystore, identity, roots, clock and logger are needed")
	}
	s := &Server{options: o}
	s.door = &admission.Door{Options: admission.Options{
		Pool:  admission.NewPool(admission.PoolOptions{Common: strangers, Proved: administrators}),
		Shake: s.shake, Server: s.serverOf, Begin: preface, Idle: idle, Drain: drain, Now: o.Now,
	}}
	return s, nil
}

// serverOf is the gRPC server of one connection.
func (s *Server) serverOf(_ credentials.AuthInfo, given []grpc.ServerOption) *grpc.Server {
	rpc := grpc.NewServer(append(given,
		grpc.ConnectionTimeout(preface),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(16),
		grpc.MaxHeaderListSize(8<<10),
		grpc.ReadBufferSize(buffer),
		grpc.WriteBufferSize(buffer),
		grpc.WaitForHandlers(true),
		grpc.ChainUnaryInterceptor(s.intercept),
	)...)
	adminpb.RegisterAdminServer(rpc, s)
	return rpc
}

// Serve answers on a listener, which it closes, until ctx ends. Then it lets calls in flight finish for ten seconds.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if _, err := s.door.Serve(ctx, l); err != nil {
		return attest.Errorf(attest.CodeInternal, "serving administrators", "", "%w", err)
	}
	return nil
}

// connection is what the handshake of one connection has established.
type connection struct {
	credentials.TLSInfo
	life *admission.Conn
	own  *x509.Certificate
	by   string
}

// shake is the handshake in front of gRPC.
func (s *Server) shake(life *admission.Conn) (net.Conn, credentials.AuthInfo, error) {
	o := &s.options
	who := &connection{life: life}
	conn := tls.Server(life, &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs:  o.Roots,
		Time:       o.Now,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			ctx, cancel := context.WithTimeout(hello.Context(), handshake)
			defer cancel()
			c, err := o.Identity.Certificate(ctx)
			if err == nil {
				who.own = c.Leaf
			}
			return c, err
		},
		SessionTicketsDisabled: true,
	})
	life.Pace(handshake)
	err := conn.Handshake()
	life.Unpace()
	if err != nil {
		o.Logger.WithField("peer", life.RemoteAddr().String()).Infof("administrator refused: %.200s", err.Error())
		return nil, nil, err
	}
	state := conn.ConnectionState()
	if state.NegotiatedProtocol != "h2" {
		return nil, nil, errors.New("the peer does not speak HTTP/2")
	}
	leaf := state.PeerCertificates[0]
	who.by = fmt.Sprintf("%.200s, certificate %x", leaf.Subject.String(), sha256.Sum256(leaf.Raw))
	who.TLSInfo = credentials.TLSInfo{State: state,
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}
	life.Prove()
	life.Until(o.Now().Add(maxAge))
	for _, c := range state.VerifiedChains[0] {
		life.Until(c.NotAfter)
	}
	return conn, who, nil
}

func from(ctx context.Context) *connection {
	if p, ok := peer.FromContext(ctx); ok {
		if c, ok := p.AuthInfo.(*connection); ok {
			return c
		}
	}
	return nil
}

// intercept lets administrators through, and gives errors the form in which they survive the wire.
func (s *Server) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	who := from(ctx)
	if who == nil {
		return nil, status.Error(codes.PermissionDenied, "")
	}
	defer who.life.Call()()
	if who.life.Ended(s.options.Now()) {
		who.life.Leave()
		return nil, status.Error(codes.Unavailable, "the connection has reached its end; connect again")
	}
	answer, err := handle(ctx, request)
	log := s.options.Logger.WithFields(logrus.Fields{"by": who.by, "call": info.FullMethod})
	if err != nil {
		log.WithField("hint", attest.HintOf(err)).Warnf("administrator's call refused: %v", err)
		return nil, encodeError(err)
	}
	log.Debug("administrator's call done")
	return answer, nil
}

// encodeError is an error as it goes over the wire: its class, text and hint as a detail of the status.
func encodeError(err error) error {
	code := codes.FailedPrecondition
	switch attest.CodeOf(err) {
	case attest.CodeDenied:
		code = codes.PermissionDenied
	case attest.CodeSecret:
		code = codes.NotFound
	case attest.CodeConfig, attest.CodeUsage:
		code = codes.InvalidArgument
	case attest.CodeUnreachable:
		code = codes.Unavailable
	}
	bounded := func(s string) string { return fmt.Sprintf("%.2000s", s) }
	st, failed := status.New(code, bounded(err.Error())).WithDetails(&sessionpb.Denial{
		Code: string(attest.CodeOf(err)), Reason: bounded(err.Error()), Hint: bounded(attest.HintOf(err))})
	if failed != nil {
		return status.Error(code, bounded(err.Error()))
	}
	return st.Err()
}
