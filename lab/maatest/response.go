package maatest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" // of x5t
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sesame-init/sesame/internal/keywrap"
)

// respond makes the release response, as the attack wants it.
func (c *Cloud) respond(r *http.Request, request releaseRequest, public *rsa.PublicKey, kid string) (string, error) {
	attack := c.config.Attack
	name, host := r.PathValue("name"), r.Host
	key := c.config.Keys[name]
	answered, version := request, Version
	switch attack {
	case SwappedKey:
		names := slices.DeleteFunc(slices.Sorted(maps.Keys(c.config.Keys)), func(other string) bool { return other == name })
		if len(names) == 0 {
			return "", errors.New("the vault has no other key to swap in")
		}
		name, key = names[0], c.config.Keys[names[0]]
	case OtherVault:
		host = "other.vault.azure.net"
	case OtherVersion:
		version = strings.Repeat("f", 32)
	case WeakerWrapping:
		answered.Enc = "CKM_RSA_AES_KEY_WRAP"
	case ForOtherKey:
		public, kid = &c.config.PKI.other.PublicKey, "somebody-else"
	case ForOtherKeyRaw:
		public = &c.config.PKI.other.PublicKey
	case WrongNonce:
		answered.Nonce = b64.EncodeToString(make([]byte, 24))
	case EmptyRelease:
		return "", nil
	}
	inner, err := c.wrap(answered.Enc, key, public, kid)
	if err != nil {
		return "", err
	}
	keyType := key.Type + "-HSM"
	if key.Type == "EC" && isHSM(host) {
		keyType = "EC"
	}
	asked := map[string]any{"api-version": r.URL.Query().Get("api-version"), "enc": answered.Enc,
		"kid": strings.TrimSuffix("https://"+host+"/keys/"+name+"/"+r.PathValue("version"), "/")}
	if answered.Nonce != "" {
		asked["nonce"] = answered.Nonce
	}
	payload, err := json.Marshal(map[string]any{"request": asked, "response": map[string]any{"key": map[string]any{
		"attributes":     map[string]any{"enabled": true, "exportable": true},
		"key":            map[string]any{"kid": "https://" + host + "/keys/" + name + "/" + version, "kty": keyType, "key_hsm": b64.EncodeToString(inner)},
		"release_policy": map[string]any{"contentType": "application/json; charset=utf-8", "data": b64.EncodeToString(key.Policy), "immutable": false},
	}}})
	if err != nil {
		return "", err
	}
	if attack == RepeatedKID {
		payload = append(payload[:len(payload)-1], `,"Request":{}}`...)
	}
	payload = c.replay(name, request.Nonce, payload)
	header, err := c.releaseHeader(host)
	if err != nil {
		return "", err
	}
	text, err := sign(c.config.PKI.vault, header, payload)
	if attack == ChangedRelease {
		text, err = sign(c.config.PKI.other, header, payload)
	}
	return text, err
}

// replay gives the first release of a key again, if that is the attack.
func (c *Cloud) replay(name, nonce string, payload []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	first, ok := c.recorded[name]
	if !ok {
		c.recorded[name] = string(payload)
		return payload
	}
	switch c.config.Attack {
	case Replay:
		return []byte(first)
	case ReplayWithNonce:
		var recorded map[string]map[string]any
		if json.Unmarshal([]byte(first), &recorded) == nil {
			recorded["request"]["nonce"] = nonce
			payload, _ = json.Marshal(recorded)
		}
	}
	return payload
}

// wrap makes key_hsm.
func (c *Cloud) wrap(enc string, key Key, public *rsa.PublicKey, kid string) ([]byte, error) {
	ciphertext, err := keywrap.WrapRSA(rand.Reader, wrappings[enc](), public, key.Material)
	if err != nil {
		return nil, err
	}
	algorithm := "dir"
	switch c.config.Attack {
	case InnerWrapping:
		enc = "RSA_AES_KEY_WRAP_384"
	case InnerAlgorithm:
		algorithm = "none"
	case ShortCiphertext:
		ciphertext = ciphertext[:public.Size()/2]
	case EmptyCiphertext:
		ciphertext = nil
	case ChangedCiphertext:
		ciphertext[len(ciphertext)-1] ^= 1
	}
	return json.Marshal(map[string]any{
		"schema_version": "1.0", "header": map[string]any{"kid": kid, "alg": algorithm, "enc": enc},
		"ciphertext": b64.EncodeToString(ciphertext),
	})
}

// releaseHeader is the header with the chain of the vault's TLS certificate.
func (c *Cloud) releaseHeader(host string) (map[string]any, error) {
	attack, pki := c.config.Attack, c.config.PKI
	hostname := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		hostname = h
	}
	names, now, authority := vaultNames, c.config.Now(), &pki.root
	if isHSM(hostname) {
		names = []string{hostname}
	}
	switch attack {
	case UntrustedChain:
		authority = &pki.stranger
	case ExpiredLeaf:
		now = now.Add(-backdate - lifetime)
	}
	var leaf []byte
	var err error
	if attack == WrongHost {
		leaf, err = authority.elsewhere(&pki.vault.PublicKey, now)
	} else {
		leaf, err = authority.leaf(names, &pki.vault.PublicKey, now)
	}
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(leaf)
	sum1 := sha1.Sum(leaf)
	header := map[string]any{"alg": "RS256", "kid": strings.ToUpper(hex.EncodeToString(sum1[:])), "x5t#S256": b64.EncodeToString(sum[:])}
	var chain []string
	for _, der := range [][]byte{leaf, authority.issuer.Raw, authority.root.Raw} {
		chain = append(chain, base64.StdEncoding.EncodeToString(der))
	}
	header["x5c"] = chain
	if !isHSM(hostname) {
		header["typ"], header["x5t"] = "JWT", b64.EncodeToString(sum1[:])
	}
	switch attack {
	case NoChain:
		delete(header, "x5c")
	case WrongThumbprint:
		header["x5t#S256"] = b64.EncodeToString(make([]byte, 32))
	case UnsignedRelease:
		header["alg"] = "none"
	case SymmetricRelease:
		header["alg"] = "HS256"
	}
	return header, nil
}

// elsewhere issues a certificate for a host that is not a vault.
func (a *authority) elsewhere(key *rsa.PublicKey, now time.Time) ([]byte, error) {
	return x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(3), DNSNames: []string{"elsewhere.example"}, BasicConstraintsValid: true,
		NotBefore: now.Add(-backdate), NotAfter: now.Add(lifetime), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.issuer, key, a.key)
}
