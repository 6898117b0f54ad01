package maa

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/sesame-init/sesame/attest"
)

// KeySet are the signing certificates of an MAA instance, as GET /certs gives them.
type KeySet struct{ keys []signingKey }

type signingKey struct {
	id          string
	certificate *x509.Certificate
}

// ParseKeySet reads a JWKS whose keys have certificates only (x5c), as MAA's do; keys of other types are left out.
func ParseKeySet(text []byte) (*KeySet, error) {
	const step = "reading MAA's keys"
	var set struct {
		Keys []struct {
			KID   string   `json:"kid"`
			Type  string   `json:"kty"`
			Chain []string `json:"x5c"`
		} `json:"keys"`
	}
	if len(text) > maxResponse {
		return nil, evidenceError(step, errors.New("the key set is too large"))
	}
	if err := decodeJSON(text, &set); err != nil {
		return nil, evidenceError(step, err)
	}
	if len(set.Keys) > maxJWKSKeys {
		return nil, evidenceError(step, fmt.Errorf("it has %d keys, more than %d", len(set.Keys), maxJWKSKeys))
	}
	out := &KeySet{}
	for i, k := range set.Keys {
		if k.Type != "RSA" || len(k.Chain) == 0 {
			continue
		}
		certificate, err := parseCertificate(k.Chain[0])
		if err != nil {
			return nil, evidenceError(step, fmt.Errorf("keys[%d]: %w", i, err))
		}
		out.keys = append(out.keys, signingKey{k.KID, certificate})
	}
	if len(out.keys) == 0 {
		return nil, evidenceError(step, errors.New("it holds no RSA certificate"))
	}
	return out, nil
}

// FetchKeySet gets the keys of an instance from the instance itself, over TLS to n.Roots; addresses in a
// token do not count.
func FetchKeySet(ctx context.Context, n Network, issuer string) (*KeySet, error) {
	u, err := serviceURL(issuer)
	if err != nil {
		return nil, attest.Errorf(attest.CodeUsage, "reading MAA's keys", "Name the MAA instance.", "%w", err)
	}
	text, err := n.complete().do(ctx, call{
		service: "MAA", method: http.MethodGet, url: u.String() + "/certs", advise: adviseAttest,
	})
	if err != nil {
		return nil, err
	}
	return ParseKeySet(text)
}

func parseCertificate(text string) (*x509.Certificate, error) {
	der, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, errors.New("a certificate is not base64")
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, errors.New("a certificate is malformed")
	}
	return certificate, nil
}

// verify finds the key that the token names, all keys if it names none, and checks its certificate and the
// signature. The instance's own certificate is self-signed: it is trusted because it came over TLS from the
// configured instance, and must name it.
func (s *KeySet) verify(t *Token, issuer string, now time.Time) error {
	if s == nil {
		return errors.New("no keys to verify it with")
	}
	err := errors.New("its key is not among those of the instance")
	for _, key := range s.keys {
		if t.Header.KeyID != "" && key.id != t.Header.KeyID {
			continue
		}
		c := key.certificate
		if c.Subject.CommonName != issuer {
			err = fmt.Errorf("its key's certificate names %q", printable(c.Subject.CommonName))
			continue
		}
		if now.Before(c.NotBefore) || now.After(c.NotAfter) {
			err = errors.New("its key's certificate has expired or is not valid yet")
			continue
		}
		if err = verifyRS256(c, t.signed, t.signature); err == nil {
			return nil
		}
	}
	return err
}

func verifyRS256(c *x509.Certificate, signed, signature []byte) error {
	key, ok := c.PublicKey.(*rsa.PublicKey)
	if !ok || key.N.BitLen() < minRSA {
		return fmt.Errorf("the signing key is not RSA of at least %d bits", minRSA)
	}
	sum := sha256.Sum256(signed)
	if rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], signature) != nil {
		return errors.New("the signature is wrong")
	}
	return nil
}
