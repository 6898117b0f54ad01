package maa

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/sesame-init/sesame/attest"
)

// AAD says how to get an access token for the vault. The token authorises, it does not protect: whoever steals it
// still needs the enclave's key and a token of MAA that satisfies the release policy. So all of this may come
// from the host.
type AAD struct {
	// Mode is "workload-identity", "managed-identity", "client-secret" or "token".
	Mode string `json:"mode"`
	// Tenant and ClientID name the identity. Managed identity takes ClientID only, for a user-assigned one.
	Tenant   string `json:"tenant,omitempty"`
	ClientID string `json:"client_id,omitempty"`
	// File holds the federated token, the client secret or the access token. It is read anew for every request,
	// as its content may rotate.
	File string `json:"file,omitempty"`
	// Authority is the token service, default https://login.microsoftonline.com/.
	Authority string `json:"authority,omitempty"`
	// Metadata is the address of the instance metadata service, default http://169.254.169.254.
	Metadata string `json:"metadata,omitempty"`
}

const (
	defaultAuthority = "https://login.microsoftonline.com/"
	defaultMetadata  = "http://169.254.169.254"
	assertionType    = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	maxCredential    = 64 << 10
)

// validate reports what is missing.
func (a *AAD) validate() error {
	missing := func(key string) error {
		return attest.Errorf(attest.CodeConfig, "reading maa.aad", "Fill in the key.", "%s is missing for mode %q", key, a.Mode)
	}
	switch a.Mode {
	case "managed-identity":
		return nil
	case "token":
	case "workload-identity", "client-secret":
		if a.Tenant == "" {
			return missing("tenant")
		}
		if a.ClientID == "" {
			return missing("client_id")
		}
	default:
		return attest.Errorf(attest.CodeConfig, "reading maa.aad",
			`Write "workload-identity", "managed-identity", "client-secret" or "token".`, "mode is %q", a.Mode)
	}
	if a.File == "" {
		return missing("file")
	}
	return nil
}

// accessToken gets a token for resource, "https://vault.azure.net" or "https://managedhsm.azure.net".
func (b *Backend) accessToken(ctx context.Context, resource string) (attest.Secret, error) {
	a := &b.config.AAD
	if a.Mode == "token" {
		return readCredential(a.File)
	}
	c := call{advise: func(int, serviceError) (attest.Code, string) {
		return attest.CodeDenied, "Check tenant, client id and credential of maa.aad, and that the identity exists."
	}}
	if a.Mode == "managed-identity" {
		query := url.Values{"api-version": {"2018-02-01"}, "resource": {resource}}
		if a.ClientID != "" {
			query.Set("client_id", a.ClientID)
		}
		c.method, c.url = http.MethodGet, withDefault(a.Metadata, defaultMetadata)+"/metadata/identity/oauth2/token?"+query.Encode()
		c.header = http.Header{"Metadata": {"true"}}
	} else {
		credential, err := readCredential(a.File)
		if err != nil {
			return attest.Secret{}, err
		}
		defer credential.Wipe()
		form := url.Values{"grant_type": {"client_credentials"}, "client_id": {a.ClientID}, "scope": {resource + "/.default"}}
		if a.Mode == "workload-identity" {
			form.Set("client_assertion_type", assertionType)
			form.Set("client_assertion", string(credential.Expose()))
		} else {
			form.Set("client_secret", string(credential.Expose()))
		}
		authority := strings.TrimSuffix(withDefault(a.Authority, defaultAuthority), "/")
		c.method, c.url = http.MethodPost, authority+"/"+url.PathEscape(a.Tenant)+"/oauth2/v2.0/token"
		c.header = http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
		c.body = []byte(form.Encode())
	}
	body, err := b.service("the identity service").do(ctx, c)
	if err != nil {
		return attest.Secret{}, err
	}
	defer clear(body)
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if json.Unmarshal(body, &answer) != nil || answer.AccessToken == "" {
		return attest.Secret{}, attest.Errorf(attest.CodeDenied, "asking the identity service",
			"The address is not that of a token service.", "the answer holds no access_token")
	}
	return attest.NewSecret([]byte(answer.AccessToken)), nil
}

func readCredential(name string) (attest.Secret, error) {
	text, err := os.ReadFile(name)
	if err == nil && len(text) > maxCredential {
		clear(text)
		err = os.ErrInvalid
	}
	if err != nil {
		return attest.Secret{}, attest.Errorf(attest.CodeConfig, "reading maa.aad.file",
			"Mount the file where the enclave can see it, or correct the path.", "%w", err)
	}
	for len(text) > 0 && (text[len(text)-1] == '\n' || text[len(text)-1] == '\r') {
		text = text[:len(text)-1]
	}
	return attest.NewSecret(text), nil
}

func withDefault(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}
