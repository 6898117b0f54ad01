package aecstest_test

import (
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/aecs"
	"github.com/sesame-init/sesame/attest/backend/aecs/wire"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/aecs/envelope"
	"github.com/sesame-init/sesame/internal/aecs/uar"
	"github.com/sesame-init/sesame/lab/aecstest"
)

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../attest/backend/aecs/testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readKey(t *testing.T, name string) *rsa.PrivateKey {
	t.Helper()
	block, _ := pem.Decode(read(t, name))
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func message[M proto.Message](t *testing.T, name string, m M) M {
	t.Helper()
	if err := proto.Unmarshal(read(t, name), m); err != nil {
		t.Fatal(err)
	}
	return m
}

// recorded is the simulated server that the recorded answers come from.
func recorded(t *testing.T, generation aecs.Generation) *aecstest.Server {
	t.Helper()
	o := aecstest.Options{Generation: generation, Key: readKey(t, "server_uak_private.pem")}
	for _, name := range []string{"secret-my-password", "secret-my-aes256-key", "secret-my-keypair"} {
		var s wire.EnclaveSecret
		if err := wire.Parse(strings.TrimSpace(string(read(t, "genb_"+name+".plain.json"))), &s); err != nil {
			t.Fatal(err)
		}
		o.Secrets = append(o.Secrets, &s)
	}
	return server(t, o)
}

func server(t *testing.T, o aecstest.Options) *aecstest.Server {
	t.Helper()
	s, err := aecstest.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTheUpstreamsRequestsAreAnsweredAsTheUpstreamAnswers(t *testing.T) {
	a, b := recorded(t, aecs.GenerationA), recorded(t, aecs.GenerationB)
	clientA, clientB := readKey(t, "gena_client_uak_private.pem"), readKey(t, "client_uak_private.pem")
	identity := readKey(t, "server_uak_private.pem")
	for _, name := range []string{"secret-my-password", "secret-my-aes256-key", "secret-my-keypair"} {
		call, err := b.TaRemoteCall(t.Context(), message(t, "genb_"+name+".req.pb", new(wire.TaRemoteCallRequest)))
		if err != nil {
			t.Fatal(err)
		}
		var inner wire.TaGetSecretResponse
		if err := wire.Parse(call.GetResJson(), &inner); err != nil {
			t.Fatal(err)
		}
		plain, err := envelope.Open(inner.GetSecretEnc(), clientB, envelope.Enclave, &identity.PublicKey, 1<<16)
		if err != nil || string(plain.Expose()) != strings.TrimSpace(string(read(t, "genb_"+name+".plain.json"))) {
			t.Errorf("generation B, %s: another plaintext (%v)", name, err)
		}
		was := message(t, "genb_"+name+".res.pb", new(wire.TaRemoteCallResponse))
		var wasInner wire.TaGetSecretResponse
		if err := wire.Parse(was.GetResJson(), &wasInner); err != nil {
			t.Fatal(err)
		}
		if inner.GetNonce() != wasInner.GetNonce() || string(inner.GetSecretEnc().GetPlainHash()) != string(wasInner.GetSecretEnc().GetPlainHash()) ||
			string(inner.GetSecretEnc().GetPlainHashSig()) != string(wasInner.GetSecretEnc().GetPlainHashSig()) {
			t.Errorf("generation B, %s: hash, its signature or the nonce are others", name)
		}

		answer, err := a.GetEnclaveSecret(t.Context(), message(t, "gena_"+name+".req.pb", new(wire.GetEnclaveSecretRequest)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := envelope.Open(answer.GetSecretEnc(), clientA, "nonce-1", &identity.PublicKey, 1<<16); err != nil {
			t.Errorf("generation A, %s: %v", name, err)
		}
	}
	answer, err := a.GetEnclaveSecret(t.Context(), message(t, "gena_emptynonce.req.pb", new(wire.GetEnclaveSecretRequest)))
	if err != nil || string(answer.GetSecretEnc().GetAesCipher().GetAad()) != "Enclave" {
		t.Errorf("without a nonce: %v", err)
	}
}

func TestWhatAnybodyMayAskIsAnsweredByteForByte(t *testing.T) {
	b := recorded(t, aecs.GenerationB)
	key, err := b.GetEnclaveSecretPublic(t.Context(),
		&wire.GetEnclaveSecretPublicRequest{ServiceName: "service1", SecretName: "secret-my-keypair", Nonce: "N1"})
	if err != nil {
		t.Fatal(err)
	}
	state, err := b.GetAecsStatus(t.Context(), &wire.GetAecsStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	state.AuthRaReport = nil // not recorded
	for name, m := range map[string]proto.Message{"genb_getpub.res.json": key, "genb_status.res.json": state} {
		if text, err := wire.JSON(m); err != nil || text != strings.TrimSpace(string(read(t, name))) {
			t.Errorf("%s: %s (%v)", name, text, err)
		}
	}
}

// client makes requests of an enclave of the recorded kind, with changes.
type client struct {
	key      *rsa.PrivateKey
	body     sgx.ReportBody
	platform string
	pem      string // default: the key's
	bound    string // text that the quote binds; default pem
	function string
	request  string // default: for the secret "s"
}

func newClient(t *testing.T) *client {
	c := &client{key: readKey(t, "client_uak_private.pem"), platform: wire.PlatformDCAP, function: wire.TaGetSecret}
	for i := range 32 {
		c.body.MREnclave[i], c.body.MRSigner[i] = 0xab, 0xcd
	}
	c.body.ProductID, c.body.SVN = 7, 3
	c.body.Attributes = attest.AttributeInit | attest.AttributeMode64Bit
	c.pem = uar.PublicKeyPEM(&c.key.PublicKey)
	c.bound = c.pem
	c.request = `{"serviceName":"service1","secretName":"s","nonce":"n"}`
	copy(c.body.ReportData[:], "1234")
	return c
}

func (c *client) report(t *testing.T) *wire.UnifiedAttestationAuthReport {
	t.Helper()
	c.body.ReportData = uar.Data([32]byte(c.body.ReportData[:32]), c.bound)
	quote, err := c.body.AppendBinary(make([]byte, sgx.HeaderSize))
	if err != nil {
		t.Fatal(err)
	}
	report, err := uar.Make(attest.Evidence{Type: attest.SGX, Raw: append(quote, 0, 0, 0, 0)}, c.pem, nil)
	if err != nil {
		t.Fatal(err)
	}
	report.Report.StrTeePlatform = c.platform
	return report
}

func (c *client) callB(t *testing.T, s *aecstest.Server) error {
	t.Helper()
	digest := sha256.Sum256([]byte(c.request))
	signature, err := rsa.SignPKCS1v15(nil, c.key, 5, digest[:]) // 5 is crypto.SHA256
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.TaRemoteCall(context.Background(), &wire.TaRemoteCallRequest{AuthReport: c.report(t),
		FunctionName: c.function,
		ReqJson:      c.request, SignatureB64: base64.StdEncoding.EncodeToString(signature)})
	return err
}

func (c *client) callA(t *testing.T, s *aecstest.Server, service, name string) error {
	t.Helper()
	_, err := s.GetEnclaveSecret(context.Background(), &wire.GetEnclaveSecretRequest{AuthRaReport: c.report(t),
		ServiceName: service, SecretName: name})
	return err
}

func wants(t *testing.T, name string, err error, prefix, code string) {
	t.Helper()
	if code == "" {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		return
	}
	s := status.Convert(err)
	if want := fmt.Sprintf("%s | Error code: 0x%s0000", prefix, code); s.Code() != codes.Internal || s.Message() != want {
		t.Errorf("%s: %s %q, want %q", name, s.Code(), s.Message(), want)
	}
}

const prefixB = "Fail to call TA remote function"

// TestPoliciesAreJudgedAsTheUpstreamJudgesThem holds the cases that were run on the upstream's code.
func TestPoliciesAreJudgedAsTheUpstreamJudgesThem(t *testing.T) {
	key := newClient(t)
	for name, c := range map[string]struct {
		rule   *wire.UnifiedAttestationAttributes // nil: none
		change func(*client)
		code   string
	}{
		"an empty rule":           {&wire.UnifiedAttestationAttributes{}, nil, ""},
		"no rule":                 {nil, nil, "A446"},
		"MRENCLAVE in upper case": {&wire.UnifiedAttestationAttributes{HexTaMeasurement: strings.Repeat("AB", 32)}, nil, ""},
		"MRENCLAVE in lower case": {&wire.UnifiedAttestationAttributes{HexTaMeasurement: strings.Repeat("ab", 32)}, nil,
			"111A"},
		"another signer":        {&wire.UnifiedAttestationAttributes{HexSigner: strings.Repeat("AB", 32)}, nil, "111B"},
		"product id":            {&wire.UnifiedAttestationAttributes{HexProdId: "7"}, nil, ""},
		"product id with zeros": {&wire.UnifiedAttestationAttributes{HexProdId: "0007"}, nil, "111D"},
		"SVN":                   {&wire.UnifiedAttestationAttributes{StrMinIsvsvn: "3"}, nil, ""},
		"SVN too low":           {&wire.UnifiedAttestationAttributes{StrMinIsvsvn: "4"}, nil, "111E"},
		"SVN is no number":      {&wire.UnifiedAttestationAttributes{StrMinIsvsvn: "three"}, nil, "0007"},
		"production wanted":     {&wire.UnifiedAttestationAttributes{BoolDebugDisabled: "true"}, nil, ""},
		"production wanted, debug": {&wire.UnifiedAttestationAttributes{BoolDebugDisabled: "1"},
			func(c *client) { c.body.Attributes |= attest.AttributeDebug }, "1121"},
		"TRUE means false": {&wire.UnifiedAttestationAttributes{BoolDebugDisabled: "TRUE"}, nil, "1121"},
		"user data begins": {&wire.UnifiedAttestationAttributes{HexUserData: "3132"}, nil, ""},
		"other user data":  {&wire.UnifiedAttestationAttributes{HexUserData: "3133"}, nil, "111C"},
		"SPID":             {&wire.UnifiedAttestationAttributes{HexSpid: "00"}, nil, "1120"},
		"platform":         {&wire.UnifiedAttestationAttributes{StrTeePlatform: "SGX_DCAP"}, nil, ""},
		"other platform":   {&wire.UnifiedAttestationAttributes{StrTeePlatform: "TDX"}, nil, "1122"},
		"key by PEM":       {&wire.UnifiedAttestationAttributes{HexHashOrPemPubkey: key.pem}, nil, ""},
		"key by hash": {&wire.UnifiedAttestationAttributes{HexHashOrPemPubkey: fmt.Sprintf("%X",
			sha256.Sum256([]byte(key.pem)))}, nil, ""},
		"another key":      {&wire.UnifiedAttestationAttributes{HexHashOrPemPubkey: "00"}, nil, "1119"},
		"key not bound":    {&wire.UnifiedAttestationAttributes{}, func(c *client) { c.bound += "\n" }, "1119"},
		"unknown platform": {&wire.UnifiedAttestationAttributes{}, func(c *client) { c.platform = "SEV" }, "0E03"},
		"SPKI key": {&wire.UnifiedAttestationAttributes{},
			func(c *client) { c.pem = strings.ReplaceAll(c.pem, "RSA ", "") }, "01A4"},
		"no such secret": {&wire.UnifiedAttestationAttributes{},
			func(c *client) { c.request = `{"serviceName":"service1","secretName":"x"}` }, "AA28"},
		"no such service": {&wire.UnifiedAttestationAttributes{}, func(c *client) { c.request = `{"secretName":"s"}` },
			"AA28"},
		"no name": {&wire.UnifiedAttestationAttributes{},
			func(c *client) { c.request = `{"serviceName":"service1"}` }, "A442"},
		"an unknown field": {&wire.UnifiedAttestationAttributes{}, func(c *client) { c.request = `{"more":1}` }, "0206"},
		"unknown function": {&wire.UnifiedAttestationAttributes{}, func(c *client) { c.function = "TaListSecret" }, "A302"},
		"a signature wrong": {&wire.UnifiedAttestationAttributes{},
			func(c *client) { c.key = readKey(t, "server_uak_private.pem") }, "0177"},
	} {
		var rules []*wire.UnifiedAttestationAttributes
		if c.rule != nil {
			rules = append(rules, c.rule)
		}
		s := server(t, aecstest.Options{Generation: aecs.GenerationB, Key: readKey(t, "server_uak_private.pem"),
			Secrets: []*wire.EnclaveSecret{aecstest.Secret("service1", "s", "data", rules...)}})
		client := newClient(t)
		if c.change != nil {
			c.change(client)
		}
		wants(t, name, client.callB(t, s), prefixB, c.code)
	}
}

func TestGenerationARefusesInItsOwnWords(t *testing.T) {
	o := aecstest.Options{Generation: aecs.GenerationA, Key: readKey(t, "server_uak_private.pem"),
		Secrets: []*wire.EnclaveSecret{aecstest.Secret("service1", "s", "data"),
			aecstest.Secret("service1", "spid", "data", &wire.UnifiedAttestationAttributes{HexSpid: "00"})}}
	s := server(t, o)
	c := newClient(t)
	const prefix = "Fail to get enclave secret keys"
	wants(t, "no service", c.callA(t, s, "", "s"), "Service name should not be empty", "A441")
	wants(t, "no name", c.callA(t, s, "service1", ""), "Secret name should not be empty", "A442")
	wants(t, "no such secret", c.callA(t, s, "service1", "x"), prefix, "AA28")
	wants(t, "no rule", c.callA(t, s, "service1", "s"), prefix, "114C")
	wants(t, "SPID is ignored", c.callA(t, s, "service1", "spid"), prefix, "")
	o.Unprovisioned = true
	wants(t, "not provisioned", c.callA(t, server(t, o), "service1", "s"), prefix, "A005")
	if err := c.callB(t, s); status.Code(err) != codes.Unimplemented {
		t.Errorf("generation B's method: %v", err)
	}
	if err := c.callA(t, recorded(t, aecs.GenerationB), "service1", "s"); status.Code(err) != codes.Unimplemented {
		t.Errorf("generation A's method: %v", err)
	}
}

func TestDemoSecretsAreWhatTheUpstreamsServerHolds(t *testing.T) {
	secrets, err := aecstest.DemoSecrets(time.Unix(1772366400, 0))
	if err != nil || len(secrets) != 6 {
		t.Fatal(len(secrets), err)
	}
	s := server(t, aecstest.Options{Generation: aecs.GenerationB, Key: readKey(t, "server_uak_private.pem"),
		Secrets: secrets})
	for _, secret := range secrets {
		name := secret.GetSpec().GetSecretName()
		c := newClient(t)
		c.request = `{"serviceName":"service1","secretName":"` + name + `"}`
		wants(t, name, c.callB(t, s), prefixB, "")
		shown, err := s.GetEnclaveSecretPublic(t.Context(), &wire.GetEnclaveSecretPublicRequest{ServiceName: "service1",
			SecretName: name})
		if name == "secret-my-aes256-key" {
			wants(t, name, err, "Fail to get enclave secret public key", "A456")
		} else if err != nil || strings.Contains(shown.GetSecretPublic(), "PRIVATE") {
			t.Errorf("%s shows %s (%v)", name, shown.GetSecretPublic(), err)
		}
	}
}
