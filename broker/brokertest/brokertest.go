// Package brokertest starts key brokers and makes enclaves of software platforms for tests. It must not be
// imported by programs.
package brokertest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/attest/softsgx"
	"github.com/sesame-init/sesame/broker"
)

// Now is the present of the tests.
var Now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// Clock stands at Now.
func Clock() time.Time { return Now }

// Platform is a software platform of the tests' time. Every call makes one with a root of its own.
func Platform(t testing.TB, o softsgx.Options) *softsgx.Platform {
	t.Helper()
	if o.Now.IsZero() {
		o.Now = Now.Add(-24 * time.Hour)
	}
	p, err := softsgx.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Enclave is the report body of an enclave with the given product id and security version.
func Enclave(mrEnclave byte, product, svn uint16) sgx.ReportBody {
	var r sgx.ReportBody
	for i := range r.MREnclave {
		r.MREnclave[i], r.MRSigner[i] = mrEnclave, 0xbb
	}
	r.ProductID, r.SVN = product, svn
	r.Attributes = attest.AttributeInit | attest.AttributeMode64Bit
	r.XFRM = 3
	return r
}

// Workload and Broker are the enclaves that belong to [WorkloadPolicy] and [BrokerPolicy].
func Workload() sgx.ReportBody { return Enclave(0xaa, 1, 2) }

// Broker is the broker's enclave.
func Broker() sgx.ReportBody { return Enclave(0xcc, 100, 3) }

// WorkloadPolicy accepts Workload, by its measurement.
func WorkloadPolicy() *policy.Policy {
	w := Workload()
	return &policy.Policy{SGX: []policy.SGX{{MREnclave: w.MREnclave[:]}}}
}

// BrokerPolicy accepts Broker, by signer, product id and security version.
func BrokerPolicy() *policy.Policy {
	b := Broker()
	return &policy.Policy{SGX: []policy.SGX{{MRSigner: b.MRSigner[:], ProductID: &b.ProductID, MinSVN: &b.SVN}}}
}

// Verifier trusts a platform's root and has its collateral.
func Verifier(p *softsgx.Platform) *dcap.Verifier {
	return dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{p.RootCA()}, Source: pccs.Stapled(p.Collateral())})
}

// Identity is an endpoint whose certificates carry an enclave's evidence.
func Identity(t testing.TB, p *softsgx.Platform, enclave sgx.ReportBody) *ratls.Identity {
	t.Helper()
	i, err := ratls.NewIdentity(p.Attester(enclave), ratls.Options{Now: Clock})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// Quoter makes an enclave's evidence for sessions.
func Quoter(p *softsgx.Platform, enclave sgx.ReportBody) *session.Quoter {
	return session.NewQuoter(session.QuoterOptions{Attester: p.Attester(enclave)})
}

// Certificate is one certificate with an enclave's evidence.
func Certificate(t testing.TB, p *softsgx.Platform, enclave sgx.ReportBody) tls.Certificate {
	t.Helper()
	c, err := ratls.NewCertificate(context.Background(), p.Attester(enclave), ratls.Options{Now: Clock})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Logger writes to w.
func Logger(w io.Writer) *logrus.Logger {
	log := logrus.New()
	log.SetOutput(w)
	log.SetLevel(logrus.DebugLevel)
	return log
}

// Secrets are copies of values.
func Secrets(values map[string][]byte) *broker.Secrets {
	secrets := map[string]attest.Secret{}
	for name, value := range values {
		secrets[name] = attest.NewSecret(append([]byte(nil), value...))
	}
	return broker.NewSecrets(secrets)
}

// Listen starts a broker on a loopback port and stops it when the test ends.
func Listen(t testing.TB, c broker.Config) (address string) {
	t.Helper()
	s, err := broker.New(c)
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
			t.Errorf("the broker ended with: %v", err)
		}
	})
	return l.Addr().String()
}
