// Package tpm makes and verifies evidence of a machine with a TPM 2.0: a quote over its platform configuration
// registers (PCRs), signed by an attestation key (AK) that never leaves the TPM, fresh by the report data that it
// covers. TPM access, quotes and the replay of firmware logs are github.com/google/go-tpm-tools.
//
// What such evidence proves is what firmware and kernel have measured into the PCRs, on a machine whose AK a policy
// names. It proves nothing about memory: unlike an enclave or a confidential VM the machine's owner, its hypervisor and
// anyone who has its buses in hand can read everything. Registers that nothing has measured into are zero and prove
// nothing either; docs/platforms.md says which are worth pinning.
//
// # Keys
//
// The AK is a primary key of the owner hierarchy made from go-tpm-tools' template (and noDA), so that it is the same
// after every boot until the TPM is cleared, and nothing has to be stored. A policy pins it by its digest, which covers the key's
// attributes: that it is restricted to data of the TPM's own and cannot leave it. An ephemeral AK is new every time
// and can be accepted only together with an endorsement key.
//
// That AK and endorsement key (EK) are in one TPM evidence alone cannot prove. Therefore a session challenges the TPM
// ([NewCredential], [Device.Activate]), and [Wrap]: a released secret is encrypted to the EK and to PCR values by TPM2_Import's protection, so that only that TPM in that state opens it. An
// AK that is to be pinned has to be read from the machine over a way that its owner trusts ("sesame tpm enroll").
//
// # Encoding
//
// Evidence is a CBOR map of at most 60 KiB (see evidence); the quote's extraData is
// SHA-256("sesame-tpm-v1" ‖ report data ‖ hashes), because a TPM takes less extraData than report data has bytes. The
// hashes, if there is an EK, are the SHA-256 of its SubjectPublicKeyInfo and of each certificate. Only the SHA-256
// bank is quoted. A firmware log is compressed with DEFLATE.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning. The encoding of
// evidence stays readable: what an attester of one release makes, the verifiers of all later ones of the same major
// version take.
package tpm

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/fxamacker/cbor/v2"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/reportdata"
)

// Bounds of evidence, in bytes.
const (
	MaxEvidence = 60 << 10 // fits into a message of a session
	MaxLog      = 1 << 20  // of a firmware log, uncompressed

	maxPublic      = 1 << 10
	maxQuote       = 1 << 10
	maxCertificate = 4 << 10
	maxChain       = 6 // certificates, the EK's first
)

// evidence is what goes over the wire. TPM structures are as the TPM marshals them (TPM 2.0 Library, part 2).
type evidence struct {
	Version    uint           `cbor:"1,keyasint"` // 1
	ReportData []byte         `cbor:"2,keyasint"` // 64 bytes
	AK         []byte         `cbor:"3,keyasint"` // TPMT_PUBLIC
	Quote      []byte         `cbor:"4,keyasint"` // TPMS_ATTEST
	Signature  []byte         `cbor:"5,keyasint"` // TPMT_SIGNATURE
	PCRs       map[int][]byte `cbor:"6,keyasint"` // SHA-256 bank
	Log        []byte         `cbor:"7,keyasint,omitempty"`
	EK         []byte         `cbor:"8,keyasint,omitempty"` // DER SubjectPublicKeyInfo
	Chain      [][]byte       `cbor:"9,keyasint,omitempty"` // DER certificates, the EK's first
}

var (
	encoding = must(cbor.CoreDetEncOptions().EncMode())
	decoding = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, MaxNestedLevels: 4,
		MaxArrayElements: 16, MaxMapPairs: 24, ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // the arguments are constants, or right by construction
	}
	return v
}

func (e *evidence) marshal() ([]byte, error) {
	raw, err := encoding.Marshal(e)
	if err == nil && len(raw) > MaxEvidence {
		err = fmt.Errorf("it has %d bytes, at most %d are sent", len(raw), MaxEvidence)
	}
	return raw, err
}

// unmarshal reads evidence and checks all sizes.
func unmarshal(raw []byte) (*evidence, error) {
	if len(raw) > MaxEvidence {
		return nil, fmt.Errorf("it has %d bytes, at most %d are read", len(raw), MaxEvidence)
	}
	var e evidence
	if err := decoding.Unmarshal(raw, &e); err != nil {
		return nil, err
	}
	switch {
	case e.Version != 1:
		return nil, fmt.Errorf("version %d is not 1", e.Version)
	case len(e.ReportData) != attest.ReportDataSize:
		return nil, fmt.Errorf("report data of %d bytes", len(e.ReportData))
	case len(e.AK) > maxPublic || len(e.Quote) > maxQuote || len(e.Signature) > maxQuote || len(e.EK) > maxPublic:
		return nil, errors.New("a part of it is too large")
	case len(e.PCRs) == 0 || len(e.Chain) > maxChain:
		return nil, errors.New("it has no registers, or too many certificates")
	}
	for i, value := range e.PCRs {
		if i < 0 || i > 23 || len(value) != sha256.Size {
			return nil, fmt.Errorf("register %d with %d bytes", i, len(value))
		}
	}
	for _, certificate := range e.Chain {
		if len(certificate) > maxCertificate {
			return nil, errors.New("a certificate is too large")
		}
	}
	return &e, nil
}

// extraData is what the quote covers besides the registers.
func (e *evidence) extraData() []byte {
	input := append([]byte(reportdata.TPM.Begins()), e.ReportData...)
	if len(e.EK) > 0 {
		for _, part := range append([][]byte{e.EK}, e.Chain...) {
			sum := sha256.Sum256(part)
			input = append(input, sum[:]...)
		}
	}
	extra := must(reportdata.TPM.Extra(input)) // the input has the form by construction
	return extra[:]
}

func compress(log []byte) []byte {
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, flate.BestCompression)
	if err == nil {
		_, err = w.Write(log)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err) // the level is a constant, and a buffer takes everything
	}
	return out.Bytes()
}

func decompress(b []byte) ([]byte, error) {
	log, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(b)), MaxLog+1))
	if err == nil && len(log) > MaxLog {
		err = fmt.Errorf("it has more than %d bytes", MaxLog)
	}
	if err != nil {
		return nil, fmt.Errorf("unpacking the firmware log: %w", err)
	}
	return log, nil
}
