package dcap_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/edgelesssys/ego/attestation/tcbstatus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/lab/softsgx"
)

var now = time.Date(2026, 1, 15, 12, 0, 0, 0, time.UTC)

// live hands out the present collateral of a software platform, or of another one in its stead.
type live struct {
	platform *softsgx.Platform
	err      error
	calls    int
}

func (l *live) Collateral(context.Context, dcap.Request) (*dcap.Collateral, error) {
	l.calls++
	return l.platform.Collateral(), l.err
}

func newPlatform(t *testing.T, seed byte) *softsgx.Platform {
	t.Helper()
	p, err := softsgx.New(softsgx.Options{Rand: rand.NewChaCha8([32]byte{seed}), Now: now.Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var body = sgx.ReportBody{
	SGXClaims: attest.SGXClaims{
		MREnclave: [32]byte{1}, MRSigner: [32]byte{2}, ProductID: 3, SVN: 4,
		Attributes: attest.AttributeInit | attest.AttributeMode64Bit | attest.AttributeKSS, XFRM: 7,
		ConfigID: [64]byte{5}, ConfigSVN: 6, FamilyID: [16]byte{7}, ExtProdID: [16]byte{8},
	},
	ReportData: attest.ReportData{9},
}

func quoteOf(t *testing.T, p *softsgx.Platform) attest.Evidence {
	t.Helper()
	raw, err := p.Quote(body)
	if err != nil {
		t.Fatal(err)
	}
	return attest.Evidence{Type: attest.SGX, Raw: raw}
}

// wantStep checks that err is a refusal at a step, with a code.
func wantStep(t *testing.T, err error, step dcap.Step, code attest.Code) {
	t.Helper()
	if dcap.StepOf(err) != step || attest.CodeOf(err) != code {
		t.Errorf("error is %v (step %q, code %s), want step %q, code %s", err, dcap.StepOf(err), attest.CodeOf(err), step, code)
	}
}

func TestClaimsAreThoseOfTheReportBody(t *testing.T) {
	p := newPlatform(t, 1)
	d := dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{p.RootCA()}, Source: &live{platform: p}})
	for range 2 { // the second time from memory
		c, err := d.Verify(context.Background(), quoteOf(t, p), now)
		if err != nil {
			t.Fatal(err)
		}
		if c.Type != attest.SGX || c.TDX != nil || c.ReportData != body.ReportData || *c.SGX != body.SGXClaims {
			t.Errorf("claims are %+v, want those of %+v", c, body)
		}
		if c.TCB.Status != tcbstatus.UpToDate || c.TCB.EvaluationNumber != 17 || !c.TCB.EarliestExpiry.After(now) {
			t.Errorf("TCB is %+v", c.TCB)
		}
	}
}

func TestMemoryDoesNotOutliveWhatItRestsOn(t *testing.T) {
	for _, test := range []struct {
		name string
		tcb  softsgx.TCB
		at   time.Time
		step dcap.Step
		code attest.Code
	}{
		{"PCK revoked", softsgx.TCB{RevokedPCK: true}, now, dcap.StepRevocation, attest.CodeEvidence},
		{"CA revoked", softsgx.TCB{RevokedCA: true}, now, dcap.StepRevocation, attest.CodeEvidence},
		{"signer revoked", softsgx.TCB{RevokedSigner: true}, now, dcap.StepRevocation, attest.CodeCollateral},
		{"collateral expired", softsgx.TCB{}, now.AddDate(0, 2, 0), dcap.StepValidity, attest.CodeCollateral},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPlatform(t, 1)
			d := dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{p.RootCA()}, Source: &live{platform: p}})
			if _, err := d.Verify(context.Background(), quoteOf(t, p), now); err != nil {
				t.Fatal(err)
			}
			if test.tcb.RevokedPCK || test.tcb.RevokedCA || test.tcb.RevokedSigner {
				if err := p.Reissue(now.Add(-time.Minute), test.tcb); err != nil {
					t.Fatal(err)
				}
			}
			_, err := d.Verify(context.Background(), quoteOf(t, p), test.at)
			wantStep(t, err, test.step, test.code)
		})
	}
}

