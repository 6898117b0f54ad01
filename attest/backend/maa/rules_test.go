package maa

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
)

const ruleIssuer = "https://test.uks.attest.azure.net"

var ruleTime = time.Unix(1772366400, 0) // 2026-03-01 12:00 UTC

// forgery is a token in the making, and what a relying party holds against it.
type forgery struct {
	header, claims  map[string]any
	keys            []map[string]any
	expect          Expectation
	sign            func(signed string) []byte
	text            func(token string) string // changes the whole, after it was signed
	payload         func([]byte) []byte       // changes the claims' JSON before it is signed
	certificate     x509.Certificate
	certificateFrom crypto.Signer
}

func (f *forgery) jwk(t *testing.T) map[string]any {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, &f.certificate, &f.certificate, f.certificateFrom.Public(), f.certificateFrom)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]any{"kid": "k1", "kty": "RSA", "x5c": []string{base64.StdEncoding.EncodeToString(der)}}
}

// verdict is that of a relying party.
func (f *forgery) verdict(t *testing.T) error {
	t.Helper()
	encode := func(v any) []byte {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	set, err := ParseKeySet(encode(map[string]any{"keys": append(f.keys, f.jwk(t))}))
	if err != nil {
		t.Fatal(err)
	}
	payload := encode(f.claims)
	if f.payload != nil {
		payload = f.payload(payload)
	}
	signed := b64.EncodeToString(encode(f.header)) + "." + b64.EncodeToString(payload)
	text := signed + "." + b64.EncodeToString(f.sign(signed))
	if f.text != nil {
		text = f.text(text)
	}
	token, err := ParseToken(text)
	if err != nil {
		return err
	}
	f.expect.Keys = set
	return token.Validate(f.expect)
}

// newForgery is a token that is valid, of an enclave that is expected.
func newForgery(key *rsa.PrivateKey) *forgery {
	hexOf := func(b string, n int) string { return strings.Repeat(b, n) }
	product, svn := uint16(7), uint16(3)
	f := &forgery{
		header: map[string]any{"alg": "RS256", "typ": "JWT", "kid": "k1", "jku": ruleIssuer + "/certs"},
		claims: map[string]any{
			"iss": ruleIssuer, "iat": ruleTime.Unix(), "nbf": ruleTime.Unix(), "exp": ruleTime.Add(8 * time.Hour).Unix(),
			"x-ms-ver": "1.0", "x-ms-attestation-type": "sgx", "x-ms-sgx-is-debuggable": false,
			"x-ms-sgx-product-id": 7, "x-ms-sgx-svn": 3, "x-ms-sgx-mrenclave": hexOf("ab", 32), "x-ms-sgx-mrsigner": hexOf("cd", 32),
			"x-ms-sgx-report-data": hexOf("11", 32) + hexOf("00", 32), "unknown-claim": []int{1},
		},
		expect: Expectation{
			Issuer: ruleIssuer, Now: ruleTime, ProductID: &product, MinSVN: &svn,
			MREnclave: []byte(strings.Repeat("\xab", 32)), MRSigner: []byte(strings.Repeat("\xcd", 32)),
			ReportData: append([]byte(strings.Repeat("\x11", 32)), make([]byte, 32)...),
		},
		certificate: x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: ruleIssuer}, BasicConstraintsValid: true,
			NotBefore: ruleTime.Add(-time.Hour), NotAfter: ruleTime.Add(time.Hour)},
		certificateFrom: key,
	}
	f.sign = func(signed string) []byte {
		sum := sha256.Sum256([]byte(signed))
		signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:])
		if err != nil {
			panic(err)
		}
		return signature
	}
	return f
}

