package aecs_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
	"github.com/sesame-init/sesame/attest/backend/aecs"
	"github.com/sesame-init/sesame/attest/backend/aecs/wire"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/lab/aecstest"
	"github.com/sesame-init/sesame/lab/attesttest"
	"github.com/sesame-init/sesame/lab/backendtest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func clock() time.Time { return now }

func platform(t *testing.T) *softsgx.Platform {
	t.Helper()
	p, err := softsgx.New(softsgx.Options{Now: now.Add(-24 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func enclave(b byte, product, svn uint16) sgx.ReportBody {
	var r sgx.ReportBody
	for i := range r.MREnclave {
		r.MREnclave[i], r.MRSigner[i] = b, 0xbb
	}
	r.ProductID, r.SVN = product, svn
	r.Attributes = attest.AttributeInit | attest.AttributeMode64Bit
	return r
}

var (
	workload = enclave(0xaa, 1, 2)
	service  = enclave(0xcc, 100, 3)
)

func verifier(p *softsgx.Platform) func(*dcap.Collateral) attest.Verifier {
	return func(c *dcap.Collateral) attest.Verifier {
		return dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{p.RootCA()}, Source: pccs.Stapled(c)})
	}
}

// deployment is a strict server on one platform and a client for it, to be changed before they are started.
type deployment struct {
	platform *softsgx.Platform
	server   aecstest.Options
	client   aecs.Config
	listen   []grpc.ServerOption
}

func newDeployment(t *testing.T, generation aecs.Generation, log io.Writer) *deployment {
	p := platform(t)
	logger := logrus.New()
	logger.SetOutput(log)
	logger.SetLevel(logrus.TraceLevel)
	certificate, roots := serverCertificate(t)
	return &deployment{
		platform: p,
		listen:   []grpc.ServerOption{grpc.Creds(credentials.NewServerTLSFromCert(certificate))},
		server: aecstest.Options{
			Generation: generation, Key: serverKey(t), Attester: p.Attester(service), Collateral: p.Collateral(), Verifier: verifier(p), Now: clock,
		},
		client: aecs.Config{
			Generation: generation, TLS: &aecs.TLS{Roots: roots}, Service: "service1", Secrets: map[string]aecs.Secret{},
			Attester: p.Attester(workload), Collateral: pccs.Stapled(p.Collateral()),
			Verifier: verifier(p)(p.Collateral()), Staple: verifier(p),
			Policy: &policy.Policy{SGX: []policy.SGX{{MRSigner: service.MRSigner[:], ProductID: &service.ProductID,
				MinSVN: &service.SVN}}},
			Now: clock, Logger: logger, Pause: time.Millisecond,
			NewKey: func() (*rsa.PrivateKey, error) { return madeKey("client_uak_private.pem") },
		},
	}
}

// plaintext lets both sides speak without TLS, so that the server's words prove nothing.
func (d *deployment) plaintext() {
	d.listen, d.client.TLS, d.client.Plaintext = nil, nil, true
}

// serverCertificate is a server's own, and what leads to it.
func serverCertificate(t *testing.T) (*tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{aecs.EnclaveService}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, roots
}

// madeKey is a key that was made before, because making one takes long.
func madeKey(name string) (*rsa.PrivateKey, error) {
	text, err := os.ReadFile("testdata/" + name)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	return x509.ParsePKCS1PrivateKey(block.Bytes)
}

func serverKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := madeKey("server_uak_private.pem")
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// add stores a secret in the server for the workload. What is not text is stored in base64.
func (d *deployment) add(name, value string) {
	s := aecs.Secret{}
	if s.Base64 = !utf8.ValidString(value); s.Base64 {
		value = base64.StdEncoding.EncodeToString([]byte(value))
	}
	d.client.Secrets[name] = s
	d.server.Secrets = append(d.server.Secrets, aecstest.Secret("service1", name, value,
		&wire.UnifiedAttestationAttributes{
			StrTeePlatform: "SGX_DCAP", HexTaMeasurement: strings.Repeat("AA", 32), BoolDebugDisabled: "true",
		}))
}

func (d *deployment) start(t *testing.T) *aecs.Client {
	t.Helper()
	s, err := aecstest.New(t.Context(), d.server)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(d.listen...)
	s.Register(g)
	ended := make(chan error, 1)
	go func() { ended <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		<-ended
	})
	d.client.Servers = append(d.client.Servers, l.Addr().String())
	return d.connect(t)
}

func (d *deployment) connect(t *testing.T) *aecs.Client {
	t.Helper()
	c, err := aecs.New(d.client)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConformance(t *testing.T) {
	for _, generation := range []aecs.Generation{aecs.GenerationA, aecs.GenerationB} {
		t.Run(string(generation), func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T, s backendtest.Service) backend.Backend {
				d := newDeployment(t, generation, s.Log)
				for name, value := range s.Secrets {
					d.add(name, string(value))
				}
				switch s.Fault {
				case backendtest.WrongPeer:
					d.server.Attester = d.platform.Attester(enclave(0xcc, 100, 2))
				case backendtest.NotGenuine:
					fake := platform(t)
					d.server.Attester, d.server.Collateral = fake.Attester(service), fake.Collateral()
				case backendtest.Refuses:
					d.client.Attester = d.platform.Attester(enclave(0xab, 1, 2))
				case backendtest.Silent, backendtest.Down:
					d.client.Servers = []string{s.Address(t)}
					return d.connect(t)
				}
				return d.start(t)
			})
		})
	}
}

