package maa_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/maa"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/internal/reportdata"
	"github.com/sesame-init/sesame/lab/attesttest"
	"github.com/sesame-init/sesame/lab/maatest"
)

func tokenOnly(t *testing.T, w *world, data string) *maa.TokenOnly {
	t.Helper()
	b, err := maa.NewTokenOnly(maa.TokenConfig{
		Endpoint: instance, ReportData: []byte(data), Attester: w.config.Attester, Network: w.config.Network,
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDropInSavesWhatOcclumsInitSaves(t *testing.T) {
	w := newWorld(t, nil)
	got, err := tokenOnly(t, w, "example data").Fetch(t.Context(), []string{maa.TokenFile, maa.QuoteFile})
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(got[maa.TokenFile].Expose(), &answer); err != nil {
		t.Fatal(err)
	}
	var text string
	if err := json.Unmarshal(got[maa.QuoteFile].Expose(), &text); err != nil {
		t.Fatal(err)
	}
	quote, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(quote) < 1000 {
		t.Errorf("the quote has %d bytes, %v", len(quote), err)
	}

	keys, err := maa.FetchKeySet(t.Context(), w.config.Network, instance)
	if err != nil {
		t.Fatal(err)
	}
	token, err := maa.ParseToken(answer.Token)
	if err != nil {
		t.Fatal(err)
	}
	body := workload()
	svn := body.SVN
	expect := maa.Expectation{Issuer: instance + "/", Keys: keys, Now: now, MREnclave: body.MREnclave[:], MRSigner: body.MRSigner[:],
		ProductID: &body.ProductID, MinSVN: &svn}
	if err := token.Validate(expect); err != nil {
		t.Error(err)
	}
	if held, _ := base64.RawURLEncoding.DecodeString(token.Claims.HeldData); string(held) != "sesame-maa-token-v1\x00example data" {
		t.Errorf("the token holds %q", held)
	}
	for name, change := range map[string]func(*maa.Expectation){
		"another product id": func(e *maa.Expectation) { e.ProductID = new(uint16) },
		"a higher SVN":       func(e *maa.Expectation) { high := svn + 1; e.MinSVN = &high },
		"another signer":     func(e *maa.Expectation) { e.MRSigner = make([]byte, 32) },
	} {
		changed := expect
		change(&changed)
		if err := token.Validate(changed); attest.CodeOf(err) != attest.CodePolicy {
			t.Errorf("%s: %v", name, err)
		}
	}
	if said := w.log.String(); !strings.Contains(said, "no key was released") || strings.Contains(said, answer.Token) {
		t.Errorf("the log is %s", said)
	}
	for _, asked := range w.server.Asked() {
		if strings.HasPrefix(asked, "vault") || strings.HasPrefix(asked, "entra") || strings.HasPrefix(asked, "metadata") {
			t.Errorf("it asked %s", asked)
		}
	}
}

// hostChooses is an enclave whose host says what a token holds, and the quote that the host gets.
func hostChooses(t *testing.T, w *world, data []byte) []byte {
	t.Helper()
	got, err := tokenOnly(t, w, string(data)).Fetch(t.Context(), []string{maa.QuoteFile})
	if err != nil {
		t.Fatal(err)
	}
	var text string
	if err := json.Unmarshal(got[maa.QuoteFile].Expose(), &text); err != nil {
		t.Fatal(err)
	}
	quote, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return quote
}

// The host gives a key of its own as the data to attest, and puts the quote that it gets into a certificate of that key.
func TestTheHostGetsNoQuoteForAKeyOfItsOwn(t *testing.T) {
	w := newWorld(t, nil)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(spki)
	plain := slices.Concat([]byte("\xa1\x6bpubkey-hash\x58\x24\x82\x01\x58\x20"), hash[:])
	labelled := reportdata.ApplicationClaims(spki)
	occlum, gramine, dice := asn1.ObjectIdentifier{1, 2, 840, 113741, 1}, asn1.ObjectIdentifier{1, 2, 840, 113741, 1337, 6},
		asn1.ObjectIdentifier{2, 23, 133, 5, 4, 9}
	tagged := func(quote, claims []byte) []byte {
		head := slices.Concat([]byte{0xd9, 0xea, 0x60, 0x82, 0x59, byte(len(quote) >> 8), byte(len(quote))}, quote)
		return slices.Concat(head, []byte{0x58, byte(len(claims))}, claims)
	}
	certificate := func(oid asn1.ObjectIdentifier, value []byte) *x509.Certificate {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now, NotAfter: now.Add(time.Hour),
			ExtraExtensions: []pkix.Extension{{Id: oid, Value: value}}}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	body := workload()
	genuine := func(data []byte) []byte { // what the enclave would quote for a key of its own
		sum := sha256.Sum256(data)
		e, err := w.platform.Attester(body).Evidence(t.Context(), attest.ReportData(append(sum[:], make([]byte, 32)...)))
		if err != nil {
			t.Fatal(err)
		}
		return e.Raw
	}
	verifier := dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{w.platform.RootCA()}, Source: pccs.Stapled(w.platform.Collateral())})
	for name, attack := range map[string]struct {
		data    []byte
		value   func(quote []byte) []byte
		oid     asn1.ObjectIdentifier
		binding attest.Binding
	}{
		"Occlum":      {spki, func(q []byte) []byte { return q }, occlum, attest.BindingLegacy},
		"Gramine":     {spki, func(q []byte) []byte { return q }, gramine, attest.BindingLegacy},
		"DICE":        {plain, func(q []byte) []byte { return tagged(q, plain) }, dice, attest.BindingLegacy},
		"application": {labelled, func(q []byte) []byte { return tagged(q, labelled) }, dice, ""},
	} {
		for from, quote := range map[string][]byte{"enclave": genuine(attack.data), "host": hostChooses(t, w, attack.data)} {
			leaf := certificate(attack.oid, attack.value(quote))
			client := ratls.PeerVerifier{
				Verifier: verifier, Now: func() time.Time { return now },
				Policy: &policy.Policy{SGX: []policy.SGX{{MREnclave: body.MREnclave[:], Binding: attack.binding}}},
			}
			broker := client
			broker.Legacy = true
			for _, v := range []ratls.PeerVerifier{client, broker} {
				err := v.VerifyConnection(tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}})
				want := from == "enclave" && (!v.Legacy || attack.binding == attest.BindingLegacy)
				if (err == nil) != want {
					t.Errorf("%s, key of the %s, legacy wire %v: %v", name, from, v.Legacy, err)
				}
			}
		}
	}
}

