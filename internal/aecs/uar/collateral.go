package uar

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/aecs/wire"
	"github.com/sesame-init/sesame/attest/dcap"
)

// teeTypeTDX is the tee_type of a trust domain's collateral. For an enclave it is 0 and left out, so that servers of
// generation A, which do not know the field, take it.
const teeTypeTDX = 0x81

// Collateral writes collateral as a passport carries it. The version is that of the PCS API that the TCB info comes
// from, 3 or 4. The verifier in servers of generation A takes 3 only: give them collateral of a PCCS of version 3.
func Collateral(c *dcap.Collateral, tee attest.EvidenceType) (*wire.SgxQlQveCollateral, error) {
	var document struct {
		TCBInfo struct {
			Version int64 `json:"version"`
		} `json:"tcbInfo"`
	}
	if err := json.Unmarshal(c.TCBInfo, &document); err != nil {
		return nil, fmt.Errorf("TCB info: %w", err)
	}
	version := map[int64]int64{2: 3, 3: 4}[document.TCBInfo.Version] // of TCB info to that of the API
	if version == 0 {
		return nil, fmt.Errorf("TCB info has version %d, want 2 or 3", document.TCBInfo.Version)
	}
	out := &wire.SgxQlQveCollateral{
		Version:           version,
		PckCrlIssuerChain: string(c.PCKCRLChain), RootCaCrl: textCRL(c.RootCACRL), PckCrl: textCRL(c.PCKCRL),
		TcbInfoIssuerChain: string(c.TCBInfoChain), TcbInfo: string(c.TCBInfo),
		QeIdentityIssuerChain: string(c.QEIdentityChain), QeIdentity: string(c.QEIdentity),
	}
	if tee == attest.TDX {
		out.TeeType = teeTypeTDX
	}
	return out, complete(out)
}

// textCRL is a CRL as text: hexadecimal digits of DER, which has no place in a string of protobuf.
func textCRL(crl []byte) string {
	const derSequence = 0x30 // also the digit 0, but the digits of DER begin with 3, and its length is no ASCII
	if len(crl) > 1 && crl[0] == derSequence && crl[1] > 0x7f {
		return hex.EncodeToString(crl)
	}
	return string(crl)
}

// complete demands what the upstream's verifier demands: all seven documents.
func complete(c *wire.SgxQlQveCollateral) error {
	for _, text := range []string{c.GetPckCrlIssuerChain(), c.GetRootCaCrl(), c.GetPckCrl(), c.GetTcbInfoIssuerChain(),
		c.GetTcbInfo(),
		c.GetQeIdentityIssuerChain(), c.GetQeIdentity()} {
		if text == "" {
			return errors.New("a document is missing")
		}
		if !utf8.ValidString(text) {
			return errors.New("a document is not text")
		}
	}
	return nil
}

func readCollateral(text string) (*dcap.Collateral, error) {
	var c wire.SgxQlQveCollateral
	if err := wire.Parse(text, &c); err != nil {
		return nil, err
	}
	if err := complete(&c); err != nil {
		return nil, err
	}
	return &dcap.Collateral{
		TCBInfo: []byte(c.GetTcbInfo()), TCBInfoChain: []byte(c.GetTcbInfoIssuerChain()),
		QEIdentity: []byte(c.GetQeIdentity()), QEIdentityChain: []byte(c.GetQeIdentityIssuerChain()),
		PCKCRL: []byte(c.GetPckCrl()), PCKCRLChain: []byte(c.GetPckCrlIssuerChain()), RootCACRL: []byte(c.GetRootCaCrl()),
	}, nil
}