func TestTimeIsNoEarlierThanTheNewestObject(t *testing.T) {
	const day = 24 * time.Hour
	p := newPlatform(t, 1)
	old := p.Collateral()
	verify := func(c *dcap.Collateral, at time.Time) (attest.Claims, error) {
		d := dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{p.RootCA()}, Source: sourceFunc(
			func(context.Context, dcap.Request) (*dcap.Collateral, error) { return c, nil })})
		return d.Verify(context.Background(), quoteOf(t, p), at)
	}
	issued := now.Add(-time.Hour) // by newPlatform
	for _, test := range []struct{ at, want time.Time }{
		{now, now}, {now.Add(-2 * day), issued}, {time.Unix(0, 0), issued},
	} {
		c, err := verify(old, test.at)
		if err != nil || !c.TCB.VerifiedAt.Equal(test.want) || c.TCB.RootCRLNumber != 1 || c.TCB.PCKCRLNumber != 1 {
			t.Errorf("at %s: verified at %s (%v), want %s", test.at, c.TCB.VerifiedAt, err, test.want)
		}
	}

	// One document of a time at which the others are no longer valid: which one it is must not matter.
	if err := p.Renew(now.Add(60 * day)); err != nil {
		t.Fatal(err)
	}
	renewed := p.Collateral()
	for _, test := range []struct {
		name  string
		renew func(*dcap.Collateral)
	}{
		{"TCB info", func(c *dcap.Collateral) { c.TCBInfo = renewed.TCBInfo }},
		{"QE identity", func(c *dcap.Collateral) { c.QEIdentity = renewed.QEIdentity }},
		{"PCK CRL", func(c *dcap.Collateral) { c.PCKCRL = renewed.PCKCRL }},
		{"root CA CRL", func(c *dcap.Collateral) { c.RootCACRL = renewed.RootCACRL }},
	} {
		t.Run(test.name, func(t *testing.T) {
			mixed := *old
			test.renew(&mixed)
			_, err := verify(&mixed, now)
			wantStep(t, err, dcap.StepValidity, attest.CodeCollateral)
			if !strings.Contains(err.Error(), "expired") {
				t.Errorf("error is %v", err)
			}
		})
	}
	if c, err := verify(renewed, now); err != nil || !c.TCB.VerifiedAt.Equal(now.Add(60*day)) {
		t.Errorf("renewed collateral: verified at %s, %v", c.TCB.VerifiedAt, err)
	}
}

func TestTCBRecoveryShowsAtTheNextQuote(t *testing.T) {
	p := newPlatform(t, 1)
	d := dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{p.RootCA()}, Source: &live{platform: p}})
	e := quoteOf(t, p)
	for _, want := range []tcbstatus.Status{tcbstatus.UpToDate, tcbstatus.OutOfDate, tcbstatus.Revoked, tcbstatus.UpToDate} {
		tcb := softsgx.TCB{Status: want, Advisories: []string{"INTEL-SA-00002", "INTEL-SA-00001", "INTEL-SA-00002"}}
		if err := p.Reissue(now.Add(-time.Minute), tcb); err != nil {
			t.Fatal(err)
		}
		c, err := d.Verify(context.Background(), e, now)
		if err != nil || c.TCB.Status != want {
			t.Errorf("status %v, error %v, want %v", c.TCB.Status, err, want)
		}
		if want := []string{"INTEL-SA-00001", "INTEL-SA-00002"}; !slices.Equal(c.TCB.Advisories, want) {
			t.Errorf("advisories %v, want %v", c.TCB.Advisories, want)
		}
	}
}

