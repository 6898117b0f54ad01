package aecstest

import (
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"strconv"
	"strings"

	"github.com/edgelesssys/ego/attestation/tcbstatus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/aecs"
	"github.com/sesame-init/sesame/attest/backend/aecs/wire"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/sgx"
)

// judge decides about a client's report as UaVerifyAuthReport does: the binding of the key, the policy, the quote.
func (s *Server) judge(ctx context.Context, client *wire.UnifiedAttestationAuthReport,
	policy *wire.UnifiedAttestationPolicy) error {
	report := client.GetReport()
	platform := report.GetStrTeePlatform()
	if platform != wire.PlatformDCAP && platform != wire.PlatformEPID {
		return codePlatform
	}
	var parts wire.DcapReport
	if wire.Parse(report.GetJsonReport(), &parts) != nil {
		return codeJSON
	}
	quote, err := base64.StdEncoding.DecodeString(parts.GetB64Quote())
	if err != nil || len(quote) < sgx.HeaderSize+sgx.ReportBodySize {
		return codeQuote
	}
	body, err := sgx.ParseReportBody(quote[sgx.HeaderSize : sgx.HeaderSize+sgx.ReportBodySize])
	if err != nil {
		return codeQuote
	}
	if sha256.Sum256([]byte(client.GetPemPublicKey())) != [32]byte(body.ReportData[32:]) {
		return codeKeyHash
	}
	if err := s.match(attributes(platform, &body), policy.GetMainAttributes()); err != nil {
		return err
	}
	if s.options.Verifier == nil {
		return nil
	}
	return s.verify(ctx, report, quote, parts.GetJsonCollateral())
}

// verify is what a server that is built for hardware does with a quote.
func (s *Server) verify(ctx context.Context, report *wire.UnifiedAttestationReport, quote []byte, text string) error {
	if report.GetStrReportType() != wire.Passport || report.GetStrTeePlatform() != wire.PlatformDCAP {
		return codeNoPassport
	}
	var c wire.SgxQlQveCollateral
	if wire.Parse(text, &c) != nil {
		return codeJSON
	}
	collateral := &dcap.Collateral{
		TCBInfo: []byte(c.GetTcbInfo()), TCBInfoChain: []byte(c.GetTcbInfoIssuerChain()),
		QEIdentity: []byte(c.GetQeIdentity()), QEIdentityChain: []byte(c.GetQeIdentityIssuerChain()),
		PCKCRL: []byte(c.GetPckCrl()), PCKCRLChain: []byte(c.GetPckCrlIssuerChain()), RootCACRL: []byte(c.GetRootCaCrl()),
	}
	for _, document := range [][]byte{collateral.TCBInfo, collateral.TCBInfoChain, collateral.QEIdentity,
		collateral.QEIdentityChain,
		collateral.PCKCRL, collateral.PCKCRLChain, collateral.RootCACRL} {
		if len(document) == 0 {
			return codeCollateral
		}
	}
	claims, err := s.options.Verifier(collateral).Verify(ctx, attest.Evidence{Type: attest.SGX, Raw: quote},
		s.options.Now())
	switch {
	case err != nil:
		return codeQuote
	case claims.TCB.Status == tcbstatus.Revoked || claims.TCB.Status == tcbstatus.Unknown:
		return codeTCB
	}
	return nil
}

// attributes are the properties of a client in the texts that policies are compared with: hexadecimal digits in upper
// case, numbers in decimal.
func attributes(platform string, b *sgx.ReportBody) *wire.UnifiedAttestationAttributes {
	return &wire.UnifiedAttestationAttributes{
		StrTeePlatform: platform, HexTaMeasurement: fmt.Sprintf("%X", b.MREnclave), HexSigner: fmt.Sprintf("%X", b.MRSigner),
		HexProdId: strconv.Itoa(int(b.ProductID)), StrMinIsvsvn: strconv.Itoa(int(b.SVN)),
		BoolDebugDisabled: strconv.FormatBool(!b.Debug()),
		HexUserData:       fmt.Sprintf("%X", b.ReportData[:32]), HexHashOrPemPubkey: fmt.Sprintf("%X", b.ReportData[32:]),
	}
}