// fetch gets the one secret "k" and wants it, or a refusal.
func fetch(t *testing.T, c *aecs.Client, code attest.Code, says string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	fetchWithin(t, ctx, c, code, says)
}

func fetchWithin(t *testing.T, ctx context.Context, c *aecs.Client, code attest.Code, says string) {
	t.Helper()
	got, err := c.Fetch(ctx, []string{"k"})
	switch {
	case code == "" && (err != nil || string(got["k"].Expose()) != "value"):
		t.Errorf("%q: %v", got["k"].Expose(), err)
	case code != "" && (err == nil || attest.CodeOf(err) != code || !strings.Contains(err.Error(), says)):
		t.Errorf("[%s] %v, want [%s] %q", attest.CodeOf(err), err, code, says)
	}
}

func TestAutoFallsBackOnlyWhereTheConfigAllowsIt(t *testing.T) {
	for name, c := range map[string]struct {
		server, client aecs.Generation
		downgrade      bool
		code           attest.Code
		says, logged   string
	}{
		"auto meets B": {aecs.GenerationB, aecs.Auto, true, "", "", ""},
		"auto meets A": {aecs.GenerationA, aecs.Auto, true, "", "", "falling to A"},
		"auto without leave meets A": {aecs.GenerationA, aecs.Auto, false, attest.CodeDenied, "does not know this method",
			""},
		"B meets A": {aecs.GenerationA, aecs.GenerationB, false, attest.CodeDenied,
			"does not know this method", ""},
		"A meets B": {aecs.GenerationB, aecs.GenerationA, false, attest.CodeDenied,
			"does not know this method", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			d := newDeployment(t, c.server, &log)
			d.client.Generation, d.client.AllowDowngrade = c.client, c.downgrade
			d.add("k", "value")
			fetch(t, d.start(t), c.code, c.says)
			if strings.Contains(log.String(), "falling to A") != (c.logged != "") {
				t.Errorf("the log says %q", log.String())
			}
		})
	}
}

