package config

import (
	"encoding/base64"
	"fmt"
	"maps"
	"path"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/maa"
)

// MAA configures Microsoft Azure Attestation with Azure Key Vault or Managed HSM (package attest/backend/maa says what
// the flow protects). Instance, vault and keys are measured: anyone who could choose them would choose the secrets.
type MAA struct {
	Endpoint string `json:"endpoint"` // of MAA, "https://name.region.attest.azure.net"
	Vault    string `json:"vault"`    // "https://name.vault.azure.net" or "https://name.managedhsm.azure.net"
	// Keys says which key of the vault gives which secret, by the name that root, volumes and secrets use.
	Keys map[string]maa.Key `json:"keys"`
	// AAD says how to get an access token for the vault. What it leaves empty of tenant, client_id and file the host may
	// give, see [HostEnvironment].
	AAD maa.AAD `json:"aad"`
	// TLSRoots is a PEM file in the initfs with the roots of all these services; "sesame maa roots" prints them.
	TLSRoots string `json:"tls_roots"`

	Resource      string `json:"resource,omitempty"`        // for the access token; default by the vault's name
	APIVersion    string `json:"api_version,omitempty"`     // of MAA
	KeyAPIVersion string `json:"key_api_version,omitempty"` // of Key Vault
	KeyBits       *int   `json:"key_bits,omitempty"`        // of the RSA key made at every boot, default 2048
}

// MAAToken configures the drop-in for Occlum's maa_init, the backend "maa-token": it saves a token and a quote in the root
// and releases no key. What it leaves empty the host may choose, as in Occlum's own: the token then proves nothing of
// what the application holds. Unlike Occlum's, what is attested begins with a label: docs/backends/maa.md.
type MAAToken struct {
	Endpoint   string `json:"endpoint,omitempty"`    // default MAA_PROVIDER_URL, then [DefaultMAA]
	ReportData string `json:"report_data,omitempty"` // what the token holds, in base64; default MAA_REPORT_DATA
	Path       string `json:"path,omitempty"`        // directory of the files token and quote_base64; default MAA_TOKEN_PATH, then /root
	TLSRoots   string `json:"tls_roots"`             // as in [MAA]
}

// DefaultMAA is the instance that Occlum's maa_init asks if no other is named.
const DefaultMAA = "https://shareduks.uks.attest.azure.net"

const defaultTokenDir = "/root"

func (c *Config) completeMAA(bad func(key, text, write string)) {
	m := c.MAA
	if m == nil {
		bad("maa", "is missing", "the block with endpoint, vault, keys, aad and tls_roots")
		return
	}
	c.checkQuotes(bad)
	for key, address := range map[string]string{"maa.endpoint": m.Endpoint, "maa.vault": m.Vault} {
		if err := maa.CheckURL(address); err != nil {
			bad(key, err.Error(), `"https://host"`)
		}
	}
	for _, name := range c.SecretNames() {
		if _, ok := m.Keys[name]; !ok {
			bad("maa.keys", fmt.Sprintf("does not name %q, which root, volumes or secrets ask for", name), "the key of the vault that gives it")
		}
	}
	for name, key := range m.Keys {
		if err := key.Validate(); err != nil {
			bad("maa.keys."+name, err.Error(), "name, version and blob as the vault and \"sesame maa wrap\" give them")
		}
	}
	if err := m.AAD.Validate(true); err != nil {
		bad("maa.aad", err.Error(), attest.HintOf(err))
	}
	bits := 2048
	if m.KeyBits == nil {
		m.KeyBits = &bits
	}
	switch *m.KeyBits {
	case 2048, 3072, 4096:
	default:
		bad("maa.key_bits", fmt.Sprintf("is %d", *m.KeyBits), "2048, 3072 or 4096")
	}
	checkRoots("maa.tls_roots", m.TLSRoots, bad)
}

