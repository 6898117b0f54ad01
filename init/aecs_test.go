package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/aecs"
	"github.com/sesame-init/sesame/attest/backend/aecs/wire"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/config"
	"github.com/sesame-init/sesame/internal/pki"
	"github.com/sesame-init/sesame/lab/aecstest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// attesterOf is one for configs that make no evidence.
type attesterOf attest.EvidenceType

func (a attesterOf) Type() attest.EvidenceType { return attest.EvidenceType(a) }

func (attesterOf) Evidence(context.Context, attest.ReportData) (attest.Evidence, error) {
	return attest.Evidence{}, errors.New("none is made")
}

func TestClientKeyForAnAECSIsPrivateOnLinux(t *testing.T) {
	dir := t.TempDir()
	certificate, key := filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key")
	keyPEM, certificatePEM, err := pki.NewClient("init", time.Now(), time.Now().Add(time.Hour))
	if err == nil {
		err = errors.Join(os.WriteFile(certificate, certificatePEM, 0o644), os.WriteFile(key, keyPEM, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	open := func(platform, attester string, mode fs.FileMode) error {
		t.Helper()
		if err := os.Chmod(key, mode); err != nil {
			t.Fatal(err)
		}
		c, err := config.Parse(fmt.Appendf(nil, `{"platform": %q, %s "backend": "aecs",
			"aecs": {"servers": ["aecs:19527"], "generation": "b", "service": "service1",
				"tls": {"ca": %q, "certificate": %q, "key": %q}, "server_key": %q, "server_evidence": "none"},
			"secrets": [{"name": "token", "path": "/run/secrets/token"}], "root": {},
			"collateral": {"pccs_url": "https://pccs:8081/sgx/certification/v4/"}}`,
			platform, attester, certificate, certificate, key, strings.Repeat("ab", 32)))
		if err != nil {
			t.Fatal(err)
		}
		kind := attest.SGX
		if platform == "linux" {
			kind = attest.TDX
		}
		c.ApplyHost(func(string) string { return "" })
		_, err = newBackend(c, attesterOf(kind), time.Now, logrus.New())
		return err
	}
	const onLinux = `"attester": "tdx", "app": {"path": "/bin/app"},`
	if err := open("linux", onLinux, 0o600); err != nil {
		t.Errorf("on Linux: %v, hint %q", err, attest.HintOf(err))
	}
	if err := open("linux", onLinux, 0o644); err == nil || !strings.Contains(err.Error(), "chmod 600 "+key) {
		t.Errorf("on Linux, and all may read it: %v", err)
	}
	if err := open("occlum", "", 0o644); err != nil {
		t.Errorf("in Occlum: %v", err)
	}
}

// TestOcclumsConfigGetsKeysOfAnAECS boots by a config as Occlum's AECS init reads it, from a server of the generation that
// Occlum's client speaks, whose address the host gives.
func TestOcclumsConfigGetsKeysOfAnAECS(t *testing.T) {
	platform, err := softsgx.New(softsgx.Options{Now: time.Now().Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	enclave := func(signer byte) attest.Attester {
		return platform.Attester(sgx.ReportBody{SGXClaims: attest.SGXClaims{MREnclave: [32]byte{0xab}, ProductID: 101, SVN: 2,
			MRSigner: [32]byte(bytes.Repeat([]byte{signer}, 32)), Attributes: attest.AttributeInit | attest.AttributeMode64Bit}})
	}
	rule := &wire.UnifiedAttestationAttributes{HexTaMeasurement: fmt.Sprintf("%X", [32]byte{0xab}), BoolDebugDisabled: "true"}
	server, err := aecstest.New(t.Context(), aecstest.Options{
		Generation: aecs.GenerationA, Attester: enclave(0xcc), Collateral: platform.Collateral(),
		Verifier: func(c *dcap.Collateral) attest.Verifier {
			return dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{platform.RootCA()}, Source: pccs.Stapled(c)})
		},
		Secrets: []*wire.EnclaveSecret{
			aecstest.Secret("service1", "image_key", "01-02-03-04-05-06-07-08-09-0a-0b-0c-0d-0e-0f-10\n", rule),
			aecstest.Secret("service", "demo_key", "Y2FuYXJ5LWRlbW8=", rule),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	server.Register(g)
	ended := make(chan error, 1)
	go func() { ended <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		<-ended
	})
	cache := httptest.NewServer(platform.PCCS())
	t.Cleanup(cache.Close)
	root := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(root, pemOf(platform.RootCA()), 0o600); err != nil {
		t.Fatal(err)
	}
	b, calls, said := bootWith(t, `{
		"kms_server": "elsewhere.example:19527",
		"kms_keys": [{"key": "demo_key", "path": "/dev/shm/demo_key", "service": "service", "encode": "base64"}],
		"ua_env_pccs_url": "`+cache.URL+`/sgx/certification/v4/",
		"ra_config": {"ua_policy_hex_signer": "`+strings.Repeat("CC", 32)+`", "ua_policy_hex_prod_id": "101",
			"ua_policy_str_min_isvsvn": "2", "ua_policy_bool_debug_disabled": "true"},
		"aecs": {"plaintext": true}, "collateral": {"allow_http": true, "root_ca": "`+root+`"}}`,
		enclave(0xdd), map[string]string{"OCCLUM_INIT_RA_KMS_SERVER": l.Addr().String()}, true)
	if want := []string{"root key=0102030405060708090a0b0c0d0e0f10 entry="}; !slices.Equal(calls, want) {
		t.Errorf("calls are %q, want %q", calls, want)
	}
	if text, err := os.ReadFile(filepath.Join(b.prefix, "dev/shm/demo_key")); err != nil || string(text) != "canary-demo" {
		t.Errorf("the secret's file holds %q, %v", text, err)
	}
	for _, want := range []string{"generation a", "without TLS"} {
		if !strings.Contains(said, want) {
			t.Errorf("the log does not say %q:\n%s", want, said)
		}
	}
}
