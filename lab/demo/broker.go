package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/sesame-init/sesame/packaging/keyring"
)

// The broker's identity. Broker and workload have different product ids, so neither can stand in for the other
// under one signer.
const (
	brokerProduct = 100
	brokerSVN     = 3
)

// broker is Sesame's own key broker in an instance of its own, with Occlum's two files.
type broker struct {
	demo     *demo
	address  string
	instance string // the directory of the instance that start starts
	running  *server
}

func (b *broker) prepare(context.Context) (map[string]string, error) {
	var err error
	b.address, err = b.demo.address()
	return nil, err
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
		"image/bin/server":  filepath.Join(d.bin, "libos", "keybroker"),
		"image/root_ca.pem": d.path("platform", "root_ca.pem"),
	}); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, "init_ra_conf.json"), map[string]any{"backend": "none", "root": map[string]any{"upper": "temporary"}, "collateral": map[string]any{}}); err != nil {
		return err
	}
	if err := d.writeOcclumJSON(dir, product, svn, []string{"/bin/server"}); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, "image/dynamic_config.json"), map[string]any{
		"verify_mr_enclave": "on", "verify_mr_signer": "off", "verify_isv_prod_id": "off", "verify_isv_svn": "off",
		"verify_config_svn": "off", "verify_enclave_debuggable": "on",
		"sgx_mrs": []any{map[string]any{
			"mr_enclave": mrenclave, "mr_signer": strings.Repeat("0", 64),
			"isv_prod_id": 0, "isv_svn": 0, "config_svn": 0, "debuggable": false,
		}},
	}); err != nil {
		return err
	}
	if err := b.writeSecrets(dir, d.secretFiles()); err != nil {
		return err
	}
	_, err = d.tool(ctx, dir, "occlum", "build", "-f", "--sign-key", d.path(signKey+".pem"))
	return err
}

func (b *broker) writeSecrets(dir string, files map[string]string) error {
	secrets, err := encodeSecrets(files)
	if err != nil {
		return err
	}
	return writeJSON(filepath.Join(dir, "image/secret_config.json"), secrets)
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

func (b *broker) start(ctx context.Context) (string, error) {
	d := b.demo
	var err error
	b.running, err = d.startServer(d.path(b.instance), "occlum", "run", "--strict-app", "--platform", d.path("platform"), "/bin/server", b.address)
	if err != nil {
		return "", err
	}
	return b.address, b.running.waitForLine(ctx, "Server listening on")
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
			b.instance = name
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
				other, err := b.demo.otherImageKey(ctx)
				if err != nil {
					return err
				}
				if err := b.writeSecrets(b.demo.path("broker"), other); err != nil {
					return err
				}
				_, err = b.demo.tool(ctx, b.demo.path("broker"), "occlum", "build", "-f", "--sign-key", b.demo.path("broker.pem"))
				return err
			},
			refusal: []string{"refused [mount]", "mounting /"},
		}},
	}
}
