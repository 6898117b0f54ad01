package config_test

import (
	"strings"
	"testing"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/config"
)

// azure is ours with another word and the blocks of Azure beside the broker's.
var azure = strings.NewReplacer(`"backend": "grpc-ratls",`, `"backend": "maa",
 "maa": {
  "endpoint": "https://sharedweu.weu.attest.azure.net", "vault": "https://models.vault.azure.net",
  "keys": {"image_key": {"name": "image"}, "model_key": {"name": "model", "version": "0123456789abcdef0123456789abcdef"},
           "ssl_config": {"name": "kek", "blob": "AAAAAAAAAAAAAAAAAAAAAA=="}},
  "aad": {"mode": "workload-identity"}, "tls_roots": "/etc/sesame/azure_roots.pem"
 },
 "maa_token": {"tls_roots": "/etc/sesame/azure_roots.pem"},`).Replace(ours)

// dropIn is what takes the place of Occlum's maa_init.
const dropIn = `{"backend": "maa-token", "maa_token": {"tls_roots": "/etc/sesame/azure_roots.pem"}, "root": {}, "collateral": {}}`

func TestTheBackendIsOneWord(t *testing.T) {
	for _, word := range []string{"maa", "grpc-ratls"} {
		c, err := config.Parse([]byte(strings.Replace(azure, `"backend": "maa"`, `"backend": "`+word+`"`, 1)))
		if err != nil {
			t.Fatal(err)
		}
		if c.Backend != word || c.Blocks["maa"] == nil || c.Blocks["grpc-ratls"] == nil || len(c.SecretNames()) != 3 {
			t.Errorf("read %+v", c)
		}
	}
}

func TestAzureIsRefusedWithTheKeyAndWhatToWrite(t *testing.T) {
	for name, c := range map[string]struct{ text, from, to, says string }{
		"no block":             {ours, `"backend": "grpc-ratls"`, `"backend": "maa"`, "maa: is missing"},
		"plain endpoint":       {azure, `https://sharedweu`, `http://sharedweu`, "maa.endpoint"},
		"vault with a path":    {azure, `models.vault.azure.net`, `models.vault.azure.net/keys`, "maa.vault"},
		"secret without a key": {azure, `"image_key": {"name": "image"}, `, ``, `maa.keys: does not name "image_key"`},
		"key with a slash":     {azure, `"name": "image"`, `"name": "a/b"`, "maa.keys.image_key"},
		"odd version":          {azure, `0123456789abcdef0123456789abcdef`, `newest`, "maa.keys.model_key"},
		"blob of no base64":    {azure, `AAAAAAAAAAAAAAAAAAAAAA==`, `?`, "maa.keys.ssl_config"},
		"unknown inner key":    {azure, `"blob"`, `"blop"`, "maa.keys.ssl_config.blop"},
		"unknown mode":         {azure, `workload-identity`, `cli`, "maa.aad"},
		"plain authority":      {azure, `"mode": "workload-identity"`, `"mode": "token", "authority": "http://login.example/"`, "authority"},
		"no roots":             {azure, `"tls_roots": "/etc/sesame/azure_roots.pem"`, `"tls_roots": ""`, "maa.tls_roots"},
		"weak RSA":             {azure, `"aad"`, `"key_bits": 1024, "aad"`, "maa.key_bits"},
		"drop-in, no block":    {dropIn, `"maa_token": {"tls_roots": "/etc/sesame/azure_roots.pem"}, `, ``, "maa_token: is missing"},
		"drop-in, no roots":    {dropIn, `/etc/sesame/azure_roots.pem`, ``, "maa_token.tls_roots"},
		"drop-in with a key":   {dropIn, `"root": {}`, `"root": {"key": "image_key"}`, "releases no key"},
		"drop-in, plain":       {dropIn, `{"tls_roots"`, `{"endpoint": "http://x", "tls_roots"`, "maa_token.endpoint"},
		"drop-in, much data":   {dropIn, `{"tls_roots"`, `{"report_data": "` + strings.Repeat("AAAA", 100) + `", "tls_roots"`, "maa_token.report_data"},
		"drop-in, odd path":    {dropIn, `{"tls_roots"`, `{"path": "../etc", "tls_roots"`, "maa_token.path"},
	} {
		text := strings.Replace(c.text, c.from, c.to, 1)
		if text == c.text {
			t.Fatalf("%s: the case changes nothing", name)
		}
		_, err := config.Parse([]byte(text))
		if err == nil || attest.CodeOf(err) != attest.CodeConfig || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %q does not say %q", name, err, c.says)
		}
	}
}

