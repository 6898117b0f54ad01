package maa

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest"
)

const (
	maxToken     = 128 << 10 // bytes of a compact JWS
	minRSA       = 2048      // bits of a signing key
	clockLeeway  = time.Minute
	maxJWKSKeys  = 64
	tokenTypeSGX = "sgx"
)

// Token is a parsed token of Microsoft Azure Attestation. Parsing verifies nothing: [Validate] does.
type Token struct {
	Header Header
	Claims Claims

	signed    []byte // header.payload as they were sent
	signature []byte
}

// Header is the protected header of a compact JWS (RFC 7515).
type Header struct {
	Algorithm string          `json:"alg"`
	Type      string          `json:"typ"`
	KeyID     string          `json:"kid"`
	KeySetURL string          `json:"jku"`
	Critical  json.RawMessage `json:"crit"`
	Chain     []string        `json:"x5c"`
	Thumb     string          `json:"x5t#S256"`
}

// Claims are those that Sesame uses. Only x-ms-sgx-* are read: their deprecated twins ("is-debuggable",
// "sgx-mrenclave", …) disappear under a custom policy, and are not believed on their own.
type Claims struct {
	Issuer     string   `json:"iss"`
	IssuedAt   int64    `json:"iat"`
	NotBefore  int64    `json:"nbf"`
	Expires    int64    `json:"exp"`
	Version    string   `json:"x-ms-ver"`
	Type       string   `json:"x-ms-attestation-type"`
	Debuggable *bool    `json:"x-ms-sgx-is-debuggable"`
	ProductID  *uint16  `json:"x-ms-sgx-product-id"`
	SVN        *uint16  `json:"x-ms-sgx-svn"`
	MREnclave  hexClaim `json:"x-ms-sgx-mrenclave"`
	MRSigner   hexClaim `json:"x-ms-sgx-mrsigner"`
	ReportData hexClaim `json:"x-ms-sgx-report-data"`
	HeldData   string   `json:"x-ms-sgx-ehd"`
	Runtime    *struct {
		Keys []struct {
			N   string `json:"n"`
			KID string `json:"kid"`
		} `json:"keys"`
	} `json:"x-ms-runtime"`
}

// hexClaim is a byte string in hexadecimal digits.
type hexClaim []byte

// UnmarshalText implements [encoding.TextUnmarshaler].
func (h *hexClaim) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

// MarshalText implements [encoding.TextMarshaler].
func (h hexClaim) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

// ParseToken splits and decodes a compact JWS of MAA. Unsigned tokens, other algorithms than RS256, critical
// extensions and JSON with a repeated member are refused here already.
func ParseToken(text string) (*Token, error) {
	t := &Token{}
	var err error
	if t.Header, t.signed, t.signature, err = splitJWS(text, &t.Claims); err != nil {
		return nil, evidenceError("reading token", err)
	}
	return t, nil
}

// splitJWS decodes a compact JWS of algorithm RS256 and its JSON payload.
func splitJWS(text string, payload any) (h Header, signed, signature []byte, err error) {
	if len(text) > maxToken {
		return h, nil, nil, fmt.Errorf("it has more than %d characters", maxToken)
	}
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return h, nil, nil, fmt.Errorf("it has %d parts, a signed token has 3", len(parts))
	}
	decoded := make([][]byte, 3)
	for i, part := range parts {
		if decoded[i], err = b64.Strict().DecodeString(part); err != nil {
			return h, nil, nil, fmt.Errorf("part %d is not base64url", i+1)
		}
	}
	if err := decodeJSON(decoded[0], &h); err != nil {
		return h, nil, nil, fmt.Errorf("header: %w", err)
	}
	switch {
	case h.Algorithm != "RS256":
		return h, nil, nil, fmt.Errorf("its algorithm is %q, only RS256 is accepted", printable(h.Algorithm))
	case h.Critical != nil:
		return h, nil, nil, errors.New("it has critical extensions")
	case len(decoded[2]) == 0:
		return h, nil, nil, errors.New("it is not signed")
	}
	if err := decodeJSON(decoded[1], payload); err != nil {
		return h, nil, nil, fmt.Errorf("payload: %w", err)
	}
	return h, []byte(parts[0] + "." + parts[1]), decoded[2], nil
}

