package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/sesame-init/sesame/attest"
	backend "github.com/sesame-init/sesame/attest/backend/aecs"
	"github.com/sesame-init/sesame/attest/backend/aecs/wire"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/packaging/keyring"
	"github.com/sesame-init/sesame/lab/aecstest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// The AECS's identity, under the broker's signer.
const (
	aecsProduct = 101
	aecsSVN     = 2
)

// aecs is a KubeTEE AECS that verifies quotes, with evidence of an enclave of its own, behind TLS that demands a
// certificate of its clients. It speaks generation B of the protocol, and A if the demo's wire is the legacy one.
type aecs struct {
	demo        *demo
	address     string
	signKey     string // whose enclave it is
	product     uint16
	svn         uint16
	imageKey    string // the file that it holds as the image key
	measurement string // of the workload, as the policies of its secrets name it

	server   *grpc.Server
	ended    chan error
	refusals chan string
}

func newAECS(d *demo) *aecs {
	return &aecs{demo: d, signKey: "broker", product: aecsProduct, svn: aecsSVN}
}

func (a *aecs) generation() backend.Generation {
	if a.demo.wire == "legacy" {
		return backend.GenerationA
	}
	return backend.GenerationB
}

func (a *aecs) prepare(context.Context) (map[string]string, error) {
	var err error
	if a.address, err = a.demo.address(); err != nil {
		return nil, err
	}
	files := map[string]string{}
	for _, name := range []string{"ca.pem", "client.pem", "client.key"} {
		files["initfs/etc/aecs/"+name] = a.demo.path("aecs", name)
	}
	return files, a.makeCertificates()
}

func (a *aecs) tlsBlock() map[string]any {
	return map[string]any{"ca": "/etc/aecs/ca.pem", "certificate": "/etc/aecs/client.pem", "key": "/etc/aecs/client.key"}
}

func (a *aecs) block() (string, any, error) {
	signer, err := keyring.MRSigner(a.demo.path("broker.pem"))
	return "aecs", map[string]any{
		"servers": []string{a.address}, "generation": a.generation(), "service": aecstest.DemoService,
		"tls": a.tlsBlock(),
		"server_policy": map[string]any{"sgx": []any{map[string]any{
			"mr_signer": signer, "product_id": aecsProduct, "min_svn": aecsSVN,
		}}},
	}, err
}

func (a *aecs) occlumShape() (map[string]any, error) {
	signer, err := keyring.MRSigner(a.demo.path("broker.pem"))
	return map[string]any{
		"kms_server": a.address,
		"kms_keys": []any{map[string]any{"key": "ssl_config", "path": "/etc/tf_ssl.cfg",
			"service": aecstest.DemoService}},
		"ua_env_pccs_url": a.demo.pccs,
		"ra_config": map[string]any{
			"ua_policy_str_tee_platform": wire.PlatformDCAP, "ua_policy_hex_signer": strings.ToUpper(signer),
			"ua_policy_hex_prod_id": fmt.Sprint(aecsProduct), "ua_policy_str_min_isvsvn": fmt.Sprint(aecsSVN),
			"ua_policy_bool_debug_disabled": "true",
		},
		"aecs": map[string]any{"generation": a.generation(), "tls": a.tlsBlock()},
	}, err
}

func (a *aecs) admit(ctx context.Context) (string, error) {
	var err error
	a.measurement, err = a.demo.tool(ctx, a.demo.path("workload"), "occlum", "print", "mrenclave")
	return fmt.Sprintf("generation %s, %s", a.generation(), identity(aecsProduct, aecsSVN)), err
}

func (a *aecs) start(ctx context.Context) (string, error) {
	platform, err := softsgx.Load(a.demo.path("platform"))
	if err != nil {
		return "", err
	}
	o := aecstest.Options{
		Generation: a.generation(), Collateral: platform.Collateral(),
		Verifier: func(c *dcap.Collateral) attest.Verifier {
			return dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{platform.RootCA()}, Source: pccs.Stapled(c)})
		},
	}
	var body sgx.ReportBody
	signer, err := keyring.MRSigner(a.demo.path(a.signKey + ".pem"))
	if err != nil {
		return "", err
	}
	if _, err := hex.Decode(body.MRSigner[:], []byte(signer)); err != nil {
		return "", err
	}
	body.ProductID, body.SVN = a.product, a.svn
	body.Attributes = attest.AttributeInit | attest.AttributeMode64Bit
	o.Attester = platform.Attester(body)
	if o.Secrets, err = a.secrets(); err != nil {
		return "", err
	}
	server, err := aecstest.New(ctx, o)
	if err != nil {
		return "", err
	}
	return a.address, a.serve(server)
}

