// Package sgx reads and writes the structures that SGX hardware and its quoting enclave produce: report
// bodies, reports, and DCAP quotes of versions 3 to 5, and makes evidence through the /dev/sgx device of
// Occlum's LibOS.
//
// Everything here is layout: nothing is verified. Package attest/dcap decides whether a quote is genuine.
// All integers are little-endian. Every length that comes from outside is bounded before use.
//
// Source of the layouts: Intel SDM vol. 3D (REPORT, KEYREQUEST), Intel "SGX ECDSA Quote Library Reference"
// (quote 3), "TDX DCAP Quoting Library API" (quotes 4 and 5).
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning. The layouts are
// Intel's.
package sgx

import (
	"encoding/binary"
	"fmt"

	"github.com/sesame-init/sesame/attest"
)

// ReportBodySize is the size of an enclave's report body in bytes.
const ReportBodySize = 384

// ReportBody is the part of an SGX report that describes the enclave. Reserved bytes are not kept.
type ReportBody struct {
	attest.SGXClaims
	ReportData attest.ReportData
}

// AppendBinary appends the 384 bytes of the body in hardware layout, reserved bytes zero.
func (r *ReportBody) AppendBinary(b []byte) ([]byte, error) {
	out := make([]byte, ReportBodySize)
	copy(out[0:], r.CPUSVN[:])
	binary.LittleEndian.PutUint32(out[16:], r.MiscSelect)
	copy(out[32:], r.ExtProdID[:])
	binary.LittleEndian.PutUint64(out[48:], r.Attributes)
	binary.LittleEndian.PutUint64(out[56:], r.XFRM)
	copy(out[64:], r.MREnclave[:])
	copy(out[128:], r.MRSigner[:])
	copy(out[192:], r.ConfigID[:])
	binary.LittleEndian.PutUint16(out[256:], r.ProductID)
	binary.LittleEndian.PutUint16(out[258:], r.SVN)
	binary.LittleEndian.PutUint16(out[260:], r.ConfigSVN)
	copy(out[304:], r.FamilyID[:])
	copy(out[320:], r.ReportData[:])
	return append(b, out...), nil
}

// ParseReportBody reads the 384 bytes of a report body.
func ParseReportBody(b []byte) (ReportBody, error) {
	var r ReportBody
	if len(b) != ReportBodySize {
		return r, fmt.Errorf("report body has %d bytes, want %d", len(b), ReportBodySize)
	}
	copy(r.CPUSVN[:], b[0:])
	r.MiscSelect = binary.LittleEndian.Uint32(b[16:])
	copy(r.ExtProdID[:], b[32:])
	r.Attributes = binary.LittleEndian.Uint64(b[48:])
	r.XFRM = binary.LittleEndian.Uint64(b[56:])
	copy(r.MREnclave[:], b[64:])
	copy(r.MRSigner[:], b[128:])
	copy(r.ConfigID[:], b[192:])
	r.ProductID = binary.LittleEndian.Uint16(b[256:])
	r.SVN = binary.LittleEndian.Uint16(b[258:])
	r.ConfigSVN = binary.LittleEndian.Uint16(b[260:])
	copy(r.FamilyID[:], b[304:])
	copy(r.ReportData[:], b[320:])
	return r, nil
}
