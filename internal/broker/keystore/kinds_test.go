package keystore_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/keystore"
)

func generate(t *testing.T, r keystore.Recipe) (value, public []byte) {
	t.Helper()
	secret, public, err := r.Generate(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Kind.Check(secret); err != nil {
		t.Errorf("%s: its own value is refused: %v", r.Kind, err)
	}
	again, _, err := r.Generate(time.Now())
	if err != nil || again.Equal(secret) {
		t.Errorf("%s: the same value twice, %v", r.Kind, err)
	}
	return secret.Expose(), public
}

func TestGeneratedKindsAreWhatTheirUsersRead(t *testing.T) {
	key, public := generate(t, keystore.Recipe{Kind: keystore.ImageKey})
	if !regexp.MustCompile(`^([0-9a-f]{2}-){15}[0-9a-f]{2}$`).Match(key) || public != nil {
		t.Errorf("an image key of %d bytes is not Occlum's form", len(key))
	}
	if b, _ := generate(t, keystore.Recipe{Kind: keystore.Random, Size: 48}); len(b) != 48 {
		t.Errorf("%d random bytes", len(b))
	}
	identity, certificate := generate(t, keystore.Recipe{Kind: keystore.X509, Names: []string{"a.example", "10.0.0.1"}})
	pair, err := tls.X509KeyPair(identity, identity)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(certificate)
	if block == nil || !bytes.Equal(block.Bytes, pair.Certificate[0]) || bytes.Contains(certificate, []byte("PRIVATE")) {
		t.Error("what is public is not the certificate")
	}
	issuesNothing(t, pair)
	// TensorFlow Serving's SSLConfig: three fields, PEM with line breaks as \n.
	config, certificate := generate(t, keystore.Recipe{Kind: keystore.TFConfig})
	m := regexp.MustCompile(`^server_key: "([^"\n]+)"\nserver_cert: "([^"\n]+)"\nclient_verify: false\n$`).FindSubmatch(config)
	if m == nil {
		t.Fatal("the config has another form")
	}
	unquote := func(b []byte) []byte { return []byte(strings.ReplaceAll(string(b), `\n`, "\n")) }
	pair, err = tls.X509KeyPair(unquote(m[2]), unquote(m[1]))
	if err != nil || !bytes.Equal(unquote(m[2]), certificate) {
		t.Fatalf("key and certificate: %v", err)
	}
	issuesNothing(t, pair)
}

// issuesNothing checks that clients can pin a certificate, and that its key makes no certificates that they take then.
func issuesNothing(t *testing.T, pair tls.Certificate) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(pair.Leaf)
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots}); err != nil {
		t.Errorf("pinned: %v", err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: pair.Leaf.NotBefore, NotAfter: pair.Leaf.NotAfter,
		DNSNames: []string{"elsewhere.example"}}
	der, err := x509.CreateCertificate(rand.Reader, template, pair.Leaf, pair.PrivateKey.(crypto.Signer).Public(), pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := issued.Verify(x509.VerifyOptions{Roots: roots}); err == nil || pair.Leaf.IsCA || !pair.Leaf.BasicConstraintsValid {
		t.Errorf("the certificate is an authority, %v", err)
	}
}

func TestRecipesOutOfBoundsAreRefused(t *testing.T) {
	for _, r := range []keystore.Recipe{
		{Kind: keystore.Value}, {Kind: keystore.File}, {Kind: "other"}, {Kind: keystore.Random, Size: 1 << 20},
		{Kind: keystore.Random, Size: -1}, {Kind: keystore.X509, Days: 100_000}, {Kind: keystore.X509, Names: make([]string, 100)},
	} {
		if _, _, err := r.Generate(time.Now()); attest.CodeOf(err) != attest.CodeConfig {
			t.Errorf("%+v: %v", r, err)
		}
	}
	for kind, value := range map[keystore.Kind]string{keystore.ImageKey: "short", keystore.Value: "", "other": "x", keystore.File: "x"} {
		if kind.Check(secret(value)) == nil {
			t.Errorf("%s takes %q", kind, value)
		}
	}
}
