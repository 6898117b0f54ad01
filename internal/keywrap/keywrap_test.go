package keywrap_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/sesame-init/sesame/internal/keywrap"
)

// RFC 5649, section 6.
func TestVectorsOfTheRFC(t *testing.T) {
	kek, _ := hex.DecodeString("5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8")
	for _, c := range []struct{ plain, wrapped string }{
		{"c37b7e6492584340bed12207808941155068f738", "138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a"},
		{"466f7250617369", "afbeb0f07dfbf5419200f2ccb50bb24f"},
	} {
		in, _ := hex.DecodeString(c.wrapped)
		want, _ := hex.DecodeString(c.plain)
		if got, err := keywrap.Wrap(kek, want); err != nil || !bytes.Equal(got, in) {
			t.Errorf("%s wraps to %x (%v), want %s", c.plain, got, err, c.wrapped)
		}
		got, err := keywrap.Unwrap(kek, in)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s opens to %x (%v), want %s", c.wrapped, got, err, c.plain)
		}
		for i := range in {
			in[i] ^= 1
			if got, err := keywrap.Unwrap(kek, in); !errors.Is(err, keywrap.ErrOpen) {
				t.Errorf("byte %d changed: it opens to %x, %v", i, got, err)
			}
			in[i] ^= 1
		}
		for n := range in {
			if _, err := keywrap.Unwrap(kek, in[:n]); !errors.Is(err, keywrap.ErrOpen) {
				t.Errorf("cut to %d bytes: %v", n, err)
			}
		}
	}
}

func TestEveryLengthComesBack(t *testing.T) {
	kek := make([]byte, 32)
	for n := 1; n < 100; n++ {
		plain := bytes.Repeat([]byte{0xa5}, n)
		wrapped, err := keywrap.Wrap(kek, plain)
		if err != nil || len(wrapped)%8 != 0 || len(wrapped) < n+8 {
			t.Fatalf("%d bytes wrap to %d, %v", n, len(wrapped), err)
		}
		if got, err := keywrap.Unwrap(kek, wrapped); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes come back as %x, %v", n, got, err)
		}
	}
	for name, c := range map[string]struct{ kek, plain []byte }{
		"nothing": {kek, nil}, "too much": {kek, make([]byte, keywrap.MaxPlaintext+1)}, "no AES key": {kek[:5], kek},
	} {
		if _, err := keywrap.Wrap(c.kek, c.plain); err == nil {
			t.Errorf("%s is wrapped", name)
		}
	}
	if _, err := keywrap.Unwrap(kek[:5], make([]byte, 24)); err == nil {
		t.Error("opened with something that is no AES key")
	}
}

func TestRSAOpensWithItsKeyAndHashOnly(t *testing.T) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	plain := []byte("sixteen and more")
	wrapped, err := keywrap.WrapRSA(rand.Reader, sha256.New(), &private.PublicKey, plain)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := keywrap.UnwrapRSA(sha256.New(), private, wrapped); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("it opens to %q, %v", got, err)
	}
	if _, err := keywrap.UnwrapRSA(sha1.New(), private, wrapped); !errors.Is(err, keywrap.ErrOpen) {
		t.Errorf("with another hash: %v", err)
	}
	short, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, &private.PublicKey, make([]byte, 16), nil)
	if err != nil {
		t.Fatal(err)
	}
	inner, err := keywrap.Wrap(make([]byte, 16), plain)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := keywrap.UnwrapRSA(sha256.New(), private, append(short, inner...)); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("an AES key of 128 bits within: %q, %v", got, err)
	}
	for n := 0; n < len(wrapped); n += 8 {
		if _, err := keywrap.UnwrapRSA(sha256.New(), private, wrapped[:n]); !errors.Is(err, keywrap.ErrOpen) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
}

func FuzzUnwrap(f *testing.F) {
	kek := make([]byte, 32)
	whole, _ := keywrap.Wrap(kek, []byte("a key"))
	f.Add(whole)
	f.Add(make([]byte, 24))
	f.Fuzz(func(t *testing.T, in []byte) {
		plain, err := keywrap.Unwrap(kek, in)
		if err != nil {
			return
		}
		if again, err := keywrap.Wrap(kek, plain); err != nil || !bytes.Equal(again, in) {
			t.Errorf("%x opens to %x, which wraps to %x (%v)", in, plain, again, err)
		}
	})
}
