package maatest

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha1" // of CKM_RSA_AES_KEY_WRAP
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"hash"
	"math/big"
	"net/http"
	"strings"
)

var wrappings = map[string]func() hash.Hash{
	"CKM_RSA_AES_KEY_WRAP": sha1.New,
	"RSA_AES_KEY_WRAP_256": sha256.New,
	"RSA_AES_KEY_WRAP_384": sha512.New384,
}

// Version is the version of every key in the vault.
const Version = "0123456789abcdef0123456789abcdef"

// releaseRequest is the body of POST /keys/{name}/{version}/release.
type releaseRequest struct {
	Target string `json:"target"`
	Enc    string `json:"enc"`
	Nonce  string `json:"nonce"`
}

func (c *Cloud) release(r *http.Request) (any, *refusal) {
	if refused := c.authorised(r); refused != nil {
		return nil, refused
	}
	if version := r.URL.Query().Get("api-version"); version < "7.3" {
		return nil, bad("BadParameter", "The api-version does not support release.")
	}
	var request releaseRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil || request.Target == "" {
		return nil, bad("BadParameter", "Property target is missing.")
	}
	if request.Enc == "" {
		request.Enc = "CKM_RSA_AES_KEY_WRAP"
	}
	if wrappings[request.Enc] == nil {
		return nil, bad("BadParameter", "Property enc has an invalid value.")
	}
	name, version := r.PathValue("name"), r.PathValue("version")
	key, ok := c.config.Keys[name]
	if !ok || version != "" && version != Version {
		return nil, &refusal{status: http.StatusNotFound, code: "KeyNotFound",
			message: "A key with (name/id) " + name + " was not found in this key vault."}
	}
	forbidden := func(code, message string) (any, *refusal) {
		return nil, &refusal{status: http.StatusForbidden, code: code, message: message}
	}
	if key.Disabled {
		return forbidden("Forbidden", "Operation release is not allowed on a disabled key.")
	}
	claims, err := c.verifyToken(r.Context(), request.Target)
	if err != nil {
		return forbidden("Forbidden", "Target environment attestation statement cannot be verified.")
	}
	policy, err := ParseReleasePolicy(key.Policy)
	if err != nil {
		return nil, bad("BadParameter", "AKV.SKR.1004: The key has no valid release policy.")
	}
	issuer, _ := claims["iss"].(string)
	if permitted, _ := policy.Permits(issuer, claims); !permitted {
		return forbidden("Forbidden", "Target environment attestation does not meet key release policy requirements.")
	}
	public, kid, err := wrappingKey(claims)
	if err != nil {
		return nil, bad("BadParameter", "Target environment attestation does not have the required enclave held data claim (maa-ehd).")
	}
	value, err := c.respond(r, request, public, kid)
	if err != nil {
		return nil, &refusal{status: http.StatusInternalServerError, code: "InternalError", message: err.Error()}
	}
	return map[string]string{"value": value}, nil
}

// verifyToken does what the vault does with a token of any instance: it asks the issuer for its metadata and keys.
func (c *Cloud) verifyToken(ctx context.Context, text string) (map[string]any, error) {
	token, err := decodeJWS(text)
	if err != nil {
		return nil, err
	}
	var claims map[string]any
	if err := json.Unmarshal(token.payload, &claims); err != nil {
		return nil, err
	}
	issuer, _ := claims["iss"].(string)
	c.mu.Lock()
	known := c.instance[issuer] != nil
	c.mu.Unlock()
	if !known { // the only instances that this vault can reach
		return nil, errors.New("unknown issuer")
	}
	var metadata struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := c.get(ctx, issuer+"/.well-known/openid-configuration", &metadata); err != nil || metadata.Issuer != issuer {
		return nil, errors.New("no metadata")
	}
	var set struct {
		Keys []struct {
			KID string   `json:"kid"`
			X5C []string `json:"x5c"`
		} `json:"keys"`
	}
	if err := c.get(ctx, metadata.Keys, &set); err != nil {
		return nil, err
	}
	for _, key := range set.Keys {
		if key.KID != token.header.Kid || len(key.X5C) == 0 {
			continue
		}
		der, err := base64.StdEncoding.DecodeString(key.X5C[0])
		if err != nil {
			return nil, err
		}
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		now, exp := float64(c.config.Now().Unix()), claims["exp"]
		if e, ok := exp.(float64); !ok || now > e {
			return nil, errors.New("expired")
		}
		return claims, token.verify(certificate)
	}
	return nil, errors.New("unknown key")
}

// get asks the cloud itself, as the vault asks the instance, over its own handler: the vault's network is not the
// enclave's.
func (c *Cloud) get(ctx context.Context, address string, v any) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	var answer any
	var refused *refusal
	switch r.URL.Path {
	case "/certs":
		answer, refused = c.certs(r)
	case "/.well-known/openid-configuration":
		answer, refused = c.metadata(r)
	default:
		return errors.New("not found")
	}
	if refused != nil {
		return errors.New(refused.message)
	}
	text, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}

// wrappingKey returns the first key in the token's runtime data or held data that may encrypt.
func wrappingKey(claims map[string]any) (*rsa.PublicKey, string, error) {
	runtime, ok := claims["x-ms-runtime"].(map[string]any)
	if text, held := claims["maa-ehd"].(string); !ok && held {
		data, err := b64.DecodeString(text)
		if err != nil || json.Unmarshal(bytes.TrimRight(data, "\x00"), &runtime) != nil {
			return nil, "", errors.New("the held data is no key set")
		}
	}
	text, err := json.Marshal(runtime)
	if err != nil {
		return nil, "", err
	}
	var set struct {
		Keys []struct {
			Kty, Kid, Use, N, E string
			Ops                 []string `json:"key_ops"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(text, &set); err != nil {
		return nil, "", err
	}
	for _, key := range set.Keys {
		if key.Kty != "RSA" || key.Kid == "" || key.Use != "enc" && !strings.Contains(strings.Join(key.Ops, " "), "encrypt") {
			continue
		}
		n, err := b64.DecodeString(key.N)
		if err != nil {
			return nil, "", err
		}
		e, err := b64.DecodeString(key.E)
		if err != nil {
			return nil, "", err
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}, key.Kid, nil
	}
	return nil, "", errors.New("no key that may encrypt")
}
