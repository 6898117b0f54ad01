package aecs

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/aecs/wire"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/aecs/envelope"
	"github.com/sesame-init/sesame/internal/aecs/uar"
)

const (
	recordedService = "service1"
	recordedNonce   = "nonce-1"
)

var recordedSecrets = []string{"secret-my-password", "secret-my-aes256-key", "secret-my-keypair"}

// record reads a file of the vectors.
func record(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func recordMessage[M proto.Message](t testing.TB, name string, m M) M {
	t.Helper()
	if err := proto.Unmarshal(record(t, name), m); err != nil {
		t.Fatal(err)
	}
	return m
}

func recordKey(t testing.TB, name string) *rsa.PrivateKey {
	t.Helper()
	block, _ := pem.Decode(record(t, name))
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// layoutOnly takes every quote for genuine. The recorded ones were made without hardware.
type layoutOnly struct{}

func (layoutOnly) Verify(_ context.Context, e attest.Evidence, _ time.Time) (attest.Claims, error) {
	body, err := sgx.ParseReportBody(e.Raw[48 : 48+sgx.ReportBodySize])
	return attest.Claims{Type: attest.SGX, SGX: &body.SGXClaims, ReportData: body.ReportData}, err
}

// recordedServer is the policy for the enclave that the recorded answers come from.
func recordedServer() *policy.Policy {
	return &policy.Policy{SGX: []policy.SGX{{MREnclave: []byte(strings.Repeat("\xab", 32))}}}
}

// asRecorded is an exchange of the client that the recorded answers were made for.
func asRecorded(t testing.TB, generation Generation) *exchange {
	t.Helper()
	c, err := New(Config{
		Servers: []string{"localhost:19527"}, Generation: generation, Plaintext: true, Service: recordedService,
		Attester: struct{ attest.Attester }{}, Verifier: layoutOnly{}, Policy: recordedServer(),
		Staple: func(*dcap.Collateral) attest.Verifier { return layoutOnly{} },
	})
	if err != nil {
		t.Fatal(err)
	}
	e := &exchange{config: &c.config, self: &identity{}, generation: generation}
	if generation == GenerationA {
		e.self.key = recordKey(t, "gena_client_uak_private.pem")
		e.self.report = recordMessage(t, "gena_secret-my-password.req.pb",
			new(wire.GetEnclaveSecretRequest)).GetAuthRaReport()
	} else {
		e.self.key = recordKey(t, "client_uak_private.pem")
		e.self.report = recordMessage(t, "genb_secret-my-password.req.pb", new(wire.TaRemoteCallRequest)).GetAuthReport()
	}
	return e
}

func recordedWant(name string) secretQuery {
	return secretQuery{key: name, Secret: Secret{Service: recordedService, Name: name}}
}

// remake writes a recorded report anew from the parts that are not ours to choose.
func remake(t *testing.T, key *rsa.PrivateKey, recorded *wire.UnifiedAttestationAuthReport) *wire.UnifiedAttestationAuthReport {
	t.Helper()
	var parts wire.DcapReport
	var collateral wire.SgxQlQveCollateral
	if err := wire.Parse(recorded.GetReport().GetJsonReport(), &parts); err != nil {
		t.Fatal(err)
	}
	if err := wire.Parse(parts.GetJsonCollateral(), &collateral); err != nil {
		t.Fatal(err)
	}
	quote, err := base64.StdEncoding.DecodeString(parts.GetB64Quote())
	if err != nil {
		t.Fatal(err)
	}
	text := uar.PublicKeyPEM(&key.PublicKey)
	body, err := sgx.ParseReportBody(quote[48 : 48+sgx.ReportBodySize])
	if err != nil {
		t.Fatal(err)
	}
	if body.ReportData != uar.Data([32]byte{}, text) {
		t.Errorf("the recorded report data is %x", body.ReportData)
	}
	report, err := uar.Make(attest.Evidence{Type: attest.SGX, Raw: quote}, text, &collateral)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestRequestsAreTheUpstreamsByteForByte(t *testing.T) {
	same := func(name string, m proto.Message) {
		t.Helper()
		b, err := proto.Marshal(m)
		if err != nil || string(b) != string(record(t, name+".pb")) {
			t.Errorf("%s: other bytes (%v)", name, err)
		}
		text, err := wire.JSON(m)
		if err != nil || text != strings.TrimSpace(string(record(t, name+".json"))) {
			t.Errorf("%s: other JSON (%v)", name, err)
		}
	}
	a, b := asRecorded(t, GenerationA), asRecorded(t, GenerationB)
	a.self.report = remake(t, a.self.key, a.self.report)
	b.self.report = remake(t, b.self.key, b.self.report)
	for _, name := range recordedSecrets {
		same("gena_"+name+".req", a.requestA(recordedWant(name), recordedNonce))
		request, err := b.requestB(recordedWant(name), recordedNonce)
		if err != nil {
			t.Fatal(err)
		}
		same("genb_"+name+".req", request)
	}
	same("gena_emptynonce.req", a.requestA(recordedWant("secret-my-password"), ""))
}

func TestRecordedAnswersOpenToTheirPlaintexts(t *testing.T) {
	a, b := asRecorded(t, GenerationA), asRecorded(t, GenerationB)
	for _, name := range recordedSecrets {
		answer := recordMessage(t, "gena_"+name+".res.pb", new(wire.GetEnclaveSecretResponse))
		secret, err := a.openA(t.Context(), answer, recordedWant(name), recordedNonce)
		if err != nil || string(secret.Expose()) != string(record(t, "gena_"+name+".plain")) {
			t.Errorf("generation A, %s: %v", name, err)
		}
		call := recordMessage(t, "genb_"+name+".res.pb", new(wire.TaRemoteCallResponse))
		secret, err = b.openB(t.Context(), call, recordedWant(name), recordedNonce)
		var plain struct {
			Data string `json:"data"`
		}
		if err := json.Unmarshal(record(t, "genb_"+name+".plain.json"), &plain); err != nil {
			t.Fatal(err)
		}
		if err != nil || string(secret.Expose()) != plain.Data {
			t.Errorf("generation B, %s: %v", name, err)
		}
	}
	answer := recordMessage(t, "gena_emptynonce.res.pb", new(wire.GetEnclaveSecretResponse))
	server := recordKey(t, "gena_server_uak_private.pem")
	secret, err := envelope.Open(answer.GetSecretEnc(), a.self.key, envelope.Enclave, &server.PublicKey, MaxSecret)
	if err != nil || string(secret.Expose()) != string(record(t, "gena_emptynonce.plain")) {
		t.Errorf("without a nonce: %v", err)
	}
}

// refusal is what a changed answer must be refused with.
type refusal struct {
	code attest.Code
	says string
}

func (r refusal) check(t *testing.T, name string, secret attest.Secret, err error) {
	t.Helper()
	switch {
	case err == nil || secret.Len() != 0:
		t.Errorf("%s: accepted", name)
	case attest.CodeOf(err) != r.code || !strings.Contains(err.Error(), r.says):
		t.Errorf("%s: [%s] %v, want [%s] %q", name, attest.CodeOf(err), err, r.code, r.says)
	case strings.Contains(err.Error(), "password-test"):
		t.Errorf("%s: the secret is in the error", name)
	}
}

// changedReports are changes of a server's report, the same in both generations.
var changedReports = map[string]struct {
	change func(*testing.T, *wire.UnifiedAttestationAuthReport)
	want   refusal
}{
	"no report": {func(_ *testing.T, a *wire.UnifiedAttestationAuthReport) { proto.Reset(a) }, refusal{attest.CodeEvidence,
		"not PEM"}},
	"a line feed less in the key": {func(_ *testing.T, a *wire.UnifiedAttestationAuthReport) {
		a.PemPublicKey = strings.TrimSuffix(a.PemPublicKey, "\n")
	}, refusal{attest.CodeEvidence, "does not bind"}},
	"another key": {func(t *testing.T, a *wire.UnifiedAttestationAuthReport) {
		a.PemPublicKey = string(record(t, "client_uak_public.pem"))
	}, refusal{attest.CodeEvidence, "does not bind"}},
	"two keys": {func(_ *testing.T, a *wire.UnifiedAttestationAuthReport) { a.PemPublicKey += a.PemPublicKey },
		refusal{attest.CodeEvidence, "it is not alone"}},
	"an SPKI key": {func(_ *testing.T, a *wire.UnifiedAttestationAuthReport) {
		a.PemPublicKey = strings.ReplaceAll(a.PemPublicKey, "RSA PUBLIC KEY", "PUBLIC KEY")
	}, refusal{attest.CodeEvidence, `a block of "PUBLIC KEY"`}},
	"the quote of another key": {func(t *testing.T, a *wire.UnifiedAttestationAuthReport) {
		a.Report = recordMessage(t, "gena_secret-my-password.req.pb",
			new(wire.GetEnclaveSecretRequest)).GetAuthRaReport().GetReport()
	}, refusal{attest.CodeEvidence, "does not bind"}},
	"an unknown field in the report": {func(_ *testing.T, a *wire.UnifiedAttestationAuthReport) {
		a.Report.JsonReport = strings.Replace(a.Report.JsonReport, "{", `{"more":"1",`, 1)
	}, refusal{attest.CodeEvidence, "json_report: it has a field"}},
	"an unknown field in the collateral": {func(_ *testing.T, a *wire.UnifiedAttestationAuthReport) {
		a.Report.JsonReport = strings.Replace(a.Report.JsonReport, `"{\"version`, `"{\"more\":1,\"version`, 1)
	}, refusal{attest.CodeEvidence, "json_collateral: it has a field"}},
	"a document of the collateral missing": {func(_ *testing.T, a *wire.UnifiedAttestationAuthReport) {
		a.Report.JsonReport = strings.Replace(a.Report.JsonReport, `\"pck_crl\":\"C\",`, ``, 1)
	}, refusal{attest.CodeEvidence, "a document is missing"}},
	"Ant's central service": {func(_ *testing.T, a *wire.UnifiedAttestationAuthReport) { a.Report.StrReportType = "Uas" },
		refusal{attest.CodeEvidence, `type "Uas"`}},
	"a passport that says it has no collateral": {func(_ *testing.T, a *wire.UnifiedAttestationAuthReport) {
		a.Report.StrReportType = wire.BackgroundCheck
	}, refusal{attest.CodeEvidence, "BackgroundCheck with collateral"}},
	"another platform": {func(_ *testing.T, a *wire.UnifiedAttestationAuthReport) { a.Report.StrTeePlatform = "CSV" },
		refusal{attest.CodeEvidence, `"CSV"`}},
	"nested reports": {func(_ *testing.T, a *wire.UnifiedAttestationAuthReport) { a.Report.JsonNestedReports = "{}" },
		refusal{attest.CodeEvidence, "nested"}},
	"a server that is built for simulation": {func(_ *testing.T, a *wire.UnifiedAttestationAuthReport) {
		a.Report.StrTeePlatform, a.Report.StrReportType = wire.PlatformEPID, wire.BackgroundCheck
		a.Report.JsonReport = a.Report.JsonReport[:strings.Index(a.Report.JsonReport, `,"json_collateral"`)] + "}"
	}, refusal{attest.CodeEvidence, "built for simulation"}},
	"a quote that is cut off": {func(_ *testing.T, a *wire.UnifiedAttestationAuthReport) {
		a.Report.JsonReport = a.Report.JsonReport[:len(`{"b64_quote":"`)+580] + `"}`
		a.Report.StrReportType = wire.BackgroundCheck
	}, refusal{attest.CodeEvidence, "at least 436"}},
}

func TestChangedAnswersOfGenerationAAreRefusedForTheirOwnReason(t *testing.T) {
	type answer = *wire.GetEnclaveSecretResponse
	cases := map[string]struct {
		change func(*testing.T, answer)
		want   refusal
	}{
		"hash": {func(_ *testing.T, r answer) { r.SecretEnc.PlainHash[3] ^= 1 },
			refusal{attest.CodeEvidence, "hash is not that of its plaintext"}},
		"hash in lower case": {func(_ *testing.T, r answer) {
			r.SecretEnc.PlainHash = []byte(strings.ToLower(string(r.SecretEnc.PlainHash)))
		}, refusal{attest.CodeEvidence, "hash is not that of its plaintext"}},
		"signature": {func(_ *testing.T, r answer) { r.SecretEnc.PlainHashSig[9] ^= 1 }, refusal{attest.CodeEvidence,
			"not signed by this sender"}},
		"signature of another secret": {func(t *testing.T, r answer) {
			r.SecretEnc.PlainHashSig = recordMessage(t, "gena_secret-my-aes256-key.res.pb",
				new(wire.GetEnclaveSecretResponse)).SecretEnc.PlainHashSig
		}, refusal{attest.CodeEvidence, "not signed by this sender"}},
		"ciphertext": {func(_ *testing.T, r answer) { r.SecretEnc.AesCipher.Cipher[0] ^= 1 }, refusal{attest.CodeEvidence,
			"ciphertext was changed"}},
		"mac": {func(_ *testing.T, r answer) { r.SecretEnc.AesCipher.Mac[0] ^= 1 }, refusal{attest.CodeEvidence,
			"ciphertext was changed"}},
		"iv": {func(_ *testing.T, r answer) { r.SecretEnc.AesCipher.Iv[0] ^= 1 }, refusal{attest.CodeEvidence,
			"ciphertext was changed"}},
		"short mac": {func(_ *testing.T, r answer) { r.SecretEnc.AesCipher.Mac = r.SecretEnc.AesCipher.Mac[:12] },
			refusal{attest.CodeEvidence, "mac has 12 bytes"}},
		"key": {func(_ *testing.T, r answer) { r.SecretEnc.EncryptedKey[0] ^= 1 }, refusal{attest.CodeEvidence,
			"key was not made for this receiver"}},
		"nonce": {func(_ *testing.T, r answer) { r.SecretEnc.AesCipher.Aad = []byte("nonce-2") },
			refusal{attest.CodeEvidence, "another nonce"}},
		"no nonce": {func(t *testing.T, r answer) {
			r.SecretEnc = recordMessage(t, "gena_emptynonce.res.pb", new(wire.GetEnclaveSecretResponse)).SecretEnc
		}, refusal{attest.CodeEvidence, "ignores our nonce"}},
		"no envelope": {func(_ *testing.T, r answer) { r.SecretEnc = nil }, refusal{attest.CodeEvidence, "malformed"}},
	}
	for name, c := range changedReports {
		cases[name] = struct {
			change func(*testing.T, answer)
			want   refusal
		}{func(t *testing.T, r answer) { c.change(t, r.AuthRaReport) }, c.want}
	}
	for name, c := range cases {
		r := recordMessage(t, "gena_secret-my-password.res.pb", new(wire.GetEnclaveSecretResponse))
		c.change(t, r)
		secret, err := asRecorded(t, GenerationA).openA(t.Context(), r, recordedWant("secret-my-password"), recordedNonce)
		c.want.check(t, name, secret, err)
	}
}

// resign signs an answer anew, with the recorded server's own key.
func resign(t *testing.T, r *wire.TaRemoteCallResponse) {
	t.Helper()
	digest := sha256.Sum256([]byte(r.GetResJson()))
	signature, err := rsa.SignPKCS1v15(nil, recordKey(t, "server_uak_private.pem"), crypto.SHA256, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	r.SignatureB64 = base64.StdEncoding.EncodeToString(signature)
}

// reseal puts another text into the envelope, as the server itself would.
func reseal(t *testing.T, r *wire.TaRemoteCallResponse, text, aad string) {
	t.Helper()
	receiver := recordKey(t, "client_uak_private.pem")
	sealed, err := envelope.Seal(zeros{}, []byte(text), &receiver.PublicKey, aad, recordKey(t, "server_uak_private.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if r.ResJson, err = wire.JSON(&wire.TaGetSecretResponse{SecretEnc: sealed, Nonce: recordedNonce}); err != nil {
		t.Fatal(err)
	}
	resign(t, r)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestChangedAnswersOfGenerationBAreRefusedForTheirOwnReason(t *testing.T) {
	type answer = *wire.TaRemoteCallResponse
	plain := string(record(t, "genb_secret-my-password.plain.json"))
	replace := func(from, to string) func(*testing.T, answer) {
		return func(t *testing.T, r answer) {
			text := strings.Replace(plain, from, to, 1)
			if text == plain {
				t.Fatalf("%q does not stand there", from)
			}
			reseal(t, r, text, envelope.Enclave)
		}
	}
	inner := func(change func(*wire.TaGetSecretResponse)) func(*testing.T, answer) {
		return func(t *testing.T, r answer) {
			var m wire.TaGetSecretResponse
			if err := wire.Parse(r.GetResJson(), &m); err != nil {
				t.Fatal(err)
			}
			change(&m)
			r.ResJson, _ = wire.JSON(&m)
			resign(t, r)
		}
	}
	cases := map[string]struct {
		change func(*testing.T, answer)
		want   refusal
	}{
		"signature": {func(_ *testing.T, r answer) {
			r.SignatureB64 = strings.Replace(r.SignatureB64, r.SignatureB64[:4], "AAAA", 1)
		}, refusal{attest.CodeEvidence, "not signed by the server's key"}},
		"signature is no base64": {func(_ *testing.T, r answer) { r.SignatureB64 = "?" }, refusal{attest.CodeEvidence,
			"not signed by the server's key"}},
		"a space in the answer": {func(_ *testing.T, r answer) { r.ResJson += " " }, refusal{attest.CodeEvidence,
			"not signed by the server's key"}},
		"an unknown field": {func(t *testing.T, r answer) {
			r.ResJson = strings.Replace(r.ResJson, "{", `{"more":1,`, 1)
			resign(t, r)
		}, refusal{attest.CodeEvidence, "it has a field"}},
		"nonce": {inner(func(m *wire.TaGetSecretResponse) { m.Nonce = "nonce-2" }), refusal{attest.CodeEvidence,
			"another nonce"}},
		"no nonce": {inner(func(m *wire.TaGetSecretResponse) { m.Nonce = "" }), refusal{attest.CodeEvidence,
			"another nonce"}},
		"hash": {inner(func(m *wire.TaGetSecretResponse) { m.SecretEnc.PlainHash[0] ^= 1 }),
			refusal{attest.CodeEvidence, "hash is not that"}},
		"hash signature": {inner(func(m *wire.TaGetSecretResponse) { m.SecretEnc.PlainHashSig[0] ^= 1 }),
			refusal{attest.CodeEvidence, "not signed by this sender"}},
		"additional data": {inner(func(m *wire.TaGetSecretResponse) { m.SecretEnc.AesCipher.Aad = []byte(recordedNonce) }),
			refusal{attest.CodeEvidence, "other additional data"}},
		"other envelope name": {func(t *testing.T, r answer) { reseal(t, r, plain, recordedNonce) },
			refusal{attest.CodeEvidence, "other additional data"}},
		"secret's name": {replace("secret-my-password", "secret-my-other"), refusal{attest.CodeSecret,
			"sent secret secret-my-other"}},
		"service's name": {replace("service1", "service2"), refusal{attest.CodeSecret, "of service service2"}},
		"type": {replace("SECRET_TYPE_IMPORT_DATA", "SECRET_TYPE_AES256_KEY"), refusal{attest.CodeSecret,
			"type AES256_KEY, want IMPORT_DATA"}},
		"unknown field in secret": {replace(`"data"`, `"more":1,"data"`), refusal{attest.CodeEvidence, "it has a field"}},
		"empty secret":            {replace(`,"data":"password-test"`, ``), refusal{attest.CodeSecret, "0 bytes"}},
		"too large a secret": {replace(`password-test`, strings.Repeat("x", MaxSecret+1)), refusal{attest.CodeSecret,
			"10241 bytes"}},
		"not JSON": {func(t *testing.T, r answer) { reseal(t, r, "password-test", envelope.Enclave) },
			refusal{attest.CodeEvidence, "not the JSON of EnclaveSecret"}},
		"the answer to another call": {func(t *testing.T, r answer) {
			proto.Merge(r, recordMessage(t, "genb_secret-my-aes256-key.res.pb", new(wire.TaRemoteCallResponse)))
		}, refusal{attest.CodeSecret, "sent secret secret-my-aes256-key"}},
	}
	for name, c := range changedReports {
		cases[name] = struct {
			change func(*testing.T, answer)
			want   refusal
		}{func(t *testing.T, r answer) { c.change(t, r.AuthReport) }, c.want}
	}
	for name, c := range cases {
		r := recordMessage(t, "genb_secret-my-password.res.pb", new(wire.TaRemoteCallResponse))
		c.change(t, r)
		w := recordedWant("secret-my-password")
		w.Type = "IMPORT_DATA"
		secret, err := asRecorded(t, GenerationB).openB(t.Context(), r, w, recordedNonce)
		c.want.check(t, name, secret, err)
	}
}

func TestAServerThatTheConfigDoesNotWantIsRefused(t *testing.T) {
	answer := recordMessage(t, "gena_secret-my-password.res.pb", new(wire.GetEnclaveSecretResponse))
	for name, c := range map[string]struct {
		change func(*exchange)
		want   refusal
	}{
		"another enclave": {func(e *exchange) { e.config.Policy.SGX[0].MREnclave[0] ^= 1 }, refusal{attest.CodePolicy,
			"mr_enclave"}},
		"another key": {func(e *exchange) { e.config.ServerKey = new([32]byte) }, refusal{attest.CodePolicy,
			"fingerprint"}},
	} {
		e := asRecorded(t, GenerationA)
		c.change(e)
		secret, err := e.openA(t.Context(), answer, recordedWant("secret-my-password"), recordedNonce)
		c.want.check(t, name, secret, err)
	}
}
