package maa

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" // the hash of CKM_RSA_AES_KEY_WRAP; it is never asked for
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest"
)

// encryption is the wrapping that Sesame asks for: RSA-OAEP with SHA-256 around an AES-256 key, AES key wrap with
// padding around the rest.
const encryption = "RSA_AES_KEY_WRAP_256"

// oaepHashes are the hashes of Key Vault's wrappings (Key Vault REST reference, KeyEncryptionAlgorithm).
var oaepHashes = map[string]func() hash.Hash{
	"CKM_RSA_AES_KEY_WRAP": sha1.New,
	"RSA_AES_KEY_WRAP_256": sha256.New,
	"RSA_AES_KEY_WRAP_384": sha512.New384,
}

// released is the payload of a release response.
type released struct {
	Request struct {
		Encryption string `json:"enc"`
		Nonce      string `json:"nonce"`
	} `json:"request"`
	Response struct {
		Key struct {
			Key struct {
				KID  string `json:"kid"`
				Type string `json:"kty"`
				HSM  string `json:"key_hsm"`
			} `json:"key"`
		} `json:"key"`
	} `json:"response"`
}

// wrapped is what key_hsm holds.
type wrapped struct {
	Schema string `json:"schema_version"`
	Header struct {
		KID        string `json:"kid"`
		Algorithm  string `json:"alg"`
		Encryption string `json:"enc"`
	} `json:"header"`
	Ciphertext string `json:"ciphertext"`
}

// releaseRequest is what was asked for, to compare the response with.
type releaseRequest struct {
	host, name, version string // of the vault and its key
	encryption, nonce   string
	wrappingKey         string // kid of the key that the token attests
	roots               *x509.CertPool
	now                 time.Time
}

// openRelease verifies a release response and returns the wrapped key in it and the key's type ("oct", "RSA",
// "EC"). The response's certificate is the vault's own TLS certificate, which is one for all vaults: the key's
// identifier in the signed payload says which vault and which key it is.
func openRelease(jws string, want releaseRequest) (ciphertext []byte, keyType string, err error) {
	fail := func(format string, args ...any) ([]byte, string, error) {
		return nil, "", &attest.Error{
			Code: attest.CodeEvidence, Step: "verifying key release", Err: fmt.Errorf(format, args...),
			Hint: "The answer is not the vault's to this request; check the vault's address and the roots in the initfs.",
		}
	}
	var p released
	header, signed, signature, err := splitJWS(jws, &p)
	if err != nil {
		return fail("the response: %w", err)
	}
	leaf, err := verifyChain(header, want)
	if err != nil {
		return fail("%w", err)
	}
	if err := verifyRS256(leaf, signed, signature); err != nil {
		return fail("%w", err)
	}

	key := p.Response.Key.Key
	prefix := "https://" + want.host + "/keys/" + want.name + "/"
	version, ok := strings.CutPrefix(key.KID, prefix)
	switch {
	case p.Request.Encryption != want.encryption:
		return fail("it is wrapped with %q, asked for %q", printable(p.Request.Encryption), want.encryption)
	case !ok:
		return fail("it releases key %q, asked for %q", printable(key.KID), prefix)
	case want.version != "" && version != want.version:
		return fail("it releases version %q, asked for %q", printable(version), want.version)
	case p.Request.Nonce != "" && subtle.ConstantTimeCompare([]byte(p.Request.Nonce), []byte(want.nonce)) != 1:
		return fail("its nonce is not the one of this request: it is a recording")
	}
	inner, err := b64.DecodeString(strings.TrimRight(key.HSM, "="))
	if err != nil {
		return fail("key_hsm is not base64url")
	}
	var w wrapped
	if err := decodeJSON(inner, &w); err != nil {
		return fail("key_hsm: %w", err)
	}
	switch {
	case w.Header.Encryption != want.encryption || w.Header.Algorithm != "dir":
		return fail("key_hsm is wrapped with %q/%q", printable(w.Header.Algorithm), printable(w.Header.Encryption))
	case w.Header.KID != want.wrappingKey:
		return fail("key_hsm is wrapped for another key than this enclave's")
	}
	if ciphertext, err = b64.DecodeString(strings.TrimRight(w.Ciphertext, "=")); err != nil {
		return fail("the ciphertext is not base64url")
	}
	return ciphertext, strings.TrimSuffix(key.Type, "-HSM"), nil
}

// verifyChain checks the certificates of the response down to the pinned roots, for the vault's host name.
func verifyChain(h Header, want releaseRequest) (*x509.Certificate, error) {
	const maxChain = 8
	if len(h.Chain) == 0 || len(h.Chain) > maxChain {
		return nil, fmt.Errorf("it carries %d certificates, want 1 to %d", len(h.Chain), maxChain)
	}
	var chain []*x509.Certificate
	for _, text := range h.Chain {
		certificate, err := parseCertificate(text)
		if err != nil {
			return nil, err
		}
		chain = append(chain, certificate)
	}
	if h.Thumb != "" {
		sum := sha256.Sum256(chain[0].Raw)
		if thumb, err := b64.DecodeString(strings.TrimRight(h.Thumb, "=")); err != nil || !bytes.Equal(thumb, sum[:]) {
			return nil, errors.New("x5t#S256 is not the thumbprint of its certificate")
		}
	}
	intermediates := x509.NewCertPool()
	for _, certificate := range chain[1:] {
		intermediates.AddCert(certificate)
	}
	hostname, _, _ := strings.Cut(want.host, ":")
	if _, err := chain[0].Verify(x509.VerifyOptions{
		DNSName: hostname, Roots: want.roots, Intermediates: intermediates, CurrentTime: want.now,
	}); err != nil {
		return nil, fmt.Errorf("its certificate: %w", err)
	}
	return chain[0], nil
}

// unwrap opens ciphertext with the enclave's RSA key: OAEP around an AES key, key wrap around the rest.
func unwrap(private *rsa.PrivateKey, encryption string, ciphertext []byte) (attest.Secret, error) {
	fail := func() (attest.Secret, error) {
		return attest.Secret{}, &attest.Error{Code: attest.CodeEvidence, Step: "unwrapping released key", Err: errKeyWrap,
			Hint: "It was wrapped for another enclave, or changed on its way; attest again."}
	}
	newHash := oaepHashes[encryption]
	k := private.Size()
	if newHash == nil || len(ciphertext) < k+16 || (len(ciphertext)-k)%8 != 0 {
		return fail()
	}
	kek, err := rsa.DecryptOAEP(newHash(), rand.Reader, private, ciphertext[:k], nil)
	if err != nil {
		return fail()
	}
	defer clear(kek)
	if len(kek) != 32 {
		return fail()
	}
	plain, err := unwrapKWP(kek, ciphertext[k:])
	if err != nil {
		return fail()
	}
	return attest.NewSecret(plain), nil
}
