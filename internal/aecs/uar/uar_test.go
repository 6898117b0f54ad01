package uar_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/aecs/wire"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/aecs/uar"
	"github.com/sesame-init/sesame/lab/softsgx"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// TestAPassportVerifiesWithItsOwnCollateral goes the whole way: evidence and collateral into a report, and back.
func TestAPassportVerifiesWithItsOwnCollateral(t *testing.T) {
	p, err := softsgx.New(softsgx.Options{Now: now.Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	key, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	text := uar.PublicKeyPEM(&key.PublicKey)
	var body sgx.ReportBody
	body.ProductID = 7
	e, err := p.Attester(body).Evidence(t.Context(), uar.Data([32]byte{1, 2, 3}, text))
	if err != nil {
		t.Fatal(err)
	}
	collateral, err := uar.Collateral(p.Collateral(), attest.SGX)
	if err != nil {
		t.Fatal(err)
	}
	if collateral.GetVersion() != 4 {
		t.Errorf("collateral of PCS version 4 says version %d", collateral.GetVersion())
	}
	auth, err := uar.Make(e, text, collateral)
	if err != nil {
		t.Fatal(err)
	}
	r, err := uar.Read(auth)
	if err != nil {
		t.Fatal(err)
	}
	if !r.PublicKey.Equal(&key.PublicKey) || r.UserData != [32]byte{1, 2, 3} {
		t.Errorf("read %+v", r)
	}
	back, err := r.Evidence()
	if err != nil {
		t.Fatal(err)
	}
	v := dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{p.RootCA()}, Source: pccs.Stapled(r.Collateral)})
	claims, err := v.Verify(t.Context(), back, now)
	if err != nil || claims.ReportData != r.Data() || claims.SGX.ProductID != 7 {
		t.Errorf("%+v, %v", claims, err)
	}

	alone, err := uar.Make(e, text, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r, err = uar.Read(alone); err != nil || r.Collateral != nil ||
		alone.GetReport().GetStrReportType() != "BackgroundCheck" {
		t.Errorf("without collateral: %+v, %v", r, err)
	}
}

func TestCollateralOfATrustDomainSaysSo(t *testing.T) {
	text := func(version string) *dcap.Collateral {
		b := []byte("x")
		return &dcap.Collateral{TCBInfo: []byte(`{"tcbInfo":{"version":` + version + `}}`), TCBInfoChain: b, QEIdentity: b,
			QEIdentityChain: b,
			PCKCRL:          []byte{0x30, 0x82, 1, 2}, PCKCRLChain: b, RootCACRL: []byte("3082")}
	}
	c, err := uar.Collateral(text("3"), attest.TDX)
	if err != nil || c.GetTeeType() != 129 || c.GetPckCrl() != "30820102" || c.GetRootCaCrl() != "3082" {
		t.Errorf("%v, %v", c, err)
	}
	c, err = uar.Collateral(text("2"), attest.SGX)
	if err != nil || c.GetTeeType() != 0 || c.GetVersion() != 3 {
		t.Errorf("%v, %v", c, err)
	}
	if _, err := uar.Collateral(text("9"), attest.SGX); err == nil {
		t.Error("TCB info of an unknown version was taken")
	}
	missing := text("3")
	missing.QEIdentity = nil
	if _, err := uar.Collateral(missing, attest.SGX); err == nil {
		t.Error("collateral without QE identity was taken")
	}
}

// TestATrustDomainsReportDataIsFound knows the place of the report data in quotes of versions 4 and 5.
func TestATrustDomainsReportDataIsFound(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	text := uar.PublicKeyPEM(&key.PublicKey)
	data := uar.Data([32]byte{9}, text)
	for version, at := range map[byte]int{4: 568, 5: 574} {
		quote := make([]byte, 1024)
		quote[0] = version
		copy(quote[at:], data[:])
		auth, err := uar.Make(attest.Evidence{Type: attest.TDX, Raw: quote}, text, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := uar.Read(auth)
		if err != nil || r.Platform != "TDX" || r.UserData[0] != 9 {
			t.Fatalf("version %d: %+v, %v", version, r, err)
		}
		if e, err := r.Evidence(); err != nil || e.Type != attest.TDX {
			t.Errorf("version %d: %v, %v", version, e.Type, err)
		}
	}
}

func TestOnlyStrongRSAKeysAreTaken(t *testing.T) {
	for bits, ok := range map[int]bool{1024: false, 2048: true} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Skip(err) // crypto/rsa may refuse to make weak keys at all
		}
		text := uar.PublicKeyPEM(&key.PublicKey)
		quote := make([]byte, 436)
		data := uar.Data([32]byte{}, text)
		copy(quote[368:], data[:])
		auth, err := uar.Make(attest.Evidence{Type: attest.SGX, Raw: quote}, text, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := uar.Read(auth); errors.Is(err, uar.ErrKey) == ok {
			t.Errorf("%d bits: %v", bits, err)
		}
		auth.PemPublicKey = strings.Replace(text, "\n", "\nProc-Type: 4,ENCRYPTED\n\n", 1)
		if _, err := uar.Read(auth); !errors.Is(err, uar.ErrKey) {
			t.Errorf("PEM with headers: %v", err)
		}
	}
}

// FuzzRead reads reports of any origin: it must not crash, and what it takes must bind its key.
func FuzzRead(f *testing.F) {
	for _, name := range []string{"gena_secret-my-password.res.pb", "gena_emptynonce.res.pb"} {
		b, err := os.ReadFile(filepath.Join("../../../attest/backend/aecs/testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		var answer wire.GetEnclaveSecretResponse
		if err := proto.Unmarshal(b, &answer); err != nil {
			f.Fatal(err)
		}
		r := answer.GetAuthRaReport().GetReport()
		f.Add(r.GetStrReportType(), r.GetStrTeePlatform(), r.GetJsonReport(), answer.GetAuthRaReport().GetPemPublicKey())
	}
	f.Fuzz(func(t *testing.T, kind, platform, json, key string) {
		auth := &wire.UnifiedAttestationAuthReport{PemPublicKey: key,
			Report: &wire.UnifiedAttestationReport{StrReportType: kind, StrTeePlatform: platform, JsonReport: json}}
		r, err := uar.Read(auth)
		if (r == nil) == (err == nil) {
			t.Fatalf("report %v with error %v", r, err)
		}
		if err != nil {
			return
		}
		block, rest := pem.Decode([]byte(key))
		if block == nil || len(rest) > 0 || uar.Data(r.UserData, key) != r.Data() {
			t.Error("a report that does not bind its key was taken")
		}
	})
}
