package aecs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/fault"
)

// EnclaveService is the name in the certificates that the upstream's deployment makes for its servers.
const EnclaveService = "enclave-service"

// TLS secures the connection to an AECS. A server with TLS demands a certificate of its clients; it derives no right
// from it.
type TLS struct {
	// Roots are the authorities of the server's certificate.
	Roots *x509.CertPool
	// Certificate is ours; nil if the server demands none.
	Certificate *tls.Certificate
	// ServerName must be in the server's certificate and is the authority of every call. Default [EnclaveService]. The
	// upstream's certificates are X.509 version 1 and have it as common name; in others the subject alternative
	// names count.
	ServerName string
}

func (t *TLS) serverName() string {
	if t.ServerName == "" {
		return EnclaveService
	}
	return t.ServerName
}

// verify decides about the server's certificate. crypto/tls does not: it refuses a name that is only in the common name.
func (t *TLS) verify(cs tls.ConnectionState, now time.Time) error {
	leaf := cs.PeerCertificates[0]
	options := x509.VerifyOptions{
		Roots: t.Roots, Intermediates: x509.NewCertPool(), CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, c := range cs.PeerCertificates[1:] {
		options.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(options); err != nil {
		return err
	}
	if len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.URIs)+len(leaf.EmailAddresses) > 0 {
		return leaf.VerifyHostname(t.serverName())
	}
	if leaf.Subject.CommonName != t.serverName() {
		return errors.New("its common name is not " + t.serverName())
	}
	return nil
}

const (
	maxHeaders = 16 << 10   // bytes of the headers or trailers of an answer
	window     = 64<<10 - 1 // bytes that a server may send ahead of our reading: HTTP/2's own default
)

// link is a connection to one server.
type link struct {
	rpc *grpc.ClientConn
	// verdict is why the server's certificate was refused.
	verdict atomic.Pointer[attest.Error]
	// proved says that the server's certificate leads to the configured authority. What a server says outside its
	// signed answers counts only then.
	proved bool
}

func (l *link) close() { _ = l.rpc.Close() }

// connect prepares a connection; it is made at the first call.
func (c *Client) connect(server string) (*link, error) {
	l := &link{proved: c.config.TLS != nil}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(), // the host sets the environment
		grpc.WithDisableRetry(),
		grpc.WithMaxHeaderListSize(maxHeaders),
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
	}
	if t := c.config.TLS; t != nil {
		options = append(options, grpc.WithTransportCredentials(credentials.NewTLS(c.tls(l))),
			grpc.WithAuthority(t.serverName()))
	}
	var err error
	if l.rpc, err = grpc.NewClient("passthrough:///"+server, options...); err != nil {
		return nil, attest.Errorf(attest.CodeConfig, "connecting", "Write host:port.", "%w", err)
	}
	return l, nil
}

func (c *Client) tls(l *link) *tls.Config {
	t := c.config.TLS
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: t.serverName(), SessionTicketsDisabled: true,
		InsecureSkipVerify: true, // VerifyConnection verifies
		VerifyConnection: func(cs tls.ConnectionState) error {
			// gRPC shakes hands in a goroutine of its own.
			if err := fault.Try(func() error { return t.verify(cs, c.config.Now()) }); err != nil {
				refusal := attest.Errorf(attest.CodeEvidence, "verifying the server's certificate",
					"Compare the certificate with aecs.tls: its authority, and the name or common name "+t.serverName()+".", "%w", err)
				l.verdict.Store(refusal)
				return refusal
			}
			return nil
		},
	}
	if t.Certificate != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return t.Certificate,
				nil
		}
	}
	return config
}

// explain turns the failure of a call into a refusal with its likely cause.
func (l *link) explain(ctx context.Context, err error) error {
	const step = "calling the server"
	if ctx.Err() != nil {
		return attest.Errorf(attest.CodeUnreachable, step,
			"Check the address, and that the AECS is up; one that takes connections and does not answer says why in its log.",
			"%w", ctx.Err())
	}
	if refusal := l.verdict.Load(); refusal != nil {
		return refusal
	}
	s := status.Convert(err)
	var refusal error
	switch s.Code() {
	case codes.Unimplemented:
		return errUnimplemented
	case codes.Internal, codes.Unknown:
		refusal = explainCode(s.Message())
	case codes.ResourceExhausted:
		refusal = attest.Errorf(attest.CodeEvidence, step, "Is this the address of an AECS?",
			"the answer is larger than %d bytes", maxAnswer)
	case codes.Unavailable:
		if strings.Contains(s.Message(), "remote error: tls:") {
			return attest.Errorf(attest.CodeUnreachable, step,
				"The server demands a certificate of its clients: aecs.tls.certificate, signed by an authority that it knows.",
				"the server refused our certificate: %s", attest.Quote(s.Message()))
		}
	}
	switch {
	case refusal == nil:
		return attest.Errorf(attest.CodeUnreachable, step,
			"Check the address, that the AECS is up, and whether it is to be spoken to with TLS or without.",
			"%s: %s", s.Code(), attest.Quote(s.Message()))
	case !l.proved:
		return unproved(refusal)
	}
	return refusal
}

// unproved is what a server says over a connection that proves nothing: shown, and tried again.
func unproved(refusal error) error {
	return attest.Errorf(attest.CodeUnreachable, "waiting for the server's answer",
		"Without TLS anyone on the way can say this, so it is only shown and tried again. "+attest.HintOf(refusal),
		"a server that is not verified says: %s", attest.Quote(refusal.Error()))
}
