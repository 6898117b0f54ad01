package broker

import (
	"context"
	"sync"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/attesters"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/trust"
	"github.com/sesame-init/sesame/internal/broker/policy"
)

// Trust is what verifies evidence, and what collateral it rests on.
type Trust struct {
	Verifier attest.Verifier
	trust    *trust.Trust
	source   *recorder
	own      attest.Verifier // like Verifier, of the broker's own evidence
	ownSeen  *recorder
}

// NewTrust verifies evidence as a policy says: quotes of SGX and TDX with collateral of the policy's source, evidence of other
// types with what it brings. vouched is that of [dcap.Config]; it may be nil.
func NewTrust(t policy.Trust, now func() time.Time, vouched func(time.Time)) (*Trust, error) {
	c, err := trustConfig(t)
	if err != nil {
		return nil, err
	}
	c.Now, c.Vouched = now, vouched
	verifies, err := trust.New(c)
	if err != nil {
		return nil, err
	}
	return newTrust(verifies, verifies.Source()), nil
}

// NewTrustWith is [NewTrust] with collateral of a source that the caller brings.
func NewTrustWith(t policy.Trust, source dcap.Source, vouched func(time.Time)) (*Trust, error) {
	c, err := trustConfig(t)
	if err != nil {
		return nil, err
	}
	c.Collateral, c.Vouched = trust.Collateral{}, vouched
	verifies, err := trust.New(c)
	if err != nil {
		return nil, err
	}
	return newTrust(verifies, source), nil
}

func newTrust(t *trust.Trust, source dcap.Source) *Trust {
	peers, own := &recorder{source: source}, &recorder{source: source}
	return &Trust{Verifier: t.With(peers), trust: t, source: peers, own: t.With(own), ownSeen: own}
}

// trustConfig is what a policy says about trust.
func trustConfig(t policy.Trust) (c trust.Config, err error) {
	const hint = "Write each certificate in PEM."
	c = trust.Config{
		MinimumEvaluation: t.MinimumEvaluation, MinimumRootCRL: t.MinimumRootCRL, MinimumPCKCRL: t.MinimumPCKCRL,
		Collateral: trust.Collateral{URL: t.Collateral.URL, AllowHTTP: t.Collateral.AllowHTTP, Directory: t.Collateral.Directory},
		Kinds:      attesters.All(),
	}
	if c.Roots, err = t.RootCertificates(); err != nil {
		return c, attest.Errorf(attest.CodeConfig, "reading trust.roots", hint, "%w", err)
	}
	if c.Certificates, err = t.TPMChains(); err != nil {
		return c, attest.Errorf(attest.CodeConfig, "reading trust.tpm_certificates", hint, "%w", err)
	}
	if c.Collateral.Authorities, err = t.Collateral.Authorities(); err != nil {
		return c, attest.Errorf(attest.CodeConfig, "reading trust.collateral.ca", hint, "%w", err)
	}
	return c, nil
}

// Remarks are what is allowed and that a reader of the log should know, a line each.
func (t *Trust) Remarks() []string { return t.trust.Remarks("the policy") }

// Stapled is what verifies evidence with the collateral that came with it.
func (t *Trust) Stapled(c *dcap.Collateral) attest.Verifier { return t.trust.Stapled(c) }

// Close ends what the source of collateral has running.
func (t *Trust) Close() {
	if t.trust != nil {
		t.trust.Close()
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
	e, err := dcap.Load(c, t.trust.Roots())
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
