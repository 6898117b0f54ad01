package dcap

import (
	"bytes"
	"context"

	"github.com/sesame-init/sesame/attest"
)

// Collateral is what Intel publishes about a platform, each document exactly as it was served: the signatures
// cover the bytes. A Source must not change a value that it has handed out.
type Collateral struct {
	TCBInfo         []byte // signed TCB info, JSON, version 2 or 3
	TCBInfoChain    []byte // TCB signing certificate and root, PEM
	QEIdentity      []byte // signed enclave identity of the QE or TD QE, JSON, version 2
	QEIdentityChain []byte // TCB signing certificate and root, PEM
	PCKCRL          []byte // CRL of the CA that issued the PCK certificate: DER, PEM or hex text of DER
	PCKCRLChain     []byte // PEM of that CA and its root; may be empty, since the quote has the CA, too
	RootCACRL       []byte // CRL of the root: DER, PEM or hex text of DER
}

// CAs below Intel's root that issue PCK certificates.
const (
	PlatformCA  = "platform"  // multi-socket platforms
	ProcessorCA = "processor" // single-socket platforms
)

// Request says which collateral a quote needs. It is comparable, so it can key a cache.
type Request struct {
	TEE   attest.EvidenceType
	FMSPC [6]byte
	CA    string // PlatformCA or ProcessorCA
}

// A FetchError says for which platform a source found no collateral. The platform's certificate leads to a trusted root.
type FetchError struct {
	Request Request
	Err     error
}

// Error implements error.
func (e *FetchError) Error() string { return e.Err.Error() }

// Unwrap returns the source's error.
func (e *FetchError) Unwrap() error { return e.Err }

// A Source finds collateral. Its errors' code is [attest.CodeUnreachable] if a later try may help, [attest.CodeMissing] if
// the service does not have the collateral, and [attest.CodeCollateral] otherwise.
type Source interface {
	Collateral(ctx context.Context, r Request) (*Collateral, error)
}

// documents lists the fields.
func (c *Collateral) documents() [7]*[]byte {
	return [7]*[]byte{
		&c.TCBInfo, &c.TCBInfoChain, &c.QEIdentity, &c.QEIdentityChain, &c.PCKCRL, &c.PCKCRLChain, &c.RootCACRL,
	}
}

// Equal reports whether all documents are the same, byte by byte.
func (c *Collateral) Equal(other *Collateral) bool {
	if c == other {
		return true
	}
	theirs := other.documents()
	for i, doc := range c.documents() {
		if !bytes.Equal(*doc, *theirs[i]) {
			return false
		}
	}
	return true
}

func (c *Collateral) clone() Collateral {
	out := *c
	for _, doc := range out.documents() {
		*doc = bytes.Clone(*doc)
	}
	return out
}
