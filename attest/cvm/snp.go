package cvm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/edgelesssys/ego/attestation/tcbstatus"
	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"

	"github.com/sesame-init/sesame/attest"
)

// maxSNPEvidence bounds evidence, in bytes.
const maxSNPEvidence = maxReport + maxTable

func checkReport(raw []byte, data attest.ReportData) ([]byte, error) {
	report, err := abi.ReportToProto(raw)
	if err != nil {
		return nil, err
	}
	if attest.ReportData(report.GetReportData()) != data {
		return nil, errors.New("the report is not over the data that was asked for")
	}
	return raw[:abi.ReportSize], nil
}

// SNPVerifier verifies reports of SEV-SNP below AMD's roots. It implements [attest.Verifier].
type SNPVerifier struct {
	// Roots are, by product line ("Milan"), trusted instead of AMD's.
	Roots map[string][]*trust.AMDRootCerts
	// Fetch gets certificates that the evidence lacks, and revocation lists, from AMD's key distribution service. Nil:
	// the evidence must bring its certificates, and revocation is not checked.
	Fetch trust.HTTPSGetter
}

// Verify implements [attest.Verifier].
func (v *SNPVerifier) Verify(ctx context.Context, e attest.Evidence, at time.Time) (attest.Claims, error) {
	const step = "verifying SEV-SNP evidence"
	fail := func(code attest.Code, hint string, err error) (attest.Claims, error) {
		return attest.Claims{}, attest.Errorf(code, step, hint, "%.500s", err.Error())
	}
	attestation, err := parse(e)
	if err != nil {
		return fail(attest.CodeEvidence, "", err)
	}
	chain := attestation.GetCertificateChain()
	if v.Fetch == nil && len(chain.GetVcekCert()) == 0 && len(chain.GetVlekCert()) == 0 {
		return fail(attest.CodeEvidence, "Let the host fill its certificate table (snphost import), or fetch from AMD.",
			fmt.Errorf("the evidence brings no certificate of the key that signs it"))
	}
	options := &verify.Options{
		CheckRevocations: v.Fetch != nil, DisableCertFetching: v.Fetch == nil, Getter: v.Fetch, Now: at, TrustedRoots: v.Roots,
	}
	if err := verify.SnpAttestationContext(ctx, attestation, options); err != nil {
		return fail(attest.CodeEvidence, "", err)
	}
	return claims(attestation)
}

func parse(e attest.Evidence) (*spb.Attestation, error) {
	if e.Type != attest.SNP {
		return nil, fmt.Errorf("it is of type %.16q", e.Type)
	}
	if len(e.Raw) < abi.ReportSize || len(e.Raw) > maxSNPEvidence {
		return nil, fmt.Errorf("%d bytes", len(e.Raw))
	}
	if err := checkTable(e.Raw[abi.ReportSize:]); err != nil {
		return nil, err
	}
	return abi.ReportCertsToProto(e.Raw)
}

// maxCertificates bounds the host's table, which has five kinds and room for its own.
const maxCertificates = 32

// checkTable makes sure that a table of certificates points into itself: go-sev-guest adds 32-bit offsets and lengths
// without looking for an overflow, and panics. An entry is a GUID of 16 bytes, offset and length; one of zeros ends it.
func checkTable(table []byte) error {
	if len(table) == 0 {
		return nil
	}
	for i := range maxCertificates {
		if len(table) < (i+1)*abi.CertTableEntrySize {
			return errors.New("the table of certificates has no end")
		}
		entry := table[i*abi.CertTableEntrySize:][:abi.CertTableEntrySize]
		if bytes.Equal(entry, make([]byte, len(entry))) {
			return nil
		}
		offset, length := binary.LittleEndian.Uint32(entry[16:]), binary.LittleEndian.Uint32(entry[20:])
		if uint64(offset)+uint64(length) > uint64(len(table)) {
			return errors.New("the table of certificates points out of itself")
		}
	}
	return fmt.Errorf("the table of certificates has more than %d entries", maxCertificates)
}

// claims translates a report whose signature holds.
func claims(a *spb.Attestation) (attest.Claims, error) {
	r := a.GetReport()
	info, err := abi.ParseSignerInfo(r.GetSignerInfo())
	if err != nil {
		return attest.Claims{}, attest.Errorf(attest.CodeEvidence, "reading the report", "", "%w", err)
	}
	c := &attest.SNPClaims{
		Measurement: [48]byte(r.GetMeasurement()), HostData: [32]byte(r.GetHostData()), FamilyID: [16]byte(r.GetFamilyId()),
		ImageID: [16]byte(r.GetImageId()), IDKeyDigest: [48]byte(r.GetIdKeyDigest()),
		ChipID: [64]byte(r.GetChipId()), ReportID: [32]byte(r.GetReportId()),
		Policy: r.GetPolicy(), GuestSVN: r.GetGuestSvn(), VMPL: r.GetVmpl(),
		ReportedTCB: tcb(r.GetReportedTcb()), CommittedTCB: tcb(r.GetCommittedTcb()),
		SignedBy: kds.ProductLine(a.GetProduct()) + " " + info.SigningKey.String(),
	}
	if info.AuthorKeyEn {
		c.AuthorKeyDigest = [48]byte(r.GetAuthorKeyDigest())
	}
	return attest.Claims{
		Type: attest.SNP, ReportData: attest.ReportData(r.GetReportData()), SNP: c, TCB: attest.TCB{Status: tcbstatus.Unknown},
	}, nil
}

func tcb(version uint64) attest.SNPTCB {
	parts := kds.DecomposeTCBVersion(kds.TCBVersion(version))
	return attest.SNPTCB{Bootloader: parts.BlSpl, TEE: parts.TeeSpl, SNP: parts.SnpSpl, Microcode: parts.UcodeSpl}
}