func (c *Config) completeMAAToken(bad func(key, text, write string)) {
	m := c.MAAToken
	if m == nil {
		bad("maa_token", "is missing", "the block with tls_roots")
		return
	}
	c.checkQuotes(bad)
	if c.Root.Key != "" || len(c.Volumes) > 0 || len(c.Secrets) > 0 {
		bad("backend", `"maa-token" saves a token and releases no key, but root.key, volumes or secrets ask for secrets`, `"maa"`)
	}
	if m.Endpoint != "" {
		if err := maa.CheckURL(m.Endpoint); err != nil {
			bad("maa_token.endpoint", err.Error(), `"https://host"`)
		}
	}
	if data, err := base64.StdEncoding.DecodeString(m.ReportData); err != nil || len(data) > maa.MaxReportData {
		bad("maa_token.report_data", "is not base64 or too long", fmt.Sprintf("at most %d bytes in base64", maa.MaxReportData))
	}
	if m.Path != "" && !cleanAbsolute(m.Path) {
		bad("maa_token.path", fmt.Sprintf("%q is not an absolute path", m.Path), "a directory in the root")
	}
	checkRoots("maa_token.tls_roots", m.TLSRoots, bad)
}

func (c *Config) checkQuotes(bad func(key, text, write string)) {
	if c.Attester != "" && c.Attester != attest.SGX {
		bad("attester", fmt.Sprintf("evidence of %q is not sent to MAA here", c.Attester), `"sgx", or another backend`)
	}
}

func checkRoots(key, name string, bad func(key, text, write string)) {
	if !cleanAbsolute(name) {
		bad(key, fmt.Sprintf("%q is not an absolute path", name), `a PEM file in the initfs; "sesame maa roots" prints Azure's roots`)
	}
}

// azureEnvironment is the part of [HostEnvironment] that fills in what maa.aad leaves empty.
var azureEnvironment = map[string]string{
	"AZURE_TENANT_ID":            "tenant of maa.aad, where the config names none",
	"AZURE_CLIENT_ID":            "client id of maa.aad, where the config names none",
	"AZURE_FEDERATED_TOKEN_FILE": "file of maa.aad in mode workload-identity, where the config names none",
	"AZURE_FEDERATED_TOKEN":      "the federated token itself, where no file is named",
	"AZURE_CLIENT_SECRET":        "the client secret of maa.aad, where no file is named",
	"AZURE_ACCESS_TOKEN":         "the access token of maa.aad in mode token, where no file is named",
	"MAA_PROVIDER_URL":           "instance of backend maa-token, where the config names none",
	"MAA_REPORT_DATA":            "what the token of backend maa-token holds, behind a label, in base64, if the config names nothing",
	"MAA_TOKEN_PATH":             "directory of the files of backend maa-token, where the config names none",
}

// withAzure adds them to the others.
func withAzure(others map[string]string) map[string]string {
	all := maps.Clone(others)
	maps.Copy(all, azureEnvironment)
	return all
}

// applyHost fills in what the config leaves empty of the identity.
func (m *MAA) applyHost(given map[string]string) {
	a := &m.AAD
	fill(&a.Tenant, given["AZURE_TENANT_ID"])
	fill(&a.ClientID, given["AZURE_CLIENT_ID"])
	credential := map[string]string{
		"workload-identity": given["AZURE_FEDERATED_TOKEN"], "client-secret": given["AZURE_CLIENT_SECRET"], "token": given["AZURE_ACCESS_TOKEN"],
	}[a.Mode]
	if a.Mode == "workload-identity" && credential == "" {
		fill(&a.File, given["AZURE_FEDERATED_TOKEN_FILE"])
	}
	if a.File == "" && credential != "" {
		a.Credential = attest.NewSecret([]byte(credential))
	}
}

// applyHost fills in what the config leaves empty and returns the files that the backend writes, and what to remark.
func (m *MAAToken) applyHost(given map[string]string) (files []SecretFile, remarks []string) {
	remarks = []string{"maa-token saves a token of MAA and releases no key"}
	if m.ReportData == "" {
		remarks = append(remarks, "the host chooses what the token of MAA holds: it proves nothing of what the application holds")
	}
	fill(&m.Endpoint, given["MAA_PROVIDER_URL"])
	fill(&m.Endpoint, DefaultMAA)
	fill(&m.ReportData, given["MAA_REPORT_DATA"])
	if dir := given["MAA_TOKEN_PATH"]; dir != "" && !cleanAbsolute(dir) {
		remarks = append(remarks, "MAA_TOKEN_PATH is not an absolute path and does not count")
	} else {
		fill(&m.Path, dir)
	}
	fill(&m.Path, defaultTokenDir)
	for _, name := range []string{maa.TokenFile, maa.QuoteFile} {
		files = append(files, SecretFile{Name: name, Path: path.Join(m.Path, name), Mode: 0o444})
	}
	return files, remarks
}

func fill(to *string, value string) {
	if *to == "" {
		*to = value
	}
}
