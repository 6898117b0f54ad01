package maa

import (
	"encoding/base64"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
	"github.com/sesame-init/sesame/internal/kind"
	"github.com/sesame-init/sesame/internal/pki"
)

// Kind is the backend "maa", Microsoft Azure Attestation with Azure Key Vault or Managed HSM: docs/backends/maa.md is the
// manual of its block.
func Kind() kind.Kind {
	return kind.Kind{Name: "maa", New: func() kind.Block { return &block{} }}
}

// TokenKind is the backend "maa-token", the drop-in for Occlum's maa_init, in the same manual.
func TokenKind() kind.Kind {
	return kind.Kind{Name: "maa-token", New: func() kind.Block { return &tokenBlock{} }}
}

// block is measured: anyone who could choose instance, vault and keys would choose the secrets.
type block struct {
	Endpoint string `json:"endpoint"` // of MAA, "https://name.region.attest.azure.net"
	Vault    string `json:"vault"`    // "https://name.vault.azure.net" or "https://name.managedhsm.azure.net"
	// Keys says which key of the vault gives which secret, by the name that root, volumes and secrets use.
	Keys map[string]Key `json:"keys"`
	// AAD says how to get an access token for the vault. What it leaves empty of tenant, client_id and file the host may
	// give.
	AAD AAD `json:"aad"`
	// TLSRoots is a PEM file in the initfs with the roots of all these services; "sesame maa roots" prints them.
	TLSRoots string `json:"tls_roots"`

	Resource      string `json:"resource,omitempty"`        // for the access token; default by the vault's name
	APIVersion    string `json:"api_version,omitempty"`     // of MAA
	KeyAPIVersion string `json:"key_api_version,omitempty"` // of Key Vault
	KeyBits       *int   `json:"key_bits,omitempty"`        // of the RSA key made at every boot, default 2048
}

// tokenBlock saves a token and a quote in the root and releases no key. What it leaves empty the host may choose, as in
// Occlum's own: the token then proves nothing of what the application holds.
type tokenBlock struct {
	Endpoint   string `json:"endpoint,omitempty"`    // default MAA_PROVIDER_URL, then [defaultEndpoint]
	ReportData string `json:"report_data,omitempty"` // what the token holds, in base64; default MAA_REPORT_DATA
	Path       string `json:"path,omitempty"`        // directory of the files token and quote_base64; default MAA_TOKEN_PATH, then /root
	TLSRoots   string `json:"tls_roots"`

	remarks []string // on what the host gave
}

const (
	// defaultEndpoint is the instance that Occlum's maa_init asks if no other is named.
	defaultEndpoint = "https://shareduks.uks.attest.azure.net"
	defaultTokenDir = "/root"
)

// checkQuotes refuses evidence that is not sent to MAA here.
func checkQuotes(use kind.Use, bad kind.Report) {
	if use.Evidence != "" && use.Evidence != attest.SGX {
		bad("attester", fmt.Sprintf("evidence of %q is not sent to MAA here", use.Evidence), `"sgx", or another backend`)
	}
}

func checkRoots(use kind.Use, bad kind.Report, name string) {
	use.CheckCertificates(bad, "tls_roots", name, `a PEM file in the initfs; "sesame maa roots" prints Azure's roots`)
}

// Check implements [kind.Block].
func (b *block) Check(use kind.Use, bad kind.Report) {
	checkQuotes(use, bad)
	bad = bad.In("maa")
	for _, name := range use.Secrets {
		if _, ok := b.Keys[name]; !ok && len(b.Keys) > 0 {
			bad("keys", fmt.Sprintf("does not name %q, which root, volumes or secrets ask for", name), "the key of the vault that gives it")
		}
	}
	if b.KeyBits != nil && *b.KeyBits == 0 {
		bad("key_bits", "is 0", "2048, 3072 or 4096")
	}
	c := b.config()
	c.check(!use.Opening, bad)
	checkRoots(use, bad, b.TLSRoots)
}

func (b *block) config() Config {
	c := Config{
		Endpoint: b.Endpoint, Vault: b.Vault, Resource: b.Resource, Keys: b.Keys, AAD: b.AAD,
		APIVersion: b.APIVersion, KeyAPIVersion: b.KeyAPIVersion,
	}
	if b.KeyBits != nil {
		c.KeyBits = *b.KeyBits
	}
	return c
}

