package sgx

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/sesame-init/sesame/attest"
)

// MaxQuoteSize bounds what [ParseQuote] looks at. Genuine quotes have about 5 KB, 16 KB with padding.
const MaxQuoteSize = 64 << 10

// TEE types in a quote's header.
const (
	TEESGX uint32 = 0
	TEETDX uint32 = 0x81
)

// AttestationKeyP256 is the only attestation key type in use: ECDSA with P-256 and SHA-256.
const AttestationKeyP256 uint16 = 2

// intelQEVendorID is the QE vendor id of Intel's quoting enclaves.
var intelQEVendorID = [16]byte{0x93, 0x9A, 0x72, 0x33, 0xF7, 0x9C, 0x4C, 0xA9, 0x94, 0x0A, 0x0D, 0xB3, 0x95, 0x7F, 0x06, 0x07}

// Certification data types of a quote: how it names the certificate of the key that signed the QE report.
const (
	CertPPIDClear     uint16 = 1 // PPID, CPUSVN, PCESVN, PCEID
	CertPPIDRSA2048   uint16 = 2 // the same, PPID encrypted
	CertPPIDRSA3072   uint16 = 3 // the same, PPID encrypted
	CertPCKLeaf       uint16 = 4 // PCK certificate in PEM
	CertPCKChain      uint16 = 5 // PCK certificate, issuing CA and root in PEM, perhaps a NUL at the end
	CertQEReport      uint16 = 6 // envelope of quotes 4 and 5 around the QE report and one of the above
	CertPlatformState uint16 = 7 // platform manifest
)

// Body types of a quote 5.
const (
	BodySGX  uint16 = 1
	BodyTD10 uint16 = 2
	BodyTD15 uint16 = 3
)

// Sizes in bytes of the fixed parts of a quote.
const (
	HeaderSize     = 48
	TDReport10Size = 584
	TDReport15Size = 648
)

// Header is the beginning of a quote, the same 48 bytes in versions 3 to 5.
type Header struct {
	Version            uint16
	AttestationKeyType uint16
	TEE                uint32
	QESVN              uint16 // quote 3; reserved later
	PCESVN             uint16 // quote 3; reserved later
	QEVendorID         [16]byte
	UserData           [20]byte // the first 16 bytes are the QE id
}

// TDXBody is the part of a quote that describes a trust domain.
type TDXBody struct {
	attest.TDXClaims
	ReportData attest.ReportData
}

// Quote is a parsed DCAP quote of an SGX enclave or a TDX trust domain. Exactly one of SGX and TDX is set, by
// TEE. The byte slices are parts of the parsed input.
type Quote struct {
	Header
	BodyType uint16 // BodySGX, BodyTD10 or BodyTD15; before version 5 it follows from TEE
	SGX      *ReportBody
	TDX      *TDXBody

	Signed         []byte // header and body: what the attestation key signs
	Signature      []byte // r ‖ s, 64 bytes
	Certification  []byte // all that follows the signature, from attestation key to certification data
	AttestationKey [64]byte

	QEReport          ReportBody
	QEReportRaw       []byte // 384 bytes: what the PCK signs
	QEReportSignature []byte // r ‖ s, 64 bytes
	QEAuthData        []byte

	CertType uint16 // of quotes 4 and 5 the one inside the envelope
	CertData []byte
	Trailing []byte // bytes after the declared end of the quote; some services pad
}

// ReportData is what the attested environment bound into the quote.
func (q *Quote) ReportData() attest.ReportData {
	if q.TDX != nil {
		return q.TDX.ReportData
	}
	return q.SGX.ReportData
}

// Type is the kind of evidence that the quote is.
func (q *Quote) Type() attest.EvidenceType {
	if q.TDX != nil {
		return attest.TDX
	}
	return attest.SGX
}

var errShort = errors.New("it ends too early")

// cursor cuts fields off the front of b; after the first field that does not fit, err is set and stays.
type cursor struct {
	b   []byte
	err error
}

