package maatest

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"github.com/sesame-init/sesame/attest"
)

// tokenLifetime is the lifetime of MAA's tokens, always.
const tokenLifetime = 8 * time.Hour

// defaultPolicyHash is x-ms-policy-hash under MAA's default policy of version 1.0.
const defaultPolicyHash = "bROrN897ZfWmWY2V0FLUlu3uwk5xatGnKYHn3zBbSlw"

var attestVersions = []string{"2020-10-01", "2022-08-01", "2025-06-01"}

func bad(code, message string) *refusal {
	return &refusal{status: http.StatusBadRequest, code: code, message: message}
}

// attest is POST /attest/SgxEnclave.
func (c *Cloud) attest(r *http.Request) (any, *refusal) {
	if !slices.Contains(attestVersions, r.URL.Query().Get("api-version")) {
		return nil, bad("InvalidParameter", "The api-version is not supported.")
	}
	var request struct {
		Quote       string `json:"quote"`
		RuntimeData *struct {
			Data     string `json:"data"`
			DataType string `json:"dataType"`
		} `json:"runtimeData"`
		Draft string `json:"draftPolicyForAttestation"`
		Nonce string `json:"nonce"`
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		return nil, bad("InvalidParameter", "The body is not JSON.")
	}
	quote, err := flexible(request.Quote)
	if err != nil || len(quote) == 0 {
		return nil, bad("InvalidParameter", "The quote is not base64.")
	}
	claims, err := c.config.Verifier.Verify(r.Context(), attest.Evidence{Type: attest.SGX, Raw: quote}, c.config.Now())
	if err != nil {
		return nil, bad("InvalidParameter", "Quote verification failed: "+err.Error())
	}
	payload := c.claims(issuerOf(r), quote, claims)
	if request.Nonce != "" {
		payload["nonce"] = request.Nonce
	}
	if d := request.RuntimeData; d != nil {
		data, err := flexible(d.Data)
		if err != nil {
			return nil, bad("InvalidParameter", "The runtime data is not base64.")
		}
		sum := sha256.Sum256(data)
		if !bytes.Equal(sum[:], claims.ReportData[:32]) {
			return nil, bad("InvalidParameter", "The SHA-256 hash of the runtime data does not match the quote's report data.")
		}
		switch d.DataType {
		case "JSON":
			var object map[string]any
			if err := json.Unmarshal(bytes.TrimRight(data, "\x00"), &object); err != nil {
				return nil, bad("InvalidParameter", "The runtime data is not JSON.")
			}
			payload["x-ms-runtime"] = object
		case "Binary":
			for _, name := range []string{"x-ms-sgx-ehd", "aas-ehd", "maa-ehd"} {
				payload[name] = b64.EncodeToString(data)
			}
		default:
			return nil, bad("InvalidParameter", "The data type is not one of JSON and Binary.")
		}
	}
	token, err := c.token(issuerOf(r), payload, request.Draft != "")
	if err != nil {
		return nil, &refusal{status: http.StatusInternalServerError, code: "InternalError", message: err.Error()}
	}
	if c.config.Attack == EmptyToken {
		token = ""
	}
	return map[string]string{"token": token}, nil
}

// claims are those that MAA makes of every enclave under its default policy, deprecated twins included.
func (c *Cloud) claims(issuer string, quote []byte, claims attest.Claims) map[string]any {
	s := claims.SGX
	mrenclave, mrsigner := hex.EncodeToString(s.MREnclave[:]), hex.EncodeToString(s.MRSigner[:])
	now := c.config.Now()
	hash := sha256.Sum256(quote)
	collateral := map[string]string{"quotehash": hex.EncodeToString(hash[:])}
	return map[string]any{
		"iss": issuer, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(tokenLifetime).Unix(),
		"jti":      hex.EncodeToString(hash[:]),
		"x-ms-ver": "1.0", "x-ms-attestation-type": "sgx", "x-ms-policy-hash": defaultPolicyHash,
		"x-ms-sgx-is-debuggable": s.Debug(), "x-ms-sgx-product-id": s.ProductID, "x-ms-sgx-svn": s.SVN,
		"x-ms-sgx-mrenclave": mrenclave, "x-ms-sgx-mrsigner": mrsigner,
		"x-ms-sgx-report-data": hex.EncodeToString(claims.ReportData[:]), "x-ms-sgx-collateral": collateral,
		"is-debuggable": s.Debug(), "product-id": s.ProductID, "svn": s.SVN, "sgx-mrenclave": mrenclave,
		"sgx-mrsigner": mrsigner, "tee": "sgx", "maa-attestationcollateral": collateral,
	}
}