// The rules of a relying party, one by one: each is broken alone, and each has its own reason.
func TestARelyingPartyChecksEveryRule(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	header := func(name string, value any) func(*forgery) { return func(f *forgery) { f.header[name] = value } }
	claim := func(name string, value any) func(*forgery) { return func(f *forgery) { f.claims[name] = value } }
	without := func(names ...string) func(*forgery) {
		return func(f *forgery) {
			for _, name := range names {
				delete(f.header, name)
				delete(f.claims, name)
			}
		}
	}
	whole := func(change func(string) string) func(*forgery) { return func(f *forgery) { f.text = change } }
	at := func(d time.Duration) int64 { return ruleTime.Add(d).Unix() }
	const evidence, policy = attest.CodeEvidence, attest.CodePolicy
	for name, c := range map[string]struct {
		change func(*forgery)
		code   attest.Code // "": valid
		says   string
	}{
		"nothing": {func(*forgery) {}, "", ""},

		"two parts":              {whole(func(s string) string { return s[:strings.LastIndex(s, ".")] }), evidence, "has 2 parts"},
		"four parts":             {whole(func(s string) string { return s + ".AA" }), evidence, "has 4 parts"},
		"no signature":           {whole(func(s string) string { return s[:strings.LastIndex(s, ".")+1] }), evidence, "not signed"},
		"padded base64":          {whole(func(s string) string { return s + "=" }), evidence, "part 3 is not base64url"},
		"too long":               {whole(func(s string) string { return s + strings.Repeat("A", maxToken) }), evidence, "more than"},
		"alg none":               {header("alg", "none"), evidence, `algorithm is "none"`},
		"alg HS256":              {header("alg", "HS256"), evidence, `algorithm is "HS256"`},
		"alg PS256":              {header("alg", "PS256"), evidence, `algorithm is "PS256"`},
		"alg in lower case":      {header("alg", "rs256"), evidence, `algorithm is "rs256"`},
		"no alg":                 {without("alg"), evidence, `algorithm is ""`},
		"another typ":            {header("typ", "JOSE"), evidence, `type is "JOSE"`},
		"no typ":                 {without("typ"), evidence, `type is ""`},
		"crit":                   {header("crit", []string{"exp"}), evidence, "critical"},
		"empty crit":             {header("crit", []string{}), evidence, "critical"},
		"crit null":              {header("crit", nil), evidence, "critical"},
		"a member twice":         {func(f *forgery) { f.payload = func(b []byte) []byte { return append(b[:len(b)-1], `,"iss":"x"}`...) } }, evidence, `"iss" is given twice`},
		"a member in other case": {func(f *forgery) { f.payload = func(b []byte) []byte { return append(b[:len(b)-1], `,"ISS":"x"}`...) } }, evidence, `"ISS" is given twice`},
		"something behind":       {func(f *forgery) { f.payload = func(b []byte) []byte { return append(b, `{}`...) } }, evidence, "follows the JSON"},

		"a foreign jku":       {header("jku", "https://elsewhere.example/certs"), evidence, "jku"},
		"jku to another path": {header("jku", ruleIssuer+"/certs/"), evidence, "jku"},
		"no jku":              {without("jku"), "", ""},
		"an unknown kid":      {header("kid", "k2"), evidence, "not among those of the instance"},
		"no kid":              {without("kid"), "", ""},
		"no kid, and the second key": {func(f *forgery) {
			delete(f.header, "kid")
			f.certificateFrom = curve
			f.keys = []map[string]any{f.jwk(t)}
			f.certificateFrom = key
		}, "", ""},
		"a certificate of another":       {func(f *forgery) { f.certificate.Subject.CommonName = "https://other.uks.attest.azure.net" }, evidence, "certificate names"},
		"a certificate that has expired": {func(f *forgery) { f.certificate.NotAfter = ruleTime.Add(-time.Second) }, evidence, "certificate has expired"},
		"a certificate to come":          {func(f *forgery) { f.certificate.NotBefore = ruleTime.Add(time.Second) }, evidence, "not valid yet"},
		"a certificate without RSA":      {func(f *forgery) { f.certificateFrom = curve }, evidence, "not RSA of at least 2048 bits"},
		"another signature": {func(f *forgery) {
			right := f.sign
			f.sign = func(string) []byte { return right("another text") }
		}, evidence, "signature is wrong"},
		"changed claims": {whole(func(s string) string {
			parts := strings.Split(s, ".")
			payload, _ := b64.DecodeString(parts[1])
			parts[1] = b64.EncodeToString([]byte(strings.Replace(string(payload), `"x-ms-sgx-svn":3`, `"x-ms-sgx-svn":4`, 1)))
			return strings.Join(parts, ".")
		}), evidence, "signature is wrong"},

		"another issuer":           {claim("iss", "https://other.uks.attest.azure.net"), evidence, "issuer is"},
		"issuer with a slash":      {claim("iss", ruleIssuer+"/"), evidence, "issuer is"},
		"issuer in upper case":     {claim("iss", strings.ToUpper(ruleIssuer)), evidence, "issuer is"},
		"config with a slash":      {func(f *forgery) { f.expect.Issuer += "/" }, "", ""},
		"valid in a minute":        {claim("nbf", at(time.Minute)), "", ""},
		"valid in a minute and 1s": {claim("nbf", at(time.Minute+time.Second)), evidence, "not valid yet"},
		"expired 59 s ago":         {claim("exp", at(-59*time.Second)), "", ""},
		"expired a minute ago":     {claim("exp", at(-time.Minute)), evidence, "has expired"},
		"no exp":                   {without("exp"), evidence, "has expired"},
		"another version":          {claim("x-ms-ver", "2.0"), evidence, "x-ms-ver"},
		"no version":               {without("x-ms-ver"), evidence, "x-ms-ver"},
		"of a virtual machine":     {claim("x-ms-attestation-type", "sevsnpvm"), evidence, "x-ms-attestation-type"},
		"no type, but tee":         {func(f *forgery) { without("x-ms-attestation-type")(f); f.claims["tee"] = "sgx" }, evidence, "x-ms-attestation-type"},

		"debug":                   {claim("x-ms-sgx-is-debuggable", true), policy, "is-debuggable"},
		"debug, and accepted":     {func(f *forgery) { f.claims["x-ms-sgx-is-debuggable"] = true; f.expect.Debug = true }, "", ""},
		"no word about debug":     {func(f *forgery) { without("x-ms-sgx-is-debuggable")(f); f.expect.Debug = true }, policy, "is-debuggable"},
		"debug as text":           {claim("x-ms-sgx-is-debuggable", "false"), evidence, "payload"},
		"another enclave":         {claim("x-ms-sgx-mrenclave", strings.Repeat("ac", 32)), policy, "mrenclave"},
		"a longer measurement":    {claim("x-ms-sgx-mrenclave", strings.Repeat("ab", 33)), policy, "mrenclave"},
		"a measurement of no hex": {claim("x-ms-sgx-mrenclave", "zz"), evidence, "payload"},
		"another signer":          {claim("x-ms-sgx-mrsigner", strings.Repeat("ce", 32)), policy, "mrsigner"},
		"another product":         {claim("x-ms-sgx-product-id", 8), policy, "product-id"},
		"no product":              {without("x-ms-sgx-product-id"), policy, "product-id"},
		"a higher SVN":            {claim("x-ms-sgx-svn", 4), "", ""},
		"a lower SVN":             {claim("x-ms-sgx-svn", 2), policy, "svn"},
		"no SVN":                  {without("x-ms-sgx-svn"), policy, "svn"},
		"other report data":       {claim("x-ms-sgx-report-data", strings.Repeat("12", 64)), policy, "report-data"},
		"no report data":          {without("x-ms-sgx-report-data"), policy, "report-data"},

		// The deprecated twins say what is expected, and do not count.
		"deprecated debug flag": {func(f *forgery) { without("x-ms-sgx-is-debuggable")(f); f.claims["is-debuggable"] = false }, policy, "is-debuggable"},
		"deprecated measurement": {func(f *forgery) {
			without("x-ms-sgx-mrenclave")(f)
			f.claims["sgx-mrenclave"] = strings.Repeat("ab", 32)
		}, policy, "mrenclave"},
		"deprecated signer":     {func(f *forgery) { without("x-ms-sgx-mrsigner")(f); f.claims["sgx-mrsigner"] = strings.Repeat("cd", 32) }, policy, "mrsigner"},
		"deprecated product id": {func(f *forgery) { without("x-ms-sgx-product-id")(f); f.claims["product-id"] = 7 }, policy, "product-id"},
		"deprecated SVN":        {func(f *forgery) { without("x-ms-sgx-svn")(f); f.claims["svn"] = 3 }, policy, "svn"},
		"deprecated twins beside": {func(f *forgery) {
			maps.Copy(f.claims, map[string]any{"is-debuggable": true, "svn": 0, "product-id": 0})
		}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := newForgery(key)
			c.change(f)
			err := f.verdict(t)
			switch {
			case c.code == "" && err != nil:
				t.Error(err)
			case c.code != "" && (attest.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.says)):
				t.Errorf("%v [%s], want %s with %q", err, attest.CodeOf(err), c.code, c.says)
			}
		})
	}
}

