package maatest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"time"

	"github.com/sesame-init/sesame/internal/pki"
)

// PKI is the keys and certificates of a cloud. It holds RSA keys, which are slow to make, so clouds may share one.
type PKI struct {
	root, stranger authority // no one trusts the stranger
	tls            tls.Certificate
	tokens         *rsa.PrivateKey // signs MAA's tokens
	vault          *rsa.PrivateKey // of the vault's TLS certificate, which signs releases
	other          *rsa.PrivateKey // of another party
}

// authority is a root and a CA below it.
type authority struct {
	root, issuer *x509.Certificate
	key          *ecdsa.PrivateKey // of both
}

// names are the host names of the services, beside the loopback address.
var (
	vaultNames = []string{"vault.azure.net", "*.vault.azure.net", "*.vaultcore.azure.net"}
	hsmNames   = []string{"*.managedhsm.azure.net"}
	otherNames = []string{"*.uks.attest.azure.net", "login.microsoftonline.com"}
)

// NewPKI makes keys and certificates that are valid around now.
func NewPKI(now time.Time) (*PKI, error) {
	p := &PKI{}
	var err error
	for _, key := range []**rsa.PrivateKey{&p.tokens, &p.vault, &p.other} {
		if *key, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			return nil, err
		}
	}
	if p.root, err = newAuthority("maatest", now); err != nil {
		return nil, err
	}
	if p.stranger, err = newAuthority("maatest stranger", now); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, names := range [][]string{vaultNames, hsmNames, otherNames} {
		all = append(all, names...)
	}
	leaf, err := p.root.leaf(all, key.Public(), now)
	if err != nil {
		return nil, err
	}
	p.tls = tls.Certificate{Certificate: [][]byte{leaf, p.root.issuer.Raw}, PrivateKey: key}
	return p, nil
}

// RootPEM is the root that clients must trust.
func (p *PKI) RootPEM() []byte {
	return pki.EncodeCertificate(p.root.root.Raw)
}

// Roots is a pool of that root.
func (p *PKI) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.root.root)
	return pool
}

// StrangersRoots is a pool of a root that has nothing to do with the services.
func (p *PKI) StrangersRoots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.stranger.root)
	return pool
}

func (p *PKI) transport(now func() time.Time, dial func(ctx context.Context, host string) (net.Conn, error)) http.RoundTripper {
	return &http.Transport{
		DialContext:       func(ctx context.Context, _, host string) (net.Conn, error) { return dial(ctx, host) },
		TLSClientConfig:   &tls.Config{RootCAs: p.Roots(), MinVersion: tls.VersionTLS12, Time: now},
		DisableKeepAlives: true,
	}
}

const (
	backdate = 24 * time.Hour
	lifetime = 30 * 24 * time.Hour
)

func newAuthority(name string, now time.Time) (authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, err
	}
	a := authority{key: key}
	for _, c := range []struct {
		name string
		to   **x509.Certificate
	}{{name + " root", &a.root}, {name + " issuing CA", &a.issuer}} {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: c.name}, IsCA: true, BasicConstraintsValid: true,
			NotBefore: now.Add(-backdate), NotAfter: now.Add(lifetime), KeyUsage: x509.KeyUsageCertSign,
		}
		parent := template
		if a.root != nil {
			parent = a.root
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), key)
		if err != nil {
			return authority{}, err
		}
		if *c.to, err = x509.ParseCertificate(der); err != nil {
			return authority{}, err
		}
	}
	return a, nil
}

// leaf certifies a key for host names and the loopback address.
func (a *authority) leaf(names []string, key crypto.PublicKey, now time.Time) ([]byte, error) {
	return x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, DNSNames: append([]string{"localhost"}, names...),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:   now.Add(-backdate), NotAfter: now.Add(lifetime), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.issuer, key, a.key)
}

// instance is the signing key of one MAA instance: a self-signed certificate that is no CA and names the issuer.
type instance struct {
	certificate []byte
	kid         string
}

func (p *PKI) newInstance(issuer string, now time.Time) (*instance, error) {
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: issuer}, BasicConstraintsValid: true,
		NotBefore: now.Add(-backdate), NotAfter: now.Add(lifetime),
	}, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: issuer}}, p.tokens.Public(), p.tokens)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(p.tokens.Public())
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(append(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), 0))
	return &instance{certificate: der, kid: base64.StdEncoding.EncodeToString(id[:])}, nil
}

// othersJWK is another owner's key, fit for wrapping.
func (p *PKI) othersJWK() map[string]any {
	return map[string]any{
		"kty": "RSA", "kid": "somebody-else", "key_ops": []string{"encrypt"}, "e": "AQAB", "n": b64.EncodeToString(p.other.N.Bytes()),
	}
}