func TestOldCollateralIsRefusedByItsNumbers(t *testing.T) {
	p := newPlatform(t, 1)
	for _, test := range []struct {
		name   string
		config dcap.Config
		step   dcap.Step
	}{
		{"numbers reached", dcap.Config{MinimumEvaluation: 17, MinimumRootCRLNumber: 1, MinimumPCKCRLNumber: 1}, ""},
		{"evaluation", dcap.Config{MinimumEvaluation: 18}, dcap.StepMinimum},
		{"root CRL", dcap.Config{MinimumRootCRLNumber: 2}, dcap.StepMinimum},
		{"PCK CRL", dcap.Config{MinimumPCKCRLNumber: 2}, dcap.StepMinimum},
	} {
		test.config.Roots, test.config.Source = []*x509.Certificate{p.RootCA()}, &live{platform: p}
		_, err := dcap.NewVerifier(test.config).Verify(context.Background(), quoteOf(t, p), now)
		if test.step == "" {
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			continue
		}
		t.Run(test.name, func(t *testing.T) { wantStep(t, err, test.step, attest.CodeCollateral) })
	}
}

func TestRootsAreNotMixed(t *testing.T) {
	p, other := newPlatform(t, 1), newPlatform(t, 2)
	t.Run("only Intel's root", func(t *testing.T) {
		_, err := dcap.NewVerifier(dcap.Config{Source: &live{platform: p}}).Verify(context.Background(), quoteOf(t, p), now)
		wantStep(t, err, dcap.StepPCKChain, attest.CodeEvidence)
	})
	both := []*x509.Certificate{p.RootCA(), other.RootCA()}
	t.Run("each with its own collateral", func(t *testing.T) {
		source := &live{platform: p}
		d := dcap.NewVerifier(dcap.Config{Roots: both, Source: source})
		for _, source.platform = range []*softsgx.Platform{p, other, p} {
			if _, err := d.Verify(context.Background(), quoteOf(t, source.platform), now); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("collateral below another trusted root", func(t *testing.T) {
		d := dcap.NewVerifier(dcap.Config{Roots: both, Source: &live{platform: other}})
		_, err := d.Verify(context.Background(), quoteOf(t, p), now)
		wantStep(t, err, dcap.StepPCKCRL, attest.CodeCollateral)
	})
}

func TestWrongConfigurationFailsClosed(t *testing.T) {
	p := newPlatform(t, 1)
	e := quoteOf(t, p)
	ctx := context.Background()
	t.Run("no source", func(t *testing.T) {
		_, err := dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{p.RootCA()}}).Verify(ctx, e, now)
		wantStep(t, err, dcap.StepFetch, attest.CodeCollateral)
	})
	t.Run("source unreachable", func(t *testing.T) {
		cause := attest.Errorf(attest.CodeUnreachable, "asking", "", "%w", context.DeadlineExceeded)
		source := &live{platform: p, err: cause}
		_, err := dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{p.RootCA()}, Source: source}).Verify(ctx, e, now)
		wantStep(t, err, dcap.StepFetch, attest.CodeUnreachable)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the cause is lost in %v", err)
		}
	})
	t.Run("root that is none", func(t *testing.T) {
		leaf := *p.RootCA()
		leaf.IsCA = false
		_, err := dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{&leaf}, Source: &live{platform: p}}).Verify(ctx, e, now)
		if attest.CodeOf(err) != attest.CodeConfig {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("evidence of another type", func(t *testing.T) {
		source := &live{platform: p}
		d := dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{p.RootCA()}, Source: source})
		_, err := d.Verify(ctx, attest.Evidence{Type: attest.TDX, Raw: e.Raw}, now)
		wantStep(t, err, dcap.StepQuote, attest.CodeEvidence)
		if source.calls != 0 {
			t.Error("collateral was fetched for evidence that is not genuine")
		}
	})
}

