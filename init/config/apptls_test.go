package config_test

import (
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/init/config"
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
		"app_tls.validiti":                        `{"format": "tf-serving", "path": "/etc/a", "attested": true, "validiti": "1h"}`,
	} {
		_, err := config.Parse([]byte(withAppTLS(block)))
		if attest.CodeOf(err) != attest.CodeConfig || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: error is %v, without %q", block, err, says)
		}
	}
}
