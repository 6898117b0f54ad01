package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sesame-init/sesame/internal/packaging/copytree"
	"github.com/sesame-init/sesame/internal/packaging/keyring"
)

// The broker's identity. Broker and workload have different product ids, so neither can stand in for the other
// under one signer.
const (
	brokerProduct = 100
	brokerSVN     = 3
)

// broker is Sesame's own key broker in an instance of its own. Its image holds no secret: the administrator puts them in
// when it runs and has proved itself.
type broker struct {
	demo        *demo
	address     string
	instance    string            // the directory of the instance that start starts
	secrets     map[string]string // files to put in, by secret; none for a broker that no operator would take for his
	occlumFiles bool              // the instance is one of Occlum's, with dynamic_config.json and secret_config.json
	running     *server
}

func (b *broker) prepare(context.Context) (map[string]string, error) {
	var err error
	if b.address, err = b.demo.address(); err != nil {
		return nil, err
	}
	return nil, b.demo.makeAdministrator()
}

func (b *broker) block() (string, any, error) {
	signer, err := keyring.MRSigner(b.demo.path("broker.pem"))
	return "grpc_ratls", map[string]any{
		"servers":  []string{b.address},
		"protocol": b.demo.wire,
		"broker_policy": map[string]any{"sgx": []any{map[string]any{
			"mr_signer": signer, "product_id": brokerProduct, "min_svn": brokerSVN,
		}}},
	}, err
}

func (b *broker) occlumShape() (map[string]any, error) {
	signer, err := keyring.MRSigner(b.demo.path("broker.pem"))
	return map[string]any{
		"kms_server": b.address,
		"kms_keys":   []any{map[string]any{"key": "ssl_config", "path": "/etc/tf_ssl.cfg"}},
		"ra_config": map[string]any{
			"verify_mr_enclave": "off", "verify_mr_signer": "on", "verify_isv_prod_id": "on", "verify_isv_svn": "on",
			"verify_config_svn": "off", "verify_enclave_debuggable": "on",
			"sgx_mrs": []any{map[string]any{
				"mr_enclave": "", "mr_signer": signer, "isv_prod_id": brokerProduct, "isv_svn": brokerSVN,
				"config_svn": 0, "debuggable": false,
			}},
		},
	}, err
}

func (b *broker) admit(ctx context.Context) (string, error) {
	b.secrets, b.occlumFiles = b.demo.secretFiles(), b.demo.occlumFiles
	return "broker's instance built, " + identity(brokerProduct, brokerSVN), b.build(ctx, "broker", "broker", brokerProduct, brokerSVN)
}

func identity(product, svn int) string { return fmt.Sprintf("product id %d, SVN %d", product, svn) }

// build packs the key broker into an instance of the given name, under an identity.
func (b *broker) build(ctx context.Context, name, signKey string, product, svn int) error {
	d := b.demo
	dir := d.path(name)
	mrenclave, err := d.tool(ctx, d.path("workload"), "occlum", "print", "mrenclave")
	if err != nil {
		return err
	}
	if err := d.newInstance(ctx, dir, map[string]string{
		"image/bin/server": filepath.Join(d.bin, "libos", "keybroker"),
	}); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, "init_ra_conf.json"), map[string]any{"backend": "none", "root": map[string]any{"upper": "temporary"}, "collateral": map[string]any{}}); err != nil {
		return err
	}
	if err := d.writeOcclumJSON(dir, product, svn, []string{"/bin/server"}); err != nil {
		return err
	}
	if b.occlumFiles {
		err = b.writeOcclumFiles(filepath.Join(dir, "image"), mrenclave)
	} else {
		err = b.writePolicy(filepath.Join(dir, "image", "policy.yaml"), mrenclave)
	}
	if err != nil {
		return err
	}
	_, err = d.tool(ctx, dir, "occlum", "build", "-f", "--sign-key", d.path(signKey+".pem"))
	return err
}

// brokerPolicy is the broker's measured policy. It names who may bring secrets, and none of them.
const brokerPolicy = `version: 1
trust:
  roots:
    - |
%s
  collateral: {url: %q, allow_http: true}
workloads:
  resnet: {wire: %s, versions: [{sgx: [{mr_enclave: %s}]}]}
secrets:
  image_key: {workloads: [resnet]}
  model_key: {workloads: [resnet]}
  ssl_config: {workloads: [resnet]}
broker:
  store: {sqlite: /broker.db}
  root_key: {sealed: true}
  admin:
    listen: 127.0.0.1:0
    roots:
      - |
%s
`

func (b *broker) writePolicy(file, mrenclave string) error {
	d := b.demo
	root, err := os.ReadFile(d.path("platform", "root_ca.pem"))
	if err != nil {
		return err
	}
	administrator, err := os.ReadFile(d.path("admin.crt"))
	if err != nil {
		return err
	}
	wire := d.wire
	if d.occlumShape { // which knows no other
		wire = "legacy"
	}
	return os.WriteFile(file, fmt.Appendf(nil, brokerPolicy, indented(root, 6), d.pccs, wire, mrenclave, indented(administrator, 8)), 0o644)
}

