package attest

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
)

// TDXClaims are the fields of a trust domain's report body (Intel TDX DCAP quoting library API, TD report).
// ServiceTD and TCBSVN2 are zero in reports of TDX 1.0.
type TDXClaims struct {
	TCBSVN         [16]byte // TEE_TCB_SVN
	TCBSVN2        [16]byte // TEE_TCB_SVN_2
	MRSeam         [48]byte
	MRSignerSeam   [48]byte
	SeamAttributes uint64
	Attributes     uint64 // TDATTRIBUTES; bit 0 is TUD.DEBUG
	XFAM           uint64
	MRTD           [48]byte
	MRConfigID     [48]byte
	MROwner        [48]byte
	MROwnerConfig  [48]byte
	RTMR           [4][48]byte
	MRServiceTD    [48]byte
}

// Debug reports whether the host can read and change the trust domain's memory (any TUD bit).
func (c *TDXClaims) Debug() bool { return c.Attributes&0xff != 0 }

// Type implements [Details].
func (c *TDXClaims) Type() EvidenceType { return TDX }

// Rated implements [Details].
func (c *TDXClaims) Rated() bool { return true }

// Identity implements [Details].
func (c *TDXClaims) Identity() (name, value string) { return "mr_td", hex.EncodeToString(c.MRTD[:]) }

// String implements [Details].
func (c *TDXClaims) String() string { return fmt.Sprintf("a trust domain with mr_td %x", c.MRTD) }

// Record implements [Details].
func (c *TDXClaims) Record() any {
	var rtmr []string
	for _, r := range c.RTMR {
		rtmr = append(rtmr, hex.EncodeToString(r[:]))
	}
	return struct {
		MRTD       string   `json:"mr_td"`
		RTMR       []string `json:"rtmr"`
		TEETCBSVN  string   `json:"tee_tcb_svn"`
		Attributes string   `json:"attributes"` // 16 hexadecimal digits
	}{hex.EncodeToString(c.MRTD[:]), rtmr, hex.EncodeToString(c.TCBSVN[:]), fmt.Sprintf("%016x", c.Attributes)}
}

// MarshalJSON writes every field, byte strings in hexadecimal.
func (c *TDXClaims) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		TCBSVN         hexBytes   `json:"tee_tcb_svn"`
		TCBSVN2        hexBytes   `json:"tee_tcb_svn_2"`
		MRSeam         hexBytes   `json:"mr_seam"`
		MRSignerSeam   hexBytes   `json:"mr_signer_seam"`
		SeamAttributes uint64     `json:"seam_attributes"`
		Attributes     uint64     `json:"td_attributes"`
		XFAM           uint64     `json:"xfam"`
		MRTD           hexBytes   `json:"mr_td"`
		MRConfigID     hexBytes   `json:"mr_config_id"`
		MROwner        hexBytes   `json:"mr_owner"`
		MROwnerConfig  hexBytes   `json:"mr_owner_config"`
		RTMR           []hexBytes `json:"rtmr"`
		MRServiceTD    hexBytes   `json:"mr_service_td"`
	}{c.TCBSVN[:], c.TCBSVN2[:], c.MRSeam[:], c.MRSignerSeam[:], c.SeamAttributes, c.Attributes,
		c.XFAM, c.MRTD[:], c.MRConfigID[:], c.MROwner[:], c.MROwnerConfig[:],
		[]hexBytes{c.RTMR[0][:], c.RTMR[1][:], c.RTMR[2][:], c.RTMR[3][:]}, c.MRServiceTD[:]})
}