// Neither backend takes a quote that was made for another use, and a relying party does not take its token.
func TestAQuoteOfAnotherUseIsRefused(t *testing.T) {
	for name, other := range attesttest.OtherMeanings() {
		w := newWorld(t, nil)
		w.config.Attester = attesttest.Rebound{Attester: w.config.Attester, Data: other}
		if got, err := w.fetch(t); got != nil || attest.CodeOf(err) != attest.CodeAttester {
			t.Errorf("maa, %s: %v", name, err)
		}
		if got, err := tokenOnly(t, w, "x").Fetch(t.Context(), []string{maa.TokenFile}); got != nil || attest.CodeOf(err) != attest.CodeAttester {
			t.Errorf("maa-token, %s: %v", name, err)
		}
		asked, err := reportdata.MAAToken.Data(reportdata.TokenRuntime([]byte("x")))
		if err != nil {
			t.Fatal(err)
		}
		e, err := w.config.Attester.Evidence(t.Context(), asked)
		if err != nil {
			t.Fatal(err)
		}
		token, err := maa.ParseToken(w.server.Token(t.Context(), strings.TrimPrefix(instance, "https://"), e.Raw))
		if err != nil {
			t.Fatal(err)
		}
		keys, err := maa.FetchKeySet(t.Context(), w.config.Network, instance)
		if err != nil {
			t.Fatal(err)
		}
		expect := maa.Expectation{Issuer: instance, Keys: keys, Now: now, ReportData: asked[:]}
		if err := token.Validate(expect); attest.CodeOf(err) != attest.CodePolicy {
			t.Errorf("token, %s: %v", name, err)
		}
	}
}