func TestTheHostFillsInOnlyWhatIsEmpty(t *testing.T) {
	host := map[string]string{
		"AZURE_TENANT_ID": "host-tenant", "AZURE_CLIENT_ID": "host-client", "AZURE_FEDERATED_TOKEN_FILE": "/host/token",
		"AZURE_FEDERATED_TOKEN": "", "AZURE_CLIENT_SECRET": "host-secret", "AZURE_ACCESS_TOKEN": "host-access",
		"MAA_PROVIDER_URL": "https://host.attest.azure.net", "MAA_REPORT_DATA": "aG9zdA==", "MAA_TOKEN_PATH": "/host-dir",
	}
	apply := func(text string) *config.Config {
		t.Helper()
		c, err := config.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		c.ApplyHost(func(name string) string { return host[name] })
		return c
	}
	if a := blockOf(t, apply(azure)).AAD; a.Tenant != "host-tenant" || a.ClientID != "host-client" || a.File != "/host/token" {
		t.Errorf("workload identity by file is %+v", a)
	}
	measured := strings.Replace(azure, `"mode": "workload-identity"`,
		`"mode": "client-secret", "tenant": "t", "client_id": "c", "file": "/f"`, 1)
	c := blockOf(t, apply(measured))
	if a := c.AAD; a.Tenant != "t" || a.ClientID != "c" || a.File != "/f" || a.Authority != "" || a.Metadata != "" {
		t.Errorf("the host changes what is measured: %+v", a)
	}
	if c.Endpoint != "https://sharedweu.weu.attest.azure.net" || c.Vault != "https://models.vault.azure.net" {
		t.Error("the host changes instance or vault")
	}

	m := apply(dropIn)
	if block := blockOf(t, m); block.Endpoint != host["MAA_PROVIDER_URL"] || block.ReportData != "aG9zdA==" {
		t.Errorf("read %+v", block)
	}
	if len(m.Secrets) != 2 || m.Secrets[1].Path != "/host-dir/token" || m.Secrets[0].Path != "/host-dir/quote_base64" {
		t.Errorf("files are %+v", m.Secrets)
	}
	said := strings.Join(m.Remarks(), "\n")
	for _, want := range []string{"releases no key", "the host chooses what the token"} {
		if !strings.Contains(said, want) {
			t.Errorf("remarks do not say %q: %s", want, said)
		}
	}
	m = apply(strings.Replace(dropIn, `{"tls_roots"`, `{"endpoint": "https://mine.attest.azure.net", "report_data": "bWluZQ==", "path": "/mine", "tls_roots"`, 1))
	if block := blockOf(t, m); block.Endpoint != "https://mine.attest.azure.net" || block.ReportData != "bWluZQ==" || m.Secrets[1].Path != "/mine/token" {
		t.Errorf("the host changes what is measured: %+v", block)
	}
	host = map[string]string{"MAA_TOKEN_PATH": "../etc"}
	m = apply(dropIn)
	if block := blockOf(t, m); block.Endpoint != "https://shareduks.uks.attest.azure.net" || m.Secrets[1].Path != "/root/token" {
		t.Errorf("defaults are %+v, %+v", block, m.Secrets)
	}
}
