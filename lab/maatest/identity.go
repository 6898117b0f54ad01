package maatest

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"strings"
)

// entraToken is POST /{tenant}/oauth2/v2.0/token, the client credentials flow with a secret or a federated token.
func (c *Cloud) entraToken(r *http.Request) (any, *refusal) {
	who := c.config.Identity
	if r.PathValue("tenant") != who.Tenant {
		return nil, bad("invalid_request", "AADSTS90002: Tenant '"+r.PathValue("tenant")+"' not found.")
	}
	if err := r.ParseForm(); err != nil || r.PostForm.Get("grant_type") != "client_credentials" {
		return nil, bad("unsupported_grant_type", "AADSTS70003: The app requested an unsupported grant type.")
	}
	resource, ok := strings.CutSuffix(r.PostForm.Get("scope"), "/.default")
	if !ok || !isVaultResource(resource) {
		return nil, bad("invalid_scope", "AADSTS1002012: The provided value for scope is not valid.")
	}
	if r.PostForm.Get("client_id") != who.ClientID {
		return nil, bad("unauthorized_client", "AADSTS700016: Application was not found in the directory.")
	}
	given, want, wrong := r.PostForm.Get("client_secret"), who.Secret, "AADSTS7000215: Invalid client secret provided: "
	if r.PostForm.Get("client_assertion_type") == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" {
		given, want = r.PostForm.Get("client_assertion"), who.FederatedToken
		wrong = "AADSTS70021: No matching federated identity record found for presented assertion: "
	}
	if want == "" || subtle.ConstantTimeCompare([]byte(given), []byte(want)) != 1 {
		// Worse than the real service: it repeats the credential, to see who prints it.
		return nil, &refusal{status: http.StatusUnauthorized, code: "invalid_client", message: wrong + given}
	}
	return c.newAccess(resource), nil
}

// managedToken is GET /metadata/identity/oauth2/token of the instance metadata service.
func (c *Cloud) managedToken(r *http.Request) (any, *refusal) {
	query := r.URL.Query()
	switch {
	case r.Header.Get("Metadata") != "true" || r.Header.Get("X-Forwarded-For") != "":
		return nil, bad("invalid_request", "Required metadata header not specified")
	case query.Get("api-version") != "2018-02-01":
		return nil, bad("invalid_request", "The api-version is not supported")
	case !isVaultResource(query.Get("resource")):
		return nil, bad("invalid_resource", "AADSTS500011: The resource principal was not found in the tenant.")
	case query.Get("client_id") != "" && query.Get("client_id") != c.config.Identity.ClientID:
		return nil, bad("invalid_request", "Identity not found")
	}
	return c.newAccess(query.Get("resource")), nil
}

func isVaultResource(resource string) bool {
	return resource == "https://vault.azure.net" || resource == "https://managedhsm.azure.net"
}

// NewAccessToken is an access token for a resource, as an operator gets it by "az account get-access-token".
func (c *Cloud) NewAccessToken(resource string) string {
	secret := make([]byte, 24)
	_, _ = rand.Read(secret)
	token := "eyJ0eXAiOiJKV1QifQ." + hex.EncodeToString(secret) + ".c2lnbmF0dXJl"
	c.mu.Lock()
	defer c.mu.Unlock()
	c.access[token] = resource
	return token
}

func (c *Cloud) newAccess(resource string) any {
	return map[string]any{"token_type": "Bearer", "expires_in": 3599, "access_token": c.NewAccessToken(resource)}
}

// authorised checks the bearer token of a request to the vault.
func (c *Cloud) authorised(r *http.Request) *refusal {
	resource := resourceOf(r.Host)
	challenge := &refusal{status: http.StatusUnauthorized, code: "Unauthorized",
		message:      "AKV10000: Request is missing a Bearer or PoP token.",
		authenticate: `Bearer authorization="https://login.microsoftonline.com/` + c.config.Identity.Tenant + `", resource="` + resource + `"`}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return challenge
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if given, ok := c.access[token]; !ok || given != resource {
		challenge.message = "AKV10022: Invalid audience, or expired token: " + token
		return challenge
	}
	return nil
}

func resourceOf(host string) string {
	if isHSM(host) {
		return "https://managedhsm.azure.net"
	}
	return "https://vault.azure.net"
}

func isHSM(host string) bool { return strings.Contains(host, ".managedhsm.azure.net") }
