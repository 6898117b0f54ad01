// Package attest is the vocabulary of remote attestation that the rest of Sesame speaks: evidence, report
// data, claims, attesters and verifiers, in the terms of RFC 9334 (RATS architecture), and the two types that
// cross every boundary: [Error], a refusal that says why, and [Secret], key material that cannot be printed.
//
// The package knows no format, no network and no other package of this module. Formats and verification live
// below it: attest/sgx (reports and quotes), attest/dcap (is a quote genuine), attest/policy (is it wanted),
// attest/ratls (certificates that carry evidence), attest/backend (evidence in, secrets out).
//
// What it does not do: it makes no judgement. A [Claims] value is only ever the output of a [Verifier] and
// says what genuine evidence claims, not whether anybody should accept it.
package attest

import (
	"context"
	"time"

	"github.com/edgelesssys/ego/attestation/tcbstatus"
)

// EvidenceType names a kind of evidence.
type EvidenceType string

// The kinds of evidence. SGX is a DCAP quote of an enclave, TDX of a trust domain; SNP is an attestation report of an
// AMD SEV-SNP guest with its certificates; TPM is a quote of a machine's TPM 2.0 with its event log.
const (
	SGX EvidenceType = "sgx"
	TDX EvidenceType = "tdx"
	SNP EvidenceType = "snp"
	TPM EvidenceType = "tpm"
)

// ReportDataSize is the size in bytes of the data that an attester binds into its evidence (Intel SGX SDM,
// REPORTDATA; the same 64 bytes in TDX and SEV-SNP reports).
const ReportDataSize = 64

// ReportData is what the attester asks the hardware to bind into the evidence: usually a hash over a public
// key or over a session, zero-padded.
type ReportData [ReportDataSize]byte

// Evidence is what an attester hands out about itself, in the attester's own format. It is untrusted until
// a [Verifier] has judged it.
type Evidence struct {
	Type EvidenceType
	// Raw is the evidence in its native format: for SGX and TDX a DCAP quote, for SNP and TPM what attest/snp and
	// attest/tpm encode.
	Raw []byte
}

// An Attester makes evidence about the environment that it runs in.
type Attester interface {
	// Type is the kind of evidence that this attester makes.
	Type() EvidenceType
	// Evidence returns fresh evidence that binds data. It fails with [CodeAttester].
	Evidence(ctx context.Context, data ReportData) (Evidence, error)
}

// A Verifier decides whether evidence is genuine, that is: signed by hardware below a trusted root, whose
// state the collateral knows. It does not decide whether the claims are wanted; package attest/policy does.
type Verifier interface {
	// Verify returns what genuine evidence claims. The error's code is [CodeEvidence] for evidence that is
	// not genuine and [CodeCollateral] where the collateral is missing, expired or not genuine itself.
	Verify(ctx context.Context, evidence Evidence, at time.Time) (Claims, error)
}

// Claims are what genuine evidence says about the environment that made it. Exactly one of the pointers is
// set, by Type.
type Claims struct {
	Type       EvidenceType
	ReportData ReportData
	SGX        *SGXClaims // for [SGX]
	TDX        *TDXClaims // for [TDX]
	SNP        *SNPClaims // for [SNP]
	TPM        *TPMClaims // for [TPM]
	TCB        TCB        // of [SGX] and [TDX]: state of the platform and its quoting enclave
}

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
// fields (ConfigID, ConfigSVN, FamilyID, ExtProdID) mean something only where [AttributeKSS] is set.
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

// TCB is the state of the platform that signed evidence, as the collateral judges it.
type TCB struct {
	// Status uses EGo's vocabulary of Intel's TCB statuses.
	Status tcbstatus.Status
	// RelaunchAdvised is set where Intel says TDRelaunchAdvised (Status UpToDate) or
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
	// clock, or the newest issue date among those objects where that is later. Zero where a verifier has no
	// such dates.
	VerifiedAt time.Time
	// EarliestExpiry is the moment at which the first object used in the verification expires.
	EarliestExpiry time.Time
}

// StatusName is Intel's name of the status, as it stands in TCB info and in policies.
func (t TCB) StatusName() string {
	if !t.RelaunchAdvised {
		return t.Status.String()
	}
	if t.Status == tcbstatus.ConfigurationNeeded {
		return "TDRelaunchAdvisedConfigurationNeeded"
	}
	return "TDRelaunchAdvised"
}