// token signs the claims, as the attack wants it.
func (c *Cloud) token(issuer string, claims map[string]any, draft bool) (string, error) {
	signer, err := c.instanceOf(issuer)
	if err != nil {
		return "", err
	}
	header := map[string]any{"alg": "RS256", "jku": issuer + "/certs", "kid": signer.kid, "typ": "JWT"}
	if draft {
		header["alg"] = "none"
	}
	now := c.config.Now()
	other := hex.EncodeToString(bytes.Repeat([]byte{0xee}, 32))
	key := c.config.PKI.tokens
	switch c.config.Attack {
	case OtherQuote:
		claims["x-ms-sgx-report-data"] = other + other
	case OtherEnclave:
		claims["x-ms-sgx-mrenclave"] = other
	case OtherKey:
		claims["x-ms-runtime"] = map[string]any{"keys": []any{c.config.PKI.othersJWK()}}
	case NoKey:
		delete(claims, "x-ms-runtime")
	case UnsignedToken:
		header["alg"] = "none"
	case SymmetricToken:
		header["alg"] = "HS256"
	case CriticalToken:
		header["crit"] = []string{"exp"}
	case ForeignKeySet:
		header["jku"] = "https://elsewhere.example/certs"
	case ForeignIssuer:
		claims["iss"] = "https://elsewhere.example"
	case ExpiredToken:
		claims["exp"] = now.Add(-2 * time.Minute).Unix()
	case FutureToken:
		claims["nbf"] = now.Add(2 * time.Minute).Unix()
	case MachineToken:
		claims["x-ms-attestation-type"] = "sevsnpvm"
	case DebugToken:
		claims["x-ms-sgx-is-debuggable"] = true
	case UnknownTokenKey:
		header["kid"] = "unknown"
	case WrongSignature:
		key = c.config.PKI.other
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	if c.config.Attack == RepeatedMember {
		payload = append(payload[:len(payload)-1], `,"X-MS-VER":"1.0"}`...)
	}
	return sign(key, header, payload)
}

// issuerOf is the instance that was asked, by the name it was asked by.
func issuerOf(r *http.Request) string { return "https://" + r.Host }

func (c *Cloud) instanceOf(issuer string) (*instance, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.instance[issuer] == nil {
		made, err := c.config.PKI.newInstance(issuer, c.config.Now())
		if err != nil {
			return nil, err
		}
		c.instance[issuer] = made
	}
	return c.instance[issuer], nil
}

// certs is GET /certs: certificates only, without the keys' numbers.
func (c *Cloud) certs(r *http.Request) (any, *refusal) {
	i, err := c.instanceOf(issuerOf(r))
	if err != nil {
		return nil, &refusal{status: http.StatusInternalServerError, code: "InternalError", message: err.Error()}
	}
	return map[string]any{"keys": []any{
		map[string]any{"kid": i.kid, "kty": "RSA", "x5c": []string{base64.StdEncoding.EncodeToString(i.certificate)}},
	}}, nil
}

// metadata is GET /.well-known/openid-configuration.
func (c *Cloud) metadata(r *http.Request) (any, *refusal) {
	issuer := issuerOf(r)
	return map[string]any{
		"issuer": issuer, "jwks_uri": issuer + "/certs", "response_types_supported": []string{"token", "none"},
		"id_token_signing_alg_values_supported": []string{"RS256"},
	}, nil
}
