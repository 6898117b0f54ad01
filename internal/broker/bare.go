package broker

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/pki"
	"github.com/sesame-init/sesame/internal/privatefile"
)

// BareIdentity is the key of a broker that runs outside an enclave, on the key owner's own premises. It proves nothing
// but itself: clients pin it in their measured config.
type BareIdentity struct {
	certificate tls.Certificate
	pin         [32]byte
}

// OpenBareIdentity reads a key (PEM, PKCS #8, P-256) from a private file, or makes one if there is none.
func OpenBareIdentity(path string, rule privatefile.Rule) (*BareIdentity, error) {
	const step = "opening the broker's key"
	fail := func(hint string, err error) (*BareIdentity, error) {
		return nil, attest.Errorf(attest.CodeConfig, step, hint, "%s: %w", path, err)
	}
	text, err := rule.Read(path, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		if text, err = makeKey(path); err != nil {
			return fail("Name a file in a folder that the broker may write to.", err)
		}
	}
	if err != nil {
		return fail("", err)
	}
	defer clear(text)
	const hint = "It must hold one key of the curve P-256 in PEM, PKCS #8. Clients pin it: do not make a new one lightly."
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return fail(hint, errors.New("no private key in PEM"))
	}
	defer clear(block.Bytes)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return fail(hint, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return fail(hint, errors.New("not a key of the curve P-256"))
	}
	return newBareIdentity(key)
}

func makeKey(path string) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	text, err := pki.EncodeKey(key)
	if err != nil {
		return nil, err
	}
	return text, privatefile.Create(path, text)
}

func newBareIdentity(key *ecdsa.PrivateKey) (*BareIdentity, error) {
	certificate, err := pki.BareKey(key, time.Unix(0, 0), time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)) // dates mean nothing
	if err != nil {
		return nil, err
	}
	return &BareIdentity{certificate: certificate, pin: sha256.Sum256(certificate.Leaf.RawSubjectPublicKeyInfo)}, nil
}

// Pin is what clients write as broker_key: the SHA-256 of the SubjectPublicKeyInfo.
func (b *BareIdentity) Pin() [32]byte { return b.pin }

// Certificate implements [Identity].
func (b *BareIdentity) Certificate(context.Context) (*tls.Certificate, error) {
	return &b.certificate, nil
}
