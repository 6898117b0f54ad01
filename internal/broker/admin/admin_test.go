package admin_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/broker/admin"
	"github.com/sesame-init/sesame/internal/broker/admin/adminpb"
	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store"
	"github.com/sesame-init/sesame/internal/broker/store/memory"
	"github.com/sesame-init/sesame/lab/admintest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func clock() time.Time { return now }

// world is a broker in an enclave and its administrator.
type world struct {
	platform *softsgx.Platform
	keystore *keystore.Keystore
	identity *admintest.Key
	admin    tls.Certificate
	policies *policies
	log      *syncBuffer
	address  string
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

type policies struct{ text, by string }

func (p *policies) Replace(_ context.Context, text []byte, by string) error {
	if bytes.Contains(text, []byte("bad")) {
		return attest.Errorf(attest.CodeConfig, "reading policy", "Write it well.", "line 1: it is bad")
	}
	p.text, p.by = string(text), by
	return nil
}

func enclave() sgx.ReportBody {
	var r sgx.ReportBody
	r.ProductID, r.SVN, r.Attributes, r.XFRM = 100, 3, attest.AttributeInit|attest.AttributeMode64Bit, 3
	r.MREnclave[0], r.MRSigner[0] = 0xcc, 0xbb
	return r
}

func newWorld(t *testing.T, bare bool, s store.Store, root rootkey.Way) *world {
	t.Helper()
	return newWorldAt(t, bare, s, root, clock)
}

// newWorldAt has another clock at the channel.
func newWorldAt(t *testing.T, bare bool, s store.Store, root rootkey.Way, channel func() time.Time) *world {
	t.Helper()
	w := &world{identity: admintest.NewKey(t), admin: admintest.Administrator(t, "alice"), policies: &policies{}, log: &syncBuffer{}}
	var err error
	if w.platform, err = softsgx.New(softsgx.Options{Now: now.Add(-24 * time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if w.keystore, err = keystore.Open(t.Context(), keystore.Options{Store: s, Root: root, Now: clock}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.keystore.Close)
	proof := session.BrokerConfig{}
	if !bare {
		proof.Quoter = session.NewQuoter(session.QuoterOptions{Attester: w.platform.Attester(enclave()),
			Collateral: func(context.Context, attest.Evidence) (*dcap.Collateral, error) { return w.platform.Collateral(), nil }})
	}
	log := logrus.New()
	log.SetOutput(w.log)
	log.SetLevel(logrus.DebugLevel)
	w.address = admintest.Listen(t, admin.Options{Keystore: w.keystore, Policies: w.policies, Identity: w.identity,
		Session: proof, Roots: admintest.Roots(w.admin), Now: channel, Logger: log})
	return w
}

func (w *world) options() admin.DialOptions {
	e := enclave()
	roots := []*x509.Certificate{w.platform.RootCA()}
	return admin.DialOptions{Address: w.address, Certificate: w.admin, Broker: session.ClientConfig{
		Now:      clock,
		Verifier: dcap.NewVerifier(dcap.Config{Roots: roots, Source: pccs.Stapled(w.platform.Collateral())}),
		Staple: func(c *dcap.Collateral) attest.Verifier {
			return dcap.NewVerifier(dcap.Config{Roots: roots, Source: pccs.Stapled(c)})
		},
		Policy: &policy.Policy{SGX: []policy.SGX{{MREnclave: e.MREnclave[:]}}},
	}}
}

func (w *world) dial(t *testing.T) *admin.Client {
	t.Helper()
	c, err := admin.Dial(t.Context(), w.options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func put(t *testing.T, c *admin.Client, name, value string) (string, error) {
	t.Helper()
	reply, err := c.PutSecret(t.Context(), &adminpb.PutSecretRequest{Name: name, Kind: "value",
		Value: &adminpb.PutSecretRequest_Content{Content: []byte(value)}})
	return reply.GetVersion(), err
}

func TestAdministratorGivesSecretsToAVerifiedBroker(t *testing.T) {
	w := newWorld(t, false, memory.New(), &rootkey.Process{})
	c := w.dial(t)
	version, err := put(t, c, "a", "canary-value")
	if err != nil {
		t.Fatal(err)
	}
	list, err := c.ListSecrets(t.Context(), &adminpb.ListSecretsRequest{})
	if err != nil || list.GetSecrets()[0].GetVersions()[0].GetId() != version {
		t.Errorf("%v %v", list, err)
	}
	if strings.Contains(list.String(), "canary") {
		t.Error("the list has the value")
	}
	log, err := c.ReadLog(t.Context(), &adminpb.ReadLogRequest{})
	if err != nil || !bytes.Contains(log.GetEntries()[0], []byte("CN=alice")) {
		t.Errorf("the log does not say who: %s %v", log.GetEntries(), err)
	}
	_, err = put(t, c, "a", "canary-value")
	if attest.CodeOf(err) != attest.CodeConfig || attest.HintOf(err) == "" || strings.Contains(err.Error(), "canary") {
		t.Errorf("putting it twice: %v (%s)", err, attest.HintOf(err))
	}
	if strings.Contains(w.log.String(), "canary") {
		t.Error("the broker's log has the value")
	}
}

func TestStrangersAreRefusedInTheHandshake(t *testing.T) {
	w := newWorld(t, false, memory.New(), &rootkey.Process{})
	o := w.options()
	o.Certificate = admintest.Administrator(t, "alice") // by his own authority
	if c, err := admin.Dial(t.Context(), o); err == nil {
		c.Close()
		t.Error("a stranger got in")
	}
}

// TestUnwantedBrokerGetsNothing: the client ends before it sends anything but its proof's nonce.
func TestUnwantedBrokerGetsNothing(t *testing.T) {
	w := newWorld(t, false, memory.New(), &rootkey.Process{})
	other := [32]byte{1}
	for name, change := range map[string]func(*session.ClientConfig){
		"another measurement": func(c *session.ClientConfig) { c.Policy = &policy.Policy{SGX: []policy.SGX{{MREnclave: other[:]}}} },
		"another root": func(c *session.ClientConfig) {
			c.Staple = func(s *dcap.Collateral) attest.Verifier {
				return dcap.NewVerifier(dcap.Config{Source: pccs.Stapled(s)})
			}
		},
		"a pinned key": func(c *session.ClientConfig) { c.BrokerKey = other[:] },
	} {
		o := w.options()
		change(&o.Broker)
		if c, err := admin.Dial(t.Context(), o); err == nil {
			c.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestAPolicyThatNoBrokerCanProveIsRefused(t *testing.T) {
	o := admin.DialOptions{Address: "127.0.0.1:1"}
	o.Broker.Policy = &policy.Policy{TPM: []policy.TPM{{EK: make([]byte, 32), Wrap: true, PCRs: policy.PCRs{7: make([]byte, 32)}}}}
	if _, err := admin.Dial(t.Context(), o); attest.CodeOf(err) != attest.CodeConfig {
		t.Error(err)
	}
}

// TestEvidenceOfAnotherConnectionIsRefused puts a machine in the middle that has the administrator's trust in TLS: it
// forwards Prove to the genuine broker on a connection of its own.
func TestEvidenceOfAnotherConnectionIsRefused(t *testing.T) {
	w := newWorld(t, false, memory.New(), &rootkey.Process{})
	genuine := w.dial(t)
	relay := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		ClientAuth: tls.RequireAnyClientCert, Certificates: []tls.Certificate{admintest.Administrator(t, "relay")}})))
	adminpb.RegisterAdminServer(relay, &relaying{to: genuine})
	l := listen(t)
	go func() { _ = relay.Serve(l) }()
	t.Cleanup(relay.Stop)
	o := w.options()
	o.Address = l.Addr().String()
	c, err := admin.Dial(t.Context(), o)
	if err == nil {
		c.Close()
		t.Fatal("relayed evidence was accepted")
	}
	if attest.CodeOf(err) != attest.CodeEvidence {
		t.Errorf("refused for another reason: %v", err)
	}
}

func TestBareBrokerIsKnownByItsKey(t *testing.T) {
	w := newWorld(t, true, memory.New(), &rootkey.Process{})
	o := w.options()
	if c, err := admin.Dial(t.Context(), o); err == nil {
		c.Close()
		t.Error("a broker without evidence passes for one with it")
	}
	pin := sha256.Sum256(w.identity.Leaf().RawSubjectPublicKeyInfo)
	o.Broker = session.ClientConfig{Now: clock, BrokerKey: pin[:]}
	c, err := admin.Dial(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := put(t, c, "a", "value"); err != nil {
		t.Error(err)
	}
}

func TestBrokerMakesIdentities(t *testing.T) {
	w := newWorld(t, false, memory.New(), &rootkey.Process{})
	c := w.dial(t)
	reply, err := c.PutSecret(t.Context(), &adminpb.PutSecretRequest{Name: "ssl_config", Kind: "tf-ssl-config",
		Value: &adminpb.PutSecretRequest_Recipe{Recipe: &adminpb.Recipe{Names: []string{"localhost", "127.0.0.1"}}}})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(reply.GetPublic())
	if block == nil || bytes.Contains(reply.GetPublic(), []byte("PRIVATE")) {
		t.Fatalf("%s", reply.GetPublic())
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil || leaf.VerifyHostname("localhost") != nil || leaf.VerifyHostname("127.0.0.1") != nil {
		t.Errorf("%v %v", leaf, err)
	}
}

func TestPolicyIsPushed(t *testing.T) {
	w := newWorld(t, false, memory.New(), &rootkey.Process{})
	c := w.dial(t)
	_, err := c.PushPolicy(t.Context(), &adminpb.PushPolicyRequest{Text: []byte("bad")})
	if attest.CodeOf(err) != attest.CodeConfig || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("%v", err)
	}
	if _, err := c.PushPolicy(t.Context(), &adminpb.PushPolicyRequest{Text: []byte("version: 2")}); err != nil {
		t.Fatal(err)
	}
	if w.policies.text != "version: 2" || !strings.Contains(w.policies.by, "alice") {
		t.Errorf("%+v", w.policies)
	}
}

// TestStoreMovesToAnotherMachine: the way that the first broker had does not work there; operators unlock it.
func TestStoreMovesToAnotherMachine(t *testing.T) {
	shared := memory.New()
	w := newWorld(t, false, shared, &rootkey.Process{})
	c := w.dial(t)
	if _, err := put(t, c, "a", "value"); err != nil {
		t.Fatal(err)
	}
	protected, err := c.Protect(t.Context(), &adminpb.ProtectRequest{By: &adminpb.ProtectRequest_Split{
		Split: &adminpb.Split{Threshold: 2, Number: 3}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Protect(t.Context(), &adminpb.ProtectRequest{By: &adminpb.ProtectRequest_Passphrase{
		Passphrase: []byte("correct horse battery staple")}}); err != nil {
		t.Fatal(err)
	}
	share := func(i int) []byte { return bytes.Clone(protected.GetShares()[i]) }

	t.Run("shares", func(t *testing.T) {
		own := &rootkey.Process{}
		moved := newWorld(t, false, shared.Replica(), own)
		c := moved.dial(t)
		if s, err := c.Status(t.Context(), &adminpb.StatusRequest{}); err != nil || s.GetLocked() == "" {
			t.Fatalf("it is open: %v %v", s, err)
		}
		if _, err := put(t, c, "b", "value"); err == nil {
			t.Error("a locked store took a secret")
		}
		unlock := func(text []byte) (int32, error) {
			r, err := c.Unlock(t.Context(), &adminpb.UnlockRequest{By: &adminpb.UnlockRequest_Share{Share: text}})
			return r.GetMissing(), err
		}
		wrong := share(1)
		wrong[len(wrong)/2] ^= 1
		if _, err := unlock(wrong); attest.CodeOf(err) != attest.CodeDenied {
			t.Errorf("a wrong share: %v", err)
		}
		for i, want := range []int32{1, 1, 0} {
			if missing, err := unlock(share([]int{2, 2, 0}[i])); err != nil || missing != want {
				t.Errorf("step %d: %d missing, %v", i, missing, err)
			}
		}
		if _, err := put(t, c, "b", "value"); err != nil {
			t.Error(err)
		}
		// From now on it opens by its own way.
		again, err := keystore.Open(t.Context(), keystore.Options{Store: shared.Replica(), Root: own, Now: clock})
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if err := again.Ready(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("passphrase", func(t *testing.T) {
		c := newWorld(t, false, shared.Replica(), nil).dial(t)
		unlock := func(text string) error {
			_, err := c.Unlock(t.Context(), &adminpb.UnlockRequest{By: &adminpb.UnlockRequest_Passphrase{Passphrase: []byte(text)}})
			return err
		}
		if err := unlock("wrong horse battery staple"); attest.CodeOf(err) != attest.CodeDenied {
			t.Errorf("a wrong one: %v", err)
		}
		if err := unlock("correct horse battery staple"); err != nil {
			t.Error(err)
		}
		if list, err := c.ListSecrets(t.Context(), &adminpb.ListSecretsRequest{}); err != nil || len(list.GetSecrets()) == 0 {
			t.Errorf("%v %v", list, err)
		}
	})
}

// TestIdleConnectionsDoNotShutAdministratorsOut: they give way.
func TestIdleConnectionsDoNotShutAdministratorsOut(t *testing.T) {
	w := newWorld(t, false, memory.New(), &rootkey.Process{})
	for range 200 {
		conn, err := net.Dial("tcp", w.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	// The attackers have the administrator's address: he comes through by another try at the latest.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := admin.Dial(ctx, w.options())
	for err != nil && ctx.Err() == nil {
		c, err = admin.Dial(ctx, w.options())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 200 { // he has a place that they cannot take
		conn, err := net.Dial("tcp", w.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if _, err := c.ListSecrets(ctx, &adminpb.ListSecretsRequest{}); err != nil {
		t.Error(err)
	}
}

// TestAnOpenConnectionEndsAfterAnHour, and with the certificate.
func TestAnOpenConnectionEndsAfterAnHourAndWithItsCertificate(t *testing.T) {
	var past atomic.Int64
	w := newWorldAt(t, false, memory.New(), &rootkey.Process{}, func() time.Time { return now.Add(time.Duration(past.Load())) })
	c := w.dial(t)
	past.Store(int64(59 * time.Minute))
	if _, err := c.ListSecrets(t.Context(), &adminpb.ListSecretsRequest{}); err != nil {
		t.Errorf("within the hour: %v", err)
	}
	past.Store(int64(time.Hour))
	if _, err := c.ListSecrets(t.Context(), &adminpb.ListSecretsRequest{}); attest.CodeOf(err) != attest.CodeUnreachable {
		t.Errorf("after an hour: %v", err)
	}
	past.Store(0)
	if _, err := c.ListSecrets(t.Context(), &adminpb.ListSecretsRequest{}); err == nil {
		t.Error("the connection that has ended is used again")
	}

	// The certificate ends in 2100.
	past.Store(int64(w.admin.Leaf.NotAfter.Sub(now) - time.Minute))
	c = w.dial(t)
	past.Store(int64(w.admin.Leaf.NotAfter.Sub(now)))
	if _, err := c.ListSecrets(t.Context(), &adminpb.ListSecretsRequest{}); attest.CodeOf(err) != attest.CodeUnreachable {
		t.Errorf("with an expired certificate: %v", err)
	}
}
