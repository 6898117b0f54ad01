package maa_test

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/maa"
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
	if held, _ := base64.RawURLEncoding.DecodeString(token.Claims.HeldData); string(held) != "example data" {
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

// rawToken asks MAA as anybody can, without our own checks.
func rawToken(t *testing.T, w *world) string {
	t.Helper()
	evidence, err := w.config.Attester.Evidence(t.Context(), attest.ReportData{})
	if err != nil {
		t.Fatal(err)
	}
	return w.server.Token(t.Context(), strings.TrimPrefix(instance, "https://"), evidence.Raw)
}
