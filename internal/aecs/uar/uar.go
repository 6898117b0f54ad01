// Package uar makes and reads unified attestation reports, the form in which KubeTEE's programs show each other
// evidence (jinzhao-attest, ual/proto/attestation.proto).
//
// A report carries a DCAP quote, alone ("BackgroundCheck") or with its collateral ("Passport"), and comes with an RSA
// public key. The quote's 64 bytes of report data bind the key: 32 bytes that the sender chose, then the SHA-256 of
// the key's PEM text, byte by byte as it is sent.
//
// # Promises
//
//   - [Make] writes what the upstream's generators write. The key is PKCS#1 in a block "RSA PUBLIC KEY", which is how
//     the upstream tells RSA from SM2.
//   - [Read] takes a report only if there is exactly one such block, of 2048 to 8192 bits, and nothing else; if the
//     kind, the platform and the fields belong together; and if the quote's report data binds the very text of the
//     key. Sizes are bounded before anything is parsed.
//
// # Limits
//
// Nothing here is genuine until an [attest.Verifier] has said so, with [Report.Evidence]. The binding proves that the
// enclave had the key, not that it has it now: a quote can be replayed, and a signature by the key must show
// possession. Nested reports, SM2 keys, reports of Ant's central service ("Uas") and of platforms other than SGX and
// TDX are refused. A report of the platform SGX_EPID, which servers show that are built for simulation, is read, but
// is no evidence.
//
// # Compatibility
//
// This package serves the rest of the module: its names may change in any release. The format is that of AECS.
package uar

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/aecs/wire"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/sgx"
)

// Reasons why a report is refused.
var (
	ErrForm    = errors.New("the report is malformed")
	ErrKey     = errors.New("the report's key is not one PKCS#1 RSA public key of 2048 to 8192 bits")
	ErrBinding = errors.New("the quote does not bind the report's key: it was made for another one, or the key's " +
		"text was changed")
)

const (
	// UserDataSize is the number of bytes in a quote's report data that the sender chooses.
	UserDataSize = 32
	// MaxReport bounds the JSON of a report in bytes. A genuine passport has about 40 KB.
	MaxReport = 1 << 20
	maxPEM    = 4096
	minBits   = 2048
	maxBits   = 8192

	blockType = "RSA PUBLIC KEY"

	// Offset of the report data: in an SGX quote (EPID's has the same place), and in TDX quotes of version 4 and 5.
	sgxData = 48 + 320
	tdxData = 48 + 520
	bodyV5  = 6
)

// PublicKeyPEM is the text of a key as reports carry it.
func PublicKeyPEM(key *rsa.PublicKey) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: x509.MarshalPKCS1PublicKey(key)}))
}

// Data is the report data that binds a key's text to evidence. userData is zero-padded by the caller.
func Data(userData [UserDataSize]byte, publicKey string) attest.ReportData {
	hash := sha256.Sum256([]byte(publicKey))
	return attest.ReportData(append(userData[:], hash[:]...))
}

// Make writes a report that shows evidence of the key with this text: a passport if collateral is given.
func Make(e attest.Evidence, publicKey string, collateral *wire.SgxQlQveCollateral) (*wire.UnifiedAttestationAuthReport,
	error) {
	dcapReport := &wire.DcapReport{B64Quote: base64.StdEncoding.EncodeToString(e.Raw)}
	report := &wire.UnifiedAttestationReport{
		StrReportVersion: wire.ReportVersion, StrReportType: wire.BackgroundCheck, StrTeePlatform: wire.PlatformDCAP,
	}
	if e.Type == attest.TDX {
		report.StrTeePlatform = wire.PlatformTDX
	}
	var err error
	if collateral != nil {
		report.StrReportType = wire.Passport
		if dcapReport.JsonCollateral, err = wire.JSON(collateral); err != nil {
			return nil, err
		}
	}
	if report.JsonReport, err = wire.JSON(dcapReport); err != nil {
		return nil, err
	}
	return &wire.UnifiedAttestationAuthReport{Report: report, PemPublicKey: publicKey}, nil
}

// Report is a report that was read: its parts belong together, but nothing is verified.
type Report struct {
	Platform  string // wire.PlatformDCAP, PlatformTDX or PlatformEPID
	Quote     []byte
	UserData  [UserDataSize]byte
	PublicKey *rsa.PublicKey
	// Fingerprint is the SHA-256 of the key's text, what an AECS calls its identity hash.
	Fingerprint [sha256.Size]byte
	// Collateral came with a passport; nil else.
	Collateral *dcap.Collateral
}