// check has the rules, under the keys of the block. If hostFills, the host may still give what is missing.
func (c *Config) check(hostFills bool, bad kind.Report) {
	for key, address := range map[string]string{"endpoint": c.Endpoint, "vault": c.Vault} {
		if err := checkURL(address); err != nil {
			bad(key, err.Error(), `"https://host"`)
		}
	}
	if len(c.Keys) == 0 {
		bad("keys", "is missing", "which key of the vault gives which secret")
	}
	for name, key := range c.Keys {
		if err := key.Validate(); err != nil {
			bad("keys."+name, err.Error(), "name, version and blob as the vault and \"sesame maa wrap\" give them")
		}
	}
	if err := c.AAD.Validate(hostFills); err != nil {
		bad("aad", err.Error(), attest.HintOf(err))
	}
	switch c.KeyBits {
	case 0, 2048, 3072, 4096:
	default:
		bad("key_bits", fmt.Sprintf("is %d", c.KeyBits), "2048, 3072 or 4096")
	}
}

// Open implements [kind.Block].
func (b *block) Open(env kind.Env) (backend.Backend, error) {
	if err := kind.Check("maa", b, env.Use); err != nil {
		return nil, err
	}
	c := b.config()
	c.Attester = env.Attester
	var err error
	if c.Network, err = network(env, b.TLSRoots); err != nil {
		return nil, err
	}
	return New(c)
}

// network is how Azure is reached.
func network(env kind.Env, roots string) (Network, error) {
	certificates, err := env.Certificates(roots)
	if err != nil {
		return Network{}, attest.Errorf(attest.CodeConfig, "reading tls_roots", "Put the PEM file into the initfs before the build.", "%w", err)
	}
	return Network{Roots: pki.Pool(certificates), Now: env.Now, Logger: env.Logger}, nil
}

// Host implements [kind.Block].
func (*block) Host() map[string]string {
	return map[string]string{
		"AZURE_TENANT_ID":            "tenant of maa.aad, if the config names none",
		"AZURE_CLIENT_ID":            "client id of maa.aad, if the config names none",
		"AZURE_FEDERATED_TOKEN_FILE": "file of maa.aad in mode workload-identity, if the config names none",
		"AZURE_FEDERATED_TOKEN":      "the federated token itself, if no file is named",
		"AZURE_CLIENT_SECRET":        "the client secret of maa.aad, if no file is named",
		"AZURE_ACCESS_TOKEN":         "the access token of maa.aad in mode token, if no file is named",
	}
}

// Apply implements [kind.Block]. It fills in what the config leaves empty of the identity.
func (b *block) Apply(getenv func(string) string) {
	a := &b.AAD
	fill(&a.Tenant, getenv("AZURE_TENANT_ID"))
	fill(&a.ClientID, getenv("AZURE_CLIENT_ID"))
	credential := map[string]string{
		"workload-identity": getenv("AZURE_FEDERATED_TOKEN"), "client-secret": getenv("AZURE_CLIENT_SECRET"), "token": getenv("AZURE_ACCESS_TOKEN"),
	}[a.Mode]
	if file := getenv("AZURE_FEDERATED_TOKEN_FILE"); a.Mode == "workload-identity" && credential == "" {
		fill(&a.File, file)
	}
	if a.File == "" && credential != "" {
		a.Credential = attest.NewSecret([]byte(credential))
	}
}

// Remarks implements [kind.Block].
func (*block) Remarks() []string { return nil }

// Files implements [kind.Block].
func (b *block) Files() map[string]string { return map[string]string{"maa.tls_roots": b.TLSRoots} }

