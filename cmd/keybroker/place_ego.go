//go:build ego

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	ego "github.com/edgelesssys/ego/enclave"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
)

// openEGo opens the attester of EGo's runtime.
var openEGo = func() (deviceAttester, error) {
	if _, err := ego.GetSelfReport(); err != nil {
		return nil, attest.Errorf(attest.CodeAttester, "asking EGo's runtime",
			"Build with ego-go, sign with ego sign, start with ego run; outside of EGo use bin/keybroker.", "%w", err)
	}
	return egoAttester{}, nil
}

type egoAttester struct{}

// Type implements [attest.Attester].
func (egoAttester) Type() attest.EvidenceType { return attest.SGX }

// Close implements [io.Closer].
func (egoAttester) Close() error { return nil }

// Evidence implements [attest.Attester]. A remote report is an Open Enclave header (version 1, type 2 for a remote report,
// size of the quote in 8 bytes, little-endian) and the quote.
func (egoAttester) Evidence(_ context.Context, data attest.ReportData) (attest.Evidence, error) {
	const step = "making evidence"
	report, err := ego.GetRemoteReport(data[:])
	if err != nil {
		return attest.Evidence{}, attest.Errorf(attest.CodeAttester, step,
			"Check the quoting service (aesmd, PCCS) of the host.", "%w", err)
	}
	quote, err := openEnclaveQuote(report)
	if err != nil {
		return attest.Evidence{}, attest.Errorf(attest.CodeAttester, step, "", "%w", err)
	}
	return attest.Evidence{Type: attest.SGX, Raw: quote}, nil
}

func openEnclaveQuote(report []byte) ([]byte, error) {
	const header = 16
	if len(report) < header || binary.LittleEndian.Uint32(report) != 1 || binary.LittleEndian.Uint32(report[4:]) != 2 {
		return nil, fmt.Errorf("a report of %d bytes is not a remote report of Open Enclave", len(report))
	}
	if size := binary.LittleEndian.Uint64(report[8:]); size != uint64(len(report)-header) {
		return nil, fmt.Errorf("the quote has %d bytes, but %d follow", size, len(report)-header)
	}
	return report[header:], nil
}

var _ rootkey.Processor = egoAttester{}

// SelfTarget implements [rootkey.Processor], by a report of this enclave.
func (a egoAttester) SelfTarget() (sgx.TargetInfo, error) {
	r, err := a.CreateReport(sgx.TargetInfo{}, attest.ReportData{})
	return sgx.TargetInfo{MREnclave: r.Body.MREnclave, Attributes: r.Body.Attributes, XFRM: r.Body.XFRM, ConfigSVN: r.Body.ConfigSVN,
		MiscSelect: r.Body.MiscSelect, ConfigID: r.Body.ConfigID}, err
}

// CreateReport implements [rootkey.Processor]. The report is a local one, for no target: an Open Enclave header and the
// report as the processor made it.
func (egoAttester) CreateReport(_ sgx.TargetInfo, data attest.ReportData) (sgx.Report, error) {
	const step, header = "making report", 16
	raw, err := ego.GetLocalReport(data[:], nil)
	if err == nil && len(raw) != header+sgx.ReportSize {
		err = fmt.Errorf("a local report of %d bytes", len(raw))
	}
	if err != nil {
		return sgx.Report{}, attest.Errorf(attest.CodeAttester, step, "", "%w", err)
	}
	return sgx.ParseReport(raw[header:])
}

// Key implements [rootkey.Processor]. A runtime without a processor answers with zeros, which are no key.
func (egoAttester) Key(r sgx.KeyRequest) (key [sgx.KeySize]byte, err error) {
	const step = "deriving sealing key"
	request, err := r.AppendBinary(nil)
	if err != nil {
		return key, err
	}
	found, err := ego.GetSealKey(request)
	defer clear(found)
	if err == nil && (len(found) != len(key) || bytes.Equal(found, key[:])) {
		err = errors.New("the runtime has no sealing key: it simulates the enclave")
	}
	if err != nil {
		return key, attest.Errorf(attest.CodeAttester, step, "", "%w", err)
	}
	return [sgx.KeySize]byte(found), nil
}
