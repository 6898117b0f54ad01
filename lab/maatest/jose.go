package maatest

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
)

var b64 = base64.RawURLEncoding

// sign makes a compact JWS of algorithm RS256, HS256 or none, as the header says.
func sign(key *rsa.PrivateKey, header map[string]any, payload []byte) (string, error) {
	head, err := json.Marshal(header)
	if err != nil {
		return "", err
	}
	signed := b64.EncodeToString(head) + "." + b64.EncodeToString(payload)
	sum := sha256.Sum256([]byte(signed))
	var signature []byte
	switch header["alg"] {
	case "RS256":
		signature, err = rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	case "HS256": // keyed with what everybody knows, the public key
		mac := hmac.New(sha256.New, x509.MarshalPKCS1PublicKey(&key.PublicKey))
		mac.Write([]byte(signed))
		signature = mac.Sum(nil)
	}
	return signed + "." + b64.EncodeToString(signature), err
}

// jws is a decoded compact JWS.
type jws struct {
	header            struct{ Alg, Kid, Typ string }
	payload           []byte
	signed, signature []byte
}

func decodeJWS(text string) (*jws, error) {
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return nil, errors.New("not a JWS")
	}
	var t jws
	head, err := b64.DecodeString(parts[0])
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(head, &t.header); err != nil {
		return nil, err
	}
	if t.payload, err = b64.DecodeString(parts[1]); err != nil {
		return nil, err
	}
	t.signed = []byte(parts[0] + "." + parts[1])
	t.signature, err = b64.DecodeString(parts[2])
	return &t, err
}

func (t *jws) verify(c *x509.Certificate) error {
	key, ok := c.PublicKey.(*rsa.PublicKey)
	if !ok || t.header.Alg != "RS256" {
		return errors.New("not RS256")
	}
	sum := sha256.Sum256(t.signed)
	return rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], t.signature)
}

// flexible decodes base64url or standard base64, with or without padding, as the services do.
func flexible(text string) ([]byte, error) {
	text = strings.NewReplacer("+", "-", "/", "_").Replace(strings.TrimRight(text, "="))
	return b64.DecodeString(text)
}

func quoted(text string) string {
	out, _ := json.Marshal(text)
	return string(out)
}
