package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/mod/sumdb/note"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/boundedfile"
	"github.com/sesame-init/sesame/internal/config"
	"github.com/sesame-init/sesame/internal/pki"
)

// unmoved is an attester of a type that is never asked for evidence.
type unmoved attest.EvidenceType

func (u unmoved) Type() attest.EvidenceType { return attest.EvidenceType(u) }

func (unmoved) Evidence(context.Context, attest.ReportData) (attest.Evidence, error) {
	return attest.Evidence{}, errors.New("opening makes no evidence")
}

// opening opens backends as init does.
type opening struct {
	dir    string // of PEM files: good.pem with its key good.key, other.key, and bad.pem
	logKey string
	log    *logrus.Logger
}

func newOpening(t testing.TB) *opening {
	t.Helper()
	o := &opening{dir: t.TempDir(), log: logrus.New()}
	o.log.SetOutput(io.Discard)
	write := func(name string, text []byte) {
		if err := os.WriteFile(filepath.Join(o.dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if _, o.logKey, err = note.GenerateKey(rand.Reader, "log.example"); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	key, certificate, err := pki.NewClient("client", now, now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := pki.NewClient("other", now, now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	write("good.pem", certificate)
	write("good.key", key)
	write("other.key", other)
	write("bad.pem", []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	return o
}

const (
	digits = "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"
	anySGX = `{"sgx": [{"mr_signer": "` + digits + `", "product_id": 1, "min_svn": 1}]}`
	rest   = `"root": {"key": "image_key"}, "collateral": {"pccs_url": "https://pccs:8081/sgx/certification/v4/", "pccs_ca": "DIR/good.pem", "root_ca": "DIR/good.pem"}}`
)

// valid are configs that open, of every backend in every form.
func (o *opening) valid() map[string]string {
	all := map[string]string{
		"grpc-ratls":         `{"backend": "grpc-ratls", "grpc_ratls": {"servers": ["a:1", "[::1]:2"], "protocol": "session", "log_key": "LOG", "broker_policy": ` + anySGX + `}, ` + rest,
		"grpc-ratls, legacy": `{"backend": "grpc-ratls", "grpc_ratls": {"servers": ["a:1"], "protocol": "legacy", "broker_policy": ` + anySGX + `}, ` + rest,
		"grpc-ratls, pinned": `{"backend": "grpc-ratls", "grpc_ratls": {"servers": ["a:1"], "protocol": "session", "broker_key": "` + digits + `"}, "root": {"key": "image_key"}, "collateral": {}}`,
		"grpc-ratls, Occlum's": `{"kms_server": "a:1", "kms_keys": [{"key": "k", "path": "/dev/shm/k"}], "ra_config": {
			"verify_mr_enclave": "off", "verify_mr_signer": "on", "verify_isv_prod_id": "on", "verify_isv_svn": "on",
			"verify_config_svn": "off", "verify_enclave_debuggable": "on",
			"sgx_mrs": [{"mr_enclave": "", "mr_signer": "` + digits + `", "isv_prod_id": 1, "isv_svn": 1, "config_svn": 0, "debuggable": false}]}, ` + rest,
		"maa": `{"backend": "maa", "maa": {"endpoint": "https://a.attest.azure.net", "vault": "https://v.vault.azure.net", "tls_roots": "DIR/good.pem",
			"key_bits": 3072, "keys": {"image_key": {"name": "image", "version": "00", "blob": "AAAA"}},
			"aad": {"mode": "client-secret", "tenant": "t", "client_id": "c", "file": "/f", "authority": "https://login.example/"}}, ` + rest,
		"maa, host's": `{"backend": "maa", "maa": {"endpoint": "https://a.attest.azure.net", "vault": "https://v.vault.azure.net", "tls_roots": "DIR/good.pem",
			"keys": {"image_key": {"name": "image"}}, "aad": {"mode": "workload-identity"}}, ` + rest,
		"maa-token": `{"backend": "maa-token", "maa_token": {"endpoint": "https://a.attest.azure.net", "report_data": "AAAA", "path": "/p", "tls_roots": "DIR/good.pem"},
			"root": {}, "collateral": {}}`,
		"maa-token, host's": `{"backend": "maa-token", "maa_token": {"tls_roots": "DIR/good.pem"}, "root": {}, "collateral": {}}`,
		"aecs": `{"backend": "aecs", "aecs": {"servers": ["a:1"], "generation": "auto", "allow_downgrade": true, "service": "s",
			"secrets": {"image_key": {"service": "s", "name": "n", "type": "IMPORT_DATA", "encode": "base64"}},
			"tls": {"ca": "DIR/good.pem", "certificate": "DIR/good.pem", "key": "DIR/good.key", "server_name": "n"},
			"user_data": "7465", "server_key": "` + digits + `", "server_policy": ` + anySGX + `}, ` + rest,
		"aecs, pinned": `{"backend": "aecs", "aecs": {"servers": ["a:1"], "generation": "b", "service": "s", "plaintext": true,
			"server_key": "` + digits + `", "server_evidence": "none"}, ` + rest,
		"aecs, Occlum's": `{"kms_server": "a:1", "kms_keys": [{"key": "k", "path": "/dev/shm/k", "service": "s"}], "ua_env_pccs_url": "",
			"ra_config": {"ua_policy_hex_signer": "` + digits + `", "ua_policy_hex_prod_id": "1", "ua_policy_str_min_isvsvn": "1",
			"ua_policy_bool_debug_disabled": "true", "ua_policy_hex_hash_or_pem_pubkey": "` + digits + `"}, "aecs": {"plaintext": true}, ` + rest,
	}
	for name, text := range all {
		all[name] = strings.NewReplacer("DIR", o.dir, "LOG", o.logKey).Replace(text)
	}
	return all
}

// environment is one in which the host gives all that it may give.
func environment(name string) string {
	return map[string]string{
		"OCCLUM_INIT_RA_KMS_SERVER": "host:1", "PCCS_URL": "https://pccs:1/", "AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c",
		"AZURE_FEDERATED_TOKEN": "x", "AZURE_CLIENT_SECRET": "x", "AZURE_ACCESS_TOKEN": "x", "MAA_REPORT_DATA": "AAAA",
	}[name]
}

// compare makes sure that a config's check says what opening says. checked is the verdict of the check, before the host gives
// anything; opened that of opening.
func (o *opening) compare(t *testing.T, name, text string, getenv func(string) string) (checked, opened bool) {
	t.Helper()
	readFile := func(name string) ([]byte, error) { return boundedfile.Read(name, maxInitFile) }
	c, err := config.Parse([]byte(text))
	if err != nil {
		if attest.CodeOf(err) != attest.CodeConfig {
			t.Errorf("%s: %v in\n%s", name, err, text)
		}
		return false, false
	}
	if c.Block() == nil {
		return true, true
	}
	before := c.CheckFiles(readFile)
	c.ApplyHost(getenv)
	problems := c.CheckFiles(readFile)
	b, err := newBackend(c, unmoved(c.Attester), time.Now, o.log)
	opened = attest.CodeOf(err) != attest.CodeConfig
	if opened != (len(problems) == 0) || err != nil && opened {
		t.Errorf("%s: the check says %v, opening %v, of\n%s", name, problems, err, text)
	}
	if err == nil && b.Name() != c.Backend {
		t.Errorf("%s: a backend %q was opened", name, b.Name())
	}
	return len(before) == 0, opened
}

// leaf is a value in a JSON document and what sets it.
type leaf struct {
	key string
	set func(any)
}

func leaves(key string, v any, set func(any), remove func()) (all []leaf) {
	all = append(all, leaf{key, set})
	if remove != nil {
		all = append(all, leaf{key + " removed", func(any) { remove() }})
	}
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			all = append(all, leaves(key+"."+name, member, func(x any) { v[name] = x }, func() { delete(v, name) })...)
		}
	case []any:
		for i, member := range v {
			all = append(all, leaves(fmt.Sprintf("%s[%d]", key, i), member, func(x any) { v[i] = x }, nil)...)
		}
	}
	slices.SortFunc(all, func(a, b leaf) int { return strings.Compare(a.key, b.key) })
	return all
}

// mutated is text with another value in its nth place, and the name of the place. ok is false if there is none.
func mutated(t *testing.T, text string, n int, value any) (_, key string, ok bool) {
	t.Helper()
	var doc any
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	all := leaves("", doc, func(x any) { doc = x }, nil)
	if n >= len(all) {
		return "", "", false
	}
	all[n].set(value)
	out, err := json.Marshal(doc)
	if err != nil {
		return "", "", false // no number
	}
	return string(out), all[n].key, true
}

// TestTheCheckPassesIfAndOnlyIfOpeningDoes changes each value of each config to each of a list, and lets the host give
// nothing, what it may, and nonsense.
func TestTheCheckPassesIfAndOnlyIfOpeningDoes(t *testing.T) {
	o := newOpening(t)
	values := []any{
		"", " ", "h:", ":1", "::1", "h", "h:1", "h:1:2", "http://h:1", "https://h:1", "https://h:1/a", "https://h/sgx/certification/v3", "not an url", "a/b",
		"x", "x\x00", "AAAA", "?", "00", digits, digits + "00", "none", "session", "legacy", "a", "b", "auto", "token", "managed-identity", "base64",
		o.dir + "/none.pem", o.dir + "/bad.pem", o.dir + "/good.pem", o.dir + "/good.key", o.dir + "/other.key", "good.pem", o.dir + "/../good.pem",
		"image_key", "SM2_KEY_PAIR", "grpc-ratls", "aecs", "maa", strings.Repeat("A", 400), "log+00000000+AAAA",
		float64(0), float64(1), float64(-1), float64(2048), float64(1 << 31), true, false, nil, []any{}, map[string]any{}, []any{"h:"}, []any{"a:1"},
	}
	few := []any{"", "h:", "token", float64(0), o.dir + "/bad.pem"}
	type host struct {
		getenv func(string) string
		values []any
	}
	hosts := map[string]host{
		"silent": {func(string) string { return "" }, few}, "generous": {environment, values}, "hostile": {func(string) string { return "h:" }, few},
	}
	kinds, passed, refused := map[string]bool{}, 0, 0
	for name, text := range o.valid() {
		c, err := config.Parse([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		kinds[c.Backend] = true
		if checked, opened := o.compare(t, name, text, environment); !checked || !opened {
			t.Errorf("%s: checked %v, opened %v", name, checked, opened)
		}
		for host, h := range hosts {
			for n := 0; ; n++ {
				there := false
				for i, value := range h.values {
					if len(h.values) > len(few) && (i+n)%2 > 0 { // the neighbour gets it
						continue
					}
					changed, key, ok := mutated(t, text, n, value)
					if !ok {
						continue
					}
					there = true
					checked, opened := o.compare(t, fmt.Sprintf("%s, %s host, %s=%v", name, host, key, value), changed, h.getenv)
					if host == "generous" && checked != opened && !overrides(key) {
						t.Errorf("%s, %s=%v: config check says %v, opening %v", name, key, value, checked, opened)
					}
					if opened {
						passed++
					} else {
						refused++
					}
				}
				if !there {
					break
				}
			}
		}
	}
	for _, k := range config.Backends() {
		if !kinds[k.Name] {
			t.Errorf("no config of %s is here: add one", k.Name)
		}
	}
	t.Logf("%d changed configs open, %d do not", passed, refused)
	if passed < 1000 || refused < 1000 {
		t.Error("too few of one kind: the changes test nothing")
	}
}

// overrides reports whether the host's value takes the place of what a key says.
func overrides(key string) bool {
	return strings.Contains(key, ".servers") || strings.HasSuffix(key, "kms_server") || strings.Contains(key, "pccs_url")
}

// TestConfigCheckRefusesWhatOpeningWould is what once passed the check and failed at boot.
func TestConfigCheckRefusesWhatOpeningWould(t *testing.T) {
	o := newOpening(t)
	for _, name := range []string{"grpc-ratls", "grpc-ratls, legacy", "grpc-ratls, Occlum's", "aecs", "aecs, Occlum's"} {
		text := o.valid()[name]
		for _, server := range []string{"h:", ":1", "::1", "https://h:1", "http://h:1"} {
			if _, err := config.Parse([]byte(strings.Replace(text, `"a:1"`, `"`+server+`"`, 1))); attest.CodeOf(err) != attest.CodeConfig {
				t.Errorf("%s: server %q: %v", name, server, err)
			}
		}
		for _, url := range []string{"http://h:1", "https://h:1/a", "not an url", " ", "h:1"} {
			if _, err := config.Parse([]byte(strings.Replace(text, "https://pccs:8081/sgx/certification/v4/", url, 1))); attest.CodeOf(err) != attest.CodeConfig {
				t.Errorf("%s: pccs_url %q: %v", name, url, err)
			}
		}
	}
}

// FuzzCheckIsOpening changes one value of a config, and what the host gives.
func FuzzCheckIsOpening(f *testing.F) {
	o := newOpening(f)
	var texts []string
	valid := o.valid()
	for _, name := range slices.Sorted(maps.Keys(valid)) {
		texts = append(texts, valid[name])
	}
	for i := range texts {
		for n, value := range []string{"h:", `"x"`, "0", "https://h:1/a", `["::1"]`, `{}`, `true`, o.dir + "/bad.pem"} {
			f.Add(i, 3*n, value, "")
			f.Add(i, 3*n+1, value, value)
		}
	}
	f.Fuzz(func(t *testing.T, i, n int, text, host string) {
		if i < 0 || i >= len(texts) || n < 0 {
			return
		}
		var value any = text
		if json.Valid([]byte(text)) {
			_ = json.Unmarshal([]byte(text), &value)
		}
		if changed, key, ok := mutated(t, texts[i], n, value); ok {
			o.compare(t, key, changed, func(string) string { return host })
		}
	})
}
