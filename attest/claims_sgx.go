package attest

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
)

// Attribute bits of an enclave (Intel SDM vol. 3D, table "Layout of ATTRIBUTES Structure").
const (
	AttributeInit         uint64 = 0x01
	AttributeDebug        uint64 = 0x02
	AttributeMode64Bit    uint64 = 0x04
	AttributeProvisionKey uint64 = 0x10
	AttributeEInitToken   uint64 = 0x20
	AttributeKSS          uint64 = 0x80
)

// SGXClaims are the fields of an enclave's report body (Intel SDM, REPORT). The key separation and sharing
// fields (ConfigID, ConfigSVN, FamilyID, ExtProdID) mean something only if [AttributeKSS] is set.
type SGXClaims struct {
	MREnclave  [32]byte // SHA-256 over the enclave's pages as they were loaded
	MRSigner   [32]byte // SHA-256 over the modulus of the signer's RSA key
	ProductID  uint16   // ISVPRODID
	SVN        uint16   // ISVSVN
	CPUSVN     [16]byte
	MiscSelect uint32
	Attributes uint64 // the 64 flag bits
	XFRM       uint64
	ConfigID   [64]byte
	ConfigSVN  uint16
	FamilyID   [16]byte // ISVFAMILYID
	ExtProdID  [16]byte // ISVEXTPRODID
}

// Debug reports whether the host can read and change the enclave's memory.
func (c *SGXClaims) Debug() bool { return c.Attributes&AttributeDebug != 0 }

// Type implements [Details].
func (c *SGXClaims) Type() EvidenceType { return SGX }

// Rated implements [Details].
func (c *SGXClaims) Rated() bool { return true }

// Identity implements [Details].
func (c *SGXClaims) Identity() (name, value string) {
	return "mr_enclave", hex.EncodeToString(c.MREnclave[:])
}

// String implements [Details].
func (c *SGXClaims) String() string {
	return fmt.Sprintf("an enclave with mr_enclave %x, mr_signer %x, product id %d, SVN %d", c.MREnclave, c.MRSigner,
		c.ProductID, c.SVN)
}

// Record implements [Details].
func (c *SGXClaims) Record() any {
	configID := ""
	if c.ConfigID != [64]byte{} {
		configID = hex.EncodeToString(c.ConfigID[:])
	}
	return struct {
		MREnclave  string `json:"mr_enclave"`
		MRSigner   string `json:"mr_signer"`
		ProductID  uint16 `json:"product_id,omitempty"`
		SVN        uint16 `json:"svn,omitempty"`
		ConfigID   string `json:"config_id,omitempty"`
		CPUSVN     string `json:"cpu_svn"`
		Attributes string `json:"attributes"` // 16 hexadecimal digits
	}{
		hex.EncodeToString(c.MREnclave[:]), hex.EncodeToString(c.MRSigner[:]), c.ProductID, c.SVN, configID,
		hex.EncodeToString(c.CPUSVN[:]), fmt.Sprintf("%016x", c.Attributes),
	}
}

// MarshalJSON writes every field, byte strings in hexadecimal.
func (c *SGXClaims) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		MREnclave  hexBytes `json:"mr_enclave"`
		MRSigner   hexBytes `json:"mr_signer"`
		ProductID  uint16   `json:"product_id"`
		SVN        uint16   `json:"svn"`
		CPUSVN     hexBytes `json:"cpu_svn"`
		MiscSelect uint32   `json:"misc_select"`
		Attributes uint64   `json:"attributes"`
		XFRM       uint64   `json:"xfrm"`
		ConfigID   hexBytes `json:"config_id"`
		ConfigSVN  uint16   `json:"config_svn"`
		FamilyID   hexBytes `json:"family_id"`
		ExtProdID  hexBytes `json:"ext_prod_id"`
	}{c.MREnclave[:], c.MRSigner[:], c.ProductID, c.SVN, c.CPUSVN[:], c.MiscSelect, c.Attributes,
		c.XFRM, c.ConfigID[:], c.ConfigSVN, c.FamilyID[:], c.ExtProdID[:]})
}
