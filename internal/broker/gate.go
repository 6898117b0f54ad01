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
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/internal/broker/admission"
	"github.com/sesame-init/sesame/internal/broker/policy"
)

// connection is what the handshake of one connection has established. Without evidence nothing is known of the
// peer, and it can do no more than begin a session.
type connection struct {
	credentials.TLSInfo
	life   *admission.Conn
	remote string
	own    *x509.Certificate // that the broker has shown

	// On the legacy wire:
	evidence attest.Evidence
	digest   [32]byte
	seed     [32]byte // names the connection; binders of its calls come from it
	verified atomic.Pointer[peerEvidence]

	mu    sync.Mutex
	calls uint64
}

// proved says that the evidence of the peer has matched the strongest identity of an entry of the policy. Nothing less
// gives a place that strangers cannot take.
func (c *connection) proved() { c.life.Prove() }

// shake is the handshake in front of gRPC. A peer that shows evidence in its certificate gets past it if the evidence
// is genuine and accepted for a workload of the legacy wire. One that shows none gets past it to begin a session.
func (s *Server) shake(life *admission.Conn) (net.Conn, credentials.AuthInfo, error) {
	limit := time.Duration(s.settings.Limits.Handshake)
	start := time.Now()
	who := &connection{life: life, remote: life.RemoteAddr().String()}
	// The broker's own time does not count against the peer, but has a bound, too.
	certificate := func(ctx context.Context) (*tls.Certificate, error) {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		c, err := s.config.Identity.Certificate(ctx)
		if err == nil {
			who.own = c.Leaf
		}
		return c, err
	}
	conn := tls.Server(life, ratls.ServerConfig(certificate, func(cs tls.ConnectionState) error {
		ctx, cancel := context.WithTimeout(context.Background(), min(limit, ratls.DefaultTimeout))
		defer cancel()
		return s.admit(ctx, cs, who)
	}))
	life.Pace(limit)
	err := conn.Handshake()
	life.Unpace()
	s.metrics.handshake(time.Since(start), err)
	if err != nil {
		s.logHandshake(who, err)
		return nil, nil, err
	}
	who.TLSInfo = credentials.TLSInfo{
		State:          conn.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}
	life.Until(s.config.Now().Add(maxLife))
	return conn, who, nil
}

// admit decides which requests a connection may carry, if any.
func (s *Server) admit(ctx context.Context, cs tls.ConnectionState, who *connection) error {
	if cs.NegotiatedProtocol != "h2" {
		return errors.New("the peer does not speak HTTP/2")
	}
	r := s.newRequest(who.remote, policy.WireLegacy)
	if _, err := io.ReadFull(rand.Reader, who.seed[:]); err != nil {
		return err
	}
	// A place is taken here and not before: peers that say nothing must not hold places.
	leave, err := s.verifying(ctx)
	if err != nil {
		return err
	}
	defer leave()
	var claims attest.Claims
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
		claims, err = who.genuine(ctx, cs, r.reading)
	}
	who.digest = sha256.Sum256(who.evidence.Raw)
	if err == nil {
		var matched policy.Matched
		if matched, err = force.policy.Match(claims, r.at, policy.WireLegacy); matched.Proved {
			who.proved()
		}
	}
	if err != nil && ownFault(err) { // each call judges anew, and can say so, which a handshake cannot
		who.life.Until(cs.PeerCertificates[0].NotAfter)
		return nil
	}
	if err != nil {
		r.shown(sha256.Sum256(append(who.seed[:], "handshake"...)), who.digest)
		r.claim(claims)
		s.refuse(ctx, r, err)
		return &refusedError{err}
	}
	who.life.Until(cs.PeerCertificates[0].NotAfter)
	who.life.Until(claims.TCB.EarliestExpiry)
	s.config.Logger.WithFields(claimFields(claims)).WithField("peer", who.remote).Info("peer accepted on the legacy wire")
	return nil
}

// verifying takes a place for the verification of a peer of the legacy wire.
func (s *Server) verifying(ctx context.Context) (leave func(), err error) {
	select {
	case s.handshakes <- struct{}{}:
		return func() { <-s.handshakes }, nil
	case <-ctx.Done():
		s.metrics.overload("handshakes")
		return nil, ctx.Err()
	}
}

// refusedError is a refusal that was recorded and logged.
type refusedError struct{ error }

func (e *refusedError) Unwrap() error { return e.error }

// judge judges a peer of the legacy wire by the evidence that it has shown in the handshake, under the policy, the
// collateral and the clock of this moment.
func (s *Server) judge(ctx context.Context, c *connection, r *request) (attest.Claims, policy.Matched, error) {
	ctx, cancel := context.WithTimeout(ctx, min(time.Duration(s.settings.Limits.Handshake), ratls.DefaultTimeout))
	defer cancel()
	r.read(s.read())
	claims, err := c.genuine(ctx, c.State, r.reading)
	if err != nil {
		return claims, policy.Matched{}, err
	}
	matched, err := r.force.policy.Match(claims, r.at, policy.WireLegacy)
	if err == nil && matched.Proved { // in the handshake it may not have been judged
		c.proved()
	}
	if err == nil {
		c.life.Until(claims.TCB.EarliestExpiry)
	}
	return claims, matched, err
}

// peerEvidence is a peer's evidence that was found genuine, with all that this rests on.
type peerEvidence struct {
	claims attest.Claims
	force  *inForce
	basis  basis
	from   time.Time // the moment of the verification
	until  time.Time // the first expiry: of the certificate or of what the platform's state comes from
}

// holds reports whether another verification could find nothing else.
func (v *peerEvidence) holds(ctx context.Context, r reading) bool {
	return v != nil && v.force == r.force && !r.at.Before(v.from) && r.at.Before(v.until) &&
		r.force.trust.unchanged(ctx, v.basis)
}

// genuine verifies the evidence of a peer of the legacy wire, whose TLS state is cs. What it has found holds until the
// policy or the collateral is another one or something has expired; then it verifies anew.
func (c *connection) genuine(ctx context.Context, cs tls.ConnectionState, r reading) (attest.Claims, error) {
	if v := c.verified.Load(); v.holds(ctx, r) {
		return v.claims, nil
	}
	v := &peerEvidence{force: r.force, from: r.at}
	var err error
	v.claims, err = ratls.Genuine(noting(ctx, &v.basis), r.force.trust.Verifier, cs, r.at)
	if err != nil {
		return v.claims, err
	}
	if v.until = v.claims.TCB.EarliestExpiry; cs.PeerCertificates[0].NotAfter.Before(v.until) {
		v.until = cs.PeerCertificates[0].NotAfter
	}
	c.verified.Store(v)
	return v.claims, nil
}

// over is the answer on a connection whose end has come at a time, nil on another one.
func (c *connection) over(at time.Time) error {
	if !c.life.Ended(at) {
		return nil
	}
	c.life.Leave()
	return status.Error(codes.Unavailable, "the connection has reached its end")
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
