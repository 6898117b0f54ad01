package sgx

import (
	"encoding/binary"
	"fmt"
)

// Requests of the ioctls of Occlum's /dev/sgx (Occlum LibOS, dev_fs/dev_sgx). If the argument is not one of
// the structures below it is a 32-bit number.
const (
	IoctlIsEDMMSupported         uint32 = 0x80047300
	IoctlGetEPIDGroupID          uint32 = 0x80047301
	IoctlGenEPIDQuote            uint32 = 0xC0807302
	IoctlSelfTarget              uint32 = 0x82007303 // out: TargetInfo
	IoctlCreateReport            uint32 = 0xC0187304 // three addresses: TargetInfo or 0, report data or 0, Report out
	IoctlVerifyReport            uint32 = 0x41B07305 // in: Report
	IoctlDetectDCAPDriver        uint32 = 0x80047306
	IoctlGetDCAPQuoteSize        uint32 = 0x80047307 // out: size
	IoctlGenDCAPQuote            uint32 = 0xC0187308 // three addresses: report data, size, quote out
	IoctlGetDCAPSupplementalSize uint32 = 0x80047309
	IoctlVerDCAPQuote            uint32 = 0xC030730A
	IoctlGetKey                  uint32 = 0xC010730B // two addresses: KeyRequest, 16 bytes out
)

// Sizes in bytes of the structures that the device exchanges.
const (
	TargetInfoSize = 512
	ReportSize     = 432
	KeyRequestSize = 512
	KeySize        = 16
)

// TargetInfo names an enclave of this machine that a report is made for (Intel SDM, TARGETINFO).
type TargetInfo struct {
	MREnclave  [32]byte
	Attributes uint64
	XFRM       uint64
	ConfigSVN  uint16
	MiscSelect uint32
	ConfigID   [64]byte
}

// AppendBinary appends the 512 bytes of the target info in hardware layout.
func (t *TargetInfo) AppendBinary(b []byte) ([]byte, error) {
	var out [TargetInfoSize]byte
	copy(out[0:], t.MREnclave[:])
	binary.LittleEndian.PutUint64(out[32:], t.Attributes)
	binary.LittleEndian.PutUint64(out[40:], t.XFRM)
	binary.LittleEndian.PutUint16(out[50:], t.ConfigSVN)
	binary.LittleEndian.PutUint32(out[52:], t.MiscSelect)
	copy(out[64:], t.ConfigID[:])
	return append(b, out[:]...), nil
}

// ParseTargetInfo reads the 512 bytes of a target info.
func ParseTargetInfo(b []byte) (TargetInfo, error) {
	var t TargetInfo
	if len(b) != TargetInfoSize {
		return t, fmt.Errorf("target info has %d bytes, want %d", len(b), TargetInfoSize)
	}
	copy(t.MREnclave[:], b[0:])
	t.Attributes = binary.LittleEndian.Uint64(b[32:])
	t.XFRM = binary.LittleEndian.Uint64(b[40:])
	t.ConfigSVN = binary.LittleEndian.Uint16(b[50:])
	t.MiscSelect = binary.LittleEndian.Uint32(b[52:])
	copy(t.ConfigID[:], b[64:])
	return t, nil
}

// Report is what EREPORT makes: a body with a MAC that only the target enclave can check (Intel SDM, REPORT).
type Report struct {
	Body  ReportBody
	KeyID [32]byte
	MAC   [16]byte
}

// AppendBinary appends the 432 bytes of the report in hardware layout.
func (r *Report) AppendBinary(b []byte) ([]byte, error) {
	b, err := r.Body.AppendBinary(b)
	if err != nil {
		return nil, err
	}
	return append(append(b, r.KeyID[:]...), r.MAC[:]...), nil
}

// ParseReport reads the 432 bytes of a report.
func ParseReport(b []byte) (Report, error) {
	var r Report
	if len(b) != ReportSize {
		return r, fmt.Errorf("report has %d bytes, want %d", len(b), ReportSize)
	}
	body, err := ParseReportBody(b[:ReportBodySize])
	r.Body = body
	copy(r.KeyID[:], b[ReportBodySize:])
	copy(r.MAC[:], b[ReportBodySize+32:])
	return r, err
}

// Key names and policies of EGETKEY (Intel SDM, KEYREQUEST).
const (
	KeyNameSeal uint16 = 4

	KeyPolicyMREnclave   uint16 = 0x01
	KeyPolicyMRSigner    uint16 = 0x02
	KeyPolicyNoProductID uint16 = 0x04
	KeyPolicyConfigID    uint16 = 0x08
	KeyPolicyFamilyID    uint16 = 0x10
	KeyPolicyExtProdID   uint16 = 0x20
)

// KeyRequest says which key EGETKEY derives (Intel SDM, KEYREQUEST). A mask bit of 1 makes the key depend on
// the enclave's bit: without [attest.AttributeDebug] in AttributeMask a debug enclave gets the same key.
type KeyRequest struct {
	Name          uint16
	Policy        uint16
	SVN           uint16 // ISVSVN, at most the enclave's
	CPUSVN        [16]byte
	AttributeMask uint64
	XFRMMask      uint64
	KeyID         [32]byte
	MiscMask      uint32
	ConfigSVN     uint16
}

// AppendBinary appends the 512 bytes of the key request in hardware layout.
func (r *KeyRequest) AppendBinary(b []byte) ([]byte, error) {
	var out [KeyRequestSize]byte
	binary.LittleEndian.PutUint16(out[0:], r.Name)
	binary.LittleEndian.PutUint16(out[2:], r.Policy)
	binary.LittleEndian.PutUint16(out[4:], r.SVN)
	copy(out[8:], r.CPUSVN[:])
	binary.LittleEndian.PutUint64(out[24:], r.AttributeMask)
	binary.LittleEndian.PutUint64(out[32:], r.XFRMMask)
	copy(out[40:], r.KeyID[:])
	binary.LittleEndian.PutUint32(out[72:], r.MiscMask)
	binary.LittleEndian.PutUint16(out[76:], r.ConfigSVN)
	return append(b, out[:]...), nil
}

// ParseKeyRequest reads the 512 bytes of a key request.
func ParseKeyRequest(b []byte) (KeyRequest, error) {
	var r KeyRequest
	if len(b) != KeyRequestSize {
		return r, fmt.Errorf("key request has %d bytes, want %d", len(b), KeyRequestSize)
	}
	r.Name = binary.LittleEndian.Uint16(b[0:])
	r.Policy = binary.LittleEndian.Uint16(b[2:])
	r.SVN = binary.LittleEndian.Uint16(b[4:])
	copy(r.CPUSVN[:], b[8:])
	r.AttributeMask = binary.LittleEndian.Uint64(b[24:])
	r.XFRMMask = binary.LittleEndian.Uint64(b[32:])
	copy(r.KeyID[:], b[40:])
	r.MiscMask = binary.LittleEndian.Uint32(b[72:])
	r.ConfigSVN = binary.LittleEndian.Uint16(b[76:])
	return r, nil
}
