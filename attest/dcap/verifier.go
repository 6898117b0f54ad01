// Package dcap decides whether a DCAP quote of an SGX enclave or a TDX trust domain is genuine: whether
// hardware below a trusted root made it, and in which state Intel says that this hardware is. Whether anyone
// should accept it is for package attest/policy.
//
// A [Verifier] gives the verdict of Intel's own quote verification library: the same TCB status, advisories,
// TCB date and evaluation number. It is stricter in a few places, on purpose: whatever is expired is refused, not
// reported beside the verdict, and so are bytes that no length describes, and chains that are not in the quote,
// unless one was configured. It takes the newest issue date for the time if the clock is before it. See
// docs/verification.md.
//
// Roots are trusted by public key, Intel's by default. Clock, roots and collateral are arguments; nothing here
// reads a network, a file, the environment or the time.
//
// # Cost
//
// Verifying takes nine P-256 verifications for a quote from a platform and with collateral that were not seen
// before, two once collateral and PCK chain are known, and one if the QE report is known, too, that is for
// later quotes of the same quoting enclave. What is remembered are facts about bytes (this chain is signed by
// that root), bounded in number; validity periods, revocation and TCB levels are judged anew at every call.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning. A verdict may
// become stricter if Intel's documents or a fault demand it; the changelog says so. The steps that a refusal names are
// kept.
package dcap

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"sync"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/sgx"
)

// Config says what a [Verifier] trusts. It is copied.
type Config struct {
	// Roots are the trusted root certificates, compared by public key. Empty means Intel's.
	Roots []*x509.Certificate
	// Source finds the collateral.
	Source Source
	// MinimumEvaluation is the least tcbEvaluationDataNumber of TCB info and QE identity that is taken.
	MinimumEvaluation uint32
	// MinimumRootCRLNumber and MinimumPCKCRLNumber are the least CRL numbers that are taken.
	MinimumRootCRLNumber, MinimumPCKCRLNumber uint64
	// AllowTrailing accepts bytes after the declared end of a quote. They are not signed, and ignored.
	AllowTrailing bool
	// PCKChain is the PCK certificate, its CA and the root in PEM, for quotes that do not carry them
	// (certification data of types 1 to 4). Without it such quotes are refused.
	PCKChain []byte
	// Vouched is told what [Endorsements.Vouched] says of collateral that was verified, unless that is zero. Nil: nothing is.
	Vouched func(time.Time)
}

// Bounds of what a Verifier remembers.
const (
	maxPlatforms    = 1024
	maxQEReports    = 1024
	maxEndorsements = 64
)

// Verifier verifies quotes. It is safe for concurrent use.
type Verifier struct {
	config   Config
	trust    *trust
	trustErr error

	mu           sync.Mutex
	platforms    map[[32]byte]*platform // by SHA-256 of the chain
	qeReports    map[[32]byte]*qeReport // by SHA-256 of all that certifies the attestation key
	endorsements map[Request]*collateralEntry
}

// qeReport is an attestation key that a quoting enclave of a platform vouched for.
type qeReport struct {
	platform     *platform
	endorsements *Endorsements // those that the quoting enclave has matched, nil for none; new ones are matched again
	key          *ecdsa.PublicKey
}

// collateralEntry holds verified endorsements and the collateral that they come from.
type collateralEntry struct {
	collateral   Collateral
	endorsements *Endorsements
}

// NewVerifier makes a Verifier. A root that cannot be one makes every verification fail with
// [attest.CodeConfig].
func NewVerifier(c Config) *Verifier {
	v := &Verifier{
		config:       c,
		platforms:    make(map[[32]byte]*platform),
		qeReports:    make(map[[32]byte]*qeReport),
		endorsements: make(map[Request]*collateralEntry),
	}
	v.trust, v.trustErr = newTrust(c.Roots)
	return v
}

var _ attest.Verifier = (*Verifier)(nil)

