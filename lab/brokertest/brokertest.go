// Package brokertest starts key brokers and makes enclaves of software platforms for tests. It must not be
// imported by programs.
package brokertest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	appraisal "github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store/memory"
	"github.com/sesame-init/sesame/internal/pki"
	"github.com/sesame-init/sesame/internal/raconfig"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// Now is the present of the tests.
var Now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// Clock always says Now.
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
func WorkloadPolicy() *appraisal.Policy {
	w := Workload()
	return &appraisal.Policy{SGX: []appraisal.SGX{{MREnclave: w.MREnclave[:]}}}
}

// BrokerPolicy accepts Broker, by signer, product id and security version.
func BrokerPolicy() *appraisal.Policy {
	b := Broker()
	return &appraisal.Policy{SGX: []appraisal.SGX{{MRSigner: b.MRSigner[:], ProductID: &b.ProductID, MinSVN: &b.SVN}}}
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

// Secrets is a keystore in memory with copies of values, as from a file of secrets.
func Secrets(t testing.TB, values map[string][]byte) *keystore.Keystore {
	t.Helper()
	secrets := map[string]attest.Secret{}
	for name, value := range values {
		secrets[name] = attest.NewSecret(append([]byte(nil), value...))
	}
	return Keystore(t, secrets)
}

// Keystore is a keystore in memory that takes ownership of the secrets of a file.
func Keystore(t testing.TB, secrets map[string]attest.Secret) *keystore.Keystore {
	t.Helper()
	k, err := keystore.Open(t.Context(), keystore.Options{
		Store: memory.New(), Root: &rootkey.Process{}, Fixed: secrets, Now: Clock, Gather: time.Microsecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// Trust is in a platform, with its collateral.
func Trust(t testing.TB, p *softsgx.Platform) *broker.Trust {
	t.Helper()
	return TrustWith(t, p, pccs.Stapled(p.Collateral()))
}

// TrustWith is in a platform, with the collateral of a source.
func TrustWith(t testing.TB, p *softsgx.Platform, source dcap.Source) *broker.Trust {
	t.Helper()
	root := pki.EncodeCertificate(p.RootCA().Raw)
	trust, err := broker.NewTrustWith(policy.Trust{Roots: []string{string(root)}}, source, nil)
	if err != nil {
		t.Fatal(err)
	}
	return trust
}

// Everything is a policy whose one workload, "demo", is [Workload], may use both wires and have every secret.
func Everything(t testing.TB) *policy.Policy {
	t.Helper()
	peers, err := raconfig.Parse([]byte(`{"verify_mr_enclave":"on","verify_mr_signer":"off","verify_isv_prod_id":"off",
		"verify_isv_svn":"off","verify_config_svn":"off","verify_enclave_debuggable":"on","sgx_mrs":[{"mr_enclave":"` +
		strings.Repeat("aa", 32) + `","mr_signer":"","isv_prod_id":0,"isv_svn":0,"config_svn":0,"debuggable":false}]}`))
	if err != nil {
		t.Fatal(err)
	}
	return policy.Occlum("demo", peers)
}

// Policy reads a policy from its text. What every policy needs and tests do not care for is added: a version and a
// source of collateral, which is not used.
func Policy(t testing.TB, text string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse([]byte(PolicyText(1, text)))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// PolicyText is the text of a policy of this version: see [Policy].
func PolicyText(version int, text string) string {
	return fmt.Sprintf("version: %d\ntrust: {collateral: {directory: none}}\n%s\n", version, text)
}

// Policies hold a first policy, and trust what the first trusts whatever a later one says.
func Policies(t testing.TB, trust *broker.Trust, first *policy.Policy, k broker.Keeper, log logrus.FieldLogger) *broker.Policies {
	t.Helper()
	p, err := broker.NewPolicies(context.Background(), broker.PoliciesConfig{
		Trust:  func(policy.Trust) (*broker.Trust, error) { return trust, nil },
		Keeper: k, Now: Clock, Logger: log,
	}, first, "test")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Config is that of a broker in an enclave of a platform, which releases values as [Everything] says.
func Config(t testing.TB, p *softsgx.Platform, values map[string][]byte, logTo io.Writer) broker.Config {
	t.Helper()
	keeper, log := Secrets(t, values), Logger(logTo)
	return broker.Config{
		Identity: Identity(t, p, Broker()),
		Policies: Policies(t, Trust(t, p), Everything(t), keeper, log),
		Keeper:   keeper,
		Quoter:   Quoter(p, Broker()),
		Now:      Clock,
		Logger:   log,
	}
}

// Serve starts a broker on a free port of loopback. It serves until stop is called; then ended has what it ended with.
func Serve(t testing.TB, c broker.Config) (address string, stop func(), ended <-chan error) {
	t.Helper()
	s, err := broker.New(c)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	end := make(chan error, 1)
	go func() { end <- s.Serve(ctx, l) }()
	return l.Addr().String(), stop, end
}

// Listen starts a broker on a loopback port and stops it when the test ends.
func Listen(t testing.TB, c broker.Config) (address string) {
	t.Helper()
	address, stop, ended := Serve(t, c)
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the broker ended with: %v", err)
		}
	})
	return address
}
