package maa_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
	"github.com/sesame-init/sesame/attest/backend/maa"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/keywrap"
	"github.com/sesame-init/sesame/lab/attesttest"
	"github.com/sesame-init/sesame/lab/backendtest"
	"github.com/sesame-init/sesame/lab/maatest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// now is the time of all tests.
var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// keys are made once for all tests: three RSA keys take a second.
var keys = sync.OnceValues(func() (*maatest.PKI, error) { return maatest.NewPKI(now) })

// bootKeys gives two RSA keys in turn, which were made once: a busy machine takes seconds for one.
var bootKeys = sync.OnceValues(func() (func(int) (*rsa.PrivateKey, error), error) {
	var made [2][]byte
	for i := range made {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return nil, err
		}
		made[i] = x509.MarshalPKCS1PrivateKey(key)
	}
	var turn atomic.Uint32
	return func(int) (*rsa.PrivateKey, error) { return x509.ParsePKCS1PrivateKey(made[turn.Add(1)%2]) }, nil
})

var (
	kek    = bytes.Repeat([]byte{0x42}, 32)
	octKey = []byte{0xca, 0x4a, 0x12, 0x33, 0x5a, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, 0x01}
)

const (
	instance = "https://test.uks.attest.azure.net"
	vault    = "https://test.vault.azure.net"
	hsm      = "https://test.managedhsm.azure.net"
)

var identity = maatest.Identity{
	Tenant: "72f988bf-0000-0000-0000-000000000000", ClientID: "client-1",
	Secret: "canary~client~secret", FederatedToken: "eyJhbGciOiJSUzI1NiJ9.canary-federated.c2ln",
}

func workload() sgx.ReportBody {
	return sgx.ReportBody{SGXClaims: attest.SGXClaims{
		MREnclave: [32]byte(bytes.Repeat([]byte{0xab}, 32)), MRSigner: [32]byte(bytes.Repeat([]byte{0xcd}, 32)),
		ProductID: 200, SVN: 2, Attributes: attest.AttributeInit | attest.AttributeMode64Bit,
	}}
}

// world is a software platform, a cloud that knows it, and a config for both.
type world struct {
	platform *softsgx.Platform
	server   *maatest.Server
	config   maa.Config
	log      bytes.Buffer
	waits    []time.Duration
}

