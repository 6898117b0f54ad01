// Package maa is the backend of Microsoft Azure Attestation (MAA) with Azure Key Vault or Managed HSM: secure key
// release.
//
// The enclave makes an RSA key for this one boot, binds it into its quote, and sends the quote to MAA. MAA answers
// with a token that says what the enclave is and carries the key. Key Vault compares the token with the release
// policy of the key that is asked for, and answers with that key, wrapped for the enclave's RSA key alone.
//
// Three bindings carry the security. The quote's report data binds the RSA key, so that only this enclave opens
// the answer. The release policy, in the vault, binds measurement and debug flag. And the measured config binds
// instance, vault and key names: a host that could choose them would offer a vault, and an image, of its own.
// Access tokens of Entra (AAD) authorise only, so they may come from the host. See docs/backends/maa.md.
//
// [TokenOnly] is another thing: the drop-in for Occlum's maa_init, which saves a token and releases no key.
//
// What the package does not do: it verifies no quotes, which is MAA's part, and it knows nothing of a platform's
// TCB beyond what the instance's policy demands. It never sends a draft policy and refuses unsigned tokens.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning. The formats are
// those of Azure's services.
package maa

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/kind"
	"github.com/sesame-init/sesame/internal/retry"
	"github.com/sesame-init/sesame/internal/silent"
)

// Key says which key of the vault gives a secret.
type Key struct {
	// Name and Version of the key; without a version the newest is released.
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	// Blob is the secret, wrapped with the key, in base64, as "sesame maa wrap" makes it. Under an oct key it is
	// AES key wrap with padding (RFC 5649); under an RSA key it is RSA-OAEP with SHA-256, or, if it is longer
	// than the modulus, RSA_AES_KEY_WRAP_256. Without a blob the secret is the oct key itself.
	Blob string `json:"blob,omitempty"`
}

// Network is how the services are reached. Everything but Roots has a default.
type Network struct {
	// Roots verify MAA, the identity service, the vault and the release: those of the measured initfs.
	Roots     *x509.CertPool
	Transport http.RoundTripper // HTTPS with Roots, through no proxy
	// TryTimeout bounds one request and its answer, 20 s. The whole is bounded by the caller's context.
	TryTimeout time.Duration
	Wait       func(context.Context, time.Duration) error // between tries
	Now        func() time.Time
	Logger     logrus.FieldLogger // nothing is logged
}

// Config of a [Backend].
type Config struct {
	Endpoint      string         // of MAA, "https://name.region.attest.azure.net"
	Vault         string         // "https://name.vault.azure.net" or "https://name.managedhsm.azure.net"
	Resource      string         // for the access token; default by the vault's name
	Keys          map[string]Key // by the name of the secret
	AAD           AAD
	APIVersion    string // of MAA, default 2022-08-01
	KeyAPIVersion string // of Key Vault, default 7.4
	KeyBits       int    // of the enclave's RSA key: 2048 (default), 3072 or 4096

	Attester attest.Attester
	Network  Network
	Rand     io.Reader // gives nonces; default crypto/rand
	// NewKey makes the RSA key of one Fetch, which wipes it; default rsa.GenerateKey.
	NewKey func(bits int) (*rsa.PrivateKey, error)
}

// Backend implements backend.Backend. It is safe for concurrent use.
type Backend struct {
	config Config
	vault  *url.URL
}

var (
	keyName    = regexp.MustCompile(`^[0-9A-Za-z-]{1,127}$`)
	keyVersion = regexp.MustCompile(`^[0-9a-f]{0,32}$`)
)

const defaultAPIVersion = "2022-08-01"