// Verify implements [attest.Verifier]: it returns what a genuine quote claims, or an [attest.Error] whose Step
// is one of [Steps]. Everything must be valid at the later of at, which is what the host's clock says, and the
// newest issue date among the objects that a trusted root vouches for: no honest clock is before that. The
// claims say which it was, in TCB.VerifiedAt.
//
// The source is asked only for the platform of a quote whose signatures lead to a trusted root, so that a stranger cannot
// have collateral fetched.
func (v *Verifier) Verify(ctx context.Context, evidence attest.Evidence, at time.Time) (attest.Claims, error) {
	if v.trustErr != nil {
		return attest.Claims{}, attest.Errorf(attest.CodeConfig, "reading trusted roots", "", "%w", v.trustErr)
	}
	q, err := sgx.ParseQuote(evidence.Raw)
	switch {
	case err != nil:
		return attest.Claims{}, notGenuine(StepQuote, "", "%w", err)
	case q.Type() != evidence.Type:
		return attest.Claims{}, notGenuine(StepQuote, "", "a quote of type %q came as evidence of type %q", q.Type(), evidence.Type)
	case len(q.Trailing) != 0 && !v.config.AllowTrailing:
		return attest.Claims{}, notGenuine(StepQuote, "Some services pad quotes; the configuration can allow it.",
			"%d bytes follow the end of the quote", len(q.Trailing))
	}
	key := sha256.Sum256(q.Certification)
	report := v.recallQEReport(key)
	if report == nil {
		p, err := v.platform(q)
		if err != nil {
			return attest.Claims{}, err
		}
		if report, err = verifyQEReport(p, q); err != nil {
			return attest.Claims{}, err
		}
	}
	if !verifyRaw(report.key, q.Signed, q.Signature) {
		return attest.Claims{}, notGenuine(StepQuoteSignature, "", "the attestation key did not sign this quote")
	}
	p := report.platform
	e, err := v.fetch(ctx, Request{TEE: q.Type(), FMSPC: p.ext.FMSPC, CA: p.caName}, p)
	if err != nil {
		return attest.Claims{}, err
	}
	for _, issued := range []time.Time{e.Issued(), p.periods.newest()} {
		if issued.After(at) {
			at = issued
		}
	}
	if err := v.checkEndorsements(e, p, at); err != nil {
		return attest.Claims{}, err
	}
	module, err := e.match(p, q)
	if err != nil {
		return attest.Claims{}, err
	}
	if report.endorsements != e {
		if err := e.matchQE(q); err != nil {
			return attest.Claims{}, err
		}
		v.rememberQEReport(key, &qeReport{platform: p, key: report.key, endorsements: e})
	}
	tcb, err := e.evaluate(p, q, module)
	if err != nil {
		return attest.Claims{}, err
	}
	tcb.VerifiedAt = at
	tcb.RootCRLNumber, tcb.PCKCRLNumber = e.rootCRL.number(), e.pckCRL.number()
	tcb.EarliestExpiry = e.Expiry()
	if end := p.periods.expiry(); end.Before(tcb.EarliestExpiry) {
		tcb.EarliestExpiry = end
	}
	return claims(q, tcb), nil
}

func claims(q *sgx.Quote, tcb attest.TCB) attest.Claims {
	c := attest.Claims{Type: q.Type(), ReportData: q.ReportData(), TCB: tcb}
	if q.TDX != nil {
		c.TDX = &q.TDX.TDXClaims
	} else {
		c.SGX = &q.SGX.SGXClaims
	}
	return c
}

// platform gives the verified PCK chain of a quote.
func (v *Verifier) platform(q *sgx.Quote) (*platform, error) {
	chain := q.CertData
	if q.CertType != sgx.CertPCKChain {
		if chain = v.config.PCKChain; len(chain) == 0 {
			return nil, notGenuine(StepCertificationData,
				"Let the platform's quote provider put the PCK certificate chain into its quotes (certification data type 5).",
				"the quote does not carry its PCK chain: certification data of type %d", q.CertType)
		}
	}
	key := sha256.Sum256(chain)
	v.mu.Lock()
	p := v.platforms[key]
	v.mu.Unlock()
	if p != nil {
		return p, nil
	}
	p, err := v.trust.verifyPCKChain(chain)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	makeRoom(v.platforms, maxPlatforms)
	v.platforms[key] = p
	return p, nil
}

func (v *Verifier) recallQEReport(key [32]byte) *qeReport {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.qeReports[key]
}

func (v *Verifier) rememberQEReport(key [32]byte, r *qeReport) {
	v.mu.Lock()
	defer v.mu.Unlock()
	makeRoom(v.qeReports, maxQEReports)
	v.qeReports[key] = r
}

