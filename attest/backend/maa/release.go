package maa

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha1" // the hash of CKM_RSA_AES_KEY_WRAP; it is never asked for
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/keywrap"
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

// releasePayload is the payload of a release response.
type releasePayload struct {
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

// wrappedKey is what key_hsm holds.
type wrappedKey struct {
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

// releaser asks for the keys of one boot.
type releaser struct {
	*Backend
	private *rsa.PrivateKey
	key     wrappingKey
	token   *attestation
	access  attest.Secret // empty until it is asked for
}

func (r *releaser) wipe() { r.access.Wipe() }

// secret has one key released and makes the secret from it. An access token that the vault does not take is asked
// for anew, once: it may have been kept too long on its way here.
func (r *releaser) secret(ctx context.Context, k Key) (attest.Secret, error) {
	for first := true; ; first = false {
		if r.access.Len() == 0 {
			var err error
			if r.access, err = r.accessToken(ctx); err != nil {
				return attest.Secret{}, err
			}
		}
		secret, err := r.release(ctx, k)
		if statusOf(err) != http.StatusUnauthorized || !first {
			return secret, err
		}
		r.access.Wipe()
	}
}

func (r *releaser) release(ctx context.Context, k Key) (attest.Secret, error) {
	nonce := make([]byte, 24)
	if _, err := io.ReadFull(r.config.Rand, nonce); err != nil {
		return attest.Secret{}, err
	}
	want := releaseRequest{
		host: r.vault.Host, name: k.Name, version: k.Version, encryption: encryption, nonce: b64.EncodeToString(nonce),
		wrappingKey: r.key.id, roots: r.config.Network.Roots, now: r.config.Network.Now(),
	}
	body, err := json.Marshal(map[string]string{"target": r.token.text, "enc": want.encryption, "nonce": want.nonce})
	if err != nil {
		return attest.Secret{}, err
	}
	path := "/keys/" + k.Name + "/"
	if k.Version != "" {
		path += k.Version + "/"
	}
	answer, err := r.config.Network.do(ctx, call{
		service: "the vault", method: http.MethodPost,
		url:    r.vault.String() + path + "release?api-version=" + url.QueryEscape(r.config.KeyAPIVersion),
		header: http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + string(r.access.Expose())}},
		body:   body, advise: r.adviseRelease, hide: []attest.Secret{r.access},
	})
	if err != nil {
		return attest.Secret{}, err
	}
	var got struct {
		Value string `json:"value"`
	}
	if err := decodeJSON(answer, &got); err != nil || got.Value == "" {
		return attest.Secret{}, attest.Errorf(attest.CodeEvidence, "asking the vault", "Is maa.vault the address of a vault?",
			"the answer holds no released key")
	}
	ciphertext, keyType, err := openRelease(got.Value, want)
	if err != nil {
		return attest.Secret{}, err
	}
	released, err := unwrap(r.private, want.encryption, ciphertext)
	if err != nil {
		return attest.Secret{}, err
	}
	return secretOf(k, keyType, released)
}

// adviseRelease knows the vault's refusals.
func (r *releaser) adviseRelease(status int, e serviceError) (attest.Code, string) {
	switch {
	case e.says("does not meet key release policy"):
		return attest.CodeDenied, "Compare the key's release policy with this enclave (" + r.token.enclave() +
			"); \"sesame maa release-policy\" prints a policy for it."
	case e.says("cannot be verified"):
		return attest.CodeDenied, "The vault does not accept MAA's token: the policy's authority must be " + r.config.Endpoint +
			", the vault must reach it, and the token lives for eight hours."
	case e.says("enclave held data"):
		return attest.CodeDenied, "The token carries no usable key; this is a fault of Sesame or a change of the service."
	case status == http.StatusUnauthorized:
		return attest.CodeDenied, "The vault does not accept the access token: check maa.aad, that the tenant is the vault's, and that the " +
			"token is for " + r.config.Resource + "."
	case status == http.StatusForbidden && (e.says("disabled") || e.is("KeyDisabled")):
		return attest.CodeDenied, "The key is disabled: its owner has withdrawn it."
	case status == http.StatusForbidden && (e.is("ForbiddenByFirewall") || e.says("firewall") || e.says("not authorized and caller is not a trusted service")):
		return attest.CodeDenied, "The vault's firewall does not let this address in: allow the node's network."
	case status == http.StatusForbidden:
		return attest.CodeDenied, "Give the identity the role Key Vault Crypto Service Release User (Managed HSM: Managed HSM Crypto " +
			"Service Release User)."
	case status == http.StatusNotFound:
		return attest.CodeSecret, "The vault has no such key, or no such version of it: check maa.keys."
	case status == http.StatusBadRequest:
		return attest.CodeDenied, "The vault does not take this request: the key must be exportable and have a release policy, and maa.key_api_version be 7.3 or later."
	}
	return attest.CodeDenied, "Is maa.vault the address of a vault?"
}

