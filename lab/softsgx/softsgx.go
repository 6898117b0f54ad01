// Package softsgx is an SGX platform made of software: it signs quotes in the true DCAP v3 format and issues
// the collateral that they are verified with, so that everything above the processor can be developed and
// tested on a machine without SGX.
//
// # Promises
//
//   - A quote of a [Platform] has the layout, the certificate chain and the signatures of a quote of Intel's
//     quoting enclave, and verifies with any verifier that is told to trust [Platform.RootCA].
//   - Collateral has the formats of Intel's provisioning certification service (TCB info versions 2 and 3,
//     QE identity version 2, CRLs of both CAs); [Platform.PCCS] serves it as Intel's caching service does.
//   - A platform is a value. Two platforms share nothing and do not trust each other.
//   - With a seeded [Options.Rand] and a fixed [Options.Now] everything is reproducible: signatures are the
//     deterministic ones of RFC 6979.
//
// # Limits
//
// Nothing here is protected by anything: anyone who has a Platform can make a quote that says anything.
// It is for development, tests and demonstrations; production programs must not import it.
//
// Intel's verifier wants exact names in certificates, so a software root is named "Intel SGX Root CA" like
// Intel's own. It differs by its key, which no verifier trusts unless it is told to, and, for human eyes, by a
// non-critical comment extension (Netscape comment, shown by openssl x509 -text) that says what it is.
//
// Formats: Intel "PCK Certificate and CRL Specification", "SGX ECDSA Quote Library Reference" (quote 3), PCS
// API versions 3 and 4. There is no TDX side.
package softsgx

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"sync"
	"time"

	"github.com/edgelesssys/ego/attestation/tcbstatus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/pki"
)

// Options say what platform to make. The zero value is a good platform with an up-to-date TCB.
type Options struct {
	Rand io.Reader // source of keys, ids and serial numbers; nil is crypto/rand
	Now  time.Time // when certificates and the first collateral are issued; zero is the present

	FMSPC     [6]byte  // zero is 00606A000000
	CPUSVN    [16]byte // the 16 TCB components of the PCK certificate; zero is a usual one
	PCESVN    uint16   // zero is 13
	QESVN     uint16   // ISVSVN of the quoting enclave; zero is 8
	Processor bool     // PCK certificate from the Processor CA instead of the Platform CA

	// Validity is how long TCB info, QE identity and CRLs are valid from their issue; zero is 30 days.
	Validity time.Duration
	// TCB is how the first collateral judges the platform.
	TCB TCB
}

// TCB is how collateral judges the platform: what Intel publishes about it, rather than what it is.
type TCB struct {
	Status           tcbstatus.Status // of the platform's own level
	QEStatus         tcbstatus.Status // status of the quoting enclave's TCB level: UpToDate, OutOfDate or Revoked
	Advisories       []string         // of the platform's own level
	EvaluationNumber uint32           // zero is 17
	Date             time.Time        // tcbDate of the platform's and the QE's level; zero is 2025-05-14

	RevokedPCK    bool // the PCK certificate is on the CRL of its CA
	RevokedCA     bool // the Platform or Processor CA is on the root CRL
	RevokedSigner bool // the TCB signing certificate is on the root CRL
}

// Platform is one software platform: its keys, its certificates and its current collateral. It is safe for
// concurrent use.
type Platform struct {
	hw    hardware
	keys  keys
	certs certificates
	// authData is what all quotes of the platform share of their signature data: everything from the attestation key on.
	authData []byte

	mu         sync.Mutex
	state      state
	collateral dcap.Collateral
	tcbInfoV2  []byte
}

// hardware is what does not change during the life of a platform.
type hardware struct {
	FMSPC     [6]byte
	CPUSVN    [16]byte
	PCESVN    uint16
	QESVN     uint16
	Processor bool
	Validity  time.Duration
	PPID      [16]byte
	Instance  [16]byte // platform instance id
	QEID      [16]byte
}