func TestWhatIsWrongWithAServerIsSaid(t *testing.T) {
	for name, c := range map[string]struct {
		generation aecs.Generation
		change     func(*testing.T, *deployment)
		code       attest.Code
		says       string
	}{
		"a server without collateral is judged by our own": {aecs.GenerationB, func(_ *testing.T,
			d *deployment) {
			d.server.Collateral = nil
		}, "", ""},
		"a server whose collateral has expired, too": {aecs.GenerationA, func(t *testing.T, d *deployment) {
			if err := d.platform.Reissue(now.Add(-60*24*time.Hour), softsgx.TCB{}); err != nil {
				t.Fatal(err)
			}
			d.server.Collateral = d.platform.Collateral()
		}, "", ""},
		"a debug server": {aecs.GenerationB, func(_ *testing.T, d *deployment) {
			debug := service
			debug.Attributes |= attest.AttributeDebug
			d.server.Attester = d.platform.Attester(debug)
		}, attest.CodePolicy, "debug"},
		"a simulated server": {aecs.GenerationA, func(_ *testing.T, d *deployment) {
			d.server.Attester,
				d.server.Verifier = nil, nil
		},
			attest.CodeEvidence, "built for simulation"},
		"a server from before nonces": {aecs.GenerationA, func(_ *testing.T, d *deployment) { d.server.IgnoreNonce = true },
			attest.CodeEvidence, "ignores our nonce"},
		"a strict server and no collateral of ours": {aecs.GenerationB, func(_ *testing.T,
			d *deployment) {
			d.client.Collateral = nil
		},
			attest.CodeDenied, "without collateral"},
		"a quote of ours that is not genuine": {aecs.GenerationA, func(t *testing.T,
			d *deployment) {
			d.client.Attester = platform(t).Attester(workload)
		},
			attest.CodeDenied, "our quote not genuine"},
		"another pinned key": {aecs.GenerationB, func(_ *testing.T, d *deployment) { d.client.ServerKey = &[32]byte{1} },
			attest.CodePolicy, "fingerprint"},
		"an image key that is too large": {aecs.GenerationA, func(_ *testing.T, d *deployment) {
			d.add("image_key", strings.Repeat("x", aecs.MaxImageKey+1))
			d.client.Secrets["k"] = aecs.Secret{Name: "image_key"}
		}, attest.CodeEvidence, "want 1 to 256"},
		"another type": {aecs.GenerationB, func(_ *testing.T, d *deployment) { d.client.Secrets["k"] = aecs.Secret{Type: "CERTIFICATE"} },
			attest.CodeSecret, "type IMPORT_DATA, want CERTIFICATE"},
		"no base64 where it should be": {aecs.GenerationB, func(_ *testing.T,
			d *deployment) {
			d.client.Secrets["k"] = aecs.Secret{Base64: true}
		},
			attest.CodeSecret, "base64"},
		"another service": {aecs.GenerationB, func(_ *testing.T, d *deployment) { d.client.Secrets["k"] = aecs.Secret{Service: "service2"} },
			attest.CodeSecret, "no such secret"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDeployment(t, c.generation, io.Discard)
			d.add("k", "value")
			c.change(t, d)
			fetch(t, d.start(t), c.code, c.says)
		})
	}
}

func TestWhatAServerSaysWithoutTLSIsShownAndTriedAgain(t *testing.T) {
	for name, secret := range map[string]aecs.Secret{"a refusal": {Service: "service2"}, "another generation": {}} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		d := newDeployment(t, aecs.GenerationB, whenWritten(cancel))
		d.plaintext()
		d.add("k", "value")
		d.client.Secrets["k"] = secret
		if name == "another generation" {
			d.client.Generation = aecs.GenerationA
		}
		if _, err := d.start(t).Fetch(ctx, []string{"k"}); attest.CodeOf(err) != attest.CodeUnreachable ||
			!strings.Contains(err.Error(), `a server that is not verified says: "`) {
			t.Errorf("%s: [%s] %v", name, attest.CodeOf(err), err)
		}
	}
}

func TestASimulatedServerIsTakenForItsPinnedKeyAlone(t *testing.T) {
	for _, generation := range []aecs.Generation{aecs.GenerationA, aecs.GenerationB} {
		d := newDeployment(t, generation, io.Discard)
		d.server.Attester, d.server.Verifier = nil, nil
		d.client.Policy, d.client.NoServerEvidence = nil, true
		d.client.ServerKey = new([32]byte)
		d.add("k", "value")
		fetch(t, d.start(t), attest.CodePolicy, "fingerprint")

		s, err := aecstest.New(t.Context(), d.server)
		if err != nil {
			t.Fatal(err)
		}
		fingerprint := s.Fingerprint()
		d.client.ServerKey, d.client.Servers = &fingerprint, nil
		fetch(t, d.start(t), "", "")
	}
}

