package keystore

import (
	"crypto/rand"
	"io"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/pki"
	"github.com/sesame-init/sesame/internal/tfssl"
)

// A Kind says what a secret is. It is part of what a stored value is bound to.
type Kind string

// The kinds.
const (
	Value    Kind = "value"         // whatever was put
	ImageKey Kind = "image-key"     // 16 bytes as Occlum writes them: xx-xx-…
	Random   Kind = "random"        // random bytes
	X509     Kind = "x509"          // PEM: a PKCS #8 key, then its certificate
	TFConfig Kind = "tf-ssl-config" // TensorFlow Serving's SSLConfig as a text proto, with key and certificate
	File     Kind = "file"          // of secret_config.json; never stored
)

// Check says whether a value can be of the kind.
func (k Kind) Check(value attest.Secret) error {
	const step = "checking secret"
	if n := value.Len(); n == 0 || n > MaxValue {
		return attest.Errorf(attest.CodeConfig, step, "", "a secret has 1 to %d bytes, this one %d", MaxValue, n)
	}
	switch k {
	case Value, Random, X509, TFConfig:
		return nil
	case ImageKey:
		key, err := sefs.ParseKey(value.Expose())
		if err != nil {
			return attest.Errorf(attest.CodeConfig, step, "Write 16 bytes as Occlum does: 0a-1b-…, or let the broker generate them.", "%w", err)
		}
		clear(key[:])
		return nil
	}
	return attest.Errorf(attest.CodeConfig, step, "The kinds are value, image-key, random, x509 and tf-ssl-config.", "there is no kind %.20q", string(k))
}

// Recipe says what to generate.
type Recipe struct {
	Kind  Kind
	Size  int      // of Random, in bytes; default 32
	Names []string // of X509 and TFConfig: DNS names and IP addresses; default localhost
	Days  int      // of X509 and TFConfig: for how long the certificate is valid; default 365
}

// Generate makes a value. Public is what of it is no secret, a PEM certificate, nil if there is none.
func (r Recipe) Generate(now time.Time) (value attest.Secret, public []byte, err error) {
	const step = "generating secret"
	fail := func(err error) (attest.Secret, []byte, error) {
		return attest.Secret{}, nil, attest.Errorf(attest.CodeInternal, step, "", "%w", err)
	}
	switch r.Kind {
	case ImageKey:
		var key sefs.Key
		if _, err := io.ReadFull(rand.Reader, key[:]); err != nil {
			return fail(err)
		}
		defer clear(key[:])
		return sefs.EncodeKey(key), nil, nil
	case Random:
		size := r.Size
		if size == 0 {
			size = 32
		}
		if size < 1 || size > 4096 {
			return attest.Secret{}, nil, attest.Errorf(attest.CodeConfig, step, "", "%d random bytes; 1 to 4096 can be had", size)
		}
		b := make([]byte, size)
		if _, err := io.ReadFull(rand.Reader, b); err != nil {
			return fail(err)
		}
		return attest.NewSecret(b), nil, nil
	case X509, TFConfig:
		private, certificate, err := r.identity(now)
		if err != nil {
			return attest.Secret{}, nil, err
		}
		defer clear(private)
		if r.Kind == X509 {
			return attest.NewSecret(append(append([]byte(nil), private...), certificate...)), certificate, nil
		}
		return attest.NewSecret(tfssl.Encode(private, certificate)), certificate, nil
	}
	return attest.Secret{}, nil, attest.Errorf(attest.CodeConfig, step,
		"The broker generates image-key, random, x509 and tf-ssl-config.", "there is no recipe for %.20q", string(r.Kind))
}

// identity makes a P-256 key and a certificate that it signs itself, in PEM.
func (r Recipe) identity(now time.Time) (private, certificate []byte, err error) {
	const step = "generating certificate"
	names, days := r.Names, r.Days
	if len(names) == 0 {
		names = []string{"localhost"}
	}
	if days == 0 {
		days = 365
	}
	if len(names) > 64 || days < 1 || days > 3650 {
		return nil, nil, attest.Errorf(attest.CodeConfig, step, "", "%d names for %d days; at most 64 for 3650", len(names), days)
	}
	private, certificate, err = pki.NewServer(names, now, now.AddDate(0, 0, days))
	if err != nil {
		return nil, nil, attest.Errorf(attest.CodeConfig, step, "Correct the names.", "%w", err)
	}
	return private, certificate, nil
}

func equalFold(a, b string) bool { return strings.EqualFold(a, b) }
