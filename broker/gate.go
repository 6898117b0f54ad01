package broker

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/broker/policy"
)

// connection is what the handshake of one connection has established. Without evidence nothing is known of the
// peer, and it can do no more than begin a session.
type connection struct {
	credentials.TLSInfo
	remote string
	own    *x509.Certificate // that the broker has shown

	// On the legacy wire:
	evidence attest.Evidence
	digest   [32]byte
	seed     [32]byte // names the connection; binders of its calls come from it

	mu        sync.Mutex
	calls     uint64
	force     *inForce // under which claims and workloads were found
	claims    attest.Claims
	workloads []*policy.Workload
}

// gate is the handshake in front of gRPC. A peer that shows evidence in its certificate gets past it if the evidence
// is genuine and accepted for a workload of the legacy wire. One that shows none gets past it to begin a session.
type gate struct{ server *Server }

// ServerHandshake implements [credentials.TransportCredentials].
func (g *gate) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	s := g.server
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(s.settings.Limits.Handshake))
	defer cancel()
	start := time.Now()
	who := &connection{remote: raw.RemoteAddr().String()}
	certificate := func(ctx context.Context) (*tls.Certificate, error) {
		c, err := s.config.Identity.Certificate(ctx)
		if err == nil {
			who.own = c.Leaf
		}
		return c, err
	}
	conn := tls.Server(raw, ratls.ServerConfig(certificate, func(cs tls.ConnectionState) error {
		return s.admit(ctx, cs, who)
	}))
	err := conn.HandshakeContext(ctx)
	s.metrics.handshake(time.Since(start), err)
	if err != nil {
		s.logHandshake(who, err)
		return nil, nil, err
	}
	who.TLSInfo = credentials.TLSInfo{
		State:          conn.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}
	if len(who.workloads) > 0 {
		s.config.Logger.WithFields(claimFields(who.claims)).WithField("peer", who.remote).Info("peer accepted on the legacy wire")
	}
	return conn, who, nil
}

// admit decides whether a connection may carry requests, and which.
func (s *Server) admit(ctx context.Context, cs tls.ConnectionState, who *connection) error {
	ctx, cancel := context.WithTimeout(ctx, ratls.DefaultTimeout)
	defer cancel()
	if cs.NegotiatedProtocol != "h2" {
		return errors.New("the peer does not speak HTTP/2")
	}
	r := s.newRequest(who.remote, policy.WireLegacy)
	if _, err := io.ReadFull(rand.Reader, who.seed[:]); err != nil {
		return err
	}
	// A place is taken here and not before: peers that say nothing must not hold places.
	select {
	case s.handshakes <- struct{}{}:
		defer func() { <-s.handshakes }()
	case <-ctx.Done():
		s.metrics.overload("handshakes")
		return ctx.Err()
	}
	var claims attest.Claims
	var err error
	if len(cs.PeerCertificates) > 0 {
		who.evidence, err = ratls.Evidence(cs.PeerCertificates[0].Raw)
	}
	r.read(s.read())
	force := r.force
	switch {
	case errors.Is(err, ratls.ErrNone) && cs.Version == tls.VersionTLS13:
		return nil
	case err != nil:
	case !force.policy.Legacy(): // nothing that the evidence could say matters
		_, err = force.policy.Match(claims, r.at, policy.WireLegacy)
	default:
		claims, err = ratls.Genuine(ctx, force.trust.Verifier, cs, r.at)
	}
	who.digest = sha256.Sum256(who.evidence.Raw)
	if err == nil {
		who.force, who.claims = force, claims
		var matched policy.Matched
		matched, err = force.policy.Match(claims, r.at, policy.WireLegacy)
		who.workloads = matched.Workloads
	}
	if err != nil {
		r.shown(sha256.Sum256(append(who.seed[:], "handshake"...)), who.digest)
		r.claim(claims)
		s.refuse(ctx, r, err)
		return &refusedError{err}
	}
	return nil
}

// refusedError is a refusal that was recorded and logged.
type refusedError struct{ error }

func (e *refusedError) Unwrap() error { return e.error }

// peer is what a connection's peer is by a reading: what the handshake found, or, where the policy was replaced since, what
// its evidence says now.
func (s *Server) peer(ctx context.Context, c *connection, read reading) (attest.Claims, policy.Matched, error) {
	force, at := read.force, read.at
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.force.trust != force.trust {
		claims, err := force.trust.Verifier.Verify(ctx, c.evidence, at)
		if err != nil {
			return c.claims, policy.Matched{}, err
		}
		c.claims, c.force = claims, nil
	}
	// Spans of time in the policy may have ended, too.
	matched, err := force.policy.Match(c.claims, at, policy.WireLegacy)
	c.force, c.workloads = force, matched.Workloads
	return c.claims, matched, err
}

// binder names the next call of a connection.
func (c *connection) binder() [32]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	return legacyBinder(c.seed, c.calls)
}

func (s *Server) logHandshake(who *connection, err error) {
	log := s.config.Logger.WithField("peer", who.remote)
	var refused *refusedError
	switch {
	case errors.As(err, &refused):
	case errors.Is(err, io.EOF):
		log.Debug("peer left during the handshake") // as probes of the port do
	default:
		log.Infof("handshake failed: %.200s", err.Error())
	}
}

// ClientHandshake implements [credentials.TransportCredentials].
func (*gate) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errNotAClient
}

// Info implements [credentials.TransportCredentials].
func (*gate) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements [credentials.TransportCredentials].
func (g *gate) Clone() credentials.TransportCredentials { return g }

// OverrideServerName implements [credentials.TransportCredentials].
func (*gate) OverrideServerName(string) error { return errNotAClient }
