package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/sesame-init/sesame/packaging/keyring"
)

// makeIdentities makes the server's TLS identity as TensorFlow Serving wants it, and three signers of enclaves.
func (d *demo) makeIdentities() error {
	config, certificate, err := keyring.NewServerIdentity([]string{"localhost", "127.0.0.1"}, 24*time.Hour, time.Now())
	if err != nil {
		return err
	}
	if err := os.WriteFile(d.path("ssl.cfg"), config, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(d.path("server.crt"), certificate, 0o644); err != nil {
		return err
	}
	for _, name := range []string{"broker", "workload", "stranger"} {
		signer, err := rsa.GenerateKey(rand.Reader, 3072)
		if err != nil {
			return err
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(signer)})
		if err := os.WriteFile(d.path(name+".pem"), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// freeAddress is a loopback address that nobody listens on.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func copyFile(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, info.Mode().Perm())
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

func short(hash string) string {
	if len(hash) > 16 {
		return hash[:16] + "…"
	}
	return hash
}
