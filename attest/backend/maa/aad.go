package maa

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/boundedfile"
)

// AAD says how to get an access token for the vault. The token authorises, it does not protect: anyone who steals it
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
	// Authority is the token service, default https://login.microsoftonline.com/. It is measured and never the
	// host's to choose: credentials go there.
	Authority string `json:"authority,omitempty"`
	// Metadata is the address of the instance metadata service, default http://169.254.169.254.
	Metadata string `json:"metadata,omitempty"`

	// Credential counts if File is empty: what the file would hold, for environments that see no files of the
	// host, such as Occlum's init.
	Credential attest.Secret `json:"-"`
}

const (
	defaultAuthority = "https://login.microsoftonline.com/"
	defaultMetadata  = "http://169.254.169.254"
	assertionType    = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	maxCredential    = 64 << 10
)

// Validate reports what is missing; with hostFills, what the host may still give may be.
func (a *AAD) Validate(hostFills bool) error {
	missing := func(key string) error {
		return attest.Errorf(attest.CodeConfig, "reading maa.aad", "Fill in the key, or let the host give it by the environment variable "+
			"that init's manual names.", "%s is missing for mode %q", key, a.Mode)
	}
	if u, err := url.Parse(a.Authority); err != nil || a.Authority != "" && (u.Scheme != "https" || u.Host == "") {
		return attest.Errorf(attest.CodeConfig, "reading maa.aad", "Write https://host/.", "authority is %q", a.Authority)
	}
	switch a.Mode {
	case "managed-identity":
		return nil
	case "token":
	case "workload-identity", "client-secret":
		if a.Tenant == "" && !hostFills {
			return missing("tenant")
		}
		if a.ClientID == "" && !hostFills {
			return missing("client_id")
		}
	default:
		return attest.Errorf(attest.CodeConfig, "reading maa.aad",
			`Write "workload-identity", "managed-identity", "client-secret" or "token".`, "mode is %q", a.Mode)
	}
	if a.File == "" && a.Credential.Len() == 0 && !hostFills {
		return missing("file")
	}
	return nil
}

// accessToken gets a token for the vault.
func (b *Backend) accessToken(ctx context.Context) (attest.Secret, error) {
	a := &b.config.AAD
	if a.Mode == "token" {
		return a.credential()
	}
	c := call{service: "the identity service", advise: adviseIdentity}
	if a.Mode == "managed-identity" {
		c.managedIdentity(a, b.config.Resource)
	} else {
		credential, err := a.credential()
		if err != nil {
			return attest.Secret{}, err
		}
		defer credential.Wipe()
		c.clientCredentials(a, b.config.Resource, credential)
		defer clear(c.body)
	}
	body, err := b.config.Network.do(ctx, c)
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

// managedIdentity asks the instance metadata service, which is busy while an identity is being assigned and then
// says 404 or 410 ("How to use managed identities for Azure resources to acquire an access token", retry guidance).
func (c *call) managedIdentity(a *AAD, resource string) {
	query := url.Values{"api-version": {"2018-02-01"}, "resource": {resource}}
	if a.ClientID != "" {
		query.Set("client_id", a.ClientID)
	}
	c.method, c.url = http.MethodGet, withDefault(a.Metadata, defaultMetadata)+"/metadata/identity/oauth2/token?"+query.Encode()
	c.header = http.Header{"Metadata": {"true"}}
	c.again = func(status int) bool { return status == http.StatusNotFound || status == http.StatusGone }
}

// clientCredentials asks Entra for a token by a secret or a federated token (OAuth 2.0 client credentials flow).
func (c *call) clientCredentials(a *AAD, resource string, credential attest.Secret) {
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
	c.body, c.hide = []byte(form.Encode()), []attest.Secret{credential}
}

// adviseIdentity knows the refusals of Entra (its AADSTS codes) and of the metadata service.
func adviseIdentity(status int, e serviceError) (attest.Code, string) {
	switch {
	case e.is("invalid_client") && e.says("AADSTS7000215"):
		return attest.CodeDenied, "The client secret is wrong: give its value, not its id, and check that it has not expired."
	case e.is("invalid_client") && (e.says("AADSTS70021") || e.says("AADSTS700213")):
		return attest.CodeDenied, "No federated credential of the identity matches this token: compare issuer, subject and audience " +
			"(api://AzureADTokenExchange) with the pod's service account."
	case e.is("invalid_client"):
		return attest.CodeDenied, "Entra does not take the credential: a federated token lives for an hour, a client secret expires, too."
	case e.is("unauthorized_client"), e.says("AADSTS90002"), e.says("AADSTS700016"):
		return attest.CodeDenied, "Entra knows no such client in this tenant: check maa.aad.tenant and maa.aad.client_id."
	case e.is("invalid_resource"), e.is("invalid_scope"):
		return attest.CodeDenied, "Entra gives no tokens for this resource: check maa.resource, https://vault.azure.net or https://managedhsm.azure.net."
	case e.is("invalid_request") && e.says("Identity not found"):
		return attest.CodeDenied, "The machine has no such managed identity: assign one to it, or name the user-assigned one by maa.aad.client_id."
	case status == http.StatusForbidden:
		return attest.CodeDenied, "The metadata service is closed to this workload, by a network policy or a proxy."
	}
	return attest.CodeDenied, "Check tenant, client id and credential of maa.aad, and that the identity exists."
}

// credential is a copy, read anew.
func (a *AAD) credential() (attest.Secret, error) {
	if a.File == "" {
		return attest.NewSecret(bytes.Clone(a.Credential.Expose())), nil
	}
	const step = "reading maa.aad.file"
	const hint = "Mount the file where the enclave can see it, or correct the path."
	text, err := boundedfile.Read(a.File, maxCredential)
	if err == nil && len(text) == 0 {
		err = errors.New("it is empty")
	}
	if err != nil {
		return attest.Secret{}, attest.Errorf(attest.CodeConfig, step, hint, "%w", err)
	}
	return attest.NewSecret(bytes.TrimRight(text, "\r\n")), nil
}
