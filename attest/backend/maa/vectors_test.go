package maa

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/testenv"
)

func vector(t *testing.T, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(testenv.Vectors(t, append([]string{"maa"}, elem...)...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// recordedAt is when the service gave the recorded tokens.
var recordedAt = time.Date(2022, 5, 31, 23, 10, 0, 0, time.UTC)

func TestRecordedTokensAreValidForTheirInstanceOnly(t *testing.T) {
	for _, name := range []string{"sgx-json", "sgx-binary", "sgx-simple", "oe-json", "oe-binary", "sgx-json-aadprovider"} {
		text := strings.TrimSpace(string(vector(t, "sdk-cpp-2022", name+".jwt")))
		keys, err := ParseKeySet(vector(t, "sdk-cpp-2022", name+".certs.json"))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		token, err := ParseToken(text)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want := Expectation{Issuer: token.Claims.Issuer, Keys: keys, Now: recordedAt, Debug: true}
		if err := token.Validate(want); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for what, change := range map[string]func(*Expectation){
			"another issuer":     func(e *Expectation) { e.Issuer = "https://other.attest.azure.net" },
			"too late":           func(e *Expectation) { e.Now = recordedAt.Add(9 * time.Hour) },
			"too early":          func(e *Expectation) { e.Now = recordedAt.Add(-time.Hour) },
			"no keys":            func(e *Expectation) { e.Keys = &KeySet{} },
			"debug not accepted": func(e *Expectation) { e.Debug = false },
			"another enclave":    func(e *Expectation) { e.MREnclave = make([]byte, 32) },
			"other report data":  func(e *Expectation) { e.ReportData = make([]byte, 64) },
		} {
			changed := want
			change(&changed)
			if token.Validate(changed) == nil {
				t.Errorf("%s is valid with %s", name, what)
			}
		}
		i := len(text) - 20 // in the signature
		forged, err := ParseToken(text[:i] + string('A'+(text[i]-'A'+1)%26) + text[i+1:])
		if err == nil && forged.Validate(want) == nil {
			t.Errorf("%s is valid with another signature", name)
		}
	}
}

func TestUnsignedAndForeignTokensAreRefused(t *testing.T) {
	_, err := ParseToken(strings.TrimSpace(string(vector(t, "sdk-cpp-2022", "sgx-draftpolicy-unsigned.jwt"))))
	if attest.CodeOf(err) != attest.CodeEvidence || !strings.Contains(err.Error(), "none") {
		t.Errorf("an unsigned token: %v", err)
	}
	token, err := ParseToken(strings.TrimSpace(string(vector(t, "azure-samples", "sevsnp-2025.jwt"))))
	if err != nil {
		t.Fatal(err)
	}
	err = token.checkIssuance(token.Claims.Issuer, time.Unix(token.Claims.IssuedAt, 0))
	if err == nil || !strings.Contains(err.Error(), "sgx") {
		t.Errorf("a token of a virtual machine: %v", err)
	}
}

// fixed is an attester that always hands out the same evidence.
type fixed struct{ evidence attest.Evidence }

func (fixed) Type() attest.EvidenceType { return attest.SGX }

func (f fixed) Evidence(context.Context, attest.ReportData) (attest.Evidence, error) {
	return f.evidence, nil
}

func TestRecordedQuoteBindsItsRuntimeData(t *testing.T) {
	quote, runtime := vector(t, "sdk-cpp-2022", "sgx_quote.bin"), vector(t, "sdk-cpp-2022", "runtime_data.bin")
	var data attest.ReportData
	sum := sha256.Sum256(runtime)
	copy(data[:], sum[:])
	padded := attest.Evidence{Type: attest.SGX, Raw: append(bytes.Clone(quote), make([]byte, 512)...)}
	got, err := evidence(t.Context(), fixed{padded}, data)
	if err != nil || !bytes.Equal(got.raw, quote) {
		t.Errorf("trimmed to %d bytes (%v), want %d", len(got.raw), err, len(quote))
	}
	data[0] ^= 1
	if _, err := evidence(t.Context(), fixed{padded}, data); attest.CodeOf(err) != attest.CodeAttester {
		t.Errorf("other report data: %v", err)
	}
}

func TestRecordedKeyUnwrapsAndRuntimeDataIsExact(t *testing.T) {
	var v struct {
		Enc        string `json:"enc"`
		Key        string `json:"private_key_pem"`
		Ciphertext string `json:"ciphertext_b64url"`
		Plaintext  string `json:"plaintext_hex"`
	}
	if err := json.Unmarshal(vector(t, "sidecar", "unwrap.CKM_RSA_AES_KEY_WRAP.json"), &v); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(v.Key))
	private, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	ciphertext, err := b64.DecodeString(strings.TrimRight(v.Ciphertext, "="))
	if err != nil {
		t.Fatal(err)
	}
	want, _ := hex.DecodeString(v.Plaintext)
	got, err := unwrap(private, v.Enc, ciphertext)
	if err != nil || !bytes.Equal(got.Expose(), want) {
		t.Fatalf("unwraps to %d bytes (%v), want %d", got.Len(), err, len(want))
	}
	for name, c := range map[string]struct {
		enc  string
		text []byte
	}{
		"another wrapping": {"RSA_AES_KEY_WRAP_256", ciphertext},
		"unknown wrapping": {"none", ciphertext},
		"empty":            {v.Enc, nil},
		"cut":              {v.Enc, ciphertext[:private.Size()]},
		"one byte less":    {v.Enc, ciphertext[:len(ciphertext)-1]},
		"changed":          {v.Enc, append(ciphertext[:len(ciphertext)-1:len(ciphertext)-1], ciphertext[len(ciphertext)-1]^1)},
	} {
		if _, err := unwrap(private, c.enc, c.text); attest.CodeOf(err) != attest.CodeEvidence {
			t.Errorf("%s: %v", name, err)
		}
	}
	if k := newWrappingKey(&private.PublicKey); !bytes.Equal(k.runtime, bytes.TrimSpace(vector(t, "sidecar", "jwks.runtime_data.json"))) {
		t.Errorf("runtime data is %s", k.runtime)
	}
}

// The chain of a recorded release ends in a public root that tests do not carry; all before it is checked here.
func TestRecordedReleaseIsReadAndAnotherRootRefused(t *testing.T) {
	for _, name := range []string{"v0.7.0.KV", "v0.10.0.KV", "v0.7.0.MHSM", "v0.10.0.MHSM"} {
		jws := strings.TrimSpace(string(vector(t, "akv-release", name+".jws")))
		var p releasePayload
		h, signed, signature, err := splitJWS(jws, &p)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		leaf, err := parseCertificate(h.Chain[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := verifyRS256(leaf, signed, signature); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		last, err := parseCertificate(h.Chain[len(h.Chain)-1])
		if err != nil {
			t.Fatal(err)
		}
		host := strings.Split(strings.TrimPrefix(p.Response.Key.Key.KID, "https://"), "/")
		roots := x509.NewCertPool()
		roots.AddCert(last)
		want := releaseRequest{host: host[0], name: host[2], encryption: p.Request.Encryption, wrappingKey: "fake-release-key",
			roots: roots, now: leaf.NotBefore.Add(time.Hour)}
		if _, kind, err := openRelease(jws, want); err != nil || kind == "" {
			t.Errorf("%s: %v", name, err)
		}
		for what, change := range map[string]func(*releaseRequest){
			"another root":         func(r *releaseRequest) { r.roots = x509.NewCertPool() },
			"another vault":        func(r *releaseRequest) { r.host = "other.vault.azure.net" },
			"another key":          func(r *releaseRequest) { r.name = "other" },
			"another version":      func(r *releaseRequest) { r.version = "0123456789abcdef0123456789abcdef" },
			"another wrapping":     func(r *releaseRequest) { r.encryption = encryption },
			"another wrapping key": func(r *releaseRequest) { r.wrappingKey = "mine" },
			"expired":              func(r *releaseRequest) { r.now = leaf.NotAfter.Add(time.Hour) },
		} {
			changed := want
			change(&changed)
			code := attest.CodeEvidence
			if what == "another vault" && strings.HasSuffix(name, ".KV") || what == "another key" || what == "another version" {
				code = attest.CodePolicy // genuine, and not what was asked for
			}
			if _, _, err := openRelease(jws, changed); attest.CodeOf(err) != code {
				t.Errorf("%s with %s: %v", name, what, err)
			}
		}
	}
}