// keys of a platform. Four sign certificates and collateral; the attestation key signs quotes.
type keys struct{ root, ca, signer, pck, attestation *ecdsa.PrivateKey }

type certificates struct{ root, ca, signer, pck *x509.Certificate }

// state is what [Platform.Reissue] changes.
type state struct {
	TCB       TCB
	CRLNumber int64
}

// New makes a platform and issues its first collateral.
func New(o Options) (*Platform, error) {
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	p := &Platform{hw: hardware{FMSPC: o.FMSPC, CPUSVN: o.CPUSVN, PCESVN: o.PCESVN, QESVN: o.QESVN,
		Processor: o.Processor, Validity: o.Validity}}
	p.hw.setDefaults()
	for _, id := range [][]byte{p.hw.PPID[:], p.hw.Instance[:], p.hw.QEID[:]} {
		if _, err := io.ReadFull(o.Rand, id); err != nil {
			return nil, fmt.Errorf("making a software platform: %w", err)
		}
	}
	for _, k := range []**ecdsa.PrivateKey{&p.keys.root, &p.keys.ca, &p.keys.signer, &p.keys.pck,
		&p.keys.attestation} {
		key, err := newKey(o.Rand)
		if err != nil {
			return nil, fmt.Errorf("making a software platform: %w", err)
		}
		*k = key
	}
	if err := p.certify(o.Rand, o.Now); err != nil {
		return nil, fmt.Errorf("making a software platform: %w", err)
	}
	if err := p.prepareQuotes(); err != nil {
		return nil, fmt.Errorf("making a software platform: %w", err)
	}
	return p, p.Reissue(o.Now, o.TCB)
}

func (h *hardware) setDefaults() {
	if h.FMSPC == [6]byte{} {
		h.FMSPC = [6]byte{0x00, 0x60, 0x6A}
	}
	if h.CPUSVN == [16]byte{} {
		h.CPUSVN = [16]byte{5, 5, 5, 5, 5, 5, 5, 5}
	}
	if h.PCESVN == 0 {
		h.PCESVN = 13
	}
	if h.QESVN == 0 {
		h.QESVN = 8
	}
	if h.Validity == 0 {
		h.Validity = 30 * 24 * time.Hour
	}
}

// newKey draws candidates from random until one is a P-256 scalar; the first nearly always is.
func newKey(random io.Reader) (*ecdsa.PrivateKey, error) {
	for {
		var scalar [32]byte
		if _, err := io.ReadFull(random, scalar[:]); err != nil {
			return nil, err
		}
		if key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar[:]); err == nil {
			return key, nil
		}
	}
}

// RootCA is the root certificate that a verifier must be told to trust.
func (p *Platform) RootCA() *x509.Certificate { return p.certs.root }

// FMSPC is the platform's family, model, stepping, platform type and SKU.
func (p *Platform) FMSPC() [6]byte { return p.hw.FMSPC }

// Quote signs body as the quoting enclave would sign a report that holds it.
func (p *Platform) Quote(body sgx.ReportBody) ([]byte, error) {
	quote := make([]byte, 48, 48+sgx.ReportBodySize+4+64+len(p.authData))
	binary.LittleEndian.PutUint16(quote[0:], 3)
	binary.LittleEndian.PutUint16(quote[2:], 2) // ECDSA with P-256
	binary.LittleEndian.PutUint16(quote[8:], p.hw.QESVN)
	binary.LittleEndian.PutUint16(quote[10:], p.hw.PCESVN)
	copy(quote[12:], qeVendorID[:])
	copy(quote[28:], p.hw.QEID[:])
	quote, err := body.AppendBinary(quote)
	if err != nil {
		return nil, err
	}
	signature, err := signRaw(p.keys.attestation, quote)
	if err != nil {
		return nil, fmt.Errorf("signing software quote: %w", err)
	}
	quote = binary.LittleEndian.AppendUint32(quote, uint32(len(signature)+len(p.authData)))
	quote = append(quote, signature...)
	return append(quote, p.authData...), nil
}

