package ratls

import (
	"context"
	"crypto/tls"
	"errors"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy"
)

// DefaultTimeout bounds the verification of one peer, collateral fetches included. GRPC-RATLS clients give a
// connection up after 20 seconds.
const DefaultTimeout = 15 * time.Second

// ClientConfig is the TLS configuration of a GRPC-RATLS client: mutual, TLS 1.2 or later, P-256 (the only group
// that the C++ peers have), HTTP/2, no resumption, so that every connection is verified. certificate may be nil
// for a client without evidence. serverName is sent as SNI and otherwise means nothing.
func ClientConfig(certificate *tls.Certificate, serverName string, verify func(tls.ConnectionState) error) *tls.Config {
	c := config(verify)
	c.ServerName = serverName
	// Chain and names mean nothing in RA-TLS; VerifyConnection decides, and it is never nil.
	c.InsecureSkipVerify = true
	c.CurvePreferences = []tls.CurveID{tls.CurveP256}
	if certificate != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }
	}
	return c
}

// ServerConfig is the TLS configuration of a GRPC-RATLS server, which requires a certificate of every client. The
// key exchanges are Go's defaults; P-256 is among them.
func ServerConfig(certificate func(context.Context) (*tls.Certificate, error),
	verify func(tls.ConnectionState) error) *tls.Config {
	c := config(verify)
	c.ClientAuth = tls.RequireAnyClientCert
	c.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return certificate(hello.Context())
	}
	return c
}

func config(verify func(tls.ConnectionState) error) *tls.Config {
	if verify == nil {
		verify = func(tls.ConnectionState) error { return errors.New("no verification of the peer is configured") }
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS12,
		NextProtos:             []string{"h2"},
		SessionTicketsDisabled: true,
		VerifyConnection:       verify,
	}
}

// Genuine verifies the evidence in the certificate of a peer on the wire GRPC-RATLS, as [Evidence] takes it, for its
// genuineness, its binding to the certificate's key and the certificate's dates, and returns what it claims. It does not
// say whether anyone should accept that.
func Genuine(ctx context.Context, v attest.Verifier, cs tls.ConnectionState, at time.Time) (attest.Claims, error) {
	shown, err := shownBy(cs, at)
	if err == nil {
		err = shown.LegacyWire()
	}
	if err != nil {
		return attest.Claims{}, err
	}
	return v.Verify(ctx, shown.Evidence, at)
}

// shownBy reads the certificate of a connection's peer, which must be valid at a time.
func shownBy(cs tls.ConnectionState, at time.Time) (Shown, error) {
	if len(cs.PeerCertificates) == 0 {
		return Shown{}, attest.Errorf(attest.CodeEvidence, "checking certificate", "", "the peer has shown none")
	}
	shown, err := Read(cs.PeerCertificates[0].Raw)
	if err == nil {
		err = shown.Current(at)
	}
	return shown, err
}

// An Appraiser says whether genuine claims are wanted: a [policy.Policy], or Occlum's file by package raconfig.
type Appraiser interface {
	Appraise(claims attest.Claims, at time.Time) policy.Appraisal
}

// A PeerVerifier decides whether a TLS peer may be talked to. It holds no state of any connection and is safe for
// concurrent use.
//
// The policy judges the form of the certificate, too: an entry takes an application's certificate as init makes it, or,
// if it says binding: legacy, the forms without a label instead. On the wire GRPC-RATLS the protocol fixes the form.
type PeerVerifier struct {
	Verifier attest.Verifier
	Policy   Appraiser
	// Legacy is set on the wire GRPC-RATLS. Only forms without a label are taken there, and the policy is not asked.
	Legacy  bool
	Now     func() time.Time // default time.Now
	Timeout time.Duration    // of one verification; default DefaultTimeout
}

// Verify returns the claims of the peer of a connection, all of whose evidence is genuine, bound to the
// connection's key and accepted by the policy.
func (p *PeerVerifier) Verify(ctx context.Context, cs tls.ConnectionState) (attest.Claims, error) {
	if p.Verifier == nil || p.Policy == nil {
		return attest.Claims{}, attest.Errorf(attest.CodeConfig, "verifying peer", "", "no verifier or no policy is set")
	}
	now, timeout := p.Now, p.Timeout
	if now == nil {
		now = time.Now
	}
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	at := now()
	claims, err := p.genuine(ctx, cs, at)
	if err != nil {
		return attest.Claims{}, err
	}
	if err := p.Policy.Appraise(claims, at).Err(); err != nil {
		return attest.Claims{}, err
	}
	return claims, nil
}

func (p *PeerVerifier) genuine(ctx context.Context, cs tls.ConnectionState, at time.Time) (attest.Claims, error) {
	if p.Legacy {
		return Genuine(ctx, p.Verifier, cs, at)
	}
	shown, err := shownBy(cs, at)
	if err != nil {
		return attest.Claims{}, err
	}
	claims, err := p.Verifier.Verify(ctx, shown.Evidence, at)
	claims.Binding = shown.Binding
	return claims, err
}

// VerifyConnection is [PeerVerifier.Verify] for [tls.Config].
func (p *PeerVerifier) VerifyConnection(cs tls.ConnectionState) error {
	_, err := p.Verify(context.Background(), cs)
	return err
}
