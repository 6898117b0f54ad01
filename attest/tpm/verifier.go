package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/edgelesssys/ego/attestation/tcbstatus"
	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
	attestpb "github.com/google/go-tpm-tools/proto/attest"
	tpmpb "github.com/google/go-tpm-tools/proto/tpm"
	"github.com/google/go-tpm-tools/quote"
	"github.com/google/go-tpm-tools/server"
	"github.com/google/go-tpm/legacy/tpm2"

	"github.com/sesame-init/sesame/attest"
)

// Verifier verifies evidence of TPMs. It says which key has signed and which root, if any, vouches for the EK; whether
// these are wanted is for a policy to say. It implements [attest.Verifier].
type Verifier struct {
	// Certificates complete the chains of EK certificates, which TPMs mostly hold without those above. They need not be
	// trusted: a policy names the root by its fingerprint.
	Certificates []*x509.Certificate
}

// Verify implements [attest.Verifier].
func (v *Verifier) Verify(_ context.Context, raw attest.Evidence, at time.Time) (attest.Claims, error) {
	claims, err := v.verify(raw, at)
	if err != nil {
		return attest.Claims{}, attest.Errorf(attest.CodeEvidence, "verifying TPM evidence", "", "%w", err)
	}
	return claims, nil
}

func (v *Verifier) verify(raw attest.Evidence, at time.Time) (none attest.Claims, err error) {
	if raw.Type != attest.TPM {
		return none, fmt.Errorf("it is of type %.16q", raw.Type)
	}
	e, err := unmarshal(raw.Raw)
	if err != nil {
		return none, err
	}
	key, err := attestationKey(e.AK)
	if err != nil {
		return none, err
	}
	c := &attest.TPMClaims{AK: sha256.Sum256(e.AK), PCRs: map[int][32]byte{}}
	c.AKName = append(binary.BigEndian.AppendUint16(nil, uint16(tpm2.AlgSHA256)), c.AK[:]...) // the only one that attestationKey takes
	pcrs := &tpmpb.PCRs{Hash: tpmpb.HashAlgo_SHA256, Pcrs: map[uint32][]byte{}}
	for i, value := range e.PCRs {
		c.PCRs[i] = [32]byte(value)
		pcrs.Pcrs[uint32(i)] = value
	}
	quoted := &tpmpb.Quote{Quote: e.Quote, RawSig: e.Signature, Pcrs: pcrs}
	if err := quote.Verify(quoted, key, e.extraData()); err != nil {
		return none, fmt.Errorf("the quote is not what the attestation key has signed for this report data and these registers: %s",
			bounded(err))
	}
	if err := signedBy(e.Quote, e.AK); err != nil {
		return none, err
	}
	if len(e.Log) > 0 {
		if err := replay(c, e, quoted, key); err != nil {
			return none, err
		}
	}
	if err := v.endorse(c, e, at); err != nil {
		return none, err
	}
	return attest.Claims{
		Type: attest.TPM, ReportData: attest.ReportData(e.ReportData), TPM: c,
		TCB: attest.TCB{Status: tcbstatus.Unknown},
	}, nil
}

// bounded is an error's text for people: go-tpm prints whole nonces.
func bounded(err error) string { return fmt.Sprintf("%.120s", err.Error()) }

// attestationKey reads a public area and checks that it is a key which signs only what its TPM itself has made.
func attestationKey(area []byte) (crypto.PublicKey, error) {
	public, err := tpm2.DecodePublic(area)
	if err != nil {
		return nil, fmt.Errorf("reading the attestation key: %s", bounded(err))
	}
	if again, err := public.Encode(); err != nil || !bytes.Equal(again, area) {
		return nil, errors.New("the attestation key is not encoded as a TPM does it")
	}
	const need = tpm2.FlagRestricted | tpm2.FlagSign | tpm2.FlagFixedTPM | tpm2.FlagFixedParent | tpm2.FlagSensitiveDataOrigin
	if public.NameAlg != tpm2.AlgSHA256 || public.Attributes&need != need || public.Attributes&tpm2.FlagDecrypt != 0 {
		return nil, errors.New("the attestation key is not restricted to signing what its own TPM has made")
	}
	key, err := public.Key()
	if err != nil {
		return nil, fmt.Errorf("reading the attestation key: %s", bounded(err))
	}
	return key, nil
}

