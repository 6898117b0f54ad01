package softsgx

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/edgelesssys/ego/attestation/tcbstatus"

	"github.com/sesame-init/sesame/attest/dcap"
)

// Collateral is the platform's current collateral, in the formats of PCS API version 4.
func (p *Platform) Collateral() *dcap.Collateral {
	p.mu.Lock()
	defer p.mu.Unlock()
	return clone(p.collateral)
}

func clone(c dcap.Collateral) *dcap.Collateral {
	return &dcap.Collateral{
		TCBInfo:         bytes.Clone(c.TCBInfo),
		TCBInfoChain:    bytes.Clone(c.TCBInfoChain),
		QEIdentity:      bytes.Clone(c.QEIdentity),
		QEIdentityChain: bytes.Clone(c.QEIdentityChain),
		PCKCRL:          bytes.Clone(c.PCKCRL),
		PCKCRLChain:     bytes.Clone(c.PCKCRLChain),
		RootCACRL:       bytes.Clone(c.RootCACRL),
	}
}

// Renew issues collateral anew at now, with the same judgement as before.
func (p *Platform) Renew(now time.Time) error {
	p.mu.Lock()
	tcb := p.state.TCB
	p.mu.Unlock()
	return p.Reissue(now, tcb)
}

// Reissue issues new collateral at now that judges the platform as tcb says: a TCB recovery, a revocation, or
// with a now in the past, collateral that has expired. CRL numbers rise with each issue. Quotes stay valid.
func (p *Platform) Reissue(now time.Time, tcb TCB) error {
	if tcb.EvaluationNumber == 0 {
		tcb.EvaluationNumber = 17
	}
	if tcb.Date.IsZero() {
		tcb.Date = time.Date(2025, 5, 14, 0, 0, 0, 0, time.UTC)
	}
	tcb.Advisories = slices.Clone(tcb.Advisories)
	now = now.UTC().Truncate(time.Second)

	p.mu.Lock()
	defer p.mu.Unlock()
	number := p.state.CRLNumber + 1
	collateral, tcbInfoV2, err := p.issue(now, tcb, number)
	if err != nil {
		return fmt.Errorf("issuing software collateral: %w", err)
	}
	p.state = state{TCB: tcb, CRLNumber: number}
	p.collateral, p.tcbInfoV2 = collateral, tcbInfoV2
	return nil
}

func (p *Platform) issue(now time.Time, tcb TCB, number int64) (c dcap.Collateral, tcbInfoV2 []byte, err error) {
	signerChain := pemChain(p.certs.signer, p.certs.root)
	c = dcap.Collateral{
		TCBInfoChain:    signerChain,
		QEIdentityChain: signerChain,
		PCKCRLChain:     pemChain(p.certs.ca, p.certs.root),
	}
	if c.TCBInfo, err = p.sign("tcbInfo", p.tcbInfo(3, now, tcb)); err != nil {
		return c, nil, err
	}
	if tcbInfoV2, err = p.sign("tcbInfo", p.tcbInfo(2, now, tcb)); err != nil {
		return c, nil, err
	}
	if c.QEIdentity, err = p.sign("enclaveIdentity", p.qeIdentity(now, tcb)); err != nil {
		return c, nil, err
	}
	var onRoot, onCA []*x509.Certificate
	if tcb.RevokedCA {
		onRoot = append(onRoot, p.certs.ca)
	}
	if tcb.RevokedSigner {
		onRoot = append(onRoot, p.certs.signer)
	}
	if tcb.RevokedPCK {
		onCA = append(onCA, p.certs.pck)
	}
	if c.RootCACRL, err = p.crl(now, number, p.certs.root, p.keys.root, onRoot); err != nil {
		return c, nil, err
	}
	c.PCKCRL, err = p.crl(now, number, p.certs.ca, p.keys.ca, onCA)
	return c, tcbInfoV2, err
}

func (p *Platform) crl(now time.Time, number int64, issuer *x509.Certificate, key *ecdsa.PrivateKey,
	revoked []*x509.Certificate) ([]byte, error) {
	list := &x509.RevocationList{
		SignatureAlgorithm: x509.ECDSAWithSHA256,
		Number:             big.NewInt(number),
		ThisUpdate:         now,
		NextUpdate:         now.Add(p.hw.Validity),
	}
	for _, c := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: now})
	}
	return x509.CreateRevocationList(nil, list, issuer, key)
}

// sign wraps body as PCS does: {"NAME":BODY,"signature":"HEX"}, signed over the text of BODY.
func (p *Platform) sign(name string, body any) ([]byte, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	signature, err := signRaw(p.keys.signer, text)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, `{%q:%s,"signature":"%x"}`, name, text, signature), nil
}

const (
	pcsTime = "2006-01-02T15:04:05Z"
	pceID   = "0000"
)

func upperHex(b []byte) string { return strings.ToUpper(hex.EncodeToString(b)) }

// tcbInfo as in PCS API version 4 (version 3 of the document) or 3 (version 2).
type tcbInfo struct {
	ID               string     `json:"id,omitempty"`
	Version          int        `json:"version"`
	IssueDate        string     `json:"issueDate"`
	NextUpdate       string     `json:"nextUpdate"`
	FMSPC            string     `json:"fmspc"`
	PCEID            string     `json:"pceId"`
	Type             int        `json:"tcbType"`
	EvaluationNumber uint32     `json:"tcbEvaluationDataNumber"`
	Levels           []tcbLevel `json:"tcbLevels"`
}