func (a *aecs) secrets() ([]*wire.EnclaveSecret, error) {
	files := a.demo.secretFiles()
	if a.imageKey != "" {
		files["image_key"] = a.imageKey
	}
	secrets, err := aecstest.DemoSecrets(time.Now())
	if err != nil {
		return nil, err
	}
	for name, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		secrets = append(secrets, aecstest.Secret(aecstest.DemoService, name, string(text),
			&wire.UnifiedAttestationAttributes{
				StrTeePlatform: wire.PlatformDCAP, HexTaMeasurement: strings.ToUpper(a.measurement), BoolDebugDisabled: "true",
			}))
	}
	return secrets, nil
}

func (a *aecs) serve(server *aecstest.Server) error {
	certificate, err := tls.LoadX509KeyPair(a.demo.path("aecs", "server.pem"), a.demo.path("aecs", "server.key"))
	if err != nil {
		return err
	}
	authority, err := os.ReadFile(a.demo.path("aecs", "ca.pem"))
	if err != nil {
		return err
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(authority)
	listener, err := net.Listen("tcp", a.address)
	if err != nil {
		return err
	}
	a.refusals = make(chan string, 16)
	a.server = grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate},
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients,
		})),
		grpc.UnaryInterceptor(a.remember))
	server.Register(a.server)
	a.ended = make(chan error, 1)
	go func() { a.ended <- a.server.Serve(listener) }()
	return nil
}

// remember keeps what the server has refused.
func (a *aecs) remember(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any,
	error) {
	answer, err := handle(ctx, request)
	if err != nil {
		select {
		case a.refusals <- err.Error():
		default: // nobody wants to know
		}
	}
	return answer, err
}

func (a *aecs) stop() {
	if a.server != nil {
		a.server.Stop()
		<-a.ended
		a.server = nil
	}
}

func (a *aecs) refusal(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	select {
	case reason := <-a.refusals:
		return reason, nil
	case <-ctx.Done():
		return "", errors.New("the AECS has refused nobody")
	}
}

func (a *aecs) tamperings() map[string][]tampering {
	other := func(signKey string, product, svn uint16) func(context.Context) error {
		return func(context.Context) error {
			a.signKey, a.product, a.svn = signKey, product, svn
			return nil
		}
	}
	return map[string][]tampering{
		"config": {{
			what:        "a byte of the measured init config, after the secrets' policies were written",
			change:      a.demo.tamperConfig,
			refusal:     []string{"refused [denied]", "MRENCLAVE"},
			serviceSays: "0x111A0000",
		}},
		"quote": {{
			what:        "the signature in the workload's quote",
			change:      a.demo.tamperQuote,
			platform:    "platform-tampered",
			refusal:     []string{"refused [denied]", "not genuine"},
			serviceSays: "0x11A50000",
		}},
		"server": {
			{
				what:    "the AECS is signed by somebody else",
				change:  other("stranger", aecsProduct, aecsSVN),
				refusal: []string{"refused [policy]", "mr_signer"},
			},
			{
				what:    "the AECS has another product id",
				change:  other("broker", aecsProduct+1, aecsSVN),
				refusal: []string{"refused [policy]", "product_id"},
			},
			{
				what:    "the AECS has a lower SVN",
				change:  other("broker", aecsProduct, aecsSVN-1),
				refusal: []string{"refused [policy]", "svn"},
			},
		},
		"key": {{
			what: "the AECS holds another image key",
			change: func(ctx context.Context) error {
				files, err := a.demo.otherImageKey(ctx)
				a.imageKey = files["image_key"]
				return err
			},
			refusal: []string{"refused [mount]", "mounting /"},
		}},
	}
}

// makeCertificates makes an authority, and what server and client of the AECS show each other.
func (a *aecs) makeCertificates() error {
	if err := os.MkdirAll(a.demo.path("aecs"), 0o700); err != nil {
		return err
	}
	var authority *x509.Certificate
	var authorityKey *ecdsa.PrivateKey
	for i, name := range []string{"ca", "server", "client"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: "AECS demo " + name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true,
		}
		parent, parentKey := authority, authorityKey
		if authority == nil {
			template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
			parent, parentKey = template, key
		} else {
			template.DNSNames = []string{backend.EnclaveService}
			template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
		if err != nil {
			return err
		}
		if authority == nil {
			if authority, err = x509.ParseCertificate(der); err != nil {
				return err
			}
			authorityKey = key
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		for file, block := range map[string]*pem.Block{
			name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: keyDER},
		} {
			if err := os.WriteFile(a.demo.path("aecs", file), pem.EncodeToMemory(block), 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}
