package cvm_test

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	sgtest "github.com/google/go-sev-guest/testing"
	"github.com/google/go-sev-guest/verify/testdata"
	"github.com/google/go-sev-guest/verify/trust"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/cvm"
	"github.com/sesame-init/sesame/lab/attesttest"
	"github.com/sesame-init/sesame/lab/tsmtest"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// platform is an AMD processor with keys of go-sev-guest's own.
type platform struct {
	mu     sync.Mutex // the library's source of chance is for one at a time
	signer *sgtest.AmdSigner
	table  []byte
}

func newPlatform(t testing.TB) *platform {
	t.Helper()
	signer, err := sgtest.DefaultTestOnlyCertChain("Milan-B0", now.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	table, err := signer.CertTableBytes()
	if err != nil {
		t.Fatal(err)
	}
	return &platform{signer: signer, table: table}
}

func (p *platform) report(data attest.ReportData) ([]byte, []byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	answer := sgtest.TestRawReport(data)
	raw := answer[:abi.ReportSize]
	r, s, err := p.signer.Sign(abi.SignedComponent(raw))
	if err == nil {
		err = abi.SetSignature(r, s, raw)
	}
	return raw, p.table, err
}

func (p *platform) verifier() *cvm.SNPVerifier {
	return &cvm.SNPVerifier{Roots: map[string][]*trust.AMDRootCerts{"Milan": {{
		ProductLine: "Milan", ProductCerts: &trust.ProductCerts{Ark: p.signer.Ark, Ask: p.signer.Ask, Asvk: p.signer.Asvk},
	}}}}
}

func TestSNPConformance(t *testing.T) {
	p := newPlatform(t)
	attesttest.Run(t, attesttest.Case{
		Type: attest.SNP, At: now, Verifier: p.verifier(), Stride: 13,
		Attester: cvm.NewSNP(tsmtest.Client(tsmtest.Firmware{Provider: "sev_guest", Report: p.report})),
	})
}

// genuine is go-sev-guest's own recording of a Milan machine, with its certificate.
func genuine(t testing.TB) attest.Evidence {
	t.Helper()
	report := bytes.Clone(testdata.AttestationBytes[:abi.ReportSize])
	return attest.Evidence{Type: attest.SNP, Raw: append(report, table(testdata.VcekBytes)...)}
}

// table is a host's table of certificates with a VCEK only (AMD 56421, 4.1.8.1).
func table(vcek []byte) []byte {
	guid := [16]byte{0x63, 0xda, 0x75, 0x8d, 0xe6, 0x64, 0x45, 0x64, 0xad, 0xc5, 0xf4, 0xb9, 0x3b, 0xe8, 0xac, 0xcd}
	out := make([]byte, 48)
	copy(out, guid[:])
	out[16] = 48
	out[20], out[21] = byte(len(vcek)), byte(len(vcek)>>8)
	return append(out, vcek...)
}

func TestGenuineReportChainsToAMD(t *testing.T) {
	at := time.Date(2022, 10, 10, 0, 0, 0, 0, time.UTC)
	c, err := new(cvm.SNPVerifier).Verify(t.Context(), genuine(t), at)
	if err != nil {
		t.Fatal(err)
	}
	if c.SNP.SignedBy != "Milan VCEK" || c.SNP.Measurement == [48]byte{} || c.SNP.ChipID == [64]byte{} || c.SNP.ReportedTCB.Microcode == 0 {
		t.Errorf("claims are %+v", c.SNP)
	}
	if _, err := new(cvm.SNPVerifier).Verify(t.Context(), genuine(t), at.AddDate(30, 0, 0)); attest.CodeOf(err) != attest.CodeEvidence {
		t.Errorf("after the certificate's end: %v", err)
	}
	p := newPlatform(t)
	if _, err := p.verifier().Verify(t.Context(), genuine(t), at); attest.CodeOf(err) != attest.CodeEvidence {
		t.Errorf("below another root: %v", err)
	}
	raw, certificates, err := p.report(attest.ReportData{})
	if err != nil {
		t.Fatal(err)
	}
	own := attest.Evidence{Type: attest.SNP, Raw: append(raw, certificates...)}
	if _, err := new(cvm.SNPVerifier).Verify(t.Context(), own, now); attest.CodeOf(err) != attest.CodeEvidence {
		t.Errorf("keys of a test below AMD's root: %v", err)
	}
	alone := attest.Evidence{Type: attest.SNP, Raw: own.Raw[:abi.ReportSize]}
	if _, err := p.verifier().Verify(t.Context(), alone, now); attest.CodeOf(err) != attest.CodeEvidence || attest.HintOf(err) == "" {
		t.Errorf("without certificates: %v", err)
	}
}

func FuzzSNPVerify(f *testing.F) {
	f.Add(genuine(f).Raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := new(cvm.SNPVerifier).Verify(t.Context(), attest.Evidence{Type: attest.SNP, Raw: raw}, now)
		if (err == nil) != (c.SNP != nil) {
			t.Errorf("claims %+v with error %v", c, err)
		}
	})
}