// writeOcclumFiles writes Occlum's two files, whose secrets the host can read: nothing new should be built so.
func (b *broker) writeOcclumFiles(image, mrenclave string) error {
	if err := writeJSON(filepath.Join(image, "dynamic_config.json"), map[string]any{
		"verify_mr_enclave": "on", "verify_mr_signer": "off", "verify_isv_prod_id": "off", "verify_isv_svn": "off",
		"verify_config_svn": "off", "verify_enclave_debuggable": "on",
		"sgx_mrs": []any{map[string]any{
			"mr_enclave": mrenclave, "mr_signer": strings.Repeat("0", 64),
			"isv_prod_id": 0, "isv_svn": 0, "config_svn": 0, "debuggable": false,
		}},
	}); err != nil {
		return err
	}
	if err := copytree.Copy(b.demo.path("platform", "root_ca.pem"), filepath.Join(image, "root_ca.pem")); err != nil {
		return err
	}
	secrets, err := encodeSecrets(b.secrets)
	if err != nil {
		return err
	}
	return writeSecrets(filepath.Join(image, "secret_config.json"), secrets)
}

// encodeSecrets is the content of Occlum's secret_config.json.
func encodeSecrets(files map[string]string) (map[string]any, error) {
	secrets := map[string]any{}
	for name, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		secrets[name] = base64.StdEncoding.EncodeToString(content)
	}
	return secrets, nil
}

func indented(text []byte, by int) string {
	space := strings.Repeat(" ", by)
	return space + strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", "\n"+space)
}

// makeAdministrator makes the certificate and key of the broker's administrator, who is its own root.
func (d *demo) makeAdministrator() error {
	key, certificate, err := keyring.NewAdministrator(24*time.Hour, time.Now())
	if err != nil {
		return err
	}
	if err := os.WriteFile(d.path("admin.key"), key, 0o600); err != nil {
		return err
	}
	return os.WriteFile(d.path("admin.crt"), certificate, 0o644)
}

func (b *broker) start(ctx context.Context) (string, error) {
	d := b.demo
	var err error
	b.running, err = d.startServer(d.path(b.instance), "occlum", "run", "--strict-app", "--platform", d.path("platform"), "/bin/server", b.address)
	if err != nil {
		return "", err
	}
	if err := b.running.waitForLine(ctx, "Server listening on"); err != nil || b.occlumFiles {
		return b.address, err
	}
	return b.address, b.putSecrets(ctx)
}

// putSecrets is what the operator does: the broker proves itself, and then gets the secrets.
func (b *broker) putSecrets(ctx context.Context) error {
	if len(b.secrets) == 0 {
		return nil
	}
	d := b.demo
	const served = "administrators are served on "
	_, address, _ := strings.Cut(b.running.lineWith(served), served)
	signer, err := keyring.MRSigner(d.path("broker.pem"))
	if err != nil {
		return err
	}
	must := map[string]any{"sgx": []any{map[string]any{"mr_signer": signer, "product_id": brokerProduct, "min_svn": brokerSVN}}}
	if err := writeJSON(d.path("broker-policy.yaml"), must); err != nil {
		return err
	}
	if err := writeJSON(d.path("broker.yaml"), map[string]string{
		"broker": strings.Trim(address, `"`), "policy": "broker-policy.yaml", "root_ca": "platform/root_ca.pem",
		"cert": "admin.crt", "key": "admin.key",
	}); err != nil {
		return err
	}
	for _, s := range keyring.Secrets() {
		if _, err := d.tool(ctx, d.work, "sesame", "secret", "put", s.Name, "--context", d.path("broker.yaml"), "--kind", s.Kind,
			"--file", b.secrets[s.Name]); err != nil {
			return err
		}
	}
	return nil
}

func (b *broker) stop() {
	if b.running != nil {
		b.running.stop()
	}
}

func (b *broker) refusal(ctx context.Context) (string, error) {
	const refused = "peer refused"
	err := b.running.waitForLine(ctx, refused)
	return b.running.lineWith(refused), err
}

func (b *broker) tamperings() map[string][]tampering {
	// other builds a second broker with the same files under another identity, and starts that one.
	other := func(name, signKey string, product, svn int) func(context.Context) error {
		return func(ctx context.Context) error {
			b.instance, b.secrets = name, nil
			return b.build(ctx, name, signKey, product, svn)
		}
	}
	return map[string][]tampering{
		"config": {{
			what:        "a byte of the measured init config, after the broker's policy was written",
			change:      b.demo.tamperConfig,
			refusal:     []string{"refused [denied]"},
			serviceSays: "mr_enclave",
		}},
		"quote": {{
			what:        "the signature in the workload's quote",
			change:      b.demo.tamperQuote,
			platform:    "platform-tampered",
			refusal:     []string{"refused [denied]"},
			serviceSays: "signature",
		}},
		"broker": {
			{
				what:    "the broker is signed by somebody else",
				change:  other("other-signer", "stranger", brokerProduct, brokerSVN),
				refusal: []string{"refused [policy]", "mr_signer"},
			},
			{
				what:    "the broker has another product id",
				change:  other("other-product", "broker", brokerProduct+1, brokerSVN),
				refusal: []string{"refused [policy]", "product_id"},
			},
			{
				what:    "the broker has a lower SVN",
				change:  other("lower-svn", "broker", brokerProduct, brokerSVN-1),
				refusal: []string{"refused [policy]", "svn"},
			},
		},
		"key": {{
			what: "the broker holds another image key",
			change: func(ctx context.Context) error {
				var err error
				b.secrets, err = b.demo.otherImageKey(ctx)
				return err
			},
			refusal: []string{"refused [mount]", "mounting /"},
		}},
	}
}