// match wants one rule all of whose attributes are so. The error is that of the last rule.
func (s *Server) match(got *wire.UnifiedAttestationAttributes, rules []*wire.UnifiedAttestationAttributes) error {
	var err error = codeNoRule
	for _, rule := range rules {
		if err = s.matchRule(got, rule); err == nil {
			return nil
		}
	}
	return err
}

func (s *Server) matchRule(got, want *wire.UnifiedAttestationAttributes) error {
	for _, a := range []struct {
		got, want string
		failure   code
	}{
		{got.GetStrTeePlatform(), want.GetStrTeePlatform(), codePlatformPolicy},
		{"", want.GetHexPlatformHwVersion(), codeAttribute},
		{"", want.GetHexPlatformSwVersion(), codeAttribute},
		{"", want.GetHexSecureFlags(), codeAttribute},
		{"", want.GetHexPlatformMeasurement(), codeAttribute},
		{"", want.GetHexBootMeasurement(), codeAttribute},
		{"", want.GetStrTeeName(), codeAttribute},
		{"", want.GetStrTeeIdentity(), codeAttribute},
		{got.GetHexTaMeasurement(), want.GetHexTaMeasurement(), codeMREnclave},
		{"", want.GetHexTaDynMeasurement(), codeAttribute},
		{got.GetHexSigner(), want.GetHexSigner(), codeSigner},
		{got.GetHexProdId(), want.GetHexProdId(), codeProduct},
	} {
		if a.want != "" && a.got != a.want {
			return a.failure
		}
	}
	if !strings.HasPrefix(got.GetHexUserData(), want.GetHexUserData()) || !strings.HasPrefix(got.GetHexUserData(),
		want.GetHexNonce()) {
		return codeUserData
	}
	if text := want.GetStrMinIsvsvn(); text != "" {
		least, err := strconv.Atoi(text)
		if err != nil {
			return codeException // std::stoi throws
		}
		if svn, _ := strconv.Atoi(got.GetStrMinIsvsvn()); svn < least {
			return codeSVN
		}
	}
	if text := want.GetBoolDebugDisabled(); text != "" && (text == "true" ||
		text == "1") != (got.GetBoolDebugDisabled() == "true") {
		return codeDebug
	}
	if want.GetHexSpid() != "" && s.options.Generation == aecs.GenerationB {
		return codeSPID
	}
	return matchKey(got.GetHexHashOrPemPubkey(), want.GetHexHashOrPemPubkey())
}

func matchKey(got, want string) error {
	if strings.Contains(want, "BEGIN") {
		want = fmt.Sprintf("%X", sha256.Sum256([]byte(want)))
	}
	if want != "" && want != got {
		return codeKeyHash
	}
	return nil
}

func parseKey(text string) (*rsa.PublicKey, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, codeEncrypt
	}
	key, err := x509.ParsePKCS1PublicKey(block.Bytes)
	if err != nil {
		return nil, codeEncrypt
	}
	return key, nil
}

// simulatedReport is a quote of EPID's layout (sgx_quote_t, version 2) without a signature, of an enclave of zeros.
func simulatedReport(data attest.ReportData, publicKey string) (*wire.UnifiedAttestationAuthReport, error) {
	body := sgx.ReportBody{ReportData: data}
	body.Attributes = attest.AttributeInit | attest.AttributeMode64Bit
	quote := make([]byte, sgx.HeaderSize, sgx.HeaderSize+sgx.ReportBodySize+4)
	binary.LittleEndian.PutUint16(quote, 2)
	quote, err := body.AppendBinary(quote)
	if err != nil {
		return nil, err
	}
	quote = append(quote, 0, 0, 0, 0) // the length of the signature
	text, err := wire.JSON(&wire.DcapReport{B64Quote: base64.StdEncoding.EncodeToString(quote)})
	return &wire.UnifiedAttestationAuthReport{
		Report: &wire.UnifiedAttestationReport{
			StrReportVersion: wire.ReportVersion, StrReportType: wire.BackgroundCheck, StrTeePlatform: wire.PlatformEPID,
			JsonReport: text,
		},
		PemPublicKey: publicKey,
	}, err
}
