package main

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/maa"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/config"
	"github.com/sesame-init/sesame/lab/maatest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

const federated = "eyJhbGciOiJSUzI1NiJ9.canary-5d1c-federated.c2ln"

// azure is Azure on a software platform, an enclave there, and a config up to the word and the block of a backend.
func azure(t *testing.T) (*maatest.Server, attest.Attester, string) {
	t.Helper()
	platform, err := softsgx.New(softsgx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	pki, err := maatest.NewPKI(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c := maatest.Config{
		PKI: pki, Identity: maatest.Identity{Tenant: "tenant", ClientID: "client", FederatedToken: federated}, Keys: map[string]maatest.Key{},
		Verifier: dcap.NewVerifier(dcap.Config{
			Roots: []*x509.Certificate{platform.RootCA()}, Source: pccs.Stapled(platform.Collateral()),
		}),
	}
	server, err := maatest.New(c).Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	body := sgx.ReportBody{SGXClaims: attest.SGXClaims{MREnclave: [32]byte{0xab}, Attributes: attest.AttributeInit | attest.AttributeMode64Bit}}
	release, err := maa.ReleasePolicy("https://"+server.Address(), []policy.SGX{{MREnclave: body.MREnclave[:]}})
	if err != nil {
		t.Fatal(err)
	}
	image, _ := hex.DecodeString("0102030405060708090a0b0c0d0e0f10")
	c.Keys["image"] = maatest.Key{Type: "oct", Material: image, Policy: release}
	roots := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(roots, pki.RootPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	return server, platform.Attester(body), roots
}

// bootWith boots by a config, with the host's environment, and returns what the mounter was asked for and what was logged.
func bootWith(t *testing.T, text string, attester attest.Attester, host map[string]string, encrypted bool) (*boot, []string, string) {
	t.Helper()
	c, err := config.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	c.ApplyHost(func(name string) string { return host[name] })
	if err := c.MatchImage(encrypted); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	log := logrus.New()
	log.SetOutput(&out)
	log.SetLevel(logrus.TraceLevel)
	for _, line := range c.Remarks() {
		log.Warn(line)
	}
	mounter := &recorder{}
	b := &boot{config: c, mounter: mounter, log: log, prefix: t.TempDir()}
	if b.backend, err = newBackend(c, attester, time.Now, log); err != nil {
		t.Fatal(err)
	}
	if err := b.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, canary := range []string{"canary", "eyJ", "0102030405"} {
		if strings.Contains(out.String(), canary) {
			t.Errorf("the log holds %q:\n%s", canary, out.String())
		}
	}
	return b, mounter.calls, out.String()
}

func TestAzureGivesTheImageKey(t *testing.T) {
	server, attester, roots := azure(t)
	at := "https://" + server.Address()
	_, calls, _ := bootWith(t, `{"backend": "maa", "root": {"key": "image_key"}, "collateral": {}, "maa": {
		"endpoint": "`+at+`", "vault": "`+at+`", "resource": "https://vault.azure.net", "tls_roots": "`+roots+`",
		"keys": {"image_key": {"name": "image"}}, "aad": {"mode": "workload-identity", "authority": "`+at+`/"}}}`,
		attester, map[string]string{"AZURE_TENANT_ID": "tenant", "AZURE_CLIENT_ID": "client", "AZURE_FEDERATED_TOKEN": federated}, true)
	if want := []string{"root key=0102030405060708090a0b0c0d0e0f10 entry="}; !slices.Equal(calls, want) {
		t.Errorf("calls are %q, want %q", calls, want)
	}
}

func TestDropInLeavesTokenAndQuoteInTheRoot(t *testing.T) {
	server, attester, roots := azure(t)
	b, calls, said := bootWith(t, `{"backend": "maa-token", "root": {}, "collateral": {}, "maa_token": {"tls_roots": "`+roots+`"}}`,
		attester, map[string]string{"MAA_PROVIDER_URL": "https://" + server.Address(), "MAA_REPORT_DATA": "ZXhhbXBsZQ==", "MAA_TOKEN_PATH": "/opt/maa"}, false)
	if want := []string{"root key= entry="}; !slices.Equal(calls, want) {
		t.Errorf("calls are %q, want %q", calls, want)
	}
	for name, begins := range map[string]string{"token": `{"token":"eyJ`, "quote_base64": `"AwAC`} {
		text, err := os.ReadFile(filepath.Join(b.prefix, "opt/maa", name))
		if err != nil || !strings.HasPrefix(string(text), begins) {
			t.Errorf("%s is %.40q, %v", name, text, err)
		}
		// The application reads them as whatever user; no one writes them.
		if info, err := os.Stat(filepath.Join(b.prefix, "opt/maa", name)); err != nil || info.Mode() != 0o444 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if got := files(t, b.prefix); !slices.Equal(got, []string{"/opt/maa/quote_base64", "/opt/maa/token"}) {
		t.Errorf("files are %q", got)
	}
	if !strings.Contains(said, "no key was released") || !strings.Contains(said, "releases no key") {
		t.Errorf("the log does not say what this is:\n%s", said)
	}
	for _, asked := range server.Asked() {
		if !strings.HasPrefix(asked, "maa ") {
			t.Errorf("it asked %s", asked)
		}
	}
}
