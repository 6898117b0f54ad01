package broker_test

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/privatefile"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// folder is a folder as Occlum's build makes it.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	all := map[string]string{
		broker.PeersFile: `{"verify_mr_enclave":"on","verify_mr_signer":"off","verify_isv_prod_id":"off","verify_isv_svn":"off",
			"verify_config_svn":"off","verify_enclave_debuggable":"on","sgx_mrs":[{"mr_enclave":"` + strings.Repeat("aa", 32) +
			`","mr_signer":"","isv_prod_id":0,"isv_svn":0,"config_svn":0,"debuggable":false}]}`,
		broker.SecretsFile: `{"image_key":"Y2FuYXJ5LTRmMWMtaW1hZ2Uta2V5", "empty": ""}`,
	}
	for name, text := range files {
		all[name] = text
	}
	dir := t.TempDir()
	for name, text := range all {
		if text == "(none)" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestAFolderOfOcclumsIsServed(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{})
	root := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: platform.RootCA().Raw}))
	got, err := broker.ReadFolder(folder(t, map[string]string{
		broker.RootCAFile: root, broker.TCBFile: `{"accept":["UpToDate","SWHardeningNeeded"]}`,
	}), privatefile.Rule{})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Roots) != 1 || !got.Roots[0].Equal(platform.RootCA()) || len(got.Secrets) != 2 {
		t.Errorf("%d roots, %d secrets", len(got.Roots), len(got.Secrets))
	}
	f := start(t, func(f *fixture, c *broker.Config) {
		f.platform = platform
		c.Keeper = brokertest.Keystore(t, got.Secrets)
		c.Policies = brokertest.Policies(t, brokertest.Trust(t, platform), got.Policy, c.Keeper, c.Logger)
	})
	if got, err := get(t, f.dial(t, f.workload(t)), "image_key"); err != nil || got != `"Y2FuYXJ5LTRmMWMtaW1hZ2Uta2V5"` {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAFolderThatIsNotRightToTheLetterIsRefused(t *testing.T) {
	secret := `"Y2FuYXJ5LTRmMWMtaW1hZ2Uta2V5"`
	for name, c := range map[string]struct{ file, text, says string }{
		"no peers":            {broker.PeersFile, "(none)", broker.PeersFile},
		"no secrets":          {broker.SecretsFile, "(none)", broker.SecretsFile},
		"peers not JSON":      {broker.PeersFile, "{", broker.PeersFile},
		"peers demand little": {broker.PeersFile, `{"sgx_mrs":[]}`, "verify_mr_enclave"},
		"secrets not JSON":    {broker.SecretsFile, `{"k":` + secret, broker.SecretsFile},
		"secrets a list":      {broker.SecretsFile, `[` + secret + `]`, broker.SecretsFile},
		"secret twice":        {broker.SecretsFile, `{"k":` + secret + `,"k":` + secret + `}`, `"k"`},
		"secret no base64":    {broker.SecretsFile, `{"k":"Y2FuYXJ5LTRmMWMtaW1hZ2Uta2V5!"}`, `"k"`},
		"secret not padded":   {broker.SecretsFile, `{"k":"Y2FuYXJ5LTRmMWMtaW1hZ2Uta2V5YQ"}`, `"k"`},
		"secret a number":     {broker.SecretsFile, `{"k":42}`, `"k"`},
		"secret nameless":     {broker.SecretsFile, `{"":` + secret + `}`, "name"},
		"root not PEM":        {broker.RootCAFile, "root", broker.RootCAFile},
		"root empty":          {broker.RootCAFile, "", broker.RootCAFile},
		"unknown TCB status":  {broker.TCBFile, `{"accept":["Fine"]}`, "Fine"},
		"revoked accepted":    {broker.TCBFile, `{"accept":["Revoked"]}`, "Revoked"},
		"unknown TCB key":     {broker.TCBFile, `{"allow":["OutOfDate"]}`, "allow"},
		"TCB twice":           {broker.TCBFile, `{}{}`, broker.TCBFile},
	} {
		_, err := broker.ReadFolder(folder(t, map[string]string{c.file: c.text}), privatefile.Rule{})
		if err == nil || attest.CodeOf(err) != attest.CodeConfig || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %s: %v", name, attest.CodeOf(err), err)
		}
		if err != nil && strings.Contains(err.Error(), "Y2FuYXJ5") {
			t.Errorf("%s: the error quotes a secret", name)
		}
	}
}

func FuzzParseSecrets(f *testing.F) {
	f.Add([]byte(`{"image_key":"Y2FuYXJ5", "empty": ""}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := broker.ParseSecrets(append([]byte(nil), text...))
		if err != nil && attest.CodeOf(err) != attest.CodeConfig {
			t.Errorf("code %s", attest.CodeOf(err))
		}
		if err == nil && len(s) > strings.Count(string(text), ":") {
			t.Error("more secrets than members")
		}
	})
}
