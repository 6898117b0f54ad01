// Package standintest runs the stand-in for TensorFlow Serving inside tests: on a free loopback port, over TLS, with
// a small network whose answers are arbitrary but always the same.
package standintest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/sesame-init/sesame/internal/pki"
	"github.com/sesame-init/sesame/internal/tfssl"
	"github.com/sesame-init/sesame/lab/standin"
	"github.com/sesame-init/sesame/lab/standin/network"
)

// Classes is the number of classes that the network tells apart.
const Classes = 4

// NewNetwork makes the network that every server here computes.
func NewNetwork() *network.Network {
	var typical [][]float32
	for class := range Classes {
		typical = append(typical, slices.Repeat([]float32{0.4 + 0.05*float32(class)}, network.InputLength))
	}
	return network.New(2, typical, mathrand.New(mathrand.NewPCG(1, 2)))
}

// Server is a running server of the model "resnet", version 7.
type Server struct {
	Address     string // HOST:PORT
	Certificate string // file, PEM
	Model       *standin.Model
}

// Start runs a server until the test ends. Its certificate is for localhost.
func Start(t testing.TB) *Server {
	t.Helper()
	dir := t.TempDir()
	identity := NewIdentity(t, pkix.Name{CommonName: "localhost"}, nil, "localhost")
	certificate := filepath.Join(dir, "server.crt")
	WriteFile(t, certificate, identity.Certificate)
	config := filepath.Join(dir, "ssl.cfg")
	WriteFile(t, config, identity.SSLConfig())
	credentials, err := standin.Credentials(config)
	if err != nil {
		t.Fatal(err)
	}
	model := &standin.Model{Name: "resnet", Version: 7, Network: NewNetwork()}
	return &Server{Serve(t, standin.NewServer(model, grpc.Creds(credentials))), certificate, model}
}

// Serve runs a server on a free loopback port until the test ends, and returns its address.
func Serve(t testing.TB, server *grpc.Server) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // stopped before it could serve
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

// Identity is a self-signed certificate with its key, both PEM.
type Identity struct {
	Certificate, Key []byte
	certificate      *x509.Certificate
	key              *ecdsa.PrivateKey
}

// NewIdentity makes an identity that is valid for an hour from now, as its own authority or issued by another one.
func NewIdentity(t testing.TB, subject pkix.Name, issuer *Identity, names ...string) *Identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: subject, DNSNames: names,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: issuer == nil, BasicConstraintsValid: true,
	}
	parent, signer := template, key
	if issuer != nil {
		parent, signer = issuer.certificate, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &Identity{
		pki.EncodeCertificate(der),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		parsed, key,
	}
}

// SSLConfig is the identity as TensorFlow Serving reads it, with further lines at its end.
func (i *Identity) SSLConfig(lines ...string) []byte {
	own := bytes.TrimSuffix(tfssl.Encode(i.Key, i.Certificate), []byte("client_verify: false\n"))
	return append(own, strings.Join(lines, "\n")+"\n"...)
}

// WriteFile writes a file that only its owner may read.
func WriteFile(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