func TestDropInRefusesKeysAndLies(t *testing.T) {
	w := newWorld(t, nil)
	if _, err := tokenOnly(t, w, "x").Fetch(t.Context(), []string{"image_key"}); attest.CodeOf(err) != attest.CodeSecret {
		t.Errorf("a key: %v", err)
	}
	for name, data := range map[string]string{"nothing": "", "room for an RSA key": strings.Repeat("x", maa.MaxReportData+1)} {
		_, err := maa.NewTokenOnly(maa.TokenConfig{Endpoint: instance, ReportData: []byte(data), Attester: w.config.Attester, Network: w.config.Network})
		if attest.CodeOf(err) != attest.CodeConfig || attest.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, attack := range []maatest.Attack{maatest.OtherQuote, maatest.OtherEnclave, maatest.UnsignedToken, maatest.ExpiredToken, maatest.EmptyToken} {
		w := newWorld(t, func(c *maatest.Config) { c.Attack = attack })
		if got, err := tokenOnly(t, w, "x").Fetch(t.Context(), []string{maa.TokenFile}); got != nil || attest.CodeOf(err) != attest.CodeEvidence {
			t.Errorf("%s: %v", attack, err)
		}
	}
}

// A relying party's verdict follows the signature and the instance's own keys, whatever the token says of itself.
func TestRelyingPartyRefusesForgedTokens(t *testing.T) {
	for _, attack := range []maatest.Attack{maatest.WrongSignature, maatest.UnknownTokenKey, maatest.ForeignKeySet, maatest.ForeignIssuer,
		maatest.MachineToken, maatest.ExpiredToken, maatest.FutureToken, maatest.DebugToken} {
		w := newWorld(t, func(c *maatest.Config) { c.Attack = attack })
		keys, err := maa.FetchKeySet(t.Context(), w.config.Network, instance)
		if err != nil {
			t.Fatal(err)
		}
		token, err := maa.ParseToken(rawToken(t, w))
		if err != nil {
			t.Errorf("%s: %v", attack, err)
			continue
		}
		if err := token.Validate(maa.Expectation{Issuer: instance, Keys: keys, Now: now}); err == nil {
			t.Errorf("%s: valid", attack)
		}
		if err := token.Validate(maa.Expectation{Issuer: instance, Now: now}); err == nil {
			t.Errorf("%s: valid without keys", attack)
		}
	}
	w := newWorld(t, func(c *maatest.Config) {
		c.Faults = map[maatest.Service][]maatest.Fault{maatest.MAA: {{Trouble: maatest.Floods}, {Trouble: maatest.Redirects}, {Trouble: maatest.Nonsense}}}
	})
	for range 3 {
		if _, err := maa.FetchKeySet(t.Context(), w.config.Network, instance); err == nil {
			t.Error("a key set out of a failure")
		}
	}
	if _, err := maa.FetchKeySet(t.Context(), w.config.Network, "http://test.uks.attest.azure.net"); attest.CodeOf(err) != attest.CodeUsage {
		t.Errorf("keys in the open: %v", err)
	}
}

// rawToken asks MAA as anyone can, without our own checks.
func rawToken(t *testing.T, w *world) string {
	t.Helper()
	evidence, err := w.config.Attester.Evidence(t.Context(), attest.ReportData{})
	if err != nil {
		t.Fatal(err)
	}
	return w.server.Token(t.Context(), strings.TrimPrefix(instance, "https://"), evidence.Raw)
}