// fetch gives the endorsements for a platform. Collateral is verified only if its bytes are not those of
// the last time.
func (v *Verifier) fetch(ctx context.Context, r Request, p *platform) (*Endorsements, error) {
	if v.config.Source == nil {
		return nil, badCollateral(StepFetch, "", "no source of collateral is configured")
	}
	c, err := v.config.Source.Collateral(ctx, r)
	if err != nil {
		code := attest.CodeCollateral
		if ctx.Err() != nil {
			code = attest.CodeUnreachable
		}
		return nil, &attest.Error{Code: code, Step: string(StepFetch), Err: &FetchError{Request: r, Err: err}}
	}
	if c == nil {
		return nil, badCollateral(StepFetch, "", "the source of collateral has none for this platform")
	}
	v.mu.Lock()
	known := v.endorsements[r]
	v.mu.Unlock()
	if known != nil && known.collateral.Equal(c) {
		return known.endorsements, nil
	}
	known = &collateralEntry{collateral: c.clone()}
	if known.endorsements, err = load(&known.collateral, v.trust, p.ca); err != nil {
		return nil, err
	}
	if at := known.endorsements.Vouched(); v.config.Vouched != nil && !at.IsZero() {
		v.config.Vouched(at)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	makeRoom(v.endorsements, maxEndorsements)
	v.endorsements[r] = known
	return known.endorsements, nil
}

// checkEndorsements asks what may change from call to call: minimums, validity, revocation, and whether
// collateral and PCK chain belong together.
func (v *Verifier) checkEndorsements(e *Endorsements, p *platform, at time.Time) error {
	const clockHint = "If the clock is right, fetch the collateral anew; a cached copy must be refreshed before it expires."
	if e.root.anchor != p.ca.anchor {
		return badCollateral(StepPCKCRL, "", "collateral and PCK chain have different roots")
	}
	if !bytes.Equal(e.pckIssuer.RawSubject, p.ca.cert.RawSubject) ||
		!bytes.Equal(e.pckIssuer.RawSubjectPublicKeyInfo, p.ca.cert.RawSubjectPublicKeyInfo) {
		return badCollateral(StepPCKCRL, "Ask for the CRL of the other CA.", "issued by %q, but the PCK certificate by %q",
			e.pckIssuer.Subject.CommonName, p.ca.cert.Subject.CommonName)
	}
	switch c := &v.config; {
	case e.EvaluationNumber() < c.MinimumEvaluation:
		return badCollateral(StepMinimum, "", "TCB evaluation number is %d, want at least %d", e.EvaluationNumber(), c.MinimumEvaluation)
	case e.rootCRL.number() < c.MinimumRootCRLNumber:
		return badCollateral(StepMinimum, "", "root CA CRL number is %d, want at least %d", e.rootCRL.list.Number, c.MinimumRootCRLNumber)
	case e.pckCRL.number() < c.MinimumPCKCRLNumber:
		return badCollateral(StepMinimum, "", "PCK CRL number is %d, want at least %d", e.pckCRL.list.Number, c.MinimumPCKCRLNumber)
	}
	if err := e.periods.check(at); err != nil {
		return badCollateral(StepValidity, clockHint, "%w", err)
	}
	if err := p.periods.check(at); err != nil {
		return notGenuine(StepValidity, "", "%w", err)
	}
	if e.rootCRL.has(p.ca.cert.SerialNumber) {
		return notGenuine(StepRevocation, "", "%q is revoked", p.ca.cert.Subject.CommonName)
	}
	if e.pckCRL.has(p.pck.SerialNumber) {
		return notGenuine(StepRevocation, "Intel revoked this platform's PCK certificate.", "the PCK certificate is revoked")
	}
	return nil
}

// match makes sure that TCB info and TDX module identity are about this platform. The module is nil for SGX.
func (e *Endorsements) match(p *platform, q *sgx.Quote) (*tdxModule, error) {
	switch {
	case e.tcb.id != q.Type():
		return nil, badCollateral(StepMatchTCBInfo, "", "TCB info is for %q, the quote for %q", e.tcb.id, q.Type())
	case e.tcb.fmspc != p.ext.FMSPC:
		return nil, badCollateral(StepMatchTCBInfo, "", "TCB info is for FMSPC %X, the platform has %X", e.tcb.fmspc, p.ext.FMSPC)
	case e.tcb.pceID != p.ext.PCEID:
		return nil, badCollateral(StepMatchTCBInfo, "", "TCB info is for PCEID %X, the platform has %X", e.tcb.pceID, p.ext.PCEID)
	}
	if q.TDX == nil {
		return nil, nil
	}
	module, err := e.tdxModule(q.TDX.TCBSVN)
	if err == nil {
		err = module.match(q.TDX)
	}
	if err != nil {
		return nil, notGenuine(StepMatchTDXModule, "", "%w", err)
	}
	return module, nil
}

// verifyQEReport makes sure that an enclave of the platform vouches for the attestation key.
func verifyQEReport(p *platform, q *sgx.Quote) (*qeReport, error) {
	if !verifyRaw(p.key, q.QEReportRaw, q.QEReportSignature) {
		return nil, notGenuine(StepQEReportSignature, "", "the PCK did not sign this QE report")
	}
	h := sha256.New()
	h.Write(q.AttestationKey[:])
	h.Write(q.QEAuthData)
	if !bytes.Equal(h.Sum(nil), q.QEReport.ReportData[:sha256.Size]) {
		return nil, notGenuine(StepAttestationKey, "", "the QE report is about another attestation key")
	}
	var point [65]byte
	point[0] = 4
	copy(point[1:], q.AttestationKey[:])
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point[:])
	if err != nil {
		return nil, notGenuine(StepQuoteSignature, "", "attestation key: %w", err)
	}
	return &qeReport{platform: p, key: key}, nil
}

// matchQE makes sure that the enclave which vouches for the attestation key is Intel's quoting enclave.
func (e *Endorsements) matchQE(q *sgx.Quote) error {
	identity := identityQE
	if q.TDX != nil {
		identity = identityTDQE
	}
	if e.qe.id != identity {
		return badCollateral(StepMatchQEIdentity, "", "identity is that of %q, want %q", e.qe.id, identity)
	}
	if err := e.qe.match(&q.QEReport, q.QEReportRaw); err != nil {
		return notGenuine(StepMatchQEIdentity, "", "%w", err)
	}
	return nil
}
