// Package pki reads certificates in PEM, and makes certificates that a key signs for itself.
package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"time"

	"github.com/sesame-init/sesame/internal/boundedfile"
)

// The labels of PEM blocks (RFC 7468).
const (
	typeCertificate = "CERTIFICATE"
	typeKey         = "PRIVATE KEY" // PKCS #8
)

// maxFile is the largest file of certificates that is read, in bytes.
const maxFile = 1 << 20

// ReadCertificates reads a PEM file of at most 1 MiB. Each of its blocks must be a certificate, and there must be one. The
// error names the file.
func ReadCertificates(path string) ([]*x509.Certificate, error) {
	text, err := boundedfile.Read(path, maxFile)
	if err != nil {
		return nil, err
	}
	return ParseCertificates(path, text)
}

// ParseCertificates is [ReadCertificates] of a file that has been read.
func ParseCertificates(path string, text []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		out = append(out, certificate)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s holds no certificate in PEM", path)
	}
	return out, nil
}

// ParseCertificate reads text that is exactly one certificate in PEM. Only white space may follow it.
func ParseCertificate(text []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != typeCertificate || len(bytes.TrimSpace(rest)) != 0 {
		return nil, errors.New("is not exactly one certificate in PEM")
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("is not a certificate: %w", err)
	}
	return certificate, nil
}

// Pool is a set of roots.
func Pool(certificates []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, certificate := range certificates {
		pool.AddCert(certificate)
	}
	return pool
}

// EncodeCertificate writes a certificate, given in DER, as PEM.
func EncodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: typeCertificate, Bytes: der})
}

// EncodeKey writes a private key as PEM, in PKCS #8. The caller clears it.
func EncodeKey(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	return pem.EncodeToMemory(&pem.Block{Type: typeKey, Bytes: der}), nil
}

// SelfSign makes a key's certificate after the template, signed by the key itself.
func SelfSign(random io.Reader, template *x509.Certificate, key crypto.Signer) (tls.Certificate, error) {
	der, err := x509.CreateCertificate(random, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// SetNames gives a template its subject alternative names, of which each is an IP address or a DNS name.
func SetNames(template *x509.Certificate, names []string) {
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
}

// BareKey is a certificate that says nothing but which key it is of.
func BareKey(key *ecdsa.PrivateKey, notBefore, notAfter time.Time) (tls.Certificate, error) {
	return SelfSign(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: notBefore, NotAfter: notAfter, KeyUsage: x509.KeyUsageDigitalSignature,
	}, key)
}

// NewServer makes a new P-256 key and its certificate as the server with these names, DNS names and IP addresses. The
// certificate is valid from an hour before now until notAfter. It is its own root and no authority: clients that pin it need no
// other root, and its key can issue nothing. Both are PEM; the caller clears the key.
func NewServer(names []string, now, notAfter time.Time) (key, certificate []byte, err error) {
	if len(names) == 0 {
		return nil, nil, errors.New("a server's certificate needs a name")
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: names[0]}, NotAfter: notAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	SetNames(template, names)
	return newIdentity(template, now)
}

// NewClient is [NewServer] for a client, whose name is for people only.
func NewClient(name string, now, notAfter time.Time) (key, certificate []byte, err error) {
	return newIdentity(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotAfter: notAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, now)
}

func newIdentity(template *x509.Certificate, now time.Time) (keyPEM, certificatePEM []byte, err error) {
	if !template.NotAfter.After(now) {
		return nil, nil, errors.New("a certificate needs a lifetime")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126)); err != nil {
		return nil, nil, err
	}
	template.NotBefore = now.Add(-time.Hour)
	// It issues nothing. A key usage without certificate signing would say so again, but then OpenSSL and its relatives do
	// not take the certificate for self-signed, and clients could not pin it.
	template.BasicConstraintsValid = true
	made, err := SelfSign(rand.Reader, template, key)
	if err != nil {
		return nil, nil, err
	}
	if keyPEM, err = EncodeKey(key); err != nil {
		return nil, nil, err
	}
	return keyPEM, EncodeCertificate(made.Certificate[0]), nil
}
