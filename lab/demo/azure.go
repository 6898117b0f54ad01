package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"os"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/maa"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/lab/maatest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// azure is Azure Attestation and Key Vault as package maatest plays them, inside this process. The pod's identity is a
// federated token, which the host gives by the environment as Occlum's init sees no files of the host.
type azure struct {
	demo     *demo
	address  string
	pki      *maatest.PKI
	identity maatest.Identity
	kek      []byte
	config   maatest.Config
	running  *maatest.Server
}

var errNoRefusal = errors.New("the service has refused nobody")

// The keys of the vault, by the secrets that they give; the TLS identity is a blob under the last.
const (
	vaultImageKey = "image"
	vaultModelKey = "model"
	vaultKEK      = "kek"
)

func (a *azure) prepare(context.Context) (map[string]string, error) {
	var err error
	if a.address, err = a.demo.address(); err != nil {
		return nil, err
	}
	if a.pki, err = maatest.NewPKI(time.Now()); err != nil {
		return nil, err
	}
	a.kek = make([]byte, 32)
	if _, err := rand.Read(a.kek); err != nil {
		return nil, err
	}
	a.identity = maatest.Identity{Tenant: "demo-tenant", ClientID: "demo-pod", FederatedToken: "eyJhbGciOiJSUzI1NiJ9.e30." + base64.RawURLEncoding.EncodeToString(a.kek[:8])}
	a.demo.environment = append(a.demo.environment, "AZURE_FEDERATED_TOKEN="+a.identity.FederatedToken)
	roots := a.demo.path("azure_roots.pem")
	return map[string]string{"initfs/etc/sesame/azure_roots.pem": roots}, os.WriteFile(roots, a.pki.RootPEM(), 0o644)
}

func (a *azure) url() string { return "https://" + a.address }

func (a *azure) block() (string, any, error) {
	tls, err := os.ReadFile(a.demo.secretFiles()["ssl_config"])
	if err != nil {
		return "", nil, err
	}
	blob, err := maa.WrapBlobOct(attest.NewSecret(append([]byte{}, a.kek...)), attest.NewSecret(tls))
	return "maa", map[string]any{
		"endpoint": a.url(), "vault": a.url(), "resource": "https://vault.azure.net", "tls_roots": "/etc/sesame/azure_roots.pem",
		"keys": map[string]any{
			"image_key":  map[string]any{"name": vaultImageKey},
			"model_key":  map[string]any{"name": vaultModelKey, "version": maatest.Version},
			"ssl_config": map[string]any{"name": vaultKEK, "blob": blob},
		},
		"aad": map[string]any{"mode": "workload-identity", "tenant": a.identity.Tenant, "client_id": a.identity.ClientID, "authority": a.url() + "/"},
	}, err
}

// admit puts the keys into the vault, each with a release policy as the operator makes it.
func (a *azure) admit(ctx context.Context) (string, error) {
	d := a.demo
	mrenclave, err := d.tool(ctx, d.path("workload"), "occlum", "print", "mrenclave")
	if err != nil {
		return "", err
	}
	policy, err := d.tool(ctx, d.work, "sesame", "maa", "release-policy", "--authority", a.url(), "--mrenclave", mrenclave)
	if err != nil {
		return "", err
	}
	platform, err := softsgx.Load(d.path("platform"))
	if err != nil {
		return "", err
	}
	a.config = maatest.Config{
		PKI: a.pki, Identity: a.identity, Keys: map[string]maatest.Key{vaultKEK: {Type: "oct", Material: a.kek, Policy: []byte(policy)}},
		Verifier: dcap.NewVerifier(dcap.Config{
			Roots: []*x509.Certificate{platform.RootCA()}, Source: pccs.Stapled(platform.Collateral()),
		}),
	}
	return "3 keys in the vault", a.store([]byte(policy), d.secretFiles())
}

// store puts image key and model key into the vault as they are.
func (a *azure) store(policy []byte, files map[string]string) error {
	for name, secret := range map[string]string{vaultImageKey: "image_key", vaultModelKey: "model_key"} {
		text, err := os.ReadFile(files[secret])
		if err != nil {
			return err
		}
		key, err := sefs.ParseKey(text)
		if err != nil {
			return err
		}
		a.config.Keys[name] = maatest.Key{Type: "oct", Material: key[:], Policy: policy}
	}
	return nil
}

func (a *azure) start(context.Context) (string, error) {
	var err error
	a.running, err = maatest.New(a.config).Start(a.address)
	return a.address, err
}

func (a *azure) stop() {
	if a.running != nil {
		a.running.Close()
		a.running = nil
	}
}

func (a *azure) refusal(context.Context) (string, error) {
	refusals := a.running.Refusals()
	if len(refusals) == 0 {
		return "", errNoRefusal
	}
	return refusals[len(refusals)-1], nil
}

func (a *azure) tamperings() map[string][]tampering {
	lie := func(what maatest.Attack, refusal ...string) tampering {
		return tampering{
			what:    "the vault's answer: " + string(what),
			change:  func(context.Context) error { a.config.Attack = what; return nil },
			refusal: refusal,
		}
	}
	return map[string][]tampering{
		"config": {{
			what:        "a byte of the measured init config, after the release policy was written",
			change:      a.demo.tamperConfig,
			refusal:     []string{"refused [denied]", "answers 403"},
			serviceSays: "does not meet key release policy",
		}},
		"quote": {{
			what:        "the signature in the workload's quote",
			change:      a.demo.tamperQuote,
			platform:    "platform-tampered",
			refusal:     []string{"refused [denied]", "MAA answers 400 InvalidParameter"},
			serviceSays: "signature",
		}},
		"vault": {
			lie(maatest.OtherVault, "refused [policy]", "releases key"),
			lie(maatest.UntrustedChain, "refused [evidence]", "unknown authority"),
			lie(maatest.WeakerWrapping, "refused [evidence]", "CKM_RSA_AES_KEY_WRAP"),
		},
		"key": {{
			what: "the vault holds another image key",
			change: func(ctx context.Context) error {
				other, err := a.demo.otherImageKey(ctx)
				if err != nil {
					return err
				}
				return a.store(a.config.Keys[vaultImageKey].Policy, other)
			},
			refusal: []string{"refused [mount]", "mounting /"},
		}},
	}
}