// Evidence is what an [attest.Verifier] verifies. A report of a server that is built for simulation has none.
func (r *Report) Evidence() (attest.Evidence, error) {
	switch r.Platform {
	case wire.PlatformDCAP:
		return attest.Evidence{Type: attest.SGX, Raw: r.Quote}, nil
	case wire.PlatformTDX:
		return attest.Evidence{Type: attest.TDX, Raw: r.Quote}, nil
	}
	return attest.Evidence{}, fmt.Errorf("a report of the platform %s is no evidence: the sender is built for "+
		"simulation, or runs on EPID hardware, whose attestation service has ended", r.Platform)
}

// Data is the report data that the quote must have.
func (r *Report) Data() attest.ReportData {
	return attest.ReportData(append(r.UserData[:], r.Fingerprint[:]...))
}

// Read takes a report apart. The error is, or wraps, one of those above.
func Read(auth *wire.UnifiedAttestationAuthReport) (*Report, error) {
	report := auth.GetReport()
	bad := func(format string, args ...any) (*Report, error) {
		return nil, fmt.Errorf("%w: %w", ErrForm, fmt.Errorf(format, args...))
	}
	key, err := readKey(auth.GetPemPublicKey())
	if err != nil {
		return nil, err
	}
	r := &Report{Platform: report.GetStrTeePlatform(), PublicKey: key,
		Fingerprint: sha256.Sum256([]byte(auth.GetPemPublicKey()))}
	switch r.Platform {
	case wire.PlatformDCAP, wire.PlatformTDX, wire.PlatformEPID:
	default:
		return bad("the platform %.40q is not %s, %s or %s", r.Platform, wire.PlatformDCAP, wire.PlatformTDX,
			wire.PlatformEPID)
	}
	kind := report.GetStrReportType()
	switch {
	case kind != wire.BackgroundCheck && kind != wire.Passport:
		return bad("a report of type %.40q is neither %s nor %s", kind, wire.BackgroundCheck, wire.Passport)
	case kind == wire.Passport && r.Platform == wire.PlatformEPID:
		return bad("a passport of %s is a verdict of an attestation service that has ended", wire.PlatformEPID)
	case report.GetJsonNestedReports() != "":
		return bad("it has nested reports")
	case len(report.GetJsonReport()) > MaxReport:
		return bad("it has %d bytes, at most %d are read", len(report.GetJsonReport()), MaxReport)
	}
	var parts wire.DcapReport
	if err := wire.Parse(report.GetJsonReport(), &parts); err != nil {
		return bad("json_report: %w", err)
	}
	if len(parts.GetB64Quote()) > base64.StdEncoding.EncodedLen(sgx.MaxQuoteSize) {
		return bad("the quote is larger than %d bytes", sgx.MaxQuoteSize)
	}
	if r.Quote, err = base64.StdEncoding.Strict().DecodeString(parts.GetB64Quote()); err != nil {
		return bad("b64_quote is not standard base64")
	}
	bound, err := r.reportData()
	if err != nil {
		return bad("%w", err)
	}
	r.UserData = [UserDataSize]byte(bound[:UserDataSize])
	if subtle.ConstantTimeCompare(bound[UserDataSize:], r.Fingerprint[:]) != 1 {
		return nil, ErrBinding
	}
	if has := parts.GetJsonCollateral() != ""; has != (kind == wire.Passport) {
		return bad("a %s with collateral: %t", kind, has)
	}
	if kind == wire.Passport {
		if r.Collateral, err = readCollateral(parts.GetJsonCollateral()); err != nil {
			return bad("json_collateral: %w", err)
		}
	}
	return r, nil
}

// reportData finds the report data in the quote, which is not verified yet.
func (r *Report) reportData() ([]byte, error) {
	at := sgxData
	if r.Platform == wire.PlatformTDX {
		if at = tdxData; len(r.Quote) > 0 && r.Quote[0] == 5 {
			at += bodyV5
		}
	}
	if len(r.Quote) < at+attest.ReportDataSize+4 { // the length of the signature follows
		return nil, fmt.Errorf("the quote has %d bytes, want at least %d", len(r.Quote), at+attest.ReportDataSize+4)
	}
	return r.Quote[at : at+attest.ReportDataSize], nil
}

func readKey(text string) (*rsa.PublicKey, error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("%w: its text has %d bytes", ErrKey, len(text))
	}
	block, rest := pem.Decode([]byte(text))
	switch {
	case block == nil:
		return nil, fmt.Errorf("%w: it is not PEM", ErrKey)
	case block.Type != blockType:
		return nil, fmt.Errorf("%w: it is a block of %.40q", ErrKey, block.Type)
	case len(block.Headers) > 0 || len(rest) > 0 || !bytes.HasPrefix([]byte(text), []byte("-----BEGIN")):
		return nil, fmt.Errorf("%w: it is not alone", ErrKey)
	}
	key, err := x509.ParsePKCS1PublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	if bits := key.N.BitLen(); bits < minBits || bits > maxBits {
		return nil, fmt.Errorf("%w: it has %d bits", ErrKey, bits)
	}
	return key, nil
}
