package attest

import (
	"time"

	"github.com/edgelesssys/ego/attestation/tcbstatus"
)

// Claims are what genuine evidence says about the environment that made it. Exactly one of the pointers is
// set, by Type.
type Claims struct {
	Type       EvidenceType
	ReportData ReportData
	// Binding is set for evidence from a certificate that a policy has to judge as such, else "": then a protocol has
	// bound the evidence, in the one form that it knows.
	Binding Binding
	SGX     *SGXClaims // for [SGX]
	TDX     *TDXClaims // for [TDX]
	SNP     *SNPClaims // for [SNP]
	TPM     *TPMClaims // for [TPM]
	TCB     TCB        // of [SGX] and [TDX]: state of the platform and its quoting enclave
}

// A Binding is the form in which the evidence in a certificate binds the certificate's key (package attest/ratls).
type Binding string

// The bindings.
const (
	// BindingApplication hashes the key together with Sesame's label and the role of an application.
	BindingApplication Binding = "application"
	// BindingLegacy hashes the key without a label of Sesame's: the forms of Occlum and Gramine, and Interoperable
	// RA-TLS of others. It does not tell an application's certificate from a broker's.
	BindingLegacy Binding = "legacy"
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

// Bits of an SEV-SNP guest policy (AMD 56860, SEV-SNP Firmware ABI Specification, table "Guest Policy").
const (
	SNPPolicySMT     uint64 = 1 << 16
	SNPPolicyMigrate uint64 = 1 << 18
	SNPPolicyDebug   uint64 = 1 << 19
)

// SNPClaims are the fields of an SEV-SNP guest's attestation report (AMD 56860, table "ATTESTATION_REPORT"). The
// verifier has checked that the certificate which signs the report names ReportedTCB and ChipID.
type SNPClaims struct {
	Measurement     [48]byte // of the guest's first memory and state, by the firmware
	HostData        [32]byte // chosen by the host at launch
	FamilyID        [16]byte
	ImageID         [16]byte
	IDKeyDigest     [48]byte // SHA-384 of the key that signed the ID block; zero without one
	AuthorKeyDigest [48]byte
	ChipID          [64]byte // zero where the host masks it
	ReportID        [32]byte
	Policy          uint64
	GuestSVN        uint32
	VMPL            uint32 // privilege level that asked for the report, 0 is the highest
	ReportedTCB     SNPTCB // firmware that the signing key belongs to
	CommittedTCB    SNPTCB // firmware below which the host cannot go back
	SignedBy        string // product line of the signer: "Milan", "Genoa", "Turin"
}

// Debug reports whether the host can read and change the guest's memory.
func (c *SNPClaims) Debug() bool { return c.Policy&SNPPolicyDebug != 0 }

// SNPTCB are the security versions of the firmware's parts (AMD 56860, "TCB_VERSION").
type SNPTCB struct{ Bootloader, TEE, SNP, Microcode uint8 }

// TPMClaims are what a quote of a TPM 2.0 and what came with it say about a machine. A quote is signed by an
// attestation key (AK). Evidence alone does not prove that the AK lives in the TPM of a certain endorsement key (EK): a
// verifier that pins only the EK must encrypt what it releases to EKPublic.
type TPMClaims struct {
	AK [32]byte // SHA-256 of the AK's TPMT_PUBLIC, attributes included: its TPM name without the algorithm
	EK [32]byte // SHA-256 of the EK's DER SubjectPublicKeyInfo; zero where the evidence names none
	// EKRoot is the SHA-256 of the self-signed certificate at which the chain of the EK's certificate ends, zero
	// if there is no complete chain. Whether the root is a vendor's is for a policy to say.
	EKRoot   [32]byte
	EKPublic []byte // DER SubjectPublicKeyInfo of the EK, nil where the evidence names none
	// AKName is the AK's TPM name, computed from its TPMT_PUBLIC: the algorithm in 2 bytes, then the digest.
	AKName []byte
	// EKProved is set once the TPM has proved to the verifier of a session, by the answer to a challenge, that it holds
	// AK and EK. Evidence alone cannot prove it, so no [Verifier] sets it.
	EKProved bool
	// PCRs are the quoted registers of the SHA-256 bank, by index 0 to 23.
	PCRs map[int][32]byte
	// EventLog is set if the machine's firmware log replays to the quoted registers; SecureBoot then says
	// whether UEFI's Secure Boot was on.
	EventLog   bool
	SecureBoot bool
}

// TCB is the state of the platform that signed evidence, as the collateral judges it.
type TCB struct {
	// Status uses EGo's vocabulary of Intel's TCB statuses.
	Status tcbstatus.Status
	// RelaunchAdvised is set if Intel says TDRelaunchAdvised (Status UpToDate) or
	// TDRelaunchAdvisedConfigurationNeeded (Status ConfigurationNeeded): the TDX module was updated since
	// the trust domain was started. A policy accepts it only by that name.
	RelaunchAdvised bool
	// Advisories are the Intel security advisories that apply, sorted, without duplicates ("INTEL-SA-00615").
	Advisories []string
	// Date is the oldest date of the TCB levels that matched.
	Date time.Time
	// EvaluationNumber is the smaller tcbEvaluationDataNumber of TCB info and enclave identity.
	EvaluationNumber uint32
	// RootCRLNumber and PCKCRLNumber are the CRL numbers of the revocation lists of the root and of the CA that
	// issued the PCK certificate; numbers of more than 64 bits count as the largest.
	RootCRLNumber, PCKCRLNumber uint64
	// VerifiedAt is the moment at which every object used in the verification was found valid: the verifier's
	// clock, or the newest issue date among those objects if that is later. Zero if a verifier has no
	// such dates.
	VerifiedAt time.Time
	// EarliestExpiry is the moment at which the first object used in the verification expires.
	EarliestExpiry time.Time
}

// StatusName is Intel's name of the status, as in TCB info and in policies.
func (t TCB) StatusName() string {
	if !t.RelaunchAdvised {
		return t.Status.String()
	}
	if t.Status == tcbstatus.ConfigurationNeeded {
		return "TDRelaunchAdvisedConfigurationNeeded"
	}
	return "TDRelaunchAdvised"
}
