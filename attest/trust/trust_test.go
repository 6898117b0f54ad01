package trust_test

import (
	"context"
	"crypto/x509"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/attesters"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/attest/trust"
	"github.com/sesame-init/sesame/lab/softsgx"
)

func quoteOf(t *testing.T, p *softsgx.Platform) attest.Evidence {
	t.Helper()
	e, err := p.Attester(sgx.ReportBody{SGXClaims: attest.SGXClaims{MREnclave: [32]byte{1}, Attributes: attest.AttributeInit}}).
		Evidence(t.Context(), attest.ReportData{2})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func newPlatform(t *testing.T, now time.Time) *softsgx.Platform {
	t.Helper()
	p, err := softsgx.New(softsgx.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestEveryPartOfTheConfigCounts verifies one genuine quote with configs that differ in one part.
func TestEveryPartOfTheConfigCounts(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	p := newPlatform(t, now.Add(-time.Hour))
	quote := quoteOf(t, p)
	plain, secured := httptest.NewServer(p.PCCS()), httptest.NewTLSServer(p.PCCS())
	defer plain.Close()
	defer secured.Close()
	dir := t.TempDir()
	if err := pccs.WriteDir(dir, p.Collateral()); err != nil {
		t.Fatal(err)
	}
	roots := []*x509.Certificate{p.RootCA()}
	for name, c := range map[string]struct {
		config trust.Config
		want   attest.Code // "" for genuine
	}{
		"directory":          {trust.Config{Roots: roots, Collateral: trust.CollateralAt(dir)}, ""},
		"PCCS":               {trust.Config{Roots: roots, Collateral: trust.Collateral{URL: plain.URL, AllowHTTP: true}}, ""},
		"PCCS without leave": {trust.Config{Roots: roots, Collateral: trust.CollateralAt(plain.URL)}, attest.CodeConfig},
		"PCCS with private authority": {trust.Config{Roots: roots, Collateral: trust.Collateral{
			URL: secured.URL, Authorities: []*x509.Certificate{secured.Certificate()}}}, ""},
		"PCCS of an unknown authority": {trust.Config{Roots: roots, Collateral: trust.Collateral{
			URL: secured.URL, Attempts: 1}}, attest.CodeUnreachable},
		"two sources":  {trust.Config{Collateral: trust.Collateral{URL: plain.URL, AllowHTTP: true, Directory: dir}}, attest.CodeConfig},
		"no source":    {trust.Config{Roots: roots}, attest.CodeCollateral},
		"Intel's root": {trust.Config{Collateral: trust.CollateralAt(dir)}, attest.CodeEvidence},
		"evaluation":   {trust.Config{Roots: roots, Collateral: trust.CollateralAt(dir), MinimumEvaluation: 1 << 31}, attest.CodeCollateral},
		"root CRL":     {trust.Config{Roots: roots, Collateral: trust.CollateralAt(dir), MinimumRootCRL: 1 << 62}, attest.CodeCollateral},
		"PCK CRL":      {trust.Config{Roots: roots, Collateral: trust.CollateralAt(dir), MinimumPCKCRL: 1 << 62}, attest.CodeCollateral},
	} {
		c.config.Now = func() time.Time { return now }
		got, err := trust.New(c.config)
		if err == nil {
			defer got.Close()
			_, err = got.Verifier().Verify(t.Context(), quote, now)
		}
		if attest.CodeOf(err) != c.want && (err != nil || c.want != "") {
			t.Errorf("%s: %q (%v), want %q", name, attest.CodeOf(err), err, c.want)
		}
	}
}

// TestStapledCollateralMeetsTheSameDemands: minimums and roots hold for it, too.
func TestStapledCollateralMeetsTheSameDemands(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	p := newPlatform(t, now.Add(-time.Hour))
	quote := quoteOf(t, p)
	for name, c := range map[string]struct {
		config trust.Config
		want   bool
	}{
		"as it is":     {trust.Config{Roots: []*x509.Certificate{p.RootCA()}}, true},
		"evaluation":   {trust.Config{Roots: []*x509.Certificate{p.RootCA()}, MinimumEvaluation: 1 << 31}, false},
		"Intel's root": {trust.Config{}, false},
	} {
		verifies, err := trust.New(c.config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verifies.Stapled(p.Collateral()).Verify(t.Context(), quote, now); (err == nil) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOnlyTheNamedKindsAreVerified: evidence of a TPM needs its verifier, and it has the certificates of the config.
func TestOnlyTheNamedKindsAreVerified(t *testing.T) {
	verify := func(kinds []trust.Kind, of attest.EvidenceType) error {
		verifies, err := trust.New(trust.Config{Kinds: kinds})
		if err != nil {
			t.Fatal(err)
		}
		_, err = verifies.Verifier().Verify(context.Background(), attest.Evidence{Type: of}, time.Now())
		return err
	}
	for _, of := range []attest.EvidenceType{attest.SNP, attest.TPM} {
		if err := verify(nil, of); err == nil || !strings.Contains(attest.HintOf(err), "only sgx, tdx") {
			t.Errorf("without kinds %s: %v, hint %q", of, err, attest.HintOf(err))
		}
		if err := verify(attesters.All(), of); err == nil || strings.Contains(err.Error(), "cannot verify evidence of type") {
			t.Errorf("%s: %v", of, err)
		}
	}
	given := trust.Config{Certificates: []*x509.Certificate{newPlatform(t, time.Now()).RootCA()}}
	var seen trust.Config
	given.Kinds = []trust.Kind{{Type: "toy", Verifier: func(c trust.Config) attest.Verifier { seen = c; return nil }}}
	verifies, err := trust.New(given)
	if err != nil {
		t.Fatal(err)
	}
	verifies.Verifier()
	if len(seen.Certificates) != 1 {
		t.Error("a kind does not see the certificates")
	}
}

func TestWhatIsNotForProductionIsSaid(t *testing.T) {
	root := newPlatform(t, time.Now()).RootCA()
	verifies, err := trust.New(trust.Config{Roots: []*x509.Certificate{root},
		Collateral: trust.Collateral{URL: "http://127.0.0.1:1/", AllowHTTP: true}})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Join(verifies.Remarks("/etc/root.pem"), "\n")
	for _, want := range []string{root.Subject.CommonName, "/etc/root.pem", "not Intel's", "over http"} {
		if !strings.Contains(lines, want) {
			t.Errorf("%q is not in %q", want, lines)
		}
	}
	if verifies, err = trust.New(trust.Config{}); err != nil || len(verifies.Remarks("")) > 0 {
		t.Errorf("%v, remarks %v", err, verifies.Remarks(""))
	}
}