func releasePolicy(t *testing.T, w policy.SGX) []byte {
	t.Helper()
	text, err := maa.ReleasePolicy(instance, []policy.SGX{w})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func pinned() policy.SGX {
	product, svn := uint16(200), uint16(2)
	return policy.SGX{MRSigner: bytes.Repeat([]byte{0xcd}, 32), ProductID: &product, MinSVN: &svn}
}

// newWorld makes a world in which image_key is an oct key of 128 bits and ssl_config a blob under one of 256.
func newWorld(t *testing.T, change func(*maatest.Config)) *world {
	t.Helper()
	pki, err := keys()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{}
	if w.platform, err = softsgx.New(softsgx.Options{Now: now}); err != nil {
		t.Fatal(err)
	}
	release := releasePolicy(t, pinned())
	c := maatest.Config{
		PKI: pki, Now: func() time.Time { return now }, Identity: identity,
		Verifier: dcap.NewVerifier(dcap.Config{
			Roots: []*x509.Certificate{w.platform.RootCA()}, Source: pccs.Stapled(w.platform.Collateral()),
		}),
		Keys: map[string]maatest.Key{
			"image": {Type: "oct", Material: octKey, Policy: release},
			"kek":   {Type: "oct", Material: kek, Policy: release},
		},
	}
	if change != nil {
		change(&c)
	}
	if w.server, err = maatest.New(c).Start("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.server.Close)
	blob, err := maa.WrapBlobOct(attest.NewSecret(slices.Clone(kek)), attest.NewSecret([]byte("canary-ssl-config, longer than a key")))
	if err != nil {
		t.Fatal(err)
	}
	newKey, err := bootKeys()
	if err != nil {
		t.Fatal(err)
	}
	logger := logrus.New()
	logger.SetOutput(&w.log)
	logger.SetLevel(logrus.TraceLevel)
	w.config = maa.Config{
		Endpoint: instance, Vault: vault,
		Keys: map[string]maa.Key{
			"image_key":  {Name: "image"},
			"ssl_config": {Name: "kek", Blob: blob},
		},
		AAD:      maa.AAD{Mode: "managed-identity", Metadata: w.server.MetadataURL()},
		Attester: w.platform.Attester(workload()), NewKey: newKey,
		Network: maa.Network{
			Roots: pki.Roots(), Transport: w.server.Transport(), Now: func() time.Time { return now }, Logger: logger,
			Wait: func(ctx context.Context, d time.Duration) error {
				w.waits = append(w.waits, d)
				return ctx.Err()
			},
		},
	}
	return w
}

func (w *world) backend(t *testing.T) *maa.Backend {
	t.Helper()
	b, err := maa.New(w.config)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (w *world) fetch(t *testing.T) (map[string]attest.Secret, error) {
	t.Helper()
	got, err := w.backend(t).Fetch(t.Context(), []string{"image_key", "ssl_config"})
	w.silent(t, err)
	return got, err
}

// silent checks that neither log nor error holds a token or a key.
func (w *world) silent(t *testing.T, err error) {
	t.Helper()
	said := w.log.String() + fmt.Sprintf("%v %+v", err, err) + attest.HintOf(err)
	canaries := append(w.server.AccessTokens(), identity.Secret, identity.FederatedToken, "eyJ", "canary",
		hex.EncodeToString(octKey), base64.StdEncoding.EncodeToString(octKey), string(octKey),
		hex.EncodeToString(kek), string(kek))
	for _, canary := range canaries {
		if strings.Contains(said, canary) {
			t.Errorf("%q is in the log or the error:\n%s", canary, said)
		}
	}
}

func TestConformance(t *testing.T) {
	backendtest.Run(t, func(t *testing.T, s backendtest.Service) backend.Backend {
		w := newWorld(t, func(c *maatest.Config) {
			switch s.Fault {
			case backendtest.WrongPeer:
				c.Attack = maatest.OtherVault
			case backendtest.NotGenuine:
				c.Attack = maatest.UntrustedChain
			}
		})
		w.config.Keys = map[string]maa.Key{}
		for name, value := range s.Secrets {
			blob, err := maa.WrapBlobOct(attest.NewSecret(slices.Clone(kek)), attest.NewSecret(slices.Clone(value)))
			if err != nil {
				t.Fatal(err)
			}
			w.config.Keys[name] = maa.Key{Name: "kek", Blob: blob}
		}
		log := logrus.New()
		log.SetOutput(s.Log)
		log.SetLevel(logrus.TraceLevel)
		w.config.Network.Logger, w.config.Network.Wait = log, nil
		switch s.Fault {
		case backendtest.Refuses:
			other := workload()
			other.MRSigner[0] ^= 1
			w.config.Attester = w.platform.Attester(other)
		case backendtest.Silent, backendtest.Down:
			w.config.Endpoint = "https://" + s.Address(t)
			w.config.Network.Transport = nil
		}
		return w.backend(t)
	})
}

func TestKeysOfEveryKindAreReleased(t *testing.T) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	short, long := []byte("canary-short"), bytes.Repeat([]byte("canary-long "), 300)
	for _, service := range []string{vault, hsm} {
		w := newWorld(t, func(c *maatest.Config) {
			release := releasePolicy(t, pinned())
			c.Keys["rsa"] = maatest.Key{Type: "RSA", Material: pkcs8, Policy: release}
			c.Keys["oct256"] = maatest.Key{Type: "oct", Material: kek, Policy: release}
			c.Keys["exact"] = maatest.Key{Type: "oct", Material: octKey,
				Policy: releasePolicy(t, policy.SGX{MREnclave: bytes.Repeat([]byte{0xab}, 32)})}
		})
		w.config.Vault = service
		w.config.Keys["oct256"] = maa.Key{Name: "oct256", Version: maatest.Version}
		w.config.Keys["exact"] = maa.Key{Name: "exact"}
		for name, value := range map[string][]byte{"short": short, "long": long} {
			blob, err := maa.WrapBlob(&private.PublicKey, attest.NewSecret(slices.Clone(value)))
			if err != nil {
				t.Fatal(err)
			}
			w.config.Keys[name] = maa.Key{Name: "rsa", Blob: blob}
		}
		got, err := w.backend(t).Fetch(t.Context(), []string{"image_key", "oct256", "exact", "short", "long", "ssl_config"})
		if err != nil {
			t.Fatal(err)
		}
		w.silent(t, nil)
		for name, want := range map[string][]byte{
			"image_key": octKey, "oct256": kek, "exact": octKey, "short": short, "long": long,
			"ssl_config": []byte("canary-ssl-config, longer than a key"),
		} {
			if !bytes.Equal(got[name].Expose(), want) {
				t.Errorf("%s: %s is not the right one", service, name)
			}
		}
		attests := 0
		for _, asked := range w.server.Asked() {
			if strings.HasPrefix(asked, "maa /attest") || strings.HasPrefix(asked, "metadata") {
				attests++
			}
		}
		if attests != 2 {
			t.Errorf("one token of MAA and one access token serve all releases: %q", w.server.Asked())
		}
	}
}

func TestKeysThatCannotBeUsedAreRefused(t *testing.T) {
	blob := base64.StdEncoding.EncodeToString(make([]byte, 24))
	for name, c := range map[string]struct {
		key maatest.Key
		use maa.Key
	}{
		"EC key":                {maatest.Key{Type: "EC", Material: kek}, maa.Key{Blob: blob}},
		"RSA key without blob":  {maatest.Key{Type: "RSA", Material: kek}, maa.Key{}},
		"RSA key of no PKCS #8": {maatest.Key{Type: "RSA", Material: kek}, maa.Key{Blob: blob}},
		"blob of another key":   {maatest.Key{Type: "oct", Material: octKey}, maa.Key{Blob: blob}},
		"oct key of no AES":     {maatest.Key{Type: "oct", Material: []byte{1}}, maa.Key{Blob: blob}},
	} {
		w := newWorld(t, func(m *maatest.Config) {
			c.key.Policy = releasePolicy(t, pinned())
			m.Keys["odd"] = c.key
		})
		c.use.Name = "odd"
		w.config.Keys["odd"] = c.use
		if _, err := w.backend(t).Fetch(t.Context(), []string{"odd"}); attest.CodeOf(err) != attest.CodeSecret || attest.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEveryAttackIsRefusedForItsReason(t *testing.T) {
	for attack, want := range map[maatest.Attack]struct {
		code attest.Code
		says string
	}{
		maatest.OtherQuote:      {attest.CodeEvidence, "report-data"},
		maatest.OtherEnclave:    {attest.CodeEvidence, "mrenclave"},
		maatest.OtherKey:        {attest.CodeEvidence, "x-ms-runtime holds another key"},
		maatest.NoKey:           {attest.CodeEvidence, "x-ms-runtime has no keys"},
		maatest.UnsignedToken:   {attest.CodeEvidence, `"none"`},
		maatest.SymmetricToken:  {attest.CodeEvidence, `"HS256"`},
		maatest.CriticalToken:   {attest.CodeEvidence, "critical"},
		maatest.ForeignKeySet:   {attest.CodeEvidence, "jku"},
		maatest.ForeignIssuer:   {attest.CodeEvidence, "issuer"},
		maatest.ExpiredToken:    {attest.CodeEvidence, "expired"},
		maatest.FutureToken:     {attest.CodeEvidence, "not valid yet"},
		maatest.MachineToken:    {attest.CodeEvidence, "sevsnpvm"},
		maatest.DebugToken:      {attest.CodePolicy, "debug"},
		maatest.RepeatedMember:  {attest.CodeEvidence, "twice"},
		maatest.WrongSignature:  {attest.CodeDenied, "cannot be verified"},
		maatest.UnknownTokenKey: {attest.CodeDenied, "cannot be verified"},
		maatest.EmptyToken:      {attest.CodeEvidence, "no token"},

		maatest.SwappedKey:        {attest.CodePolicy, "/keys/kek/"},
		maatest.OtherVault:        {attest.CodePolicy, "https://other.vault.azure.net/"},
		maatest.OtherVersion:      {attest.CodePolicy, "releases version"},
		maatest.WeakerWrapping:    {attest.CodeEvidence, "CKM_RSA_AES_KEY_WRAP"},
		maatest.InnerWrapping:     {attest.CodeEvidence, `key_hsm is wrapped with "dir"/"RSA_AES_KEY_WRAP_384"`},
		maatest.InnerAlgorithm:    {attest.CodeEvidence, `key_hsm is wrapped with "none"/`},
		maatest.Replay:            {attest.CodeEvidence, "recording"},
		maatest.ReplayWithNonce:   {attest.CodeEvidence, "another key than this enclave's"},
		maatest.WrongNonce:        {attest.CodeEvidence, "recording"},
		maatest.ForOtherKey:       {attest.CodeEvidence, "another key than this enclave's"},
		maatest.ForOtherKeyRaw:    {attest.CodeEvidence, "does not open"},
		maatest.ShortCiphertext:   {attest.CodeEvidence, "does not open"},
		maatest.EmptyCiphertext:   {attest.CodeEvidence, "does not open"},
		maatest.ChangedCiphertext: {attest.CodeEvidence, "does not open"},
		maatest.UnsignedRelease:   {attest.CodeEvidence, `"none"`},
		maatest.SymmetricRelease:  {attest.CodeEvidence, `"HS256"`},
		maatest.ChangedRelease:    {attest.CodeEvidence, "signature"},
		maatest.UntrustedChain:    {attest.CodeEvidence, "unknown authority"},
		maatest.NoChain:           {attest.CodeEvidence, "0 certificates"},
		maatest.ExpiredLeaf:       {attest.CodeEvidence, "expired"},
		maatest.WrongHost:         {attest.CodeEvidence, "elsewhere.example"},
		maatest.WrongThumbprint:   {attest.CodeEvidence, "thumbprint"},
		maatest.RepeatedKID:       {attest.CodeEvidence, "twice"},
		maatest.EmptyRelease:      {attest.CodeEvidence, "no released key"},
	} {
		t.Run(string(attack), func(t *testing.T) {
			w := newWorld(t, func(c *maatest.Config) { c.Attack = attack })
			w.config.Keys["image_key"] = maa.Key{Name: "image", Version: maatest.Version}
			if attack == maatest.Replay || attack == maatest.ReplayWithNonce {
				if _, err := w.fetch(t); err != nil {
					t.Fatalf("the recording: %v", err)
				}
			}
			got, err := w.fetch(t)
			if got != nil || attest.CodeOf(err) != want.code || !strings.Contains(err.Error(), want.says) {
				t.Errorf("%v [%s], want %s with %q", err, attest.CodeOf(err), want.code, want.says)
			}
			if attest.HintOf(err) == "" {
				t.Error("no hint")
			}
		})
	}
}

// The vault judges what the enclave is; each of these must end at its release policy.
func TestReleasePolicyDecides(t *testing.T) {
	for name, change := range map[string]func(*sgx.ReportBody){
		"another signer":     func(b *sgx.ReportBody) { b.MRSigner[0] ^= 1 },
		"another product id": func(b *sgx.ReportBody) { b.ProductID++ },
		"a lower SVN":        func(b *sgx.ReportBody) { b.SVN-- },
	} {
		w := newWorld(t, nil)
		body := workload()
		change(&body)
		w.config.Attester = w.platform.Attester(body)
		_, err := w.fetch(t)
		if attest.CodeOf(err) != attest.CodeDenied || !strings.Contains(err.Error(), "release policy") {
			t.Errorf("%s: %v", name, err)
		}
		if hint := attest.HintOf(err); !strings.Contains(hint, hex.EncodeToString(body.MRSigner[:])) || !strings.Contains(hint, "SVN") {
			t.Errorf("%s: the hint does not say what this enclave is: %s", name, hint)
		}
	}
	w := newWorld(t, nil)
	debug := workload()
	debug.Attributes |= attest.AttributeDebug
	w.config.Attester = w.platform.Attester(debug)
	if _, err := w.fetch(t); attest.CodeOf(err) != attest.CodePolicy || slices.Contains(w.server.Asked(), "vault /keys/image/release") {
		t.Errorf("a debug enclave: %v after %q", err, w.server.Asked())
	}
	stranger, err := softsgx.New(softsgx.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	w.config.Attester = stranger.Attester(workload())
	if _, err := w.fetch(t); attest.CodeOf(err) != attest.CodeDenied || !strings.Contains(err.Error(), "InvalidParameter") {
		t.Errorf("a quote of another platform: %v", err)
	}
}

func TestRefusalsSayCauseAndAdvice(t *testing.T) {
	fault := func(status int, code, message string) maatest.Fault {
		return maatest.Fault{Status: status, Code: code, Message: message}
	}
	for name, c := range map[string]struct {
		service maatest.Service
		fault   maatest.Fault
		code    attest.Code
		hint    string
	}{
		"attestation policy":   {maatest.MAA, fault(400, "PolicyEvaluationError", "No Permit claim was issued"), attest.CodeDenied, "does not permit"},
		"quote not taken":      {maatest.MAA, fault(400, "InvalidParameter", "quote"), attest.CodeDenied, "az-dcap-client"},
		"quote, older":         {maatest.MAA, fault(400, "InvalidQuote", "OE_INVALID_PARAMETER"), attest.CodeDenied, "az-dcap-client"},
		"broken policy":        {maatest.MAA, fault(400, "PolicyParsingError", "line 1"), attest.CodeDenied, "broken"},
		"MAA unauthorized":     {maatest.MAA, fault(401, "Unauthorized", ""), attest.CodeDenied, "no permission"},
		"MAA not found":        {maatest.MAA, fault(404, "", ""), attest.CodeConfig, "maa.endpoint"},
		"an HTML page":         {maatest.MAA, maatest.Fault{Status: 418, Body: "<html>canary</html>"}, attest.CodeDenied, "MAA instance"},
		"a redirect":           {maatest.MAA, maatest.Fault{Trouble: maatest.Redirects}, attest.CodeDenied, "MAA instance"},
		"not JSON":             {maatest.MAA, maatest.Fault{Trouble: maatest.Nonsense}, attest.CodeEvidence, "MAA instance"},
		"oversize":             {maatest.MAA, maatest.Fault{Trouble: maatest.Floods}, attest.CodeEvidence, "not the one"},
		"no role":              {maatest.Vault, fault(403, "ForbiddenByRbac", "Caller is not authorized"), attest.CodeDenied, "Release User"},
		"no access policy":     {maatest.Vault, fault(403, "ForbiddenByPolicy", "no permission"), attest.CodeDenied, "Release User"},
		"firewall":             {maatest.Vault, fault(403, "ForbiddenByFirewall", "Client address is not authorized"), attest.CodeDenied, "firewall"},
		"no held data":         {maatest.Vault, fault(400, "BadParameter", "does not have the required enclave held data claim"), attest.CodeDenied, "no usable key"},
		"bad request":          {maatest.Vault, fault(400, "BadParameter", "other"), attest.CodeDenied, "exportable"},
		"vault oversize":       {maatest.Vault, maatest.Fault{Trouble: maatest.Floods}, attest.CodeEvidence, "not the one"},
		"vault redirect":       {maatest.Vault, maatest.Fault{Trouble: maatest.Redirects}, attest.CodeDenied, "vault"},
		"several lines":        {maatest.Vault, fault(418, "Odd", "the first line\r\nthe second line"), attest.CodeDenied, "vault"},
		"a token in the words": {maatest.Vault, fault(418, "Odd", "you sent eyJhbGciOiJSUzI1NiJ9.canary.sig"), attest.CodeDenied, "vault"},
		"no such identity":     {maatest.Metadata, maatest.Fault{Status: 400, Body: `{"error":"invalid_request","error_description":"Identity not found"}`}, attest.CodeDenied, "managed identity"},
		"metadata closed":      {maatest.Metadata, fault(403, "", ""), attest.CodeDenied, "network policy"},
		"metadata nonsense":    {maatest.Metadata, maatest.Fault{Trouble: maatest.Nonsense}, attest.CodeDenied, "token service"},
	} {
		w := newWorld(t, func(m *maatest.Config) { m.Faults = map[maatest.Service][]maatest.Fault{c.service: {c.fault}} })
		_, err := w.fetch(t)
		if attest.CodeOf(err) != c.code || !strings.Contains(attest.HintOf(err), c.hint) {
			t.Errorf("%s: %v [%s], hint %q; want %s, %q", name, err, attest.CodeOf(err), attest.HintOf(err), c.code, c.hint)
		}
		if c.fault.Code != "" && (!strings.Contains(err.Error(), c.fault.Code) || !strings.Contains(err.Error(), "request id 0000")) {
			t.Errorf("%s: %v does not give the service's code and the request id", name, err)
		}
		if said, _, _ := strings.Cut(c.fault.Message, "\r"); name != "a token in the words" && !strings.Contains(err.Error(), said) ||
			strings.Contains(err.Error(), "second line") {
			t.Errorf("%s: %v does not give the first line of what the service says", name, err)
		}
	}

	w := newWorld(t, func(m *maatest.Config) {
		k := m.Keys["image"]
		k.Disabled = true
		m.Keys["image"] = k
	})
	if _, err := w.fetch(t); attest.CodeOf(err) != attest.CodeDenied || !strings.Contains(attest.HintOf(err), "disabled") {
		t.Errorf("a disabled key: %v", err)
	}
	w.config.Keys["image_key"] = maa.Key{Name: "missing"}
	if _, err := w.fetch(t); attest.CodeOf(err) != attest.CodeSecret || !strings.Contains(err.Error(), "KeyNotFound") {
		t.Errorf("a missing key: %v", err)
	}
	w.config.Network.Roots = mustKeys(t).StrangersRoots()
	w.config.Network.Transport = nil
	w.config.Endpoint = "https://" + w.server.Address()
	if _, err := w.fetch(t); attest.CodeOf(err) != attest.CodeEvidence || !strings.Contains(attest.HintOf(err), "maa roots") || len(w.waits) > 0 {
		t.Errorf("a TLS certificate under another root: %v, after %v", err, w.waits)
	}
}

// byClientSecret is the way to an access token that leads through Entra.
func byClientSecret() maa.AAD {
	return maa.AAD{Mode: "client-secret", Tenant: identity.Tenant, ClientID: identity.ClientID,
		Credential: attest.NewSecret([]byte(identity.Secret))}
}

func TestADeadlineThatEndsWhileEvidenceIsMadeIsNoFaultOfTheAttester(t *testing.T) {
	w := newWorld(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	w.config.Attester = attesttest.Overtaken{Attester: w.config.Attester, End: cancel}
	_, err := w.backend(t).Fetch(ctx, []string{"image_key"})
	if attest.CodeOf(err) != attest.CodeUnreachable || !errors.Is(err, context.Canceled) || attest.HintOf(err) == "" {
		t.Errorf("%v", err)
	}
}

// No service, and no key set, is read beyond the bound.
func TestEveryAnswerIsBounded(t *testing.T) {
	for _, service := range []maatest.Service{maatest.MAA, maatest.Vault, maatest.Metadata, maatest.Entra} {
		w := newWorld(t, func(m *maatest.Config) {
			m.Faults = map[maatest.Service][]maatest.Fault{service: {{Trouble: maatest.Floods}}}
		})
		if service == maatest.Entra {
			w.config.AAD = byClientSecret()
		}
		if _, err := w.fetch(t); attest.CodeOf(err) != attest.CodeEvidence || !strings.Contains(err.Error(), "more than 262144 bytes") ||
			len(w.waits) > 0 {
			t.Errorf("%s: %v after waits %v", service, err, w.waits)
		}
	}
	w := newWorld(t, func(m *maatest.Config) {
		m.Faults = map[maatest.Service][]maatest.Fault{maatest.MAA: {{Trouble: maatest.Floods}}}
	})
	if _, err := maa.FetchKeySet(t.Context(), w.config.Network, instance); attest.CodeOf(err) != attest.CodeEvidence ||
		!strings.Contains(err.Error(), "more than 262144 bytes") {
		t.Errorf("key set: %v", err)
	}
}

func TestTheKeyOfABootIsFreshAndWiped(t *testing.T) {
	for _, attack := range []maatest.Attack{"", maatest.OtherVault, maatest.UnsignedToken} {
		w := newWorld(t, func(m *maatest.Config) { m.Attack = attack })
		var made []*rsa.PrivateKey
		w.config.NewKey = func(bits int) (*rsa.PrivateKey, error) {
			key, err := rsa.GenerateKey(rand.Reader, bits)
			made = append(made, key)
			return key, err
		}
		for range 2 {
			if _, err := w.fetch(t); (err == nil) != (attack == "") {
				t.Errorf("%q: %v", attack, err)
			}
		}
		if len(made) != 2 || made[0].N.BitLen() != 2048 || made[0].N.Cmp(made[1].N) == 0 {
			t.Fatalf("%q: %d keys, want a new one for each of two fetches", attack, len(made))
		}
		for _, key := range made {
			if slices.Max(key.D.Bits()) != 0 || slices.Max(key.Primes[0].Bits()) != 0 {
				t.Errorf("%q: a key is not wiped", attack)
			}
		}
	}
}

func mustKeys(t *testing.T) *maatest.PKI {
	t.Helper()
	pki, err := keys()
	if err != nil {
		t.Fatal(err)
	}
	return pki
}

func TestTransientFailuresAreTriedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		service maatest.Service
		faults  []maatest.Fault
		at      time.Duration // the first wait, where it is not drawn by lot
	}{
		"MAA busy, in seconds":    {maatest.MAA, []maatest.Fault{{Status: 429, RetryAfter: "7"}}, 7 * time.Second},
		"MAA busy, until a date":  {maatest.MAA, []maatest.Fault{{Status: 503, RetryAfter: now.Add(9 * time.Second).Format("Mon, 02 Jan 2006 15:04:05 GMT")}}, 9 * time.Second},
		"MAA busy, nonsense":      {maatest.MAA, []maatest.Fault{{Status: 429, RetryAfter: "-1"}}, 0},
		"MAA fails over":          {maatest.MAA, []maatest.Fault{{Trouble: maatest.Cuts}, {Trouble: maatest.CutsBody}, {Status: 500}}, 0},
		"request timeout":         {maatest.MAA, []maatest.Fault{{Status: 408}}, 0},
		"vault throttles":         {maatest.Vault, []maatest.Fault{{Status: 429, RetryAfter: "10"}, {Status: 502}}, 10 * time.Second},
		"identity being assigned": {maatest.Metadata, []maatest.Fault{{Status: 404}, {Status: 410}, {Status: 500}, {Status: 429}}, 0},
		"Entra throttles":         {maatest.Entra, []maatest.Fault{{Status: 429, RetryAfter: "3"}, {Status: 503}}, 3 * time.Second},
		"vault takes no token":    {maatest.Vault, []maatest.Fault{{Status: 401}}, -1},
	} {
		w := newWorld(t, func(m *maatest.Config) { m.Faults = map[maatest.Service][]maatest.Fault{c.service: c.faults} })
		if c.service == maatest.Entra {
			w.config.AAD = byClientSecret()
		}
		got, err := w.fetch(t)
		if err != nil || !bytes.Equal(got["image_key"].Expose(), octKey) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if c.at == -1 {
			if len(w.waits) != 0 {
				t.Errorf("%s: it waited %v", name, w.waits)
			}
			continue
		}
		if len(w.waits) != len(c.faults) || c.at > 0 && w.waits[0] != c.at {
			t.Errorf("%s: it waited %v, want %d times, first %s", name, w.waits, len(c.faults), c.at)
		}
		pause := time.Second
		for i, wait := range w.waits {
			if i < len(c.faults) && c.at == 0 && (wait < pause/2 || wait > pause) {
				t.Errorf("%s: wait %d is %s, want half to all of %s", name, i, wait, pause)
			}
			pause *= 2
		}
	}
	w := newWorld(t, func(m *maatest.Config) {
		m.Faults = map[maatest.Service][]maatest.Fault{maatest.Vault: {{Status: 401}, {Status: 401}}}
	})
	if _, err := w.fetch(t); attest.CodeOf(err) != attest.CodeDenied || !strings.Contains(attest.HintOf(err), "access token") {
		t.Errorf("401 twice: %v", err)
	}
}

func TestSlowServicesAreLeftAtTheTryTimeoutAndTheWholeAtTheDeadline(t *testing.T) {
	for _, trouble := range []maatest.Trouble{maatest.Hangs, maatest.HangsBody} {
		w := newWorld(t, func(m *maatest.Config) {
			m.Faults = map[maatest.Service][]maatest.Fault{maatest.MAA: {{Trouble: trouble}}, maatest.Vault: {{Trouble: trouble}}}
		})
		w.config.Network.TryTimeout = time.Second
		// On a slow machine a healthy try may take too long, too, and is then made again.
		if _, err := w.fetch(t); err != nil || len(w.waits) < 2 {
			t.Errorf("%s: %v after waits %v", trouble, err, w.waits)
		}
	}
	w := newWorld(t, func(m *maatest.Config) {
		m.Faults = map[maatest.Service][]maatest.Fault{maatest.MAA: {{Status: 503}}}
	})
	w.config.Network.Wait = func(context.Context, time.Duration) error { return context.DeadlineExceeded }
	_, err := w.fetch(t)
	if attest.CodeOf(err) != attest.CodeUnreachable || !strings.Contains(err.Error(), "503") {
		t.Errorf("a wait beyond the deadline: %v", err)
	}
}

func TestLongRetryAfterIsCutToAQuarterOfTheTimeThatIsLeft(t *testing.T) {
	for _, asked := range []string{"300", "2147483647", now.AddDate(70, 0, 0).Format("Mon, 02 Jan 2006 15:04:05 GMT")} {
		w := newWorld(t, func(m *maatest.Config) {
			m.Faults = map[maatest.Service][]maatest.Fault{maatest.MAA: slices.Repeat([]maatest.Fault{{Status: 503, RetryAfter: asked}}, 3)}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
		_, err := w.backend(t).Fetch(ctx, []string{"image_key"})
		cancel()
		if err != nil || len(w.waits) != 3 {
			t.Errorf("%s: %v after waits of %v", asked, err, w.waits)
		}
		for _, d := range w.waits { // real time hardly passes
			if d > 2*time.Minute || d < time.Minute {
				t.Errorf("%s: waited %s, want a quarter of 8 minutes", asked, d)
			}
		}
	}
}

func TestAccessTokensInEveryWay(t *testing.T) {
	file := func(content string) string {
		name := filepath.Join(t.TempDir(), "credential")
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	secret := func(text string) attest.Secret { return attest.NewSecret([]byte(text)) }
	authority := "https://login.microsoftonline.com/"
	for name, a := range map[string]maa.AAD{
		"workload identity by file":  {Mode: "workload-identity", File: file(identity.FederatedToken + "\n")},
		"workload identity by value": {Mode: "workload-identity", Credential: secret(identity.FederatedToken)},
		"client secret by file":      {Mode: "client-secret", File: file(identity.Secret)},
		"client secret by value":     {Mode: "client-secret", Credential: secret(identity.Secret), Authority: authority},
		"managed identity":           {Mode: "managed-identity"},
		"given token":                {Mode: "token"},
	} {
		for _, service := range []string{vault, hsm} {
			w := newWorld(t, nil)
			a.Tenant, a.ClientID, a.Metadata = identity.Tenant, identity.ClientID, w.server.MetadataURL()
			if a.Mode == "token" {
				resource := "https://" + strings.SplitN(service, ".", 2)[1]
				a.Credential = secret(w.server.NewAccessToken(resource))
			}
			w.config.AAD, w.config.Vault = a, service
			for range map[string]int{vault: 2, hsm: 1}[service] { // a second time, as credentials are wiped after use
				if _, err := w.fetch(t); err != nil {
					t.Errorf("%s for %s: %v", name, service, err)
				}
			}
		}
	}
	for name, c := range map[string]struct {
		aad  maa.AAD
		code attest.Code
		hint string
	}{
		"wrong secret":          {maa.AAD{Mode: "client-secret", Credential: secret("canary-wrong")}, attest.CodeDenied, "client secret is wrong"},
		"wrong federated token": {maa.AAD{Mode: "workload-identity", Credential: secret("eyJ.canary.wrong")}, attest.CodeDenied, "federated credential"},
		"wrong client":          {maa.AAD{Mode: "client-secret", Credential: secret("x"), ClientID: "other"}, attest.CodeDenied, "client_id"},
		"wrong tenant":          {maa.AAD{Mode: "client-secret", Credential: secret("x"), Tenant: "other"}, attest.CodeDenied, "tenant"},
		"stale token":           {maa.AAD{Mode: "token", Credential: secret("eyJzdGFsZSI.canary.x")}, attest.CodeDenied, "access token"},
		"no such file":          {maa.AAD{Mode: "token", File: "/nonexistent/token"}, attest.CodeConfig, "Mount the file"},
		"empty file":            {maa.AAD{Mode: "token", File: file("")}, attest.CodeConfig, "Mount the file"},
		"too large a file":      {maa.AAD{Mode: "token", File: file(strings.Repeat("x", 64<<10+1))}, attest.CodeConfig, "Mount the file"},
		"unassigned identity":   {maa.AAD{Mode: "managed-identity", ClientID: "other"}, attest.CodeDenied, "managed identity"},
	} {
		w := newWorld(t, nil)
		if c.aad.Tenant == "" {
			c.aad.Tenant = identity.Tenant
		}
		if c.aad.ClientID == "" && c.aad.Mode != "managed-identity" {
			c.aad.ClientID = identity.ClientID
		}
		c.aad.Metadata = w.server.MetadataURL()
		w.config.AAD = c.aad
		_, err := w.fetch(t)
		if attest.CodeOf(err) != c.code || !strings.Contains(attest.HintOf(err), c.hint) {
			t.Errorf("%s: %v, hint %q", name, err, attest.HintOf(err))
		}
	}
}

func TestConfigIsCheckedBeforeAnythingIsAsked(t *testing.T) {
	for name, change := range map[string]func(*maa.Config){
		"no roots":           func(c *maa.Config) { c.Network.Roots = nil },
		"no attester":        func(c *maa.Config) { c.Attester = nil },
		"plain endpoint":     func(c *maa.Config) { c.Endpoint = "http://test.attest.azure.net" },
		"endpoint with path": func(c *maa.Config) { c.Endpoint += "/attest" },
		"no vault":           func(c *maa.Config) { c.Vault = "" },
		"vault with user":    func(c *maa.Config) { c.Vault = "https://user@v.vault.azure.net" },
		"no keys":            func(c *maa.Config) { c.Keys = nil },
		"key with a slash":   func(c *maa.Config) { c.Keys = map[string]maa.Key{"k": {Name: "a/b"}} },
		"odd version":        func(c *maa.Config) { c.Keys = map[string]maa.Key{"k": {Name: "a", Version: "latest"}} },
		"blob of no base64":  func(c *maa.Config) { c.Keys = map[string]maa.Key{"k": {Name: "a", Blob: "?"}} },
		"weak RSA":           func(c *maa.Config) { c.KeyBits = 1024 },
		"unknown mode":       func(c *maa.Config) { c.AAD.Mode = "cli" },
		"plain authority":    func(c *maa.Config) { c.AAD.Authority = "http://login.example" },
		"no tenant":          func(c *maa.Config) { c.AAD = maa.AAD{Mode: "client-secret", ClientID: "c", File: "f"} },
		"no client":          func(c *maa.Config) { c.AAD = maa.AAD{Mode: "workload-identity", Tenant: "t", File: "f"} },
		"no credential":      func(c *maa.Config) { c.AAD = maa.AAD{Mode: "workload-identity", Tenant: "t", ClientID: "c"} },
		"no token":           func(c *maa.Config) { c.AAD = maa.AAD{Mode: "token"} },
	} {
		w := newWorld(t, nil)
		change(&w.config)
		if _, err := maa.New(w.config); attest.CodeOf(err) != attest.CodeConfig || attest.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLargerWrappingKeys(t *testing.T) {
	w := newWorld(t, nil)
	w.config.KeyBits, w.config.NewKey = 3072, nil
	if _, err := w.fetch(t); err != nil {
		t.Error(err)
	}
}

func TestBlobsHaveBounds(t *testing.T) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, keywrap.MaxPlaintext + 1} {
		if _, err := maa.WrapBlob(&private.PublicKey, attest.NewSecret(make([]byte, n))); err == nil {
			t.Errorf("a secret of %d bytes is wrapped", n)
		}
	}

}