type tcbLevel struct {
	TCB        json.RawMessage `json:"tcb"`
	Date       string          `json:"tcbDate"`
	Status     string          `json:"tcbStatus"`
	Advisories []string        `json:"advisoryIDs,omitempty"`
}

func (p *Platform) tcbInfo(version int, now time.Time, tcb TCB) tcbInfo {
	info := tcbInfo{
		Version:          version,
		IssueDate:        now.Format(pcsTime),
		NextUpdate:       now.Add(p.hw.Validity).Format(pcsTime),
		FMSPC:            upperHex(p.hw.FMSPC[:]),
		PCEID:            pceID,
		EvaluationNumber: tcb.EvaluationNumber,
	}
	components := componentsV2
	if version >= 3 {
		info.ID, components = "SGX", componentsV3
	}
	level := func(svns [16]byte, pceSVN uint16, date time.Time, status tcbstatus.Status, advisories ...string) {
		info.Levels = append(info.Levels, tcbLevel{TCB: components(svns, pceSVN),
			Date: date.UTC().Format(pcsTime), Status: status.String(), Advisories: advisories})
	}
	if superseded(tcb.Status) {
		level(p.hw.CPUSVN, p.hw.PCESVN+1, now, tcbstatus.UpToDate)
	}
	level(p.hw.CPUSVN, p.hw.PCESVN, tcb.Date, tcb.Status, tcb.Advisories...)
	older := p.hw.CPUSVN
	for i := range older {
		older[i] /= 2
	}
	level(older, p.hw.PCESVN/2, tcb.Date.AddDate(-2, 0, 0), tcbstatus.OutOfDate, "INTEL-SA-00586")
	return info
}

// superseded reports whether a level of this status has a higher one above it.
func superseded(s tcbstatus.Status) bool {
	return s == tcbstatus.OutOfDate || s == tcbstatus.OutOfDateConfigurationNeeded || s == tcbstatus.Revoked
}

func componentsV3(svns [16]byte, pceSVN uint16) json.RawMessage {
	entries := make([]string, len(svns))
	for i, svn := range svns {
		entries[i] = fmt.Sprintf(`{"svn":%d}`, svn)
	}
	return fmt.Appendf(nil, `{"sgxtcbcomponents":[%s],"pcesvn":%d}`, strings.Join(entries, ","), pceSVN)
}

func componentsV2(svns [16]byte, pceSVN uint16) json.RawMessage {
	var b strings.Builder
	for i, svn := range svns {
		fmt.Fprintf(&b, `"sgxtcbcomp%02dsvn":%d,`, i+1, svn)
	}
	return fmt.Appendf(nil, `{%s"pcesvn":%d}`, b.String(), pceSVN)
}

// qeIdentity as in PCS API versions 3 and 4 (version 2 of the document).
type qeIdentity struct {
	ID               string     `json:"id"`
	Version          int        `json:"version"`
	IssueDate        string     `json:"issueDate"`
	NextUpdate       string     `json:"nextUpdate"`
	EvaluationNumber uint32     `json:"tcbEvaluationDataNumber"`
	MiscSelect       string     `json:"miscselect"`
	MiscSelectMask   string     `json:"miscselectMask"`
	Attributes       string     `json:"attributes"`
	AttributesMask   string     `json:"attributesMask"`
	MRSigner         string     `json:"mrsigner"`
	ProductID        int        `json:"isvprodid"`
	Levels           []tcbLevel `json:"tcbLevels"`
}

func (p *Platform) qeIdentity(now time.Time, tcb TCB) qeIdentity {
	identity := qeIdentity{
		ID:               "QE",
		Version:          2,
		IssueDate:        now.Format(pcsTime),
		NextUpdate:       now.Add(p.hw.Validity).Format(pcsTime),
		EvaluationNumber: tcb.EvaluationNumber,
		MiscSelect:       "00000000",
		MiscSelectMask:   "FFFFFFFF",
		Attributes:       "11000000000000000000000000000000",
		AttributesMask:   "FBFFFFFFFFFFFFFF0000000000000000",
		MRSigner:         upperHex(qeMRSigner[:]),
		ProductID:        qeProductID,
	}
	level := func(svn uint16, date time.Time, status tcbstatus.Status, advisories ...string) {
		identity.Levels = append(identity.Levels, tcbLevel{TCB: fmt.Appendf(nil, `{"isvsvn":%d}`, svn),
			Date: date.UTC().Format(pcsTime), Status: status.String(), Advisories: advisories})
	}
	if superseded(tcb.QEStatus) {
		level(p.hw.QESVN+1, now, tcbstatus.UpToDate)
	}
	level(p.hw.QESVN, tcb.Date, tcb.QEStatus)
	if p.hw.QESVN > 1 {
		level(p.hw.QESVN/2, tcb.Date.AddDate(-2, 0, 0), tcbstatus.OutOfDate, "INTEL-SA-00614")
	}
	return identity
}