// signedBy checks that a quote names the key of this public area as the one that has signed it, and that it is a primary
// key of the owner hierarchy. Without it the attributes would be the sender's claim only (TPM 2.0 Library, part 1,
// "Qualified Names").
func signedBy(quoted, area []byte) error {
	said, err := tpm2.DecodeAttestationData(quoted)
	if err != nil {
		return fmt.Errorf("reading the quote: %s", bounded(err))
	}
	name := sha256.Sum256(area)
	qualified := binary.BigEndian.AppendUint32(nil, uint32(tpm2.HandleOwner))
	qualified = binary.BigEndian.AppendUint16(qualified, uint16(tpm2.AlgSHA256))
	want := sha256.Sum256(append(qualified, name[:]...))
	signer := said.QualifiedSigner.Digest
	if signer == nil || signer.Alg != tpm2.AlgSHA256 || !bytes.Equal(signer.Value, want[:]) {
		return errors.New("the quote names another key than the evidence does, or one outside of the owner hierarchy")
	}
	return nil
}

// replay checks the firmware's log against the quoted registers and takes from it what policies ask for.
func replay(c *attest.TPMClaims, e *evidence, quoted *tpmpb.Quote, key crypto.PublicKey) error {
	log, err := decompress(e.Log)
	if err != nil {
		return err
	}
	var registers []register.MR
	for i, value := range e.PCRs {
		registers = append(registers, register.PCR{Index: i, Digest: value, DigestAlg: crypto.SHA256})
	}
	if _, err := tcg.ParseAndReplay(log, registers, tcg.ParseOpts{}); err != nil {
		return errors.New("the firmware log does not replay to the quoted registers: " + bounded(err))
	}
	c.EventLog = true
	state, err := server.VerifyAttestation(
		&attestpb.Attestation{AkPub: e.AK, Quotes: []*tpmpb.Quote{quoted}, EventLog: log},
		server.VerifyOpts{
			Nonce: e.extraData(), TrustedAKs: []crypto.PublicKey{key}, HashAlgo: tpm2.AlgSHA256,
			AllowEmptySBVar: true, AllowEFIAppBeforeCallingEvent: true,
		})
	// A log that does not tell the state of Secure Boot, as that of a BIOS without UEFI, is one of a machine without it.
	c.SecureBoot = err == nil && state.GetSecureBoot().GetEnabled()
	return nil
}

// oidSubjectAltName holds TPM vendors' data, in a form that crypto/x509 does not handle.
var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// endorse fills in what the evidence says about the EK.
func (v *Verifier) endorse(c *attest.TPMClaims, e *evidence, at time.Time) error {
	if len(e.EK) == 0 {
		if len(e.Chain) > 0 {
			return errors.New("there is a certificate of an endorsement key, but no key")
		}
		return nil
	}
	if _, err := x509.ParsePKIXPublicKey(e.EK); err != nil {
		return fmt.Errorf("reading the endorsement key: %w", err)
	}
	c.EKPublic, c.EK = e.EK, sha256.Sum256(e.EK)
	if len(e.Chain) == 0 {
		return nil
	}
	var chain []*x509.Certificate
	for _, der := range e.Chain {
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("reading a certificate above the endorsement key: %w", err)
		}
		chain = append(chain, certificate)
	}
	leaf := chain[0]
	if !bytes.Equal(leaf.RawSubjectPublicKeyInfo, e.EK) {
		return errors.New("the certificate is of another endorsement key")
	}
	if root := rootOf(leaf, slices.Concat(chain[1:], v.Certificates), at); root != nil {
		c.EKRoot = sha256.Sum256(root.Raw)
	}
	return nil
}

// rootOf is the self-signed certificate at which a chain ends, nil if none does.
func rootOf(leaf *x509.Certificate, others []*x509.Certificate, at time.Time) *x509.Certificate {
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(leaf.UnhandledCriticalExtensions, oidSubjectAltName.Equal)
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range others {
		if c.CheckSignatureFrom(c) == nil {
			roots.AddCert(c)
		} else {
			intermediates.AddCert(c)
		}
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil
	}
	return chains[0][len(chains[0])-1]
}
