package softsgx_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/edgelesssys/ego/attestation/tcbstatus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/lab/softsgx"
)

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func seeded(seed string) *rand.ChaCha8 { return rand.NewChaCha8(sha256.Sum256([]byte(seed))) }

func newPlatform(t *testing.T, o softsgx.Options) *softsgx.Platform {
	t.Helper()
	if o.Rand == nil {
		o.Rand = seeded(t.Name())
	}
	if o.Now.IsZero() {
		o.Now = now
	}
	p, err := softsgx.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var enclave = sgx.ReportBody{
	SGXClaims: attest.SGXClaims{
		MREnclave:  [32]byte{1, 2, 3},
		MRSigner:   [32]byte{4, 5, 6},
		ProductID:  7,
		SVN:        8,
		Attributes: attest.AttributeInit | attest.AttributeMode64Bit,
		XFRM:       0xE7,
	},
	ReportData: attest.ReportData{9, 10},
}

func quote(t *testing.T, p *softsgx.Platform, body sgx.ReportBody) []byte {
	t.Helper()
	raw, err := p.Quote(body)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func verify(p *softsgx.Platform, root *x509.Certificate, raw []byte, at time.Time) (attest.Claims, error) {
	v := dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{root}, Source: pccs.Stapled(p.Collateral())})
	return v.Verify(context.Background(), attest.Evidence{Type: attest.SGX, Raw: raw}, at)
}

func TestQuoteOfPlatformVerifies(t *testing.T) {
	for name, o := range map[string]softsgx.Options{
		"platform CA":  {},
		"processor CA": {Processor: true},
		"other TCB": {FMSPC: [6]byte{0, 0xA0, 0x67, 0x11}, CPUSVN: [16]byte{200, 255, 15: 255},
			PCESVN: 20, QESVN: 9, TCB: softsgx.TCB{Advisories: []string{"INTEL-SA-00615"}, EvaluationNumber: 20}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlatform(t, o)
			claims, err := verify(p, p.RootCA(), quote(t, p, enclave), now)
			if err != nil {
				t.Fatal(err)
			}
			if *claims.SGX != enclave.SGXClaims || claims.ReportData != enclave.ReportData {
				t.Errorf("claims are %+v, want those of the body", claims)
			}
			if claims.TCB.Status != tcbstatus.UpToDate {
				t.Errorf("status is %v, want UpToDate", claims.TCB.Status)
			}
		})
	}
}

func TestChangedQuoteDoesNotVerify(t *testing.T) {
	p := newPlatform(t, softsgx.Options{})
	raw := quote(t, p, enclave)
	random := rand.New(seeded("positions"))
	for range 200 {
		position := random.IntN(48 + 384)
		changed := bytes.Clone(raw)
		changed[position] ^= byte(1 + random.IntN(255))
		if _, err := verify(p, p.RootCA(), changed, now); err == nil {
			t.Errorf("a quote changed at byte %d was accepted", position)
		}
	}
}

func TestPlatformsDoNotTrustEachOther(t *testing.T) {
	a, b := newPlatform(t, softsgx.Options{Rand: seeded("a")}), newPlatform(t, softsgx.Options{Rand: seeded("b")})
	if _, err := verify(a, b.RootCA(), quote(t, a, enclave), now); err == nil {
		t.Error("a quote was accepted below another platform's root")
	}
	if _, err := verify(a, dcap.IntelRoot(), quote(t, a, enclave), now); err == nil {
		t.Error("a software quote was accepted below Intel's root")
	}
	if _, err := verify(b, a.RootCA(), quote(t, a, enclave), now); err == nil {
		t.Error("a quote was accepted with another platform's collateral")
	}
}

func TestCollateralExpires(t *testing.T) {
	p := newPlatform(t, softsgx.Options{Validity: 24 * time.Hour})
	raw := quote(t, p, enclave)
	later := now.Add(25 * time.Hour)
	if _, err := verify(p, p.RootCA(), raw, later); attest.CodeOf(err) != attest.CodeCollateral {
		t.Errorf("expired collateral: %v, want a refusal of class collateral", err)
	}
	if err := p.Renew(later); err != nil {
		t.Fatal(err)
	}
	if _, err := verify(p, p.RootCA(), raw, later); err != nil {
		t.Errorf("renewed collateral was refused: %v", err)
	}
}

func TestCollateralJudgesPlatform(t *testing.T) {
	p := newPlatform(t, softsgx.Options{})
	raw := quote(t, p, enclave)
	for _, c := range []struct {
		platform, qe, want tcbstatus.Status
	}{
		{tcbstatus.UpToDate, tcbstatus.UpToDate, tcbstatus.UpToDate},
		{tcbstatus.OutOfDate, tcbstatus.UpToDate, tcbstatus.OutOfDate},
		{tcbstatus.SWHardeningNeeded, tcbstatus.UpToDate, tcbstatus.SWHardeningNeeded},
		{tcbstatus.ConfigurationNeeded, tcbstatus.OutOfDate, tcbstatus.OutOfDateConfigurationNeeded},
		{tcbstatus.ConfigurationAndSWHardeningNeeded, tcbstatus.UpToDate, tcbstatus.ConfigurationAndSWHardeningNeeded},
		{tcbstatus.UpToDate, tcbstatus.OutOfDate, tcbstatus.OutOfDate},
	} {
		tcb := softsgx.TCB{Status: c.platform, QEStatus: c.qe, Advisories: []string{"INTEL-SA-00001"}, EvaluationNumber: 18}
		if err := p.Reissue(now, tcb); err != nil {
			t.Fatal(err)
		}
		claims, err := verify(p, p.RootCA(), raw, now)
		if err != nil {
			t.Errorf("platform %v, QE %v: %v", c.platform, c.qe, err)
			continue
		}
		if claims.TCB.Status != c.want || claims.TCB.EvaluationNumber != 18 ||
			len(claims.TCB.Advisories) == 0 || claims.TCB.Advisories[0] != "INTEL-SA-00001" {
			t.Errorf("platform %v, QE %v: %+v, want %v", c.platform, c.qe, claims.TCB, c.want)
		}
	}
}

