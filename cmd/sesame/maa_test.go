package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/keywrap"
	"github.com/sesame-init/sesame/internal/privatefile"
	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/maatest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// TestMAACommands runs the scripts of Azure Attestation on its recorded tokens.
func TestMAACommands(t *testing.T) {
	recorded := testenv.Vectors(t, "maa", "sdk-cpp-2022")
	testscript.Run(t, testscript.Params{Dir: "testdata/maa", RequireExplicitExec: true, Setup: func(e *testscript.Env) error {
		for _, name := range []string{"sgx-json.jwt", "sgx-json.certs.json", "sgx-draftpolicy-unsigned.jwt", "sgx-draftpolicy-unsigned.certs.json"} {
			text, err := os.ReadFile(filepath.Join(recorded, name))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(e.WorkDir, name), text, 0o600); err != nil {
				return err
			}
		}
		runtime, err := os.ReadFile(filepath.Join(recorded, "runtime_data.bin"))
		e.Setenv("RUNTIME_SHA256", fmt.Sprintf("%x", sha256.Sum256(runtime)))
		return err
	}})
}

// Without --jwks the keys come from the issuer itself, over TLS to the roots that are named.
func TestTokenVerifyAsksTheInstanceForItsKeys(t *testing.T) {
	platform, err := softsgx.New(softsgx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	pki, err := maatest.NewPKI(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	server, err := maatest.New(maatest.Config{PKI: pki, Verifier: dcap.NewVerifier(dcap.Config{
		Roots: []*x509.Certificate{platform.RootCA()}, Source: pccs.Stapled(platform.Collateral()),
	})}).Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	body := sgx.ReportBody{SGXClaims: attest.SGXClaims{MREnclave: [32]byte{0xab}, Attributes: attest.AttributeInit | attest.AttributeMode64Bit}}
	evidence, err := platform.Attester(body).Evidence(t.Context(), attest.ReportData{0x11})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	roots, token := filepath.Join(dir, "roots.pem"), filepath.Join(dir, "token.jwt")
	for name, text := range map[string][]byte{roots: pki.RootPEM(), token: []byte(server.Token(t.Context(), server.Address(), evidence.Raw))} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	verify := func(args ...string) (string, error) {
		var out strings.Builder
		root := newRootCommand()
		root.SetOut(&out)
		root.SetErr(io.Discard)
		root.SetArgs(append([]string{"token", "verify", "--issuer", "https://" + server.Address(), "--report-data", "11"}, append(args, token)...))
		err := root.ExecuteContext(t.Context())
		return out.String(), err
	}
	if out, err := verify("--ca", roots); err != nil || !strings.Contains(out, "mrenclave ab00") {
		t.Errorf("%s, %v", out, err)
	}
	if _, err := verify(); attest.CodeOf(err) != attest.CodeEvidence || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("with the machine's roots: %v", err)
	}
	if _, err := verify("--ca", token); attest.CodeOf(err) != attest.CodeUsage {
		t.Errorf("with a file of no roots: %v", err)
	}
}

// The root of the recorded releases is one of those that sesame maa roots picks; the oldest ends in Baltimore CyberTrust
// Root, which Azure has left.
func TestRecordedReleasesEndInARootThatIsPicked(t *testing.T) {
	for name, want := range map[string]int{"v0.7.0.KV": 0, "v0.10.0.KV": 1, "v0.7.0.MHSM": 1, "v0.10.0.MHSM": 1} {
		text, err := os.ReadFile(testenv.Vectors(t, "maa", "akv-release", name+".jws"))
		if err != nil {
			t.Fatal(err)
		}
		header, err := base64.RawURLEncoding.DecodeString(strings.Split(string(text), ".")[0])
		if err != nil {
			t.Fatal(err)
		}
		var bundle []byte
		for _, part := range strings.Split(string(header), `"`) {
			if der, err := base64.StdEncoding.DecodeString(part); err == nil && len(der) > 256 {
				bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
			}
		}
		if found := pickRoots(bundle); len(found) != want {
			t.Errorf("%s: %d roots, want %d", name, len(found), want)
		}
	}
}

// What a policy says that the command prints, the vault understands.
func TestPrintedPolicyIsReadByTheVault(t *testing.T) {
	var out strings.Builder
	root := newRootCommand()
	root.SetOut(&out)
	root.SetArgs([]string{"maa", "release-policy", "--authority", "https://sharedweu.weu.attest.azure.net/",
		"--mrsigner", strings.Repeat("cd", 32), "--product-id", "200", "--min-svn", "2"})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	p, err := maatest.ParseReleasePolicy([]byte(out.String()))
	if err != nil {
		t.Fatal(err)
	}
	claims := map[string]any{
		"x-ms-attestation-type": "sgx", "x-ms-sgx-is-debuggable": false, "x-ms-sgx-mrsigner": strings.Repeat("cd", 32),
		"x-ms-sgx-product-id": 200.0, "x-ms-sgx-svn": 3.0,
	}
	if ok, missed := p.Permits("https://sharedweu.weu.attest.azure.net", claims); !ok {
		t.Errorf("the enclave misses %s of %s", missed, out.String())
	}
	for claim, other := range map[string]any{
		"x-ms-attestation-type": "sevsnpvm", "x-ms-sgx-is-debuggable": true, "x-ms-sgx-mrsigner": strings.Repeat("ce", 32),
		"x-ms-sgx-product-id": 201.0, "x-ms-sgx-svn": 1.0,
	} {
		right := claims[claim]
		claims[claim] = other
		if ok, _ := p.Permits("https://sharedweu.weu.attest.azure.net", claims); ok {
			t.Errorf("%s = %v is permitted", claim, other)
		}
		claims[claim] = right
	}
}

// A secret that is too large is refused, not cut off.
func TestNoSecretIsWrappedInPart(t *testing.T) {
	oct := filepath.Join(t.TempDir(), "oct")
	if err := os.WriteFile(oct, make([]byte, 32), 0o600); err != nil {
		t.Fatal(err)
	}
	wrap := func(size int, byFile bool) error {
		root := newRootCommand()
		root.SetOut(io.Discard)
		root.SetErr(io.Discard)
		secret := strings.Repeat("x", size)
		name := "-"
		if byFile {
			name = filepath.Join(t.TempDir(), "secret")
			if err := os.WriteFile(name, []byte(secret), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		root.SetIn(strings.NewReader(secret))
		root.SetArgs([]string{"maa", "wrap", "--oct-key", oct, name})
		return root.Execute()
	}
	for _, byFile := range []bool{false, true} {
		if err := wrap(keywrap.MaxPlaintext, byFile); err != nil {
			t.Errorf("file %t: %v", byFile, err)
		}
		if err := wrap(keywrap.MaxPlaintext+1, byFile); attest.CodeOf(err) != attest.CodeUsage {
			t.Errorf("file %t: one byte too many: %v", byFile, err)
		}
	}
}

func TestBlobsOpenWithTheKeyOfTheVault(t *testing.T) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	public, oct := filepath.Join(dir, "public.pem"), filepath.Join(dir, "oct")
	for name, text := range map[string][]byte{public: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), oct: make([]byte, 32)} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := wrapBlob(privatefile.Rule{}, public, "", attest.NewSecret([]byte("x"))); err != nil {
		t.Error(err)
	}
	if _, err := wrapBlob(privatefile.Rule{}, oct, "", attest.NewSecret([]byte("x"))); err == nil {
		t.Error("an oct key is taken for a public key")
	}
	text, err := wrapBlob(privatefile.Rule{}, "", oct, attest.NewSecret([]byte("secret")))
	if err != nil {
		t.Fatal(err)
	}
	blob, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := keywrap.Unwrap(make([]byte, 32), blob); err != nil || string(got) != "secret" {
		t.Errorf("the blob opens to %q, %v", got, err)
	}
}
