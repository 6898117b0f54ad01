package config_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/config"
)

// withAppTLS is the config of ours with an app_tls block.
func withAppTLS(block string) string {
	return strings.Replace(ours, `"collateral"`, `"app_tls": `+block+`, "collateral"`, 1)
}

func TestAppTLSHasDefaults(t *testing.T) {
	c, err := config.Parse([]byte(withAppTLS(`{"format": "tf-serving", "path": "/etc/app_ssl.cfg", "attested": true}`)))
	if err != nil {
		t.Fatal(err)
	}
	a := c.AppTLS
	if a.Mode != 0o400 || time.Duration(a.Validity) != 720*time.Hour || len(a.Names) != 1 || a.Names[0] != "localhost" {
		t.Errorf("defaults are %+v", a)
	}
	if paths := strings.Join(c.SecretPaths(), " "); !strings.HasSuffix(paths, " /etc/app_ssl.cfg") {
		t.Errorf("paths of secrets are %s", paths)
	}
}

func TestAppTLSRefusesWhatProvesNothing(t *testing.T) {
	for says, block := range map[string]string{
		"app_tls.attested":                        `{"format": "tf-serving", "path": "/etc/a"}`,
		"app_tls.format":                          `{"format": "der", "path": "/etc/a", "attested": true}`,
		"app_tls.path: \"etc/a\"":                 `{"format": "tf-serving", "path": "etc/a", "attested": true}`,
		"app_tls.key_path: belongs":               `{"format": "tf-serving", "path": "/etc/a", "key_path": "/etc/b", "attested": true}`,
		"app_tls.key_path: \"\"":                  `{"format": "pem", "path": "/etc/a", "attested": true}`,
		"app_tls.key_path: is also the path":      `{"format": "pem", "path": "/etc/a", "key_path": "/etc/a", "attested": true}`,
		"app_tls.path: is also the path":          `{"format": "tf-serving", "path": "/etc/tf_ssl.cfg", "attested": true}`,
		"app_tls.names[1]":                        `{"format": "tf-serving", "path": "/etc/a", "attested": true, "names": ["a", "b c"]}`,
		"app_tls.validity: 2161h0m0s is not betw": `{"format": "tf-serving", "path": "/etc/a", "attested": true, "validity": "2161h"}`,
		"app_tls.binding: \"labelled\"":           `{"format": "tf-serving", "path": "/etc/a", "attested": true, "binding": "labelled"}`,
		"app_tls.binding: \"application\"":        `{"format": "tf-serving", "path": "/etc/a", "attested": true, "binding": "application"}`,
		"app_tls.validiti":                        `{"format": "tf-serving", "path": "/etc/a", "attested": true, "validiti": "1h"}`,
	} {
		_, err := config.Parse([]byte(withAppTLS(block)))
		if attest.CodeOf(err) != attest.CodeConfig || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: error is %v, without %q", block, err, says)
		}
	}
}

func TestALegacyBindingOfAppTLSIsSaidAtTheStart(t *testing.T) {
	for block, said := range map[string]bool{
		`{"format": "tf-serving", "path": "/etc/a", "attested": true}`:                      false,
		`{"format": "tf-serving", "path": "/etc/a", "attested": true, "binding": "legacy"}`: true,
	} {
		c, err := config.Parse([]byte(withAppTLS(block)))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(strings.Join(c.Remarks(), "\n"), "app_tls has binding legacy") != said {
			t.Errorf("%s: remarks are %q", block, c.Remarks())
		}
	}
}

// The backend maa-token may be used beside app_tls, unless the application's certificate has no label.
func TestAppTLSBesideMAAToken(t *testing.T) {
	for block, says := range map[string]string{
		`{"format": "tf-serving", "path": "/dev/shm/a", "attested": true}`:                      "",
		`{"format": "tf-serving", "path": "/dev/shm/a", "attested": true, "binding": "legacy"}`: `app_tls.binding: "legacy" is used with the backend "maa-token"`,
	} {
		_, err := config.Parse([]byte(strings.Replace(dropIn, `"root"`, `"app_tls": `+block+`, "root"`, 1)))
		if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", block, err)
		}
	}
}

// If a protocol fixes how a server's evidence is bound, naming it is the word: configs from before there was a key for
// it mean what they meant, and the key means nothing.
func TestServersOfBackendsNeedNoBinding(t *testing.T) {
	onLegacy := strings.Replace(ours, `"session"`, `"legacy"`, 1)
	server := attest.Claims{Type: attest.SGX, SGX: &attest.SGXClaims{
		MRSigner: [32]byte(bytes.Repeat([]byte{0xbb}, 32)), ProductID: 100, SVN: 3, Attributes: attest.AttributeInit,
	}}
	for name, text := range map[string]string{"session": ours, "legacy wire": onLegacy, "Occlum's shape": legacy} {
		c, err := config.Parse([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if err := brokerPolicyOf(t, c).Appraise(server, time.Now()).Err(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{"AECS": oursAECS, "AECS in Occlum's shape": occlumAECS} {
		c, err := config.Parse([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if err := blockOf(t, c).ServerPolicy.Appraise(server, time.Now()).Err(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for key, text := range map[string]string{"grpc_ratls.broker_policy": ours, "aecs.server_policy": oursAECS} {
		_, err := config.Parse([]byte(strings.Replace(text, `"min_svn": 3`, `"min_svn": 3, "binding": "legacy"`, 1)))
		if want := key + ".sgx[0].binding: is for policies of an application's clients"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, not %q", err, want)
		}
	}
}

// User data goes into a quote's report data as it is, so that only what is measured may name it.
func TestUserDataIsMeasured(t *testing.T) {
	c, err := config.Parse([]byte(oursAECS))
	if err != nil {
		t.Fatal(err)
	}
	c.ApplyHost(func(string) string { return strings.Repeat("ab", 32) })
	if blockOf(t, c).UserData.String() != "7465" {
		t.Errorf("the host makes it %s", blockOf(t, c).UserData)
	}
}
