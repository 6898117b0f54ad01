package broker

import (
	"context"
	"crypto/x509"
	"sync"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/cvm"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/tpm"
	"github.com/sesame-init/sesame/internal/broker/policy"
)

// Trust is what verifies evidence, and what collateral it rests on.
type Trust struct {
	Verifier attest.Verifier
	source   *recorder
	roots    []*x509.Certificate
	own      attest.Verifier // like Verifier, of the broker's own evidence
	ownSeen  *recorder
}

// NewTrust verifies evidence as a policy says: quotes of SGX and TDX with collateral of a source, reports of SEV-SNP
// with the certificates that they bring, quotes of TPMs. vouched is that of [dcap.Config]; it may be nil.
func NewTrust(t policy.Trust, source dcap.Source, vouched func(time.Time)) (*Trust, error) {
	roots, err := t.RootCertificates()
	if err != nil {
		return nil, &attest.Error{Code: attest.CodeConfig, Step: "reading trust.roots", Err: err}
	}
	tpms, err := t.TPMChains()
	if err != nil {
		return nil, &attest.Error{Code: attest.CodeConfig, Step: "reading trust.tpm_certificates", Err: err}
	}
	verifier := func(s dcap.Source) attest.Verifier {
		return dcap.NewVerifier(dcap.Config{
			Roots: roots, Source: s, Vouched: vouched, MinimumEvaluation: t.MinimumEvaluation,
			MinimumRootCRLNumber: t.MinimumRootCRL, MinimumPCKCRLNumber: t.MinimumPCKCRL,
		})
	}
	peers, own := &recorder{source: source}, &recorder{source: source}
	quotes := verifier(peers)
	all := attest.Verifiers{
		attest.SGX: quotes, attest.TDX: quotes, attest.SNP: &cvm.SNPVerifier{}, attest.TPM: &tpm.Verifier{Certificates: tpms},
	}
	return &Trust{Verifier: all, source: peers, roots: roots, own: verifier(own), ownSeen: own}, nil
}

// OpenSource finds the source of collateral that a policy names.
func OpenSource(t policy.Trust, now func() time.Time) (dcap.Source, error) {
	switch {
	case t.Collateral.Directory != "":
		return pccs.Dir(t.Collateral.Directory), nil
	case t.Collateral.URL == "":
		return noSource{}, nil
	}
	roots, err := t.RootCertificates()
	if err != nil {
		return nil, &attest.Error{Code: attest.CodeConfig, Step: "reading trust.roots", Err: err}
	}
	c := pccs.Config{URL: t.Collateral.URL, AllowHTTP: t.Collateral.AllowHTTP, Roots: roots, Now: now}
	if t.Collateral.CA != "" {
		c.RootCAs = x509.NewCertPool()
		c.RootCAs.AppendCertsFromPEM([]byte(t.Collateral.CA))
	}
	return pccs.New(c)
}

// noSource is that of a policy which wants no quotes.
type noSource struct{}

// Collateral implements [dcap.Source].
func (noSource) Collateral(context.Context, dcap.Request) (*dcap.Collateral, error) {
	return nil, attest.Errorf(attest.CodeCollateral, "finding collateral", "Write trust.collateral into the policy.",
		"the policy names no source of collateral")
}

// Close ends what the source of collateral has running.
func (t *Trust) Close() {
	if t.source == nil {
		return
	}
	if c, ok := t.source.source.(interface{ Close() }); ok {
		c.Close()
	}
}

// VerifyOwn verifies the broker's own evidence, as its clients will.
func (t *Trust) VerifyOwn(ctx context.Context, evidence attest.Evidence, at time.Time) (attest.Claims, error) {
	return t.own.Verify(ctx, evidence, at)
}

// Collateral finds that of the broker's own evidence, to be stapled: whatever verifying it asks the source for. So
// only evidence that is genuine gets collateral.
func (t *Trust) Collateral(ctx context.Context, evidence attest.Evidence, at time.Time) (*dcap.Collateral, error) {
	if _, err := t.own.Verify(ctx, evidence, at); err != nil {
		return nil, err
	}
	return t.ownSeen.latest(), nil
}

// fresh reports why the collateral that peers need is not there or not valid at a time, nil if it is. Before the first
// verification it is not known what is needed.
func (t *Trust) fresh(ctx context.Context, at time.Time) (expiry time.Time, err error) {
	if t.source == nil {
		return time.Time{}, nil
	}
	request, known := t.source.latestRequest()
	if !known {
		if request, known = t.ownSeen.latestRequest(); !known {
			return time.Time{}, nil
		}
	}
	c, err := t.source.source.Collateral(ctx, request)
	if err != nil {
		return time.Time{}, err
	}
	e, err := dcap.Load(c, t.roots)
	if err != nil {
		return time.Time{}, err
	}
	if !at.Before(e.Expiry()) {
		return e.Expiry(), attest.Errorf(attest.CodeCollateral, "checking collateral",
			"See whether the PCCS is up and up to date.", "it has expired on %s", e.Expiry().UTC().Format(time.RFC3339))
	}
	return e.Expiry(), nil
}

// recorder remembers what a source was asked for, and gave, last.
type recorder struct {
	source dcap.Source

	mu      sync.Mutex
	request dcap.Request
	asked   bool
	last    *dcap.Collateral
}

// Collateral implements [dcap.Source]. Collateral that is the same as the last is the same value.
func (r *recorder) Collateral(ctx context.Context, request dcap.Request) (*dcap.Collateral, error) {
	c, err := r.source.Collateral(ctx, request)
	if err != nil || c == nil {
		return c, err
	}
	r.mu.Lock()
	if r.asked && r.request == request && r.last.Equal(c) {
		c = r.last
	}
	r.last, r.request, r.asked = c, request, true
	r.mu.Unlock()
	if b, ok := ctx.Value(basisKey{}).(*basis); ok {
		*b = basis{request, c}
	}
	return c, nil
}

// basis is the collateral that a verification rested on.
type basis struct {
	request    dcap.Request
	collateral *dcap.Collateral // nil: it needed none
}

type basisKey struct{}

// noting is for one verification of a peer's evidence, whose basis goes to b.
func noting(ctx context.Context, b *basis) context.Context {
	return context.WithValue(ctx, basisKey{}, b)
}

// unchanged reports whether a verification would rest on the same collateral now.
func (t *Trust) unchanged(ctx context.Context, b basis) bool {
	if b.collateral == nil || t.source == nil {
		return false
	}
	now, err := t.source.Collateral(ctx, b.request)
	return err == nil && now != nil && now.Equal(b.collateral)
}

func (r *recorder) latest() *dcap.Collateral {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

func (r *recorder) latestRequest() (dcap.Request, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.request, r.asked
}