func TestAServerThatIsNotProvisionedIsAskedAgain(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	d := newDeployment(t, aecs.GenerationB, whenWritten(cancel))
	d.add("k", "value")
	d.server.Unprovisioned = true
	_, err := d.start(t).Fetch(ctx, []string{"k"})
	if attest.CodeOf(err) != attest.CodeUnreachable || !strings.Contains(err.Error(),
		"after 1 rounds of tries; the last") ||
		!strings.Contains(err.Error(), "not provisioned") {
		t.Errorf("alone: %v", err)
	}
	d.server.Unprovisioned = false
	fetch(t, d.start(t), "", "") // the second server
}

func TestUserDataReachesTheServersPolicy(t *testing.T) {
	d := newDeployment(t, aecs.GenerationB, io.Discard)
	d.server.Secrets = []*wire.EnclaveSecret{aecstest.Secret("service1", "k", "value",
		&wire.UnifiedAttestationAttributes{HexUserData: "7465"})}
	c := d.start(t)
	fetch(t, c, attest.CodeDenied, "user data")
	d.client.UserData = []byte("tenant")
	fetch(t, d.connect(t), "", "")
}

func TestAConfigThatCannotWorkIsRefused(t *testing.T) {
	d := newDeployment(t, aecs.GenerationA, io.Discard)
	d.client.Servers = []string{"localhost:19527"}
	d.connect(t)
	for name, change := range map[string]func(*aecs.Config){
		"no server":                func(c *aecs.Config) { c.Servers = nil },
		"no port":                  func(c *aecs.Config) { c.Servers = []string{"aecs"} },
		"no generation":            func(c *aecs.Config) { c.Generation = "" },
		"downgrade of nothing":     func(c *aecs.Config) { c.AllowDowngrade = true },
		"no word about TLS":        func(c *aecs.Config) { c.TLS = nil },
		"TLS and plaintext":        func(c *aecs.Config) { c.Plaintext = true },
		"TLS without an authority": func(c *aecs.Config) { c.TLS, c.Plaintext = &aecs.TLS{}, false },
		"no attester":              func(c *aecs.Config) { c.Attester = nil },
		"no verifier":              func(c *aecs.Config) { c.Verifier = nil },
		"no policy":                func(c *aecs.Config) { c.Policy = nil },
		"an empty policy":          func(c *aecs.Config) { c.Policy = &policy.Policy{} },
		"a challenged policy": func(c *aecs.Config) {
			c.Policy = &policy.Policy{TPM: []policy.TPM{{EK: make([]byte, 32), Wrap: true, PCRs: policy.PCRs{7: make([]byte, 32)}}}}
		},
		"a policy of nothing":    func(c *aecs.Config) { c.NoServerEvidence, c.ServerKey = true, new([32]byte) },
		"neither policy nor key": func(c *aecs.Config) { c.NoServerEvidence, c.Policy = true, nil },
		"user data too long":     func(c *aecs.Config) { c.UserData = make([]byte, 33) },
		"a service that is none": func(c *aecs.Config) { c.Service = "a/b" },
		"a secret that is none":  func(c *aecs.Config) { c.Secrets = map[string]aecs.Secret{"k": {Name: "ä"}} },
		"a type that is none":    func(c *aecs.Config) { c.Secrets = map[string]aecs.Secret{"k": {Type: "PASSWORD"}} },
	} {
		c := d.client
		change(&c)
		if _, err := aecs.New(c); attest.CodeOf(err) != attest.CodeConfig {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A server whose quote was made for another use is refused.
func TestAQuoteOfAnotherUseMakesNoServer(t *testing.T) {
	for name, other := range attesttest.OtherMeanings() {
		d := newDeployment(t, aecs.GenerationB, io.Discard)
		d.add("k", "value")
		d.server.Attester = attesttest.Rebound{Attester: d.server.Attester, Data: other}
		c := d.start(t)
		if got, err := c.Fetch(t.Context(), []string{"k"}); got != nil || attest.CodeOf(err) != attest.CodeEvidence {
			t.Errorf("%s: [%s] %v", name, attest.CodeOf(err), err)
		}
	}
}