// Check implements [kind.Block].
func (b *tokenBlock) Check(use kind.Use, bad kind.Report) {
	checkQuotes(use, bad)
	if len(use.Secrets) > 0 {
		bad("backend", `"maa-token" saves a token and releases no key, but root.key, volumes or secrets ask for secrets`, `"maa"`)
	}
	if use.AppBinding == attest.BindingLegacy {
		bad("app_tls.binding", `"legacy" is used with the backend "maa-token": both make quotes that bind what others must tell apart`,
			"nothing")
	}
	bad = bad.In("maa_token")
	if data, err := base64.StdEncoding.DecodeString(b.ReportData); err != nil {
		bad("report_data", "is not base64 or too long", fmt.Sprintf("1 to %d bytes in standard base64", MaxReportData))
	} else {
		c := TokenConfig{Endpoint: b.Endpoint, ReportData: data}
		c.check(!use.Opening, bad)
	}
	if b.Path != "" && !cleanAbsolute(b.Path) {
		bad("path", fmt.Sprintf("%q is not an absolute path", b.Path), "a directory in the root")
	}
	checkRoots(use, bad, b.TLSRoots)
}

// check has the rules, under the keys of the block. If hostFills, the host may still give what is missing.
func (c *TokenConfig) check(hostFills bool, bad kind.Report) {
	if err := checkURL(c.Endpoint); err != nil && (c.Endpoint != "" || !hostFills) {
		bad("endpoint", err.Error(), `"https://host"; the host gives it in MAA_PROVIDER_URL`)
	}
	if n := len(c.ReportData); n > MaxReportData || n == 0 && !hostFills {
		bad("report_data", fmt.Sprintf("has %d bytes", n),
			fmt.Sprintf("1 to %d bytes in base64, of larger data a hash; the host gives it in MAA_REPORT_DATA", MaxReportData))
	}
}

// Open implements [kind.Block].
func (b *tokenBlock) Open(env kind.Env) (backend.Backend, error) {
	if err := kind.Check("maa-token", b, env.Use); err != nil {
		return nil, err
	}
	network, err := network(env, b.TLSRoots)
	if err != nil {
		return nil, err
	}
	data, err := base64.StdEncoding.DecodeString(b.ReportData)
	if err != nil {
		return nil, err
	}
	return NewTokenOnly(TokenConfig{Endpoint: b.Endpoint, ReportData: data, Attester: env.Attester, Network: network})
}

// Host implements [kind.Block].
func (*tokenBlock) Host() map[string]string {
	return map[string]string{
		"MAA_PROVIDER_URL": "instance of backend maa-token, if the config names none",
		"MAA_REPORT_DATA":  "what the token of backend maa-token holds, behind a label, in base64, if the config names nothing",
		"MAA_TOKEN_PATH":   "directory of the files of backend maa-token, if the config names none",
	}
}

// Apply implements [kind.Block]. It fills in what the config leaves empty.
func (b *tokenBlock) Apply(getenv func(string) string) {
	b.remarks = slices.Clip(b.Remarks())
	fill(&b.Endpoint, getenv("MAA_PROVIDER_URL"))
	fill(&b.Endpoint, defaultEndpoint)
	fill(&b.ReportData, getenv("MAA_REPORT_DATA"))
	if dir := getenv("MAA_TOKEN_PATH"); dir != "" && !cleanAbsolute(dir) {
		b.remarks = append(b.remarks, "MAA_TOKEN_PATH is not an absolute path and does not count")
	} else {
		fill(&b.Path, dir)
	}
	fill(&b.Path, defaultTokenDir)
}

// Remarks implements [kind.Block].
func (b *tokenBlock) Remarks() []string {
	if b.remarks != nil {
		return b.remarks
	}
	remarks := []string{"maa-token saves a token of MAA and releases no key"}
	if b.ReportData == "" {
		remarks = append(remarks, "the host chooses what the token of MAA holds: it proves nothing of what the application holds")
	}
	return remarks
}

// Files implements [kind.Block].
func (b *tokenBlock) Files() map[string]string {
	return map[string]string{"maa_token.tls_roots": b.TLSRoots}
}

// Published implements [kind.Publisher].
func (b *tokenBlock) Published() map[string]string {
	return map[string]string{TokenFile: path.Join(b.Path, TokenFile), QuoteFile: path.Join(b.Path, QuoteFile)}
}

func fill(to *string, value string) {
	if *to == "" {
		*to = value
	}
}

func cleanAbsolute(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && !strings.ContainsRune(p, 0)
}
