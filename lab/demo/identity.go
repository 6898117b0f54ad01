package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"time"

	"github.com/sesame-init/sesame/internal/packaging/keyring"
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

func short(hash string) string {
	if len(hash) > 16 {
		return hash[:16] + "…"
	}
	return hash
}
