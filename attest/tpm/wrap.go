package tpm

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"

	"github.com/google/go-tpm-tools/client"
	tpmpb "github.com/google/go-tpm-tools/proto/tpm"
	"github.com/google/go-tpm-tools/server"
	"google.golang.org/protobuf/proto"

	"github.com/sesame-init/sesame/attest"
)

// MaxWrapped bounds a wrapped secret, in bytes.
const MaxWrapped = 1<<20 + 8<<10

const maxBlob = 4 << 10

// wrappedSecret is a secret that only one TPM opens: AES-256-GCM under a key that is an import blob for the EK, with the
// blob as additional data. Every key is used once, so the nonce is zero.
type wrappedSecret struct {
	Blob   []byte `cbor:"1,keyasint"` // tpm.ImportBlob in protobuf
	Sealed []byte `cbor:"2,keyasint"`
}

// Wrap encrypts a secret to the EK of genuine claims and to the values that these registers have in them. The error's
// code is [attest.CodeSecret].
func Wrap(c *attest.TPMClaims, registers []int, secret attest.Secret) ([]byte, error) {
	out, err := wrap(c, registers, secret)
	if err != nil {
		return nil, attest.Errorf(attest.CodeSecret, "wrapping secret to a TPM", "", "%w", err)
	}
	return out, nil
}

func wrap(c *attest.TPMClaims, registers []int, secret attest.Secret) ([]byte, error) {
	if c == nil || len(c.EKPublic) == 0 || len(registers) == 0 {
		return nil, errors.New("the evidence names no endorsement key, or the policy no registers")
	}
	ek, err := x509.ParsePKIXPublicKey(c.EKPublic)
	if err != nil {
		return nil, err
	}
	pcrs := &tpmpb.PCRs{Hash: tpmpb.HashAlgo_SHA256, Pcrs: map[uint32][]byte{}}
	for _, i := range registers {
		value, ok := c.PCRs[i]
		if !ok {
			return nil, fmt.Errorf("register %d was not quoted", i)
		}
		pcrs.Pcrs[uint32(i)] = value[:]
	}
	key := make([]byte, 32)
	defer clear(key)
	if _, err := io.ReadFull(rand.Reader, key); err != nil {
		return nil, err
	}
	blob, err := server.CreateImportBlob(ek, key, pcrs)
	if err != nil {
		return nil, err
	}
	var w wrappedSecret
	if w.Blob, err = proto.Marshal(blob); err != nil {
		return nil, err
	}
	aead, err := sealer(key)
	if err != nil {
		return nil, err
	}
	w.Sealed = aead.Seal(nil, make([]byte, aead.NonceSize()), secret.Expose(), w.Blob)
	return encoding.Marshal(w)
}

func sealer(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// Unwrap opens what [Wrap] made for this TPM, while its registers have the values of that time. The error's code is
// [attest.CodeSecret].
func (d *Device) Unwrap(ctx context.Context, raw []byte) (attest.Secret, error) {
	secret, err := d.unwrap(ctx, raw)
	if err != nil {
		return attest.Secret{}, attest.Errorf(attest.CodeSecret, "opening a secret that is wrapped to a TPM",
			"It opens on the machine that it was wrapped for only, as long as its registers have not been extended since.",
			"%w", err)
	}
	return secret, nil
}

func (d *Device) unwrap(ctx context.Context, raw []byte) (attest.Secret, error) {
	var w wrappedSecret
	if len(raw) > MaxWrapped {
		return attest.Secret{}, fmt.Errorf("%d bytes", len(raw))
	}
	if err := decoding.Unmarshal(raw, &w); err != nil {
		return attest.Secret{}, err
	}
	var blob tpmpb.ImportBlob
	if len(w.Blob) > maxBlob {
		return attest.Secret{}, fmt.Errorf("an import blob of %d bytes", len(w.Blob))
	}
	if err := proto.Unmarshal(w.Blob, &blob); err != nil {
		return attest.Secret{}, err
	}
	key, err := d.importKey(ctx, &blob)
	if err != nil {
		return attest.Secret{}, err
	}
	defer clear(key)
	aead, err := sealer(key)
	if err != nil {
		return attest.Secret{}, err
	}
	secret, err := aead.Open(nil, make([]byte, aead.NonceSize()), w.Sealed, w.Blob)
	if err != nil {
		return attest.Secret{}, err
	}
	return attest.NewSecret(secret), nil
}

func (d *Device) importKey(ctx context.Context, blob *tpmpb.ImportBlob) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var ek *client.Key
	ek, err := d.endorsementKey()
	if err != nil {
		return nil, err
	}
	defer ek.Close()
	return ek.Import(blob)
}