// What is released is wiped as soon as it is not the secret itself.
func TestReleasedKeysAreWipedUnlessTheyAreTheSecret(t *testing.T) {
	kek := slices.Repeat([]byte{7}, 32)
	blob, err := WrapBlobOct(attest.NewSecret(slices.Clone(kek)), attest.NewSecret([]byte("secret")))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		key      Key
		keyType  string
		ok, kept bool
	}{
		"the key is the secret": {Key{Name: "k"}, "oct", true, true},
		"it opens a blob":       {Key{Name: "k", Blob: blob}, "oct", true, false},
		"it opens another blob": {Key{Name: "k", Blob: base64.StdEncoding.EncodeToString(make([]byte, 24))}, "oct", false, false},
		"it is of another kind": {Key{Name: "k", Blob: blob}, "EC", false, false},
		"it is no RSA key":      {Key{Name: "k", Blob: blob}, "RSA", false, false},
	} {
		material := slices.Clone(kek)
		released := attest.NewSecret(material)
		secret, err := secretOf(c.key, c.keyType, released)
		if (err == nil) != c.ok || (secret.Len() > 0) != c.ok {
			t.Errorf("%s: %d bytes, %v", name, secret.Len(), err)
		}
		if kept := slices.Max(material) != 0; kept != c.kept {
			t.Errorf("%s: kept %t", name, kept)
		}
	}
}
