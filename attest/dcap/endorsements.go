package dcap

import (
	"bytes"
	"crypto/x509"
	"errors"
	"math/big"
	"time"

	"github.com/sesame-init/sesame/attest"
)

// Endorsements are verified collateral: every signature and issuer chain was checked up to a trusted root, and
// the documents were read. Whether they are valid at a given time is asked at every use. The value does not
// change and is safe for concurrent use.
type Endorsements struct {
	root      *issuedCertificate // of all chains, the same key
	tcb       *tcbInfo
	qe        *qeIdentity
	pckIssuer *x509.Certificate
	rootCRL   *crl
	pckCRL    *crl
	periods   periods
}

// Load verifies collateral once. roots are trusted by public key, empty means Intel's. The error's code is
// [attest.CodeCollateral], and [StepOf] names the document. PCKCRLChain must be there.
func Load(c *Collateral, roots []*x509.Certificate) (*Endorsements, error) {
	t, err := newTrust(roots)
	if err != nil {
		return nil, attest.Errorf(attest.CodeConfig, "reading trusted roots", "", "%w", err)
	}
	return load(c, t, nil)
}

// FMSPC is the platform family that the TCB info is about.
func (e *Endorsements) FMSPC() [6]byte { return e.tcb.fmspc }

// EvaluationNumber is the smaller tcbEvaluationDataNumber of TCB info and QE identity.
func (e *Endorsements) EvaluationNumber() uint32 { return min(e.tcb.evaluation, e.qe.evaluation) }

// Expiry is the moment at which the first of the objects expires.
func (e *Endorsements) Expiry() time.Time { return e.periods.expiry() }

// Issued is the newest moment at which one of the objects begins to be valid: no earlier than this is it now.
func (e *Endorsements) Issued() time.Time { return e.periods.newest() }

// Vouched is the newest issue date of TCB info, QE identity and revocation lists if the root built into this package is
// behind them: a moment that has passed for certain, whatever any clock says. It is zero under every other root, and no
// certificate's date counts: other things than time decide those.
func (e *Endorsements) Vouched() time.Time {
	var newest time.Time
	if !bytes.Equal(e.root.anchor.cert.RawSubjectPublicKeyInfo, IntelRoot().RawSubjectPublicKeyInfo) {
		return newest
	}
	for _, issued := range []time.Time{e.tcb.issueDate, e.qe.issueDate, e.rootCRL.list.ThisUpdate, e.pckCRL.list.ThisUpdate} {
		if issued.After(newest) {
			newest = issued
		}
	}
	return newest
}

// RootCRLNumber is the CRL number of the root CA's CRL.
func (e *Endorsements) RootCRLNumber() *big.Int { return new(big.Int).Set(e.rootCRL.list.Number) }

// PCKCRLNumber is the CRL number of the PCK CRL.
func (e *Endorsements) PCKCRLNumber() *big.Int { return new(big.Int).Set(e.pckCRL.list.Number) }

const tcbSigner = "SGX TCB Signing"

// load verifies collateral. pckIssuer is the verified CA of the quote, for collateral without a PCK CRL chain.
func load(c *Collateral, t *trust, pckIssuer *issuedCertificate) (*Endorsements, error) {
	e := new(Endorsements)
	signer, root, err := t.issuerChain(c.TCBInfoChain, tcbSigner, false)
	if err != nil {
		return nil, badCollateral(StepTCBInfoChain, "", "%w", err)
	}
	e.root = root
	e.periods.add("TCB info signer", signer.cert.NotBefore, signer.cert.NotAfter)
	e.periods.add("root of the TCB info chain", root.cert.NotBefore, root.cert.NotAfter)

	qeSigner := signer
	if !bytes.Equal(c.QEIdentityChain, c.TCBInfoChain) {
		if qeSigner, root, err = t.issuerChain(c.QEIdentityChain, tcbSigner, false); err != nil {
			return nil, badCollateral(StepQEIdentityChain, "", "%w", err)
		}
		if root.anchor != e.root.anchor {
			return nil, badCollateral(StepQEIdentityChain, "", "TCB info and QE identity have different roots")
		}
		e.periods.add("QE identity signer", qeSigner.cert.NotBefore, qeSigner.cert.NotAfter)
		e.periods.add("root of the QE identity chain", root.cert.NotBefore, root.cert.NotAfter)
	}
	if err := e.loadCRLs(c, t, pckIssuer); err != nil {
		return nil, err
	}
	for _, s := range []*issuedCertificate{signer, qeSigner} {
		if e.rootCRL.has(s.cert.SerialNumber) {
			return nil, badCollateral(StepRevocation, "", "the TCB signing certificate is revoked")
		}
	}
	return e, e.loadDocuments(c, signer, qeSigner)
}

func (e *Endorsements) loadCRLs(c *Collateral, t *trust, pckIssuer *issuedCertificate) error {
	var err error
	if e.rootCRL, err = parseCRL(c.RootCACRL, e.root.anchor.cert); err != nil {
		return badCollateral(StepRootCRL, "", "%w", err)
	}
	e.periods.add("root CA CRL", e.rootCRL.list.ThisUpdate, e.rootCRL.list.NextUpdate)
	if len(c.PCKCRLChain) != 0 {
		var root *issuedCertificate
		if pckIssuer, root, err = t.issuerChain(c.PCKCRLChain, "CA", true); err == nil && root.anchor != e.root.anchor {
			err = errors.New("TCB info and PCK CRL have different roots")
		}
	} else if pckIssuer == nil {
		err = errors.New("the issuer chain of the PCK CRL is missing")
	}
	if err == nil {
		e.pckCRL, err = parseCRL(c.PCKCRL, pckIssuer.cert)
	}
	if err != nil {
		return badCollateral(StepPCKCRL, "", "%w", err)
	}
	e.pckIssuer = pckIssuer.cert
	e.periods.add("PCK CRL", e.pckCRL.list.ThisUpdate, e.pckCRL.list.NextUpdate)
	e.periods.add("PCK CRL issuer", e.pckIssuer.NotBefore, e.pckIssuer.NotAfter)
	if e.rootCRL.has(e.pckIssuer.SerialNumber) {
		return notGenuine(StepRevocation, "", "%q is revoked", e.pckIssuer.Subject.CommonName)
	}
	return nil
}

func (e *Endorsements) loadDocuments(c *Collateral, signer, qeSigner *issuedCertificate) error {
	d, err := parseDocument(c.TCBInfo, "tcbInfo")
	if err == nil {
		err = d.verify(signer)
	}
	if err == nil {
		e.tcb, err = parseTCBInfo(d.body)
	}
	if err != nil {
		return badCollateral(StepTCBInfo, "", "%w", err)
	}
	e.periods.add("TCB info", e.tcb.issueDate, e.tcb.nextUpdate)

	if d, err = parseDocument(c.QEIdentity, "enclaveIdentity"); err == nil {
		err = d.verify(qeSigner)
	}
	if err == nil {
		e.qe, err = parseQEIdentity(d.body)
	}
	if err != nil {
		return badCollateral(StepQEIdentity, "", "%w", err)
	}
	e.periods.add("QE identity", e.qe.issueDate, e.qe.nextUpdate)
	return nil
}
