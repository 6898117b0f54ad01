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
// What it does not do: it verifies no quotes, which is MAA's part, and it knows nothing of a platform's TCB beyond
// what the instance's policy demands. It never sends a draft policy and refuses unsigned tokens.
package maa

import (
	"context"
	"crypto/aes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
)

// Key says which key of the vault gives a secret.
type Key struct {
	// Name and Version of the key; without a version the newest is released.
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	// Blob is the secret, wrapped with the key, in base64: AES key wrap with padding under an oct key, RSA-OAEP
	// with SHA-256 under an RSA key. Without it the secret is the oct key itself.
	Blob string `json:"blob,omitempty"`
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
	// Roots verify MAA, the identity service, the vault and the release: those of the measured initfs.
	Roots     *x509.CertPool
	Transport http.RoundTripper // default: HTTPS with Roots
	Rand      io.Reader         // default crypto/rand
	Now       func() time.Time
	Wait      func(context.Context, time.Duration) error // between tries; default waits
	Logger    logrus.FieldLogger
}

// Backend implements backend.Backend.
type Backend struct {
	config Config
	client *http.Client
	vault  *url.URL
}

var (
	keyName    = regexp.MustCompile(`^[0-9A-Za-z-]{1,127}$`)
	keyVersion = regexp.MustCompile(`^[0-9a-f]{0,32}$`)
)