func TestRevocationIsTerminal(t *testing.T) {
	for name, tcb := range map[string]softsgx.TCB{
		"PCK certificate": {RevokedPCK: true},
		"PCK CA":          {RevokedCA: true},
		"TCB signer":      {RevokedSigner: true},
	} {
		p := newPlatform(t, softsgx.Options{TCB: tcb})
		if _, err := verify(p, p.RootCA(), quote(t, p, enclave), now); err == nil {
			t.Errorf("revoked %s was accepted", name)
		}
	}
}

func TestSeededPlatformIsReproducible(t *testing.T) {
	a, b := newPlatform(t, softsgx.Options{}), newPlatform(t, softsgx.Options{})
	if !bytes.Equal(quote(t, a, enclave), quote(t, b, enclave)) {
		t.Error("two platforms of one seed sign differently")
	}
	if !bytes.Equal(a.Collateral().TCBInfo, b.Collateral().TCBInfo) ||
		!bytes.Equal(a.Collateral().PCKCRL, b.Collateral().PCKCRL) {
		t.Error("two platforms of one seed issue different collateral")
	}
}

func TestSavedPlatformIsTheSame(t *testing.T) {
	dir := t.TempDir()
	p := newPlatform(t, softsgx.Options{Processor: true, TCB: softsgx.TCB{Status: tcbstatus.SWHardeningNeeded}})
	if err := p.Save(dir); err != nil {
		t.Fatal(err)
	}
	loaded, err := softsgx.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(quote(t, p, enclave), quote(t, loaded, enclave)) {
		t.Error("the loaded platform signs differently")
	}
	if err := p.Renew(now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := loaded.Renew(now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	a, b := p.Collateral(), loaded.Collateral()
	if !bytes.Equal(a.TCBInfo, b.TCBInfo) || !bytes.Equal(a.RootCACRL, b.RootCACRL) {
		t.Error("the loaded platform issues different collateral")
	}
	keys, err := filepath.Glob(filepath.Join(dir, "*.key"))
	if err != nil || len(keys) != 5 {
		t.Fatalf("key files: %v %v", keys, err)
	}
	for _, key := range keys {
		info, err := os.Stat(key)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", key, info.Mode())
		}
	}
}

func TestAttesterBindsReportData(t *testing.T) {
	p := newPlatform(t, softsgx.Options{})
	data := attest.ReportData{1, 63: 2}
	evidence, err := p.Attester(enclave).Evidence(context.Background(), data)
	if err != nil {
		t.Fatal(err)
	}
	q, err := sgx.ParseQuote(evidence.Raw)
	if err != nil {
		t.Fatal(err)
	}
	if evidence.Type != attest.SGX || q.SGX.ReportData != data || q.SGX.MREnclave != enclave.MREnclave {
		t.Errorf("evidence is %v with body %+v", evidence.Type, q.SGX)
	}
}

func TestCertificatesLookLikeIntels(t *testing.T) {
	p := newPlatform(t, softsgx.Options{})
	q, err := sgx.ParseQuote(quote(t, p, enclave))
	if err != nil {
		t.Fatal(err)
	}
	var chain []*x509.Certificate
	for rest := q.CertData; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, c)
	}
	wantNames := []string{"Intel SGX PCK Certificate", "Intel SGX PCK Platform CA", "Intel SGX Root CA"}
	wantOrder := []string{"2.5.4.3", "2.5.4.10", "2.5.4.7", "2.5.4.8", "2.5.4.6"}
	if len(chain) != len(wantNames) {
		t.Fatalf("the chain has %d certificates", len(chain))
	}
	for i, c := range chain {
		if c.Subject.CommonName != wantNames[i] {
			t.Errorf("certificate %d is %q, want %q", i, c.Subject.CommonName, wantNames[i])
		}
		for j, attribute := range c.Subject.Names {
			if attribute.Type.String() != wantOrder[j] {
				t.Errorf("%s: attribute %d is %v, want %v", wantNames[i], j, attribute.Type, wantOrder[j])
			}
		}
		have := map[string]bool{}
		for _, e := range c.Extensions {
			have[e.Id.String()] = true
		}
		for _, id := range []string{"2.5.29.14", "2.5.29.15", "2.5.29.19", "2.5.29.31", "2.5.29.35"} {
			if !have[id] {
				t.Errorf("%s lacks extension %s", wantNames[i], id)
			}
		}
	}
	if !bytes.Contains(chain[2].Raw, []byte("Software SGX platform")) {
		t.Error("the root does not say what it is")
	}
}