// Intel's vendor id in quotes, and the signer of its quoting enclave.
var (
	qeVendorID = [16]byte{0x93, 0x9A, 0x72, 0x33, 0xF7, 0x9C, 0x4C, 0xA9, 0x94, 0x0A, 0x0D, 0xB3, 0x95, 0x7F, 0x06, 0x07}
	qeMRSigner = [32]byte{0x8C, 0x4F, 0x57, 0x75, 0xD7, 0x96, 0x50, 0x3E, 0x96, 0x13, 0x7F, 0x77, 0xC6, 0x8A, 0x82, 0x9A,
		0x00, 0x56, 0xAC, 0x8D, 0xED, 0x70, 0x14, 0x0B, 0x08, 0x1B, 0x09, 0x44, 0x90, 0xC5, 0x7B, 0xFF}
)

const (
	qeProductID   = 1
	certTypeChain = 5 // PEM chain: PCK certificate, its CA, root
)

// prepareQuotes makes what all quotes have in common: attestation key, QE report that binds it, PCK chain.
func (p *Platform) prepareQuotes() error {
	public, err := p.keys.attestation.PublicKey.Bytes()
	if err != nil {
		return err
	}
	public = public[1:] // x ‖ y, without the mark of an uncompressed point
	var qeAuth [32]byte
	for i := range qeAuth {
		qeAuth[i] = byte(i)
	}
	qe := sgx.ReportBody{SGXClaims: attest.SGXClaims{
		MREnclave:  sha256.Sum256([]byte("software quoting enclave")),
		MRSigner:   qeMRSigner,
		ProductID:  qeProductID,
		SVN:        p.hw.QESVN,
		CPUSVN:     p.hw.CPUSVN,
		Attributes: attest.AttributeInit | attest.AttributeMode64Bit | attest.AttributeProvisionKey,
		XFRM:       0xE7,
	}}
	binding := sha256.Sum256(append(append([]byte{}, public...), qeAuth[:]...))
	copy(qe.ReportData[:], binding[:])
	report, err := qe.AppendBinary(nil)
	if err != nil {
		return err
	}
	signature, err := signRaw(p.keys.pck, report)
	if err != nil {
		return err
	}
	chain := pemChain(p.certs.pck, p.certs.ca, p.certs.root)

	b := append(append(public, report...), signature...)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(qeAuth)))
	b = append(b, qeAuth[:]...)
	b = binary.LittleEndian.AppendUint16(b, certTypeChain)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(chain)))
	p.authData = append(b, chain...)
	return nil
}

// Attester makes evidence of an enclave whose report is body, except for its report data.
func (p *Platform) Attester(body sgx.ReportBody) attest.Attester { return attester{p, body} }

type attester struct {
	platform *Platform
	body     sgx.ReportBody
}

func (attester) Type() attest.EvidenceType { return attest.SGX }

func (a attester) Evidence(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	if err := ctx.Err(); err != nil {
		return attest.Evidence{}, attest.Errorf(attest.CodeAttester, "making a quote", "", "%w", err)
	}
	body := a.body
	body.ReportData = data
	quote, err := a.platform.Quote(body)
	return attest.Evidence{Type: attest.SGX, Raw: quote}, err
}

// signRaw signs SHA-256 of message; the signature is r ‖ s, 32 big-endian bytes each.
func signRaw(key *ecdsa.PrivateKey, message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	der, err := key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	var signature struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &signature); err != nil {
		return nil, err
	}
	raw := make([]byte, 64)
	signature.R.FillBytes(raw[:32])
	signature.S.FillBytes(raw[32:])
	return raw, nil
}

func pemChain(certs ...*x509.Certificate) []byte {
	var chain []byte
	for _, c := range certs {
		chain = append(chain, pki.EncodeCertificate(c.Raw)...)
	}
	return chain
}