// New checks the config; errors have code [attest.CodeConfig] and name the key.
func New(c Config) (*Backend, error) {
	bad := func(format string, args ...any) (*Backend, error) {
		return nil, attest.Errorf(attest.CodeConfig, "reading maa", "Correct the maa block of the config.", format, args...)
	}
	if c.Attester == nil || c.Roots == nil {
		return bad("attester and roots are needed")
	}
	endpoint, err := serviceURL(c.Endpoint)
	if err != nil {
		return bad("endpoint: %w", err)
	}
	vault, err := serviceURL(c.Vault)
	if err != nil {
		return bad("vault: %w", err)
	}
	if len(c.Keys) == 0 {
		return bad("keys is missing")
	}
	for secret, k := range c.Keys {
		if !keyName.MatchString(k.Name) || !keyVersion.MatchString(k.Version) {
			return bad("keys.%s: %q/%q is not a key's name and version", secret, k.Name, k.Version)
		}
		if _, err := base64.StdEncoding.DecodeString(k.Blob); err != nil {
			return bad("keys.%s.blob is not base64", secret)
		}
	}
	if err := c.AAD.validate(); err != nil {
		return nil, err
	}
	switch c.KeyBits {
	case 0:
		c.KeyBits = 2048
	case 2048, 3072, 4096:
	default:
		return bad("key_bits is %d, want 2048, 3072 or 4096", c.KeyBits)
	}
	c.Endpoint = endpoint.String()
	c.APIVersion = withDefault(c.APIVersion, "2022-08-01")
	c.KeyAPIVersion = withDefault(c.KeyAPIVersion, "7.4")
	c.Resource = withDefault(c.Resource, resourceOf(vault.Hostname()))
	if c.Transport == nil {
		c.Transport = &http.Transport{
			TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.Roots},
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: 30 * time.Second,
			DisableKeepAlives:     true,
		}
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Wait == nil {
		c.Wait = wait
	}
	if c.Logger == nil {
		silent := logrus.New()
		silent.SetOutput(io.Discard)
		c.Logger = silent
	}
	return &Backend{config: c, vault: vault, client: &http.Client{
		Transport: c.Transport,
		// No service of this flow redirects, and a redirect would carry tokens elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func serviceURL(text string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimSuffix(text, "/"))
	if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("%q is not of the form https://host", text)
	}
	return u, nil
}

// resourceOf is what an access token for the vault is asked for.
func resourceOf(host string) string {
	_, domain, _ := strings.Cut(host, ".")
	return "https://" + domain
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Name implements backend.Backend.
func (*Backend) Name() string { return "maa" }

func (b *Backend) service(name string) *service {
	return &service{name: name, http: b.client, wait: b.config.Wait, now: b.config.Now}
}

// Fetch implements backend.Backend: one RSA key, one quote, one token, one release for every secret.
func (b *Backend) Fetch(ctx context.Context, names []string) (_ map[string]attest.Secret, err error) {
	for _, name := range names {
		if _, ok := b.config.Keys[name]; !ok {
			return nil, attest.Errorf(attest.CodeConfig, "fetching secret "+name,
				"Add it to maa.keys with the key of the vault that gives it.", "maa.keys does not name it")
		}
	}
	private, err := rsa.GenerateKey(b.config.Rand, b.config.KeyBits)
	if err != nil {
		return nil, attest.Errorf(attest.CodeInternal, "making the wrapping key", "", "%w", err)
	}
	defer wipeRSA(private)
	key := newWrappingKey(&private.PublicKey)
	token, err := b.attest(ctx, key)
	if err != nil {
		return nil, err
	}
	access, err := b.accessToken(ctx, b.config.Resource)
	if err != nil {
		return nil, err
	}
	defer access.Wipe()

	secrets := make(map[string]attest.Secret, len(names))
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
		secret, err := b.release(ctx, b.config.Keys[name], private, key, token, access)
		if err != nil {
			return nil, &attest.Error{Code: attest.CodeOf(err), Step: "fetching secret " + name, Err: err}
		}
		secrets[name] = secret
	}
	return secrets, nil
}

// attest gets a token for the runtime data and compares it with this enclave.
func (b *Backend) attest(ctx context.Context, key wrappingKey) (string, error) {
	data := key.reportData()
	evidence, err := b.config.Attester.Evidence(ctx, data)
	if err != nil {
		return "", err
	}
	quote, err := trimQuote(evidence, data)
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(map[string]any{
		"quote":       b64.EncodeToString(quote),
		"runtimeData": map[string]string{"data": b64.EncodeToString(key.runtime), "dataType": "JSON"},
	})
	if err != nil {
		return "", err
	}
	answer, err := b.service("MAA").do(ctx, call{
		method: http.MethodPost,
		url:    b.config.Endpoint + "/attest/SgxEnclave?api-version=" + url.QueryEscape(b.config.APIVersion),
		header: http.Header{"Content-Type": {"application/json"}},
		body:   body, advise: adviseAttest,
	})
	if err != nil {
		return "", err
	}
	var got struct {
		Token string `json:"token"`
	}
	if err := decodeJSON(answer, &got); err != nil || got.Token == "" {
		return "", attest.Errorf(attest.CodeEvidence, "asking MAA", "Check maa.endpoint.", "the answer holds no token")
	}
	token, err := ParseToken(got.Token)
	if err != nil {
		return "", err
	}
	if err := token.selfCheck(b.config.Endpoint, b.config.Now(), key, data, quote); err != nil {
		return "", err
	}
	return got.Token, nil
}

// trimQuote cuts the padding off that Occlum leaves behind the quote, and makes sure that it is this enclave's.
func trimQuote(e attest.Evidence, data attest.ReportData) ([]byte, error) {
	const fixed, reportData = 436, 368
	quote := e.Raw
	if e.Type != attest.SGX || len(quote) < fixed || binary.LittleEndian.Uint16(quote) != 3 {
		return nil, attest.Errorf(attest.CodeAttester, "making evidence", "MAA takes SGX quotes of version 3.", "the evidence is no such quote")
	}
	signature := uint64(binary.LittleEndian.Uint32(quote[fixed-4:]))
	if signature > uint64(len(quote)-fixed) {
		return nil, attest.Errorf(attest.CodeAttester, "making evidence", "", "the quote is cut off")
	}
	quote = quote[:fixed+int(signature)]
	if attest.ReportData(quote[reportData:reportData+attest.ReportDataSize]) != data {
		return nil, attest.Errorf(attest.CodeAttester, "making evidence", "", "the quote binds other report data than was asked for")
	}
	return quote, nil
}

func adviseAttest(status int, e serviceError) (attest.Code, string) {
	switch {
	case e.Code == "PolicyEvaluationError":
		return attest.CodeDenied, "The instance's attestation policy does not permit this enclave: compare its rules with mrenclave, " +
			"mrsigner, product id, SVN and debug flag."
	case status == http.StatusBadRequest:
		return attest.CodeDenied, "MAA does not take this quote. The node must be an Azure confidential one, with Azure's quote " +
			"provider library (az-dcap-client), which puts the certificate chain into the quote."
	case status == http.StatusNotFound:
		return attest.CodeConfig, "Check maa.endpoint and its api version."
	}
	return attest.CodeDenied, "Check maa.endpoint."
}

func (b *Backend) release(ctx context.Context, k Key, private *rsa.PrivateKey, key wrappingKey, token string, access attest.Secret) (attest.Secret, error) {
	nonce := make([]byte, 24)
	if _, err := io.ReadFull(b.config.Rand, nonce); err != nil {
		return attest.Secret{}, err
	}
	want := releaseRequest{
		host: b.vault.Host, name: k.Name, version: k.Version, encryption: encryption, nonce: b64.EncodeToString(nonce),
		wrappingKey: key.id, roots: b.config.Roots, now: b.config.Now(),
	}
	body, err := json.Marshal(map[string]string{"target": token, "enc": want.encryption, "nonce": want.nonce})
	if err != nil {
		return attest.Secret{}, err
	}
	path := "/keys/" + k.Name + "/"
	if k.Version != "" {
		path += k.Version + "/"
	}
	answer, err := b.service("the vault").do(ctx, call{
		method: http.MethodPost,
		url:    b.vault.String() + path + "release?api-version=" + url.QueryEscape(b.config.KeyAPIVersion),
		header: http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + string(access.Expose())}},
		body:   body, advise: adviseRelease,
	})
	if err != nil {
		return attest.Secret{}, err
	}
	var got struct {
		Value string `json:"value"`
	}
	if err := decodeJSON(answer, &got); err != nil || got.Value == "" {
		return attest.Secret{}, attest.Errorf(attest.CodeEvidence, "asking the vault", "Check maa.vault.", "the answer holds no released key")
	}
	ciphertext, keyType, err := openRelease(got.Value, want)
	if err != nil {
		return attest.Secret{}, err
	}
	released, err := unwrap(private, want.encryption, ciphertext)
	if err != nil {
		return attest.Secret{}, err
	}
	return useKey(k, keyType, released)
}