func TestEveryMissingDocumentIsNamed(t *testing.T) {
	p := newPlatform(t, 1)
	for _, test := range []struct {
		step   dcap.Step
		remove func(*dcap.Collateral)
	}{
		{dcap.StepTCBInfo, func(c *dcap.Collateral) { c.TCBInfo = nil }},
		{dcap.StepTCBInfoChain, func(c *dcap.Collateral) { c.TCBInfoChain = nil }},
		{dcap.StepQEIdentity, func(c *dcap.Collateral) { c.QEIdentity = nil }},
		{dcap.StepQEIdentityChain, func(c *dcap.Collateral) { c.QEIdentityChain = nil }},
		{dcap.StepPCKCRL, func(c *dcap.Collateral) { c.PCKCRL = nil }},
		{dcap.StepPCKCRL, func(c *dcap.Collateral) { c.PCKCRLChain = nil }},
		{dcap.StepRootCRL, func(c *dcap.Collateral) { c.RootCACRL = nil }},
	} {
		c := p.Collateral()
		test.remove(c)
		_, err := dcap.Load(c, []*x509.Certificate{p.RootCA()})
		wantStep(t, err, test.step, attest.CodeCollateral)
	}
	e, err := dcap.Load(p.Collateral(), []*x509.Certificate{p.RootCA()})
	if err != nil {
		t.Fatal(err)
	}
	if e.FMSPC() != p.FMSPC() || e.EvaluationNumber() != 17 || e.RootCRLNumber().Sign() <= 0 || e.PCKCRLNumber().Sign() <= 0 ||
		!e.Issued().Before(now) || !e.Expiry().After(now) {
		t.Errorf("endorsements are %x %d, issued %s, valid until %s", e.FMSPC(), e.EvaluationNumber(), e.Issued(), e.Expiry())
	}
}

func TestPCKCRLChainMayBeInTheQuoteOnly(t *testing.T) {
	p := newPlatform(t, 1)
	c := p.Collateral()
	c.PCKCRLChain = nil
	d := dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{p.RootCA()}, Source: sourceFunc(
		func(context.Context, dcap.Request) (*dcap.Collateral, error) { return c, nil })})
	if _, err := d.Verify(context.Background(), quoteOf(t, p), now); err != nil {
		t.Error(err)
	}
}

