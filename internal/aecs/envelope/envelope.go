// Package envelope opens and makes the digital envelopes of KubeTEE's unified attestation (jinzhao-attest,
// ual/common/envelope.cpp), in which an AECS sends secrets:
//
//	encrypted_key   RSAES-OAEP (SHA-1, MGF1 with SHA-1, no label) of a fresh 32-byte key, for the receiver
//	aes_cipher      AES-256-GCM under that key: iv 12 bytes, mac 16, aad as it is authenticated
//	plain_hash      SHA-256 of the plaintext in 64 upper-case hexadecimal digits
//	plain_hash_sig  RSASSA-PKCS1-v1_5 with SHA-256 of the sender over those 64 bytes
//
// # Promises
//
// [Open] gives a plaintext only if all of that is so, with exactly the additional data that was asked for. Each check
// has its own error. RSA keys have 2048 to 8192 bits. The key and a plaintext that fails a check are wiped.
//
// # Limits
//
// plain_hash is in the clear: anyone who sees the envelope can test guesses of the plaintext. The signature covers
// nothing but that hash, so it says that the sender once sent this plaintext to someone, not that it is the answer
// to a question; the additional data is authenticated by a key that anyone can make. Freshness and the answer's
// relation to its request are for the caller.
//
// # Compatibility
//
// This package serves the rest of the module: its names may change in any release. The format is that of AECS.
package envelope

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // the wire says OAEP with SHA-1
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/aecs/wire"
)

// Reasons why an envelope does not open.
var (
	ErrForm      = errors.New("the envelope is malformed")
	ErrAAD       = errors.New("the envelope was made with other additional data")
	ErrKey       = errors.New("the envelope's key was not made for this receiver")
	ErrCipher    = errors.New("the envelope's ciphertext was changed")
	ErrHash      = errors.New("the envelope's hash is not that of its plaintext")
	ErrSignature = errors.New("the envelope was not signed by this sender")
)

// Enclave is the additional data of an envelope that was given none.
const Enclave = "Enclave"

// Sizes in bytes, and of RSA moduli in bits.
const (
	keySize  = 32
	ivSize   = 12
	macSize  = 16
	hashSize = 2 * sha256.Size
	minBits  = 2048
	maxBits  = 8192
)

// Open decrypts an envelope for the receiver with exactly this additional data, of at most max bytes of plaintext, and
// verifies that the sender signed it. The error is, or wraps, one of those above.
func Open(e *wire.DigitalEnvelopeEncrypted, receiver *rsa.PrivateKey, aad string, sender *rsa.PublicKey,
	max int) (attest.Secret, error) {
	none := attest.Secret{}
	c := e.GetAesCipher()
	if err := checkForm(e, max); err != nil {
		return none, err
	}
	if err := checkBits(sender.N.BitLen()); err != nil {
		return none, err
	}
	if subtle.ConstantTimeCompare(c.GetAad(), []byte(aad)) != 1 {
		return none, ErrAAD
	}
	if len(e.GetEncryptedKey()) != receiver.Size() {
		return none, fmt.Errorf("%w: %d bytes for a key of %d", ErrKey, len(e.GetEncryptedKey()), receiver.Size())
	}
	key, err := rsa.DecryptOAEP(sha1.New(), nil, receiver, e.GetEncryptedKey(), nil)
	if err != nil {
		return none, ErrKey
	}
	defer clear(key)
	if len(key) != keySize {
		return none, fmt.Errorf("%w: it has %d bytes, want %d", ErrKey, len(key), keySize)
	}
	gcm, err := newGCM(key)
	if err != nil {
		return none, err
	}
	sealed := append(append(make([]byte, 0, len(c.GetCipher())+macSize), c.GetCipher()...), c.GetMac()...)
	plain, err := gcm.Open(sealed[:0], c.GetIv(), sealed, c.GetAad())
	if err != nil {
		return none, ErrCipher
	}
	secret := attest.NewSecret(plain)
	if subtle.ConstantTimeCompare(hash(plain), e.GetPlainHash()) != 1 {
		secret.Wipe()
		return none, ErrHash
	}
	digest := sha256.Sum256(e.GetPlainHash())
	if rsa.VerifyPKCS1v15(sender, crypto.SHA256, digest[:], e.GetPlainHashSig()) != nil {
		secret.Wipe()
		return none, ErrSignature
	}
	return secret, nil
}

func checkForm(e *wire.DigitalEnvelopeEncrypted, max int) error {
	c := e.GetAesCipher()
	for _, field := range []struct {
		name      string
		got, want int
	}{
		{"iv", len(c.GetIv()), ivSize},
		{"mac", len(c.GetMac()), macSize},
		{"plain_hash", len(e.GetPlainHash()), hashSize},
	} {
		if field.got != field.want {
			return fmt.Errorf("%w: %s has %d bytes, want %d", ErrForm, field.name, field.got, field.want)
		}
	}
	if n := len(c.GetCipher()); n == 0 || n > max {
		return fmt.Errorf("%w: the plaintext has %d bytes, want 1 to %d", ErrForm, n, max)
	}
	return nil
}

func checkBits(bits int) error {
	if bits < minBits || bits > maxBits {
		return fmt.Errorf("%w: an RSA key of %d bits, want %d to %d", ErrForm, bits, minBits, maxBits)
	}
	return nil
}

// Seal makes an envelope for a receiver. random gives the AES key and the iv. A nil sender leaves it unsigned.
func Seal(random io.Reader, plain []byte, receiver *rsa.PublicKey, aad string,
	sender *rsa.PrivateKey) (*wire.DigitalEnvelopeEncrypted, error) {
	if len(plain) == 0 {
		return nil, fmt.Errorf("%w: an empty plaintext", ErrForm)
	}
	if err := checkBits(receiver.N.BitLen()); err != nil {
		return nil, err
	}
	key, iv := make([]byte, keySize), make([]byte, ivSize)
	defer clear(key)
	for _, b := range [][]byte{key, iv} {
		if _, err := io.ReadFull(random, b); err != nil {
			return nil, fmt.Errorf("making an envelope: %w", err)
		}
	}
	gcm, err := newGCM(key)
	if err != nil {
		return nil, err
	}
	sealed := gcm.Seal(nil, iv, plain, []byte(aad))
	encryptedKey, err := rsa.EncryptOAEP(sha1.New(), rand.Reader, receiver, key, nil)
	if err != nil {
		return nil, fmt.Errorf("making an envelope: %w", err)
	}
	e := &wire.DigitalEnvelopeEncrypted{
		AesCipher: &wire.SymmetricKeyEncrypted{
			Cipher: sealed[:len(plain)], Mac: sealed[len(plain):], Aad: []byte(aad), Iv: iv,
		},
		EncryptedKey: encryptedKey,
	}
	return e, Sign(e, plain, sender)
}

// Sign sets the hash of a plaintext and, if sender is not nil, its signature. A server's status is such an envelope
// without ciphertext.
func Sign(e *wire.DigitalEnvelopeEncrypted, plain []byte, sender *rsa.PrivateKey) error {
	e.PlainHash = hash(plain)
	if sender == nil {
		return nil
	}
	digest := sha256.Sum256(e.PlainHash)
	var err error
	e.PlainHashSig, err = rsa.SignPKCS1v15(nil, sender, crypto.SHA256, digest[:])
	return err
}

func hash(plain []byte) []byte {
	sum := sha256.Sum256(plain)
	return []byte(strings.ToUpper(hex.EncodeToString(sum[:])))
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