func (c *cursor) bytes(n uint64) []byte {
	if c.err != nil || n > uint64(len(c.b)) {
		c.err = errShort
		return nil
	}
	out := c.b[:n:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) uint16() uint16 {
	if b := c.bytes(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) uint32() uint32 {
	if b := c.bytes(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// ParseQuote reads a quote of version 3, 4 or 5. It refuses what Intel's quote verification library calls an
// unsupported quote format: other versions, attestation keys and vendors, lengths that do not fit, an envelope
// if there must be none and the reverse. It verifies nothing else.
func ParseQuote(b []byte) (*Quote, error) {
	if len(b) > MaxQuoteSize {
		return nil, fmt.Errorf("quote has %d bytes, more than %d", len(b), MaxQuoteSize)
	}
	q := new(Quote)
	c := &cursor{b: b}
	if err := q.parse(b, c); err != nil {
		return nil, fmt.Errorf("quote of %d bytes: %w", len(b), err)
	}
	return q, nil
}

func (q *Quote) parse(raw []byte, c *cursor) error {
	h := &q.Header
	h.Version, h.AttestationKeyType = c.uint16(), c.uint16()
	h.TEE = c.uint32()
	h.QESVN, h.PCESVN = c.uint16(), c.uint16()
	copy(h.QEVendorID[:], c.bytes(16))
	copy(h.UserData[:], c.bytes(20))
	switch {
	case c.err != nil:
		return c.err
	case h.Version < 3 || h.Version > 5:
		return fmt.Errorf("version %d is not 3, 4 or 5", h.Version)
	case h.AttestationKeyType != AttestationKeyP256:
		return fmt.Errorf("attestation key type %d is not %d (ECDSA P-256)", h.AttestationKeyType, AttestationKeyP256)
	case h.TEE != TEESGX && (h.TEE != TEETDX || h.Version == 3):
		return fmt.Errorf("tee type %#x does not exist in version %d", h.TEE, h.Version)
	case h.QEVendorID != intelQEVendorID:
		return fmt.Errorf("QE vendor id %x is not Intel's", h.QEVendorID)
	}
	if err := q.parseBody(c); err != nil {
		return err
	}
	q.Signed = raw[: len(raw)-len(c.b) : len(raw)-len(c.b)]

	sig := &cursor{b: c.bytes(uint64(c.uint32()))}
	if c.err != nil {
		return fmt.Errorf("signature data: %w", c.err)
	}
	q.Trailing = c.b
	q.Signature = sig.bytes(64)
	q.Certification = sig.b
	copy(q.AttestationKey[:], sig.bytes(64))
	if h.Version > 3 {
		if t := sig.uint16(); sig.err == nil && t != CertQEReport {
			return fmt.Errorf("certification data type %d, want the envelope %d", t, CertQEReport)
		}
		size := sig.uint32()
		if sig.err == nil && uint64(size) != uint64(len(sig.b)) {
			return fmt.Errorf("envelope has %d bytes of the %d that are left", size, len(sig.b))
		}
	}
	q.QEReportRaw = sig.bytes(ReportBodySize)
	q.QEReportSignature = sig.bytes(64)
	q.QEAuthData = sig.bytes(uint64(sig.uint16()))
	q.CertType = sig.uint16()
	q.CertData = sig.bytes(uint64(sig.uint32()))
	switch {
	case sig.err != nil:
		return fmt.Errorf("signature data: %w", sig.err)
	case len(sig.b) != 0:
		return fmt.Errorf("signature data: %d bytes that nothing describes", len(sig.b))
	case q.CertType < CertPPIDClear || q.CertType > CertPCKChain:
		return fmt.Errorf("certification data type %d is not in 1 to 5", q.CertType)
	}
	var err error
	q.QEReport, err = ParseReportBody(q.QEReportRaw)
	return err
}

func (q *Quote) parseBody(c *cursor) error {
	size := uint32(ReportBodySize)
	q.BodyType = BodySGX
	if q.TEE == TEETDX {
		q.BodyType, size = BodyTD10, TDReport10Size
	}
	if q.Version == 5 {
		q.BodyType, size = c.uint16(), c.uint32()
		if c.err != nil {
			return c.err
		}
		want, ok := map[uint16]uint32{BodySGX: ReportBodySize, BodyTD10: TDReport10Size, BodyTD15: TDReport15Size}[q.BodyType]
		if !ok || size != want || (q.BodyType == BodySGX) != (q.TEE == TEESGX) {
			return fmt.Errorf("body type %d of %d bytes does not fit tee type %#x", q.BodyType, size, q.TEE)
		}
	}
	b := c.bytes(uint64(size))
	if c.err != nil {
		return fmt.Errorf("body: %w", c.err)
	}
	if q.TEE == TEESGX {
		body, err := ParseReportBody(b)
		q.SGX = &body
		return err
	}
	q.TDX = parseTDXBody(b)
	return nil
}

// parseTDXBody reads 584 bytes (TDX 1.0) or 648 (TDX 1.5).
func parseTDXBody(b []byte) *TDXBody {
	t := new(TDXBody)
	c := &cursor{b: b}
	copy(t.TCBSVN[:], c.bytes(16))
	copy(t.MRSeam[:], c.bytes(48))
	copy(t.MRSignerSeam[:], c.bytes(48))
	t.SeamAttributes = binary.LittleEndian.Uint64(c.bytes(8))
	t.Attributes = binary.LittleEndian.Uint64(c.bytes(8))
	t.XFAM = binary.LittleEndian.Uint64(c.bytes(8))
	for _, m := range []*[48]byte{
		&t.MRTD, &t.MRConfigID, &t.MROwner, &t.MROwnerConfig, &t.RTMR[0], &t.RTMR[1], &t.RTMR[2], &t.RTMR[3],
	} {
		copy(m[:], c.bytes(48))
	}
	copy(t.ReportData[:], c.bytes(64))
	if len(b) == TDReport15Size {
		copy(t.TCBSVN2[:], c.bytes(16))
		copy(t.MRServiceTD[:], c.bytes(48))
	}
	return t
}
