// Package keywrap wraps and unwraps keys as Azure Key Vault and PKCS #11 do: AES key wrap with padding (RFC 5649), and
// under an RSA key the two-part form that PKCS #11 names CKM_RSA_AES_KEY_WRAP: RSA-OAEP around a fresh AES-256 key,
// then AES key wrap with padding under that key around the rest.
//
// A wrapped key that does not open gives one error, whatever the reason. The package keeps no key; what callers
// pass in and get back is theirs to wipe.
//
// # Compatibility
//
// This package serves the rest of the module: its names may change in any release. The algorithms are RFC 5649 and PKCS
// #11's, and stay.
package keywrap

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"hash"
	"io"
)

// ErrOpen says no more than that a wrapped key does not open.
var ErrOpen = errors.New("the wrapped key does not open")

const (
	block  = 8          // bytes of a semiblock
	magic  = 0xA65959A6 // of the alternative initial value (RFC 5649, section 3)
	aesKey = 32         // bytes of the AES key between RSA and the wrapped key

	// MaxPlaintext bounds what is wrapped, in bytes.
	MaxPlaintext = 1 << 20
)

// Wrap wraps plain, 1 to [MaxPlaintext] bytes, under an AES key of 16, 24 or 32 bytes.
func Wrap(kek, plain []byte) ([]byte, error) {
	if len(plain) == 0 || len(plain) > MaxPlaintext {
		return nil, errors.New("a wrapped key has between one byte and one MiB")
	}
	c, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	n := (len(plain) + block - 1) / block
	out := make([]byte, block*(n+1))
	binary.BigEndian.PutUint32(out, magic)
	binary.BigEndian.PutUint32(out[4:], uint32(len(plain)))
	copy(out[block:], plain)
	if n == 1 {
		c.Encrypt(out, out)
		return out, nil
	}
	var a [2 * block]byte
	defer clear(a[:])
	copy(a[:], out[:block])
	for j := range 6 {
		for i := 1; i <= n; i++ {
			copy(a[block:], out[i*block:])
			c.Encrypt(a[:], a[:])
			mix(&a, n*j+i)
			copy(out[i*block:], a[block:])
		}
	}
	copy(out, a[:block])
	return out, nil
}

// Unwrap opens what [Wrap] made.
func Unwrap(kek, in []byte) ([]byte, error) {
	if len(in) < 2*block || len(in)%block != 0 || len(in) > MaxPlaintext+2*block {
		return nil, ErrOpen
	}
	c, err := aes.NewCipher(kek)
	if err != nil {
		return nil, ErrOpen
	}
	n := len(in)/block - 1
	out := make([]byte, block*n)
	var a [2 * block]byte
	defer clear(a[:])
	unwrap(c, &a, out, in)
	length := int64(binary.BigEndian.Uint32(a[4:]))
	ok := binary.BigEndian.Uint32(a[:]) == magic && length > int64(block*(n-1)) && length <= int64(block*n)
	if ok {
		for _, v := range out[length:] {
			ok = ok && v == 0
		}
	}
	if !ok {
		clear(out)
		return nil, ErrOpen
	}
	return out[:length], nil
}

// unwrap is W⁻¹ of RFC 3394, section 2.2.2; the integrity check is left in the first half of a.
func unwrap(c cipher.Block, a *[2 * block]byte, out, in []byte) {
	n := len(out) / block
	if n == 1 {
		c.Decrypt(a[:], in)
		copy(out, a[block:])
		return
	}
	copy(a[:block], in)
	copy(out, in[block:])
	for j := 5; j >= 0; j-- {
		for i := n; i >= 1; i-- {
			mix(a, n*j+i)
			copy(a[block:], out[(i-1)*block:])
			c.Decrypt(a[:], a[:])
			copy(out[(i-1)*block:i*block], a[block:])
		}
	}
}

func mix(a *[2 * block]byte, t int) {
	binary.BigEndian.PutUint64(a[:], binary.BigEndian.Uint64(a[:])^uint64(t))
}

// WrapRSA wraps plain under an RSA key. h is the hash of OAEP and of its mask generation.
func WrapRSA(random io.Reader, h hash.Hash, public *rsa.PublicKey, plain []byte) ([]byte, error) {
	kek := make([]byte, aesKey)
	defer clear(kek)
	if _, err := io.ReadFull(random, kek); err != nil {
		return nil, err
	}
	head, err := rsa.EncryptOAEP(h, random, public, kek, nil)
	if err != nil {
		return nil, err
	}
	rest, err := Wrap(kek, plain)
	return append(head, rest...), err
}

// UnwrapRSA opens what [WrapRSA] made with the same hash; the AES key in between may have 16 or 24 bytes, too.
func UnwrapRSA(h hash.Hash, private *rsa.PrivateKey, in []byte) ([]byte, error) {
	k := private.Size()
	if len(in) < k+2*block {
		return nil, ErrOpen
	}
	kek, err := rsa.DecryptOAEP(h, nil, private, in[:k], nil)
	if err != nil {
		return nil, ErrOpen
	}
	defer clear(kek)
	return Unwrap(kek, in[k:])
}