// New checks the config; errors have code [attest.CodeConfig] and name the key.
func New(c Config) (*Backend, error) {
	var problems kind.Problems
	c.check(false, problems.Add)
	if c.Attester == nil || c.Network.Roots == nil {
		problems.Add("attester", "is missing, or tls_roots is", "both")
	}
	if err := problems.Err("configuring maa"); err != nil {
		return nil, err
	}
	endpoint, err := serviceURL(c.Endpoint)
	if err != nil {
		return nil, err
	}
	vault, err := serviceURL(c.Vault)
	if err != nil {
		return nil, err
	}
	if c.KeyBits == 0 {
		c.KeyBits = 2048
	}
	c.Endpoint = endpoint.String()
	c.APIVersion = withDefault(c.APIVersion, defaultAPIVersion)
	c.KeyAPIVersion = withDefault(c.KeyAPIVersion, "7.4")
	c.Resource = withDefault(c.Resource, resourceOf(vault.Hostname()))
	c.Network = c.Network.complete()
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.NewKey == nil {
		c.NewKey = func(bits int) (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, bits) }
	}
	return &Backend{config: c, vault: vault}, nil
}

// Validate reports what is malformed.
func (k Key) Validate() error {
	if !keyName.MatchString(k.Name) || !keyVersion.MatchString(k.Version) {
		return fmt.Errorf("%q/%q is not a key's name and version", k.Name, k.Version)
	}
	if _, err := base64.StdEncoding.DecodeString(k.Blob); err != nil {
		return errors.New("blob is not base64")
	}
	return nil
}

// complete fills in the defaults.
func (n Network) complete() Network {
	if n.TryTimeout == 0 {
		n.TryTimeout = 20 * time.Second
	}
	if n.Wait == nil {
		n.Wait = retry.Wait
	}
	if n.Now == nil {
		n.Now = time.Now
	}
	if n.Transport == nil {
		n.Transport = &http.Transport{
			TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: n.Roots, Time: n.Now},
			DisableKeepAlives: true,
		}
	}
	n.Logger = silent.Or(n.Logger)
	return n
}

// checkURL reports whether text is the address of a service: https, a host, and nothing else.
func checkURL(text string) error {
	_, err := serviceURL(text)
	return err
}

func serviceURL(text string) (*url.URL, error) {
	u, err := url.Parse(strings.ToLower(strings.TrimSuffix(text, "/")))
	if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, fmt.Errorf("%q is not of the form https://host", text)
	}
	return u, nil
}

// resourceOf is the resource that an access token for the vault names.
func resourceOf(host string) string {
	_, domain, _ := strings.Cut(host, ".")
	return "https://" + domain
}

func withDefault(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

// Name implements backend.Backend.
func (*Backend) Name() string { return "maa" }

// Fetch implements backend.Backend: one RSA key, one quote, one token of MAA, one release for every key.
func (b *Backend) Fetch(ctx context.Context, names []string) (_ map[string]attest.Secret, err error) {
	secrets := make(map[string]attest.Secret, len(names))
	for _, name := range names {
		if _, ok := b.config.Keys[name]; !ok {
			return nil, attest.Errorf(attest.CodeSecret, "fetching secret "+printable(name),
				"Add it to maa.keys with the key of the vault that gives it.", "maa.keys does not name it")
		}
	}
	if len(names) == 0 {
		return secrets, nil
	}
	private, err := b.config.NewKey(b.config.KeyBits)
	if err != nil {
		return nil, attest.Errorf(attest.CodeInternal, "making the wrapping key", "", "%w", err)
	}
	defer attest.WipeRSA(private)
	r := &releaser{Backend: b, private: private, key: newWrappingKey(&private.PublicKey)}
	if r.token, err = b.attest(ctx, r.key); err != nil {
		return nil, err
	}
	defer r.wipe()
	defer func() {
		if err != nil {
			for _, s := range secrets {
				s.Wipe()
			}
		}
	}()
	for _, name := range names {
		if _, have := secrets[name]; have {
			continue
		}
		secret, err := r.secret(ctx, b.config.Keys[name])
		if err != nil {
			return nil, &attest.Error{Code: attest.CodeOf(err), Step: "fetching secret " + name, Err: err}
		}
		secrets[name] = secret
	}
	return secrets, nil
}
