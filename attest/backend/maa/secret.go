package maa

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/keywrap"
)

// secretOf makes the secret from a key that was released: the key itself, or what it opens. The key is wiped unless
// it is the secret.
func secretOf(k Key, keyType string, released attest.Secret) (attest.Secret, error) {
	fail := func(err error) (attest.Secret, error) {
		released.Wipe()
		return attest.Secret{}, attest.Errorf(attest.CodeSecret, "using key "+k.Name,
			"Give an oct key of the wanted size, or a blob that was wrapped with this very key by \"sesame maa wrap\".", "%w", err)
	}
	if k.Blob == "" {
		if keyType != "oct" {
			return fail(fmt.Errorf("it is a key of type %q and there is no blob to unwrap", printable(keyType)))
		}
		return released, nil
	}
	blob, err := base64.StdEncoding.DecodeString(k.Blob)
	if err != nil {
		return fail(err)
	}
	var plain []byte
	switch keyType {
	case "oct":
		plain, err = keywrap.Unwrap(released.Expose(), blob)
	case "RSA":
		plain, err = openRSA(released.Expose(), blob)
	default:
		err = fmt.Errorf("a key of type %q unwraps nothing", printable(keyType))
	}
	if err != nil {
		return fail(err)
	}
	released.Wipe()
	return attest.NewSecret(plain), nil
}

// openRSA opens a blob with an exported RSA key in PKCS #8.
func openRSA(pkcs8, blob []byte) ([]byte, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return nil, errors.New("it is not in PKCS #8")
	}
	private, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return nil, errors.New("it is not the RSA key that it says it is")
	}
	defer attest.WipeRSA(private)
	if len(blob) > private.Size() {
		return keywrap.UnwrapRSA(sha256.New(), private, blob)
	}
	plain, err := rsa.DecryptOAEP(sha256.New(), nil, private, blob, nil)
	if err != nil {
		return nil, keywrap.ErrOpen
	}
	return plain, nil
}

// WrapBlob makes a [Key].Blob for an RSA key of the vault from its public part. secret has at most
// [keywrap.MaxPlaintext] bytes.
func WrapBlob(public *rsa.PublicKey, secret attest.Secret) (string, error) {
	plain := secret.Expose()
	var blob []byte
	var err error
	if len(plain) == 0 || len(plain) > public.Size()-2*sha256.Size-2 {
		blob, err = keywrap.WrapRSA(rand.Reader, sha256.New(), public, plain)
	} else {
		blob, err = rsa.EncryptOAEP(sha256.New(), rand.Reader, public, plain, nil)
	}
	return base64.StdEncoding.EncodeToString(blob), err
}

// WrapBlobOct makes a [Key].Blob for an oct key of the vault, 16, 24 or 32 bytes, from the key itself.
func WrapBlobOct(key, secret attest.Secret) (string, error) {
	blob, err := keywrap.Wrap(key.Expose(), secret.Expose())
	return base64.StdEncoding.EncodeToString(blob), err
}
