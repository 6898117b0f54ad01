package maa

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/sgx"
)

func decode(t *testing.T, text []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(text, v); err != nil {
		t.Fatal(err)
	}
}

// stripOE cuts the header off that Open Enclave puts before a quote: two numbers and the size.
func stripOE(t *testing.T, report []byte) []byte {
	t.Helper()
	const header = 16
	if len(report) < header || binary.LittleEndian.Uint64(report[8:]) != uint64(len(report)-header) {
		t.Fatal("no report of Open Enclave")
	}
	return report[header:]
}

func TestRecordedAnswersHoldTheirTokens(t *testing.T) {
	for _, name := range []string{"sgx-json", "sgx-binary", "sgx-simple", "oe-json", "oe-binary", "sgx-json-aadprovider", "sgx-draftpolicy-unsigned"} {
		var answer struct {
			Token string `json:"token"`
		}
		if err := decodeJSON(vector(t, "sdk-cpp-2022", name+".response.json"), &answer); err != nil {
			t.Fatal(err)
		}
		if answer.Token != strings.TrimSpace(string(vector(t, "sdk-cpp-2022", name+".jwt"))) {
			t.Errorf("%s: the answer holds another token", name)
		}
		if _, err := ParseKeySet(vector(t, "sdk-cpp-2022", name+".certs.json")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a token says of a quote is what the recorded quote says of itself; the hash is over what was sent.
func TestRecordedTokensSayWhatTheirQuoteSays(t *testing.T) {
	raw, oe := vector(t, "sdk-cpp-2022", "sgx_quote.bin"), vector(t, "sdk-cpp-2022", "oe_report.bin")
	if !bytes.Equal(stripOE(t, oe), raw) {
		t.Fatal("the report of Open Enclave holds another quote")
	}
	q, err := sgx.ParseQuote(raw)
	if err != nil {
		t.Fatal(err)
	}
	runtime := vector(t, "sdk-cpp-2022", "runtime_data.bin")
	for name, sent := range map[string][]byte{"sgx-json": raw, "sgx-binary": raw, "sgx-simple": raw, "sgx-json-aadprovider": raw, "oe-json": oe, "oe-binary": oe} {
		text := strings.TrimSpace(string(vector(t, "sdk-cpp-2022", name+".jwt")))
		token, err := ParseToken(text)
		if err != nil {
			t.Fatal(err)
		}
		c := &token.Claims
		data := q.ReportData()
		if !bytes.Equal(c.ReportData, data[:]) || !bytes.Equal(c.MREnclave, q.SGX.MREnclave[:]) || !bytes.Equal(c.MRSigner, q.SGX.MRSigner[:]) ||
			*c.ProductID != q.SGX.ProductID || *c.SVN != q.SGX.SVN || *c.Debuggable != q.SGX.Debug() {
			t.Errorf("%s: the token says another thing than the quote", name)
		}
		if c.Expires-c.NotBefore != 8*60*60 {
			t.Errorf("%s: the token lives for %d s", name, c.Expires-c.NotBefore)
		}
		var more struct {
			Collateral struct {
				QuoteHash string `json:"quotehash"`
			} `json:"x-ms-sgx-collateral"`
			Runtime map[string]any `json:"x-ms-runtime"`
		}
		payload, _ := b64.DecodeString(strings.Split(text, ".")[1])
		decode(t, payload, &more)
		if sum := sha256.Sum256(sent); more.Collateral.QuoteHash != hex.EncodeToString(sum[:]) {
			t.Errorf("%s: the token's hash is of another quote", name)
		}
		if binary := strings.HasSuffix(name, "binary"); binary != (c.HeldData == b64.EncodeToString(runtime)) {
			t.Errorf("%s: held data is %q", name, c.HeldData)
		}
		if isJSON := strings.Contains(name, "json"); isJSON != (more.Runtime != nil) {
			t.Errorf("%s: runtime data is %v", name, more.Runtime)
		}
	}
}

func TestRecordedQuotesBindTheirHeldData(t *testing.T) {
	type enclave struct {
		QuoteHex, EnclaveHeldDataHex, MrEnclaveHex, MrSignerHex, ProductIdHex string
		SecurityVersion                                                       uint16
		quote, held                                                           []byte
	}
	quotes := map[string]enclave{}
	for _, sdk := range []string{"intelsdk", "oesdk"} {
		for _, kind := range []string{"debug", "prodid", "release", "securityversion"} {
			var v enclave
			name := sdk + ".enclave.info." + kind + ".json"
			decode(t, vector(t, "azure-samples", name), &v)
			var err error
			if v.quote, err = hex.DecodeString(v.QuoteHex); err != nil {
				t.Fatal(err)
			}
			if v.held, err = hex.DecodeString(v.EnclaveHeldDataHex); err != nil {
				t.Fatal(err)
			}
			if sdk == "oesdk" {
				v.quote = stripOE(t, v.quote)
			}
			quotes[name] = v
		}
	}
	var body struct{ Quote, EnclaveHeldData string } // the form of 2020
	decode(t, vector(t, "azure-samples", "2020.gnkuks001.post.attest.body.json"), &body)
	report, err := b64.DecodeString(strings.TrimRight(body.Quote, "="))
	if err != nil {
		t.Fatal(err)
	}
	held, err := b64.DecodeString(strings.TrimRight(body.EnclaveHeldData, "="))
	if err != nil {
		t.Fatal(err)
	}
	quotes["2020"] = enclave{quote: stripOE(t, report), held: held}
	for name, v := range quotes {
		var data attest.ReportData
		sum := sha256.Sum256(v.held)
		copy(data[:], sum[:])
		got, err := evidence(t.Context(), fixed{attest.Evidence{Type: attest.SGX, Raw: v.quote}}, data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if wantDebug := strings.Contains(name, "debug"); strings.Contains(name, "enclave.info") && got.body.Debug() != wantDebug {
			t.Errorf("%s: debug is %t", name, got.body.Debug())
		}
		if v.MrEnclaveHex == "" {
			continue // only the samples say what their enclave is
		}
		b := got.body
		says := fmt.Sprintf("%X %X %02X%02X %d", b.MREnclave, b.MRSigner, byte(b.ProductID), byte(b.ProductID>>8), b.SVN)
		if want := fmt.Sprintf("%s %s %.4s %d", v.MrEnclaveHex, v.MrSignerHex, v.ProductIdHex, v.SecurityVersion); says != want {
			t.Errorf("%s: the quote is of %s, want %s", name, says, want)
		}
	}

	release := stripOE(t, vector(t, "sdk-cpp-2022", "oe_report_nondebug.bin"))
	q, err := sgx.ParseQuote(release)
	if err != nil || q.SGX.Debug() {
		t.Errorf("the release enclave's quote: %v", err)
	}
	snp := vector(t, "sidecar", "snp_report.bin")
	if _, err := evidence(t.Context(), fixed{attest.Evidence{Type: attest.SGX, Raw: snp}}, attest.ReportData{}); attest.CodeOf(err) != attest.CodeAttester {
		t.Errorf("the report of a virtual machine: %v", err)
	}
}

// A quote that names its certificate instead of carrying it, as Intel's default library makes it if it finds no
// collateral, is refused before MAA says OE_MISSING_CERTIFICATE_CHAIN.
func TestQuoteWithoutChainIsRefusedHere(t *testing.T) {
	raw := vector(t, "sdk-cpp-2022", "sgx_quote.bin")
	q, err := sgx.ParseQuote(raw)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Clone(raw)
	at := len(raw) - len(q.Trailing) - len(q.CertData) - 6
	if binary.LittleEndian.Uint16(changed[at:]) != sgx.CertPCKChain {
		t.Fatal("the type of the certification data is elsewhere")
	}
	binary.LittleEndian.PutUint16(changed[at:], sgx.CertPPIDRSA3072)
	_, err = evidence(t.Context(), fixed{attest.Evidence{Type: attest.SGX, Raw: changed}}, q.ReportData())
	if attest.CodeOf(err) != attest.CodeAttester || !strings.Contains(attest.HintOf(err), "az-dcap-client") {
		t.Errorf("%v, hint %q", err, attest.HintOf(err))
	}
}

func TestKeysAndClaimsOf2020AreRefused(t *testing.T) {
	keys, err := ParseKeySet(vector(t, "azure-samples", "2020.gnkuks001.certs.json"))
	if err != nil || len(keys.keys) != 5 {
		t.Fatalf("%d keys, %v", len(keys.keys), err)
	}
	if err := verifyRS256(keys.keys[0].certificate, nil, nil); err == nil || !strings.Contains(err.Error(), "2048") {
		t.Errorf("a key of 1024 bits: %v", err)
	}
	block, _ := pem.Decode(vector(t, "azure-samples", "maa.prod.uks.signing.cert.pem"))
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := verifyRS256(certificate, nil, nil); err == nil || !strings.Contains(err.Error(), "2048") {
		t.Errorf("a production key of 1024 bits: %v", err)
	}

	// Only deprecated claims: nothing of it is believed.
	header, payload, _ := bytes.Cut(vector(t, "azure-samples", "2020.gnkuks001.jwt.decoded.json"), []byte("\n\n"))
	token := &Token{}
	decode(t, header, &token.Header)
	decode(t, payload, &token.Claims)
	c := &token.Claims
	if c.Debuggable != nil || c.MREnclave != nil || c.MRSigner != nil || c.SVN != nil || c.HeldData != "" {
		t.Errorf("deprecated claims are read: %+v", c)
	}
	if err := token.checkIssuance(c.Issuer, recordedAt.AddDate(-3, 0, 0)); err == nil {
		t.Error("a token of 2020 counts")
	}
}

func TestRecordedServiceWordsAreRead(t *testing.T) {
	clean := func(s string) string { return printable(s) }
	e := parseServiceError(vector(t, "sdk-cpp-2022", "sgx-draftpolicy-unsigned.error-400.json"), clean)
	if e.Code != "PolicyEvaluationError" || e.Inner != "PolicyEvaluationError" || !strings.Contains(e.Message, "No Permit claim") ||
		strings.ContainsAny(e.Message, "\r\n") || strings.Contains(e.Message, "Unhandled") {
		t.Errorf("read %+v", e)
	}
	if code, hint := adviseAttest(http.StatusBadRequest, e); code != attest.CodeDenied || !strings.Contains(hint, "policy") {
		t.Errorf("%s: %s", code, hint)
	}

	var metadata struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	decode(t, vector(t, "sdk-cpp-2022", "openid-configuration.json"), &metadata)
	if metadata.Keys != metadata.Issuer+"/certs" {
		t.Errorf("keys are at %s", metadata.Keys)
	}

	// x-ms-policy-hash is the hash over the policy in base64url.
	var answer struct{ Token string }
	decode(t, vector(t, "sdk-cpp-2022", "default-policy-sgx.response.json"), &answer)
	part := func(jws string, i int, v any) {
		t.Helper()
		text, err := b64.DecodeString(strings.Split(jws, ".")[i])
		if err != nil {
			t.Fatal(err)
		}
		decode(t, text, v)
	}
	var outer struct {
		Policy string `json:"x-ms-policy"`
	}
	part(answer.Token, 1, &outer)
	var inner struct{ AttestationPolicy string }
	part(outer.Policy, 1, &inner)
	var claims struct {
		Hash string `json:"x-ms-policy-hash"`
	}
	part(string(vector(t, "sdk-cpp-2022", "sgx-simple.jwt")), 1, &claims)
	if sum := sha256.Sum256([]byte(inner.AttestationPolicy)); claims.Hash != b64.EncodeToString(sum[:]) {
		t.Errorf("x-ms-policy-hash is %s", claims.Hash)
	}
}

// The root that recorded releases end in is one of those that sesame maa roots picks, and one of the recorded responses
// is what the recording holds.
func TestRecordedVaultsAnswerAsTheFakeDoes(t *testing.T) {
	for _, name := range []string{"v0.7.0.TestReleaseKey.KV", "v0.7.0.TestReleaseKey.MHSM", "v0.10.0.TestReleaseKey.KV", "v0.10.0.TestReleaseKey.MHSM"} {
		var recording struct {
			Entries []struct {
				RequestURI      string `json:"RequestUri"`
				StatusCode      int
				ResponseHeaders map[string]string
				ResponseBody    json.RawMessage
			}
		}
		decode(t, bytes.TrimPrefix(vector(t, "akv-release", "azkeys-"+name+".json"), []byte("\ufeff")), &recording)
		challenged, released := false, false
		for _, e := range recording.Entries {
			if e.StatusCode == http.StatusUnauthorized && e.ResponseHeaders["WWW-Authenticate"] != "" {
				challenged = true
				read := parseServiceError(e.ResponseBody, printable)
				if string(e.ResponseBody) != "null" && read.Code != "Unauthorized" {
					t.Errorf("%s: a challenge reads %+v from %s", name, read, e.ResponseBody)
				}
			}
			if strings.Contains(e.RequestURI, "/release?") && e.StatusCode == http.StatusOK {
				released = true
				var answer struct {
					Value string `json:"value"`
				}
				decode(t, e.ResponseBody, &answer)
				file := strings.Replace(name, ".TestReleaseKey", "", 1) + ".jws"
				if answer.Value != strings.TrimSpace(string(vector(t, "akv-release", file))) {
					t.Errorf("%s: the recording holds another release", name)
				}
			}
		}
		if !challenged || !released {
			t.Errorf("%s: challenged %t, released %t", name, challenged, released)
		}
	}
}

func FuzzToken(f *testing.F) {
	f.Add("eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJ4In0.AAAA")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if (token == nil) == (err == nil) {
			t.Errorf("token %v with error %v", token, err)
		}
		if err == nil && (token.Header.Algorithm != "RS256" || token.Validate(Expectation{Issuer: "https://x", Now: recordedAt}) == nil) {
			t.Error("a token is valid without keys")
		}
	})
}

func FuzzKeySet(f *testing.F) {
	f.Add([]byte(`{"keys":[{"kty":"RSA","kid":"k","x5c":["MIIB"]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if set, err := ParseKeySet(text); err == nil && len(set.keys) == 0 {
			t.Error("an empty key set")
		}
	})
}

// FuzzRelease feeds payloads as if they were signed.
func FuzzRelease(f *testing.F) {
	inner := b64.EncodeToString([]byte(`{"header":{"kid":"me","alg":"dir","enc":"` + encryption + `"},"ciphertext":"AAAA"}`))
	f.Add([]byte(`{"request":{"enc":"` + encryption + `"},"response":{"key":{"key":{"kid":"https://v/keys/k/1","kty":"oct-HSM","key_hsm":"` + inner + `"}}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var p releasePayload
		if decodeJSON(text, &p) != nil {
			return
		}
		want := releaseRequest{host: "v", name: "k", encryption: encryption, wrappingKey: "me"}
		if p.isFor(want) != nil {
			return
		}
		if _, err := p.answers(want); err == nil && p.Request.Encryption != encryption {
			t.Error("another wrapping is taken")
		}
	})
}

func FuzzServiceError(f *testing.F) {
	f.Add([]byte(`{"error":{"code":"c","message":"m\nn","innererror":{"code":"i"}}}`))
	f.Add([]byte(`{"error":"ey\u0000J\u0000hbGciOiJSUzI1NiJ9.e30.AA"}`))
	f.Add([]byte(`{"error":"c","error_description":"eyJhbGciOiJSUzI1NiJ9.e30.AA"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		c := call{}
		e := parseServiceError(body, c.clean)
		for _, text := range []string{e.Code, e.Inner, e.Message} {
			if len(text) > maxMessage || strings.ContainsAny(text, "\n\x00\x1b") || tokenForm.MatchString(text) {
				t.Errorf("%q is printed", text)
			}
		}
	})
}

func TestPrintableIsOneLineAndBounded(t *testing.T) {
	if got := printable("a\x1b[31m\x00b\nsecond"); got != "a[31mb" {
		t.Errorf("got %q", got)
	}
	if got := printable(strings.Repeat("é", maxMessage)); len(got) > maxMessage {
		t.Errorf("%d bytes", len(got))
	}

}