// openRelease verifies a release response and returns the wrapped key in it and the key's type ("oct", "RSA",
// "EC"). The response's certificate is the vault's own TLS certificate, which is one for all vaults: the key's
// identifier in the signed payload says which vault and which key it is.
func openRelease(jws string, want releaseRequest) (ciphertext []byte, keyType string, err error) {
	refuse := func(code attest.Code, err error) ([]byte, string, error) {
		return nil, "", &attest.Error{
			Code: code, Step: "verifying key release", Err: err,
			Hint: "The answer is not the vault's to this request; check the vault's address and the roots in the initfs.",
		}
	}
	var p releasePayload
	header, signed, signature, err := splitJWS(jws, &p)
	if err != nil {
		return refuse(attest.CodeEvidence, err)
	}
	leaf, err := verifyChain(header, want)
	if err != nil {
		return refuse(attest.CodeEvidence, err)
	}
	if err := verifyRS256(leaf, signed, signature); err != nil {
		return refuse(attest.CodeEvidence, err)
	}
	if err := p.isFor(want); err != nil {
		return refuse(attest.CodePolicy, err)
	}
	if ciphertext, err = p.answers(want); err != nil {
		return refuse(attest.CodeEvidence, err)
	}
	return ciphertext, strings.TrimSuffix(p.Response.Key.Key.Type, "-HSM"), nil
}

// isFor checks that a genuine release is of the wanted vault and key.
func (p *releasePayload) isFor(want releaseRequest) error {
	kid := p.Response.Key.Key.KID
	prefix := "https://" + want.host + "/keys/" + want.name + "/"
	version, ok := strings.CutPrefix(kid, prefix)
	switch {
	case !ok:
		return fmt.Errorf("it releases key %q, asked for %q", printable(kid), prefix)
	case want.version != "" && version != want.version:
		return fmt.Errorf("it releases version %q, asked for %q", printable(version), want.version)
	}
	return nil
}

// answers checks that a release answers this request and is wrapped for this enclave, as it was asked to be. The
// service may leave the nonce out, but not give another.
func (p *releasePayload) answers(want releaseRequest) (ciphertext []byte, err error) {
	switch {
	case p.Request.Encryption != want.encryption:
		return nil, fmt.Errorf("it is wrapped with %q, asked for %q", printable(p.Request.Encryption), want.encryption)
	case p.Request.Nonce != "" && subtle.ConstantTimeCompare([]byte(p.Request.Nonce), []byte(want.nonce)) != 1:
		return nil, errors.New("its nonce is not the one of this request: it is a recording")
	}
	inner, err := b64.DecodeString(strings.TrimRight(p.Response.Key.Key.HSM, "="))
	if err != nil {
		return nil, errors.New("key_hsm is not base64url")
	}
	var w wrappedKey
	if err := decodeJSON(inner, &w); err != nil {
		return nil, fmt.Errorf("key_hsm: %w", err)
	}
	switch {
	case w.Header.Encryption != want.encryption || w.Header.Algorithm != "dir":
		return nil, fmt.Errorf("key_hsm is wrapped with %q/%q", printable(w.Header.Algorithm), printable(w.Header.Encryption))
	case w.Header.KID != want.wrappingKey:
		return nil, errors.New("key_hsm is wrapped for another key than this enclave's")
	}
	if ciphertext, err = b64.DecodeString(strings.TrimRight(w.Ciphertext, "=")); err != nil {
		return nil, errors.New("the ciphertext is not base64url")
	}
	return ciphertext, nil
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
	err := keywrap.ErrOpen
	if newHash := oaepHashes[encryption]; newHash != nil {
		var plain []byte
		if plain, err = keywrap.UnwrapRSA(newHash(), private, ciphertext); err == nil {
			return attest.NewSecret(plain), nil
		}
	}
	return attest.Secret{}, &attest.Error{Code: attest.CodeEvidence, Step: "unwrapping released key", Err: err,
		Hint: "It was wrapped for another enclave, or changed on its way; attest again."}
}