func TestVerifierIsSafeForConcurrentUse(t *testing.T) {
	platforms := []*softsgx.Platform{newPlatform(t, 1), newPlatform(t, 2), newPlatform(t, 3)}
	collateral := map[*softsgx.Platform]*dcap.Collateral{}
	var roots []*x509.Certificate
	for _, p := range platforms {
		roots = append(roots, p.RootCA())
		collateral[p] = p.Collateral()
	}
	type platformKey struct{}
	source := sourceFunc(func(ctx context.Context, _ dcap.Request) (*dcap.Collateral, error) {
		return collateral[ctx.Value(platformKey{}).(*softsgx.Platform)], nil
	})
	d := dcap.NewVerifier(dcap.Config{Roots: roots, Source: source})
	var wg sync.WaitGroup
	for i := range 12 {
		p := platforms[i%len(platforms)]
		e := quoteOf(t, p)
		ctx := context.WithValue(context.Background(), platformKey{}, p)
		wg.Go(func() {
			for range 20 {
				if _, err := d.Verify(ctx, e, now); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

type sourceFunc func(context.Context, dcap.Request) (*dcap.Collateral, error)

func (f sourceFunc) Collateral(ctx context.Context, r dcap.Request) (*dcap.Collateral, error) {
	return f(ctx, r)
}

func TestSourceIsAskedForThePlatformOfTheQuote(t *testing.T) {
	p := newPlatform(t, 1)
	var asked dcap.Request
	d := dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{p.RootCA()}, Source: sourceFunc(
		func(_ context.Context, r dcap.Request) (*dcap.Collateral, error) {
			asked = r
			return p.Collateral(), nil
		})})
	if _, err := d.Verify(context.Background(), quoteOf(t, p), now); err != nil {
		t.Fatal(err)
	}
	want := dcap.Request{TEE: attest.SGX, FMSPC: p.FMSPC(), CA: dcap.PlatformCA}
	if asked != want {
		t.Errorf("asked for %+v, want %+v", asked, want)
	}
	if r, err := dcap.RequestFor(quoteOf(t, p).Raw); err != nil || r != want {
		t.Errorf("the attester asks for %+v (%v), want %+v", r, err, want)
	}
	cut := quoteOf(t, p).Raw
	if _, err := dcap.RequestFor(cut[:len(cut)-1]); err == nil {
		t.Error("a quote that is cut off asks for something")
	}
}

// TestAStrangerCannotChooseWhatIsFetched: neither with certificates of its own, nor with those of a genuine platform.
func TestAStrangerCannotChooseWhatIsFetched(t *testing.T) {
	p, other := newPlatform(t, 1), newPlatform(t, 2)
	genuine := quoteOf(t, p).Raw
	q, err := sgx.ParseQuote(genuine)
	if err != nil {
		t.Fatal(err)
	}
	changed := func(part []byte) []byte {
		at := bytes.Index(genuine, part)
		if at < 0 {
			t.Fatal("no such part")
		}
		raw := bytes.Clone(genuine)
		raw[at+len(part)-1] ^= 1
		return raw
	}
	// A quote of an attestation key of the stranger's own, with everything else copied.
	stranger := bytes.Clone(genuine)
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	copy(stranger[bytes.Index(stranger, q.AttestationKey[:]):], point[1:])
	for _, c := range []struct {
		name string
		raw  []byte
		step dcap.Step
	}{
		{"a chain of its own", quoteOf(t, other).Raw, dcap.StepPCKChain},
		{"another QE report", changed(q.QEReportRaw), dcap.StepQEReportSignature},
		{"a key of its own", stranger, dcap.StepAttestationKey},
		{"another enclave", changed(q.Signed), dcap.StepQuoteSignature},
	} {
		source := &live{platform: p}
		d := dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{p.RootCA()}, Source: source})
		for range 2 {
			_, err := d.Verify(t.Context(), attest.Evidence{Type: attest.SGX, Raw: c.raw}, now)
			wantStep(t, err, c.step, attest.CodeEvidence)
		}
		if source.calls != 0 {
			t.Errorf("%s: collateral was fetched", c.name)
		}
		if _, err := d.Verify(t.Context(), quoteOf(t, p), now); err != nil || source.calls != 1 {
			t.Errorf("%s: the genuine quote: %v, %d fetches", c.name, err, source.calls)
		}
	}
}

func TestStepsAreGerundsAndDistinct(t *testing.T) {
	seen := map[dcap.Step]bool{}
	for _, s := range dcap.Steps() {
		first, _, _ := strings.Cut(string(s), " ")
		if seen[s] || !strings.HasSuffix(first, "ing") {
			t.Errorf("step %q is not distinct or no gerund", s)
		}
		seen[s] = true
	}
}

func TestOnlyIntelsOwnRootVouchesForATime(t *testing.T) {
	late, err := softsgx.New(softsgx.Options{Now: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)})
	if err != nil {
		t.Fatal(err)
	}
	e, err := dcap.Load(late.Collateral(), []*x509.Certificate{late.RootCA()})
	if err != nil {
		t.Fatal(err)
	}
	if at := e.Vouched(); !at.IsZero() || e.Issued().Year() != 2100 {
		t.Errorf("a configured root vouches for %s", at)
	}
	for _, v := range readVectors(t, "testdata", "vectors/*/*") {
		if !v.accepted() || !v.root.Equal(dcap.IntelRoot()) {
			continue
		}
		var told []time.Time
		d := dcap.NewVerifier(dcap.Config{Source: v, PCKChain: v.pckChain, Vouched: func(at time.Time) { told = append(told, at) }})
		if _, err := v.verify(d); err != nil {
			t.Fatalf("%s: %v", v.name, err)
		}
		e, err := dcap.Load(&v.collateral, nil)
		if err != nil {
			continue // without a chain of the PCK CRL
		}
		if len(told) != 1 || told[0].IsZero() || !told[0].Equal(e.Vouched()) || told[0].After(e.Issued()) {
			t.Errorf("%s: told %v, want %s, at most %s", v.name, told, e.Vouched(), e.Issued())
		}
		return
	}
	t.Error("no recorded quote is below Intel's root")
}
