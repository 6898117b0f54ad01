package tpm

import (
	"context"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"

	"github.com/google/go-tpm-tools/client"
	legacy "github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpm2"

	"github.com/sesame-init/sesame/attest"
)

// secretSize is that of what a credential holds, in bytes.
const secretSize = 32

// A Credential is what [Device.Activate] takes.
type Credential struct {
	Blob []byte // TPMS_ID_OBJECT: credentialBlob of TPM2_ActivateCredential, without its size
	Seed []byte // encrypted to the EK: secret of TPM2_ActivateCredential, without its size
}

// NewCredential makes a credential that only the TPM opens which holds both the AK and the EK of genuine claims, and the
// secret that it holds. Evidence has the EK as a bare key, so it is taken for one of TCG's default template: RSA-2048 with
// SHA-256 and AES-128-CFB. The error for a key of another kind, which it names, has code [attest.CodeEvidence].
func NewCredential(c *attest.TPMClaims) (Credential, attest.Secret, error) {
	credential, secret, err := newCredential(c)
	if err != nil {
		return credential, attest.Secret{}, attest.Errorf(attest.CodeEvidence, "challenging a TPM", "", "%w", err)
	}
	return credential, attest.NewSecret(secret), nil
}

func newCredential(c *attest.TPMClaims) (none Credential, secret []byte, err error) {
	if c == nil || len(c.EKPublic) == 0 || len(c.AKName) == 0 {
		return none, nil, errors.New("the evidence names no endorsement key")
	}
	public, err := x509.ParsePKIXPublicKey(c.EKPublic)
	if err != nil {
		return none, nil, err
	}
	key, ok := public.(*rsa.PublicKey)
	if !ok || key.N.BitLen() != 2048 || key.E != 65537 {
		return none, nil, fmt.Errorf("its endorsement key is %s; only one of RSA-2048 by TCG's default template can be challenged",
			kindOf(public))
	}
	area := tpm2.RSAEKTemplate
	area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.FillBytes(make([]byte, 256))})
	ek, err := tpm2.ImportEncapsulationKey(&area)
	if err != nil {
		return none, nil, err
	}
	secret = make([]byte, secretSize)
	if _, err := io.ReadFull(rand.Reader, secret); err != nil {
		return none, nil, err
	}
	blob, seed, err := tpm2.CreateCredential(rand.Reader, ek, c.AKName, secret)
	if err != nil {
		clear(secret)
		return none, nil, err
	}
	return Credential{Blob: blob, Seed: seed}, secret, nil
}

func kindOf(public any) string {
	switch key := public.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d with exponent %d", key.N.BitLen(), key.E)
	case interface{ Params() *elliptic.CurveParams }:
		return key.Params().Name
	}
	return fmt.Sprintf("%T", public)
}

// Activate returns the secret that a credential holds, if it was made for this TPM's EK and for the AK that has signed
// quoted, which is evidence that this device has made. The error's code is [attest.CodeAttester].
func (d *Device) Activate(ctx context.Context, quoted attest.Evidence, blob, seed []byte) (attest.Secret, error) {
	secret, err := d.activate(ctx, quoted, Credential{Blob: blob, Seed: seed})
	if err != nil {
		return attest.Secret{}, attest.Errorf(attest.CodeAttester, "answering a challenge to the TPM",
			"Let init send the endorsement key of this machine's own TPM (ek).", "%w", err)
	}
	return attest.NewSecret(secret), nil
}

func (d *Device) activate(ctx context.Context, quoted attest.Evidence, c Credential) ([]byte, error) {
	e, err := unmarshal(quoted.Raw)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ak, err := d.madeKey(e.AK)
	if err != nil {
		return nil, err
	}
	defer ak.Close()
	ek, err := d.endorsementKey()
	if err != nil {
		return nil, err
	}
	defer ek.Close()
	session, err := client.NewEKSession(d.rw)
	if err != nil {
		return nil, err
	}
	defer func() { _ = session.Close() }()
	auth, err := session.Auth()
	if err != nil {
		return nil, err
	}
	return legacy.ActivateCredentialUsingAuth(d.rw, []legacy.AuthCommand{
		{Session: legacy.HandlePasswordSession, Attributes: legacy.AttrContinueSession}, auth,
	}, ak.Handle(), ek.Handle(), c.Blob, c.Seed)
}
