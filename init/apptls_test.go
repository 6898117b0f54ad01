package main

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/ratls"
	tf "github.com/sesame-init/sesame/client/tfserving"
	"github.com/sesame-init/sesame/internal/config"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

func TestAppTLSMakesAnIdentityThatEvidenceBinds(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{})
	maker := identityMaker{platform.Attester(brokertest.Workload()), brokertest.Clock}
	for _, test := range []struct {
		name string
		c    config.AppTLS
		read func(dir string) (certificate, key []byte)
	}{
		{"tf-serving", config.AppTLS{Format: "tf-serving", Path: "/etc/tf_ssl.cfg"}, func(dir string) ([]byte, []byte) {
			var c tf.SSLConfig
			if err := prototext.Unmarshal(readFile(t, dir, "/etc/tf_ssl.cfg", 0o400), &c); err != nil {
				t.Fatal(err)
			}
			return []byte(c.GetServerCert()), []byte(c.GetServerKey())
		}},
		{"for C++ verifiers", config.AppTLS{Format: "pem", Path: "/tls/crt", KeyPath: "/tls/key", Binding: attest.BindingLegacy},
			func(dir string) ([]byte, []byte) {
				return readFile(t, dir, "/tls/crt", 0o444), readFile(t, dir, "/tls/key", 0o400)
			}},
		{"pem", config.AppTLS{Format: "pem", Path: "/tls/crt", KeyPath: "/tls/key"}, func(dir string) ([]byte, []byte) {
			return readFile(t, dir, "/tls/crt", 0o444), readFile(t, dir, "/tls/key", 0o400)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.c.Mode = 0o400
			test.c.Names, test.c.Validity = []string{"tf-demo-svc", "10.0.0.1"}, config.Duration(72*time.Hour)
			dir := t.TempDir()
			if err := maker.write(t.Context(), &test.c, dir, func(string) {}); err != nil {
				t.Fatal(err)
			}
			pair, err := tls.X509KeyPair(test.read(dir))
			if err != nil {
				t.Fatal(err)
			}
			shown, err := ratls.Read(pair.Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			want := attest.BindingApplication
			if test.c.Binding == attest.BindingLegacy {
				want = attest.BindingLegacy
			}
			// As an application's it never passes as that of a broker or a workload.
			if _, err := ratls.Evidence(pair.Certificate[0]); shown.Binding != want || (err == nil) != (want == attest.BindingLegacy) {
				t.Errorf("binding %q, on the legacy wire: %v", shown.Binding, err)
			}
			if pair.Leaf.IsCA || !pair.Leaf.BasicConstraintsValid {
				t.Error("the certificate is an authority")
			}
			claims, err := brokertest.Verifier(platform).Verify(t.Context(), shown.Evidence, brokertest.Now)
			if err != nil {
				t.Fatal(err)
			}
			if err := brokertest.WorkloadPolicy().Appraise(claims, brokertest.Now).Err(); err != nil {
				t.Error(err)
			}
			leaf := pair.Leaf
			if leaf.VerifyHostname("tf-demo-svc") != nil || leaf.VerifyHostname("10.0.0.1") != nil {
				t.Errorf("names are %v %v", leaf.DNSNames, leaf.IPAddresses)
			}
			if !leaf.NotAfter.Equal(brokertest.Now.Add(72 * time.Hour)) {
				t.Errorf("valid until %v", leaf.NotAfter)
			}
		})
	}
}

func readFile(t *testing.T, dir, name string, mode os.FileMode) []byte {
	t.Helper()
	name = filepath.Join(dir, name)
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != mode {
		t.Errorf("%s has mode %v, not %v", name, info.Mode(), mode)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestAppTLSOfAFailedBootIsTakenBack(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{})
	b, _, _, out := newBoot(t)
	b.identity = identityMaker{platform.Attester(brokertest.Workload()), brokertest.Clock}
	b.prefix = t.TempDir()
	// The key's directory is a file, so that only the certificate can be written.
	if err := os.WriteFile(filepath.Join(b.prefix, "blocked"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.config.Secrets = nil
	b.config.AppTLS = &config.AppTLS{Format: "pem", Path: "/tls/crt", KeyPath: "/blocked/key", Mode: 0o400}
	err := b.run(t.Context())
	if attest.CodeOf(err) != attest.CodeSecret {
		t.Errorf("error is %v", err)
	}
	if _, err := os.Stat(filepath.Join(b.prefix, "tls/crt")); !os.IsNotExist(err) {
		t.Errorf("the certificate is still there: %v", err)
	}
	if strings.Contains(out.String(), "PRIVATE") {
		t.Error("the log has a key")
	}
}
