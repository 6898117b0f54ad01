package attest

import (
	"encoding/hex"
	"time"

	"github.com/edgelesssys/ego/attestation/tcbstatus"
)

// Claims are what genuine evidence says about the environment that made it. Exactly one of SGX, TDX, SNP, TPM
// and Other is set, by Type.
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
	// Other is for every other type: a value of the attester's own package.
	Other Details
	TCB   TCB // if the details are [Details.Rated]: state of the platform and its quoting enclave
}

// Details are the claims of one type of evidence, and all that logs and tools know of them.
type Details interface {
	// Type is the type of evidence that says this.
	Type() EvidenceType
	// Debug reports whether the host can read and change the environment's memory.
	Debug() bool
	// Rated reports whether collateral rates the platform, so that [Claims.TCB] says something.
	Rated() bool
	// Identity is what names the environment best, for a log: "mr_enclave" and hexadecimal digits.
	Identity() (name, value string)
	// String says what the environment is, for people: "an enclave with mr_enclave …".
	String() string
	// Record is a struct whose JSON members are what a release log keeps. Their names must not change, and differ from
	// those that the log has for every type.
	Record() any
}

// Details are the one set of claims that c has, nil if it has none.
func (c Claims) Details() Details {
	switch { // a nil pointer in an interface would not be nil
	case c.SGX != nil:
		return c.SGX
	case c.TDX != nil:
		return c.TDX
	case c.SNP != nil:
		return c.SNP
	case c.TPM != nil:
		return c.TPM
	}
	return c.Other
}

// String says for people what made the evidence.
func (c Claims) String() string {
	d := c.Details()
	switch {
	case d == nil:
		return "without evidence"
	case d.Debug():
		return d.String() + ", in debug mode"
	}
	return d.String()
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

// hexBytes are a byte string that JSON has in hexadecimal.
type hexBytes []byte

// MarshalText implements [encoding.TextMarshaler].
func (b hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(b)), nil }
