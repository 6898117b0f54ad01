package pki_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/internal/pki"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newServer(t testing.TB, names ...string) (key, certificate []byte) {
	t.Helper()
	key, certificate, err := pki.NewServer(names, now, now.AddDate(0, 0, 30))
	if err != nil {
		t.Fatal(err)
	}
	return key, certificate
}

func TestServerIsGoodForItsNamesAndNothingElse(t *testing.T) {
	key, text := newServer(t, "model.example", "127.0.0.1", "2001:db8::1")
	if _, err := tls.X509KeyPair(text, key); err != nil {
		t.Fatal(err)
	}
	c, err := pki.ParseCertificate(text)
	if err != nil {
		t.Fatal(err)
	}
	verify := func(name string, at time.Time, usage x509.ExtKeyUsage) error {
		_, err := c.Verify(x509.VerifyOptions{DNSName: name, Roots: pki.Pool([]*x509.Certificate{c}), CurrentTime: at,
			KeyUsages: []x509.ExtKeyUsage{usage}})
		return err
	}
	for _, name := range []string{"model.example", "127.0.0.1", "2001:db8::1"} {
		if err := verify(name, now, x509.ExtKeyUsageServerAuth); err != nil {
			t.Error(err)
		}
	}
	for what, err := range map[string]error{
		"another name":    verify("127.0.0.2", now, x509.ExtKeyUsageServerAuth),
		"too early":       verify("127.0.0.1", now.Add(-2*time.Hour), x509.ExtKeyUsageServerAuth),
		"too late":        verify("127.0.0.1", now.AddDate(0, 0, 31), x509.ExtKeyUsageServerAuth),
		"as a client":     verify("127.0.0.1", now, x509.ExtKeyUsageClientAuth),
		"as an authority": c.CheckSignatureFrom(c),
	} {
		if err == nil {
			t.Errorf("the certificate is accepted: %s", what)
		}
	}
}

func TestClientIsNoServer(t *testing.T) {
	key, text, err := pki.NewClient("administrator", now, now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(text, key); err != nil {
		t.Fatal(err)
	}
	c, err := pki.ParseCertificate(text)
	if err != nil {
		t.Fatal(err)
	}
	options := x509.VerifyOptions{Roots: pki.Pool([]*x509.Certificate{c}), CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if _, err := c.Verify(options); err != nil || c.Subject.CommonName != "administrator" {
		t.Errorf("client %q: %v", c.Subject.CommonName, err)
	}
	if options.KeyUsages[0] = x509.ExtKeyUsageServerAuth; err == nil {
		if _, err := c.Verify(options); err == nil {
			t.Error("a client's certificate is accepted as a server's")
		}
	}
}

func TestIdentitiesNeedNamesAndALifetime(t *testing.T) {
	if _, _, err := pki.NewServer(nil, now, now.Add(time.Hour)); err == nil {
		t.Error("a server without a name")
	}
	if _, _, err := pki.NewServer([]string{"a"}, now, now); err == nil {
		t.Error("a server without a lifetime")
	}
	if _, _, err := pki.NewServer([]string{"\xff"}, now, now.Add(time.Hour)); err == nil {
		t.Error("a name that is no text")
	}
	if _, _, err := pki.NewClient("a", now, time.Time{}); err == nil {
		t.Error("a client without a lifetime")
	}
}

func TestCertificateFiles(t *testing.T) {
	key, first := newServer(t, "first")
	_, second := newServer(t, "second")
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	malformed := bytes.Replace(first, []byte("\nMII"), []byte("\nAII"), 1)
	for _, c := range []struct {
		name  string
		text  []byte
		names []string
		fault string
	}{
		{"one", first, []string{"first"}, ""},
		{"two, with words between them", join(first, []byte("and\n"), second), []string{"first", "second"}, ""},
		{"nothing", nil, nil, "holds no certificate in PEM"},
		{"no PEM", []byte("certificate"), nil, "holds no certificate in PEM"},
		{"a key beside it", join(first, key), nil, "x509: "},
		{"a malformed one", malformed, nil, "x509: "},
		{"a large one", join(first, make([]byte, 1<<20)), nil, "has more than 1048576 bytes"},
	} {
		path := filepath.Join(t.TempDir(), "roots.pem")
		if err := os.WriteFile(path, c.text, 0o600); err != nil {
			t.Fatal(err)
		}
		found, err := pki.ReadCertificates(path)
		if c.fault != "" {
			if err == nil || !strings.HasPrefix(err.Error(), path) || !strings.Contains(err.Error(), c.fault) {
				t.Errorf("%s: error %v", c.name, err)
			}
			continue
		}
		var names []string
		for _, f := range found {
			names = append(names, f.Subject.CommonName)
		}
		if err != nil || strings.Join(names, " ") != strings.Join(c.names, " ") {
			t.Errorf("%s: %q, error %v", c.name, names, err)
		}
	}
}

func TestExactlyOneCertificate(t *testing.T) {
	key, certificate := newServer(t, "a")
	if _, err := pki.ParseCertificate(append(bytes.Clone(certificate), " \n\t"...)); err != nil {
		t.Error(err)
	}
	for what, text := range map[string][]byte{
		"nothing":           nil,
		"two":               append(bytes.Clone(certificate), certificate...),
		"a key":             key,
		"a word after it":   append(bytes.Clone(certificate), "word"...),
		"of another label":  bytes.ReplaceAll(certificate, []byte("CERTIFICATE"), []byte("X509 CRL")),
		"no certificate in": []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
	} {
		if _, err := pki.ParseCertificate(text); err == nil {
			t.Errorf("%s is taken for one certificate", what)
		}
	}
}

func FuzzParseCertificate(f *testing.F) {
	_, certificate := newServer(f, "a")
	f.Add(certificate)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := pki.ParseCertificate(text)
		if err != nil {
			return
		}
		again, err := pki.ParseCertificate(pki.EncodeCertificate(c.Raw))
		if err != nil || !again.Equal(c) {
			t.Errorf("%q does not survive writing and reading: %v", text, err)
		}
	})
}
