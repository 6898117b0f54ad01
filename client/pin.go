package client

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/sesame-init/sesame/attest"
)

// Pin says which servers are accepted.
type Pin struct {
	// Certificate is PEM, one certificate or more. A server is accepted if it shows exactly one of them, or a
	// certificate issued by one of them for ServerName.
	Certificate []byte
	// ServerName is the name asked for and, if set, checked: against the subject alternative names and, as other
	// gRPC clients do it, against the common name of a certificate without any. A pinned certificate of the server
	// itself needs no name: no one else has its key.
	ServerName string
	// Now is the clock that validity is checked with.
	Now func() time.Time
}

// Pinned makes credentials that accept only these servers. Without Certificate nothing is accepted.
func Pinned(p Pin) (credentials.TransportCredentials, error) {
	var pinned []*x509.Certificate
	for block, rest := pem.Decode(p.Certificate); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, attest.Errorf(attest.CodeConfig, "reading server certificate", "", "%w", err)
		}
		pinned = append(pinned, c)
	}
	if len(pinned) == 0 {
		return nil, attest.Errorf(attest.CodeConfig, "reading server certificate",
			"It is the file made together with the server's key, between BEGIN CERTIFICATE and END CERTIFICATE.",
			"no PEM certificate found")
	}
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: p.ServerName,
		// The standard verification insists on names even for a certificate known byte by byte, and on names in an
		// extension that many self-signed certificates lack. verify does it all instead.
		InsecureSkipVerify: true,
		VerifyConnection:   func(s tls.ConnectionState) error { return p.verify(pinned, s.PeerCertificates) },
	}), nil
}

func (p *Pin) verify(pinned, shown []*x509.Certificate) error {
	if len(shown) == 0 {
		return fmt.Errorf("the server showed no certificate")
	}
	leaf, now := shown[0], p.Now()
	for _, c := range pinned {
		if !bytes.Equal(c.Raw, leaf.Raw) {
			continue
		}
		if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
			return fmt.Errorf("the server's certificate is valid from %s to %s only",
				leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339))
		}
		return p.verifyName(leaf)
	}
	options := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now, DNSName: p.ServerName,
	}
	for _, c := range pinned {
		options.Roots.AddCert(c)
	}
	for _, c := range shown[1:] {
		options.Intermediates.AddCert(c)
	}
	// An authority issues for many servers, so that its certificate alone does not say which one this is.
	if _, err := leaf.Verify(options); err != nil || p.ServerName == "" {
		return fmt.Errorf("the server's certificate, SHA-256 %x, is not the pinned one nor issued by it for %q",
			sha256.Sum256(leaf.Raw), p.ServerName)
	}
	return nil
}

func (p *Pin) verifyName(leaf *x509.Certificate) error {
	if p.ServerName == "" {
		return nil
	}
	if len(leaf.DNSNames)+len(leaf.IPAddresses) == 0 && leaf.Subject.CommonName == p.ServerName {
		return nil
	}
	return leaf.VerifyHostname(p.ServerName)
}
