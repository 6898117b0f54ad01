package aecs_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"io"
	"math/big"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/aecs"
)

func rsaKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issued is a certificate with its key.
type issued struct {
	key  *rsa.PrivateKey
	cert *x509.Certificate
}

func (i *issued) tls() *tls.Certificate {
	return &tls.Certificate{Certificate: [][]byte{i.cert.Raw}, PrivateKey: i.key}
}

func (i *issued) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(i.cert)
	return pool
}

// certificateV1 is one as the upstream's deployment/gencert makes them with "openssl x509 -req": version 1, so without
// extensions, and its name is the common name. crypto/x509 makes none, so it is written here.
func certificateV1(t *testing.T, cn string, issuer *issued) *issued {
	t.Helper()
	self := &issued{key: rsaKey(t)}
	if issuer == nil {
		issuer = &issued{key: self.key, cert: &x509.Certificate{Subject: pkix.Name{CommonName: cn}}}
	}
	spki, err := x509.MarshalPKIXPublicKey(&self.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	algorithm := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11},
		Parameters: asn1.NullRawValue}
	tbs, err := asn1.Marshal(struct {
		Serial    *big.Int
		Algorithm pkix.AlgorithmIdentifier
		Issuer    pkix.RDNSequence
		Validity  struct{ NotBefore, NotAfter time.Time }
		Subject   pkix.RDNSequence
		Key       asn1.RawValue
	}{
		big.NewInt(time.Now().UnixNano()), algorithm, issuer.cert.Subject.ToRDNSequence(),
		struct{ NotBefore, NotAfter time.Time }{now.Add(-time.Hour), now.Add(time.Hour)},
		pkix.Name{CommonName: cn}.ToRDNSequence(), asn1.RawValue{FullBytes: spki},
	})
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(tbs)
	signature, err := rsa.SignPKCS1v15(nil, issuer.key, 5, digest[:]) // 5 is crypto.SHA256
	if err != nil {
		t.Fatal(err)
	}
	der, err := asn1.Marshal(struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: tbs}, algorithm, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}})
	if err != nil {
		t.Fatal(err)
	}
	if self.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	if self.cert.Version != 1 || len(self.cert.Extensions) != 0 {
		t.Fatal("the certificate is not of version 1")
	}
	return self
}

// certificateV3 is an ordinary one.
func certificateV3(t *testing.T, name string, issuer *issued) *issued {
	t.Helper()
	self := &issued{key: rsaKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "ignored"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		BasicConstraintsValid: true,
	}
	signer, parent := self.key, template
	if issuer == nil {
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
	} else {
		signer, parent = issuer.key, issuer.cert
		template.DNSNames = []string{name}
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &self.key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	if self.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return self
}

func TestMutualTLSWithTheUpstreamsCertificatesAndWithOrdinaryOnes(t *testing.T) {
	old := certificateV1(t, "ca", nil)
	oldServer, oldClient := certificateV1(t, aecs.EnclaveService, old), certificateV1(t, "enclave-client", old)
	ca := certificateV3(t, "ca", nil)
	server, client := certificateV3(t, "aecs.example", ca), certificateV3(t, "client.example", ca)
	for name, c := range map[string]struct {
		ca, server, client *issued
		name               string
		change             func(*aecs.TLS)
		code               attest.Code
		says               string
	}{
		"the upstream's": {old, oldServer, oldClient, "", nil, "", ""},
		"ordinary ones":  {ca, server, client, "aecs.example", nil, "", ""},
		"another common name": {old, certificateV1(t, "localhost", old), oldClient, "", nil, attest.CodeEvidence,
			"common name"},
		"another alternative name":     {ca, server, client, "other.example", nil, attest.CodeEvidence, "other.example"},
		"a common name beside another": {ca, server, client, "ignored", nil, attest.CodeEvidence, "ignored"},
		"another authority": {old, oldServer, oldClient, "", func(c *aecs.TLS) { c.Roots = ca.pool() },
			attest.CodeEvidence, "unknown authority"},
		"no certificate of ours": {old, oldServer, oldClient, "", func(c *aecs.TLS) { c.Certificate = nil },
			attest.CodeUnreachable, "asking AECS"},
		"a certificate of another authority": {old, oldServer, oldClient, "",
			func(c *aecs.TLS) { c.Certificate = client.tls() },
			attest.CodeUnreachable, "asking AECS"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			d := newDeployment(t, aecs.GenerationB, io.Discard)
			if c.code == attest.CodeUnreachable { // it is tried again until the end
				d = newDeployment(t, aecs.GenerationB, whenWritten(cancel))
			}
			d.add("k", "value")
			d.listen = []grpc.ServerOption{grpc.Creds(credentials.NewTLS(&tls.Config{
				Certificates: []tls.Certificate{*c.server.tls()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: c.ca.pool(), Time: clock,
			}))}
			d.client.TLS = &aecs.TLS{Roots: c.ca.pool(), Certificate: c.client.tls(), ServerName: c.name}
			if c.change != nil {
				c.change(d.client.TLS)
			}
			fetchWithin(t, ctx, d.start(t), c.code, c.says)
		})
	}
}

func TestPlaintextAndTLSDoNotMeet(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	d := newDeployment(t, aecs.GenerationB, whenWritten(cancel))
	d.add("k", "value")
	d.plaintext()
	d.client.Plaintext, d.client.TLS = false, &aecs.TLS{Roots: x509.NewCertPool()}
	_, err := d.start(t).Fetch(ctx, []string{"k"})
	if attest.CodeOf(err) != attest.CodeUnreachable || !strings.Contains(attest.HintOf(err), "TLS or without") {
		t.Errorf("%v; %s", err, attest.HintOf(err))
	}
}

// whenWritten is a log that does something at the first line, which says that another try will be made.
type whenWritten func()

func (f whenWritten) Write(b []byte) (int, error) { f(); return len(b), nil }