// decodeJSON decodes one JSON value and refuses repeated members, of which parsers disagree which one counts.
func decodeJSON(text []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	if err := refuseRepeated(dec, 0); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON value")
	}
	return json.Unmarshal(text, v)
}

func refuseRepeated(dec *json.Decoder, depth int) error {
	token, err := dec.Token()
	if err != nil {
		return errors.New("it is not JSON")
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return nil
	}
	if depth > 32 {
		return errors.New("JSON is nested too deeply")
	}
	seen := map[string]bool{}
	for dec.More() {
		if delim == '{' {
			name, err := dec.Token()
			if err != nil {
				return errors.New("it is not JSON")
			}
			text, _ := name.(string)
			// encoding/json takes members for the same that differ in case only.
			folded := strings.ToLower(strings.ToUpper(text))
			if seen[folded] {
				return fmt.Errorf("member %q is given twice", printable(text))
			}
			seen[folded] = true
		}
		if err := refuseRepeated(dec, depth+1); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}

// Expectation says what a relying party demands of a token.
type Expectation struct {
	Issuer string // the instance, "https://name.region.attest.azure.net"
	Keys   *KeySet
	Now    time.Time
	// ReportData, MREnclave and MRSigner are compared if they are given; Debug accepts debug enclaves.
	ReportData, MREnclave, MRSigner []byte
	ProductID, MinSVN               *uint16
	Debug                           bool
}

// Validate checks signature, issuer, dates and claims of a token, as a relying party must.
func (t *Token) Validate(e Expectation) error {
	const step = "validating token"
	issuer := strings.TrimSuffix(e.Issuer, "/")
	if err := t.checkIssuance(issuer, e.Now); err != nil {
		return evidenceError(step, err)
	}
	if err := e.Keys.verify(t, issuer, e.Now); err != nil {
		return evidenceError(step, err)
	}
	c := &t.Claims
	for _, rule := range []struct {
		failed bool
		text   string
	}{
		{c.Debuggable == nil || *c.Debuggable && !e.Debug, "x-ms-sgx-is-debuggable is missing or true"},
		{e.ReportData != nil && !bytes.Equal(c.ReportData, e.ReportData), "x-ms-sgx-report-data is another"},
		{e.MREnclave != nil && !bytes.Equal(c.MREnclave, e.MREnclave), "x-ms-sgx-mrenclave is another"},
		{e.MRSigner != nil && !bytes.Equal(c.MRSigner, e.MRSigner), "x-ms-sgx-mrsigner is another"},
		{e.ProductID != nil && (c.ProductID == nil || *c.ProductID != *e.ProductID), "x-ms-sgx-product-id is another"},
		{e.MinSVN != nil && (c.SVN == nil || *c.SVN < *e.MinSVN), "x-ms-sgx-svn is too low"},
	} {
		if rule.failed {
			return attest.Errorf(attest.CodePolicy, step, "Compare the token's claims with what you expect.", "%s", rule.text)
		}
	}
	return nil
}

// checkIssuance checks who issued the token, when, and for what kind of enclave. Addresses in the token are compared,
// never followed.
func (t *Token) checkIssuance(issuer string, now time.Time) error {
	c := &t.Claims
	switch {
	case t.Header.Type != "JWT":
		return fmt.Errorf("its type is %q, not JWT", printable(t.Header.Type))
	case t.Header.KeySetURL != "" && t.Header.KeySetURL != issuer+"/certs":
		return errors.New("its jku points to the keys of another provider")
	case c.Issuer != issuer:
		return fmt.Errorf("its issuer is %q, not %q", printable(c.Issuer), issuer)
	case now.Add(clockLeeway).Before(time.Unix(c.NotBefore, 0)):
		return errors.New("it is not valid yet")
	case !now.Add(-clockLeeway).Before(time.Unix(c.Expires, 0)):
		return errors.New("it has expired")
	case c.Version != "1.0":
		return fmt.Errorf("x-ms-ver is %q, not 1.0", printable(c.Version))
	case c.Type != tokenTypeSGX:
		return fmt.Errorf("x-ms-attestation-type is %q, not sgx", printable(c.Type))
	}
	return nil
}

func evidenceError(step string, err error) error {
	return &attest.Error{Code: attest.CodeEvidence, Step: step, Err: err,
		Hint: "The token was issued for another recipient, has expired, or was changed on its way; attest again."}
}
