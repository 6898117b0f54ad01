// Package admintest starts admin channels and makes administrators for tests. It must not be imported by programs.
package admintest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/internal/broker/admin"
	"github.com/sesame-init/sesame/internal/pki"
)

// Administrator makes a certificate that is its own authority.
func Administrator(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true}
	made, err := pki.SelfSign(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// Roots are those of administrators.
func Roots(administrators ...tls.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, a := range administrators {
		pool.AddCert(a.Leaf)
	}
	return pool
}

// Key is the identity of a broker outside an enclave.
type Key struct{ certificate tls.Certificate }

// NewKey makes one.
func NewKey(t testing.TB) *Key {
	t.Helper()
	c, err := session.NewKey(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &Key{certificate: c}
}

// Certificate implements [admin.Identity].
func (k *Key) Certificate(context.Context) (*tls.Certificate, error) { return &k.certificate, nil }

// Leaf is the certificate.
func (k *Key) Leaf() *x509.Certificate { return k.certificate.Leaf }

// Listen starts an admin channel on a loopback port and stops it when the test ends.
func Listen(t testing.TB, o admin.Options) (address string) {
	t.Helper()
	s, err := admin.New(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the admin channel ended with: %v", err)
		}
	})
	return l.Addr().String()
}