func adviseRelease(status int, e serviceError) (attest.Code, string) {
	const compare = "Compare the key's release policy with this enclave: its measurement is in the log, and " +
		"\"sesame maa release-policy\" prints a policy for it."
	switch {
	case strings.Contains(e.Message, "does not meet key release policy"):
		return attest.CodeDenied, compare
	case strings.Contains(e.Message, "cannot be verified"):
		return attest.CodeDenied, "The vault does not accept MAA's token: the policy's authority must be this instance, and the clocks must agree."
	case strings.Contains(e.Message, "enclave held data"):
		return attest.CodeDenied, "The token carries no usable key; this is a fault of Sesame or a change of the service."
	case status == http.StatusUnauthorized:
		return attest.CodeDenied, "The vault does not accept the access token: check maa.aad, the tenant, and that the token is for the vault's resource."
	case status == http.StatusForbidden:
		return attest.CodeDenied, "Give the identity the role Key Vault Crypto Service Release User (Managed HSM: Managed HSM Crypto " +
			"Service Release User). " + compare
	case status == http.StatusNotFound:
		return attest.CodeSecret, "The vault has no such key, or no such version of it: check maa.keys."
	}
	return attest.CodeDenied, "Check maa.vault and maa.keys."
}

// useKey makes the secret from what was released.
func useKey(k Key, keyType string, released attest.Secret) (attest.Secret, error) {
	fail := func(err error) (attest.Secret, error) {
		released.Wipe()
		return attest.Secret{}, attest.Errorf(attest.CodeSecret, "using key "+k.Name,
			"Give an oct key of the wanted size, or a blob that was wrapped with this very key.", "%w", err)
	}
	if k.Blob == "" {
		if keyType != "oct" {
			return fail(fmt.Errorf("it is an %s key and there is no blob to unwrap", printable(keyType)))
		}
		return released, nil
	}
	blob, err := base64.StdEncoding.DecodeString(k.Blob)
	if err != nil {
		return fail(err)
	}
	defer released.Wipe()
	var plain []byte
	switch keyType {
	case "oct":
		if len(released.Expose()) < aes.BlockSize {
			return fail(errors.New("it is too short for AES"))
		}
		plain, err = unwrapKWP(released.Expose(), blob)
	case "RSA":
		var parsed any
		if parsed, err = x509.ParsePKCS8PrivateKey(released.Expose()); err == nil {
			private, ok := parsed.(*rsa.PrivateKey)
			if !ok {
				return fail(errors.New("it is not the RSA key that it says it is"))
			}
			defer wipeRSA(private)
			plain, err = rsa.DecryptOAEP(sha256.New(), rand.Reader, private, blob, nil)
		}
	default:
		err = fmt.Errorf("a key of type %q unwraps nothing", printable(keyType))
	}
	if err != nil {
		return fail(err)
	}
	return attest.NewSecret(plain), nil
}

// wipeRSA overwrites the private numbers as far as the library lets them be reached.
func wipeRSA(k *rsa.PrivateKey) {
	clear(k.D.Bits())
	for _, p := range k.Primes {
		clear(p.Bits())
	}
	pre := &k.Precomputed
	for _, p := range []*big.Int{pre.Dp, pre.Dq, pre.Qinv} {
		if p != nil {
			clear(p.Bits())
		}
	}
}
