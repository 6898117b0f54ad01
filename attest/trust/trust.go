// Package trust assembles what evidence is verified with: trusted roots, the source of collateral, the least numbers that
// are taken, and a verifier for each type of evidence. init, the broker and the tools all come here, so that the same words
// in their configs mean the same.
//
// Quotes of SGX and TDX are always verified. Evidence of other types is verified if [Config.Kinds] names them: their
// verifiers bring packages along that init inside an enclave has no use for. attest/attesters lists all.
//
// Nothing here reads a file or the network before evidence is verified, and the clock is an argument. What the package does
// not do: it does not say which evidence is wanted; attest/policy does.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning.
package trust

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/internal/pki"
)

// Config says what evidence is verified with. The zero value trusts Intel's root and finds no collateral, so that every quote
// is refused.
type Config struct {
	// Roots are trusted for quotes instead of Intel's. Empty means Intel's. See [Trust.Remarks].
	Roots []*x509.Certificate
	// Collateral names where collateral for quotes comes from.
	Collateral Collateral
	// MinimumEvaluation is the least tcbEvaluationDataNumber, MinimumRootCRL and MinimumPCKCRL are the least CRL numbers
	// that are taken, whatever the clock says.
	MinimumEvaluation             uint32
	MinimumRootCRL, MinimumPCKCRL uint64
	// PCKChain is the chain in PEM for quotes that do not carry theirs.
	PCKChain []byte
	// Certificates complete chains in evidence of TPMs. Being here does not make them trusted.
	Certificates []*x509.Certificate
	// Kinds are the attesters whose evidence is verified, beside quotes.
	Kinds []Kind
	// Now is the clock of the collateral's source; nil is the system's.
	Now func() time.Time
	// Vouched is that of [dcap.Config].
	Vouched func(time.Time)
}

// Collateral names a source of collateral: a URL or a directory. The zero value has none.
type Collateral struct {
	// URL is that of a PCCS or of Intel's PCS.
	URL string
	// AllowHTTP permits a URL without TLS.
	AllowHTTP bool
	// Authorities are those of the URL's TLS certificate. Empty means the system's.
	Authorities []*x509.Certificate
	// Attempts is how often a document is tried. Zero is the default of [pccs.Config].
	Attempts int
	// Directory holds the collateral of one platform, in the files that [pccs.Dir] reads.
	Directory string
}

// CollateralAt reads what flags name: a URL if text has a scheme, else a directory.
func CollateralAt(text string) Collateral {
	if strings.Contains(text, "://") {
		return Collateral{URL: text}
	}
	return Collateral{Directory: text}
}

// Given reports whether c names a source.
func (c Collateral) Given() bool { return c.URL != "" || c.Directory != "" }

// Trust verifies evidence. It is safe for concurrent use.
type Trust struct {
	config Config
	source dcap.Source
}

// New makes a Trust. The error's code is [attest.CodeConfig].
func New(c Config) (*Trust, error) {
	t := &Trust{config: c}
	switch from := c.Collateral; {
	case from.URL != "" && from.Directory != "":
		return nil, attest.Errorf(attest.CodeConfig, "choosing a source of collateral", "Leave one of the two out.",
			"both a URL and a directory are named")
	case from.Directory != "":
		t.source = pccs.Dir(from.Directory)
	case from.URL == "":
		t.source = noSource{}
	default:
		options := pccs.Config{
			URL: from.URL, AllowHTTP: from.AllowHTTP, Attempts: from.Attempts, Roots: c.Roots, Now: c.Now,
		}
		if len(from.Authorities) > 0 {
			options.RootCAs = pki.Pool(from.Authorities)
		}
		client, err := pccs.New(options)
		if err != nil {
			return nil, err
		}
		t.source = client
	}
	return t, nil
}

// Roots are the configured roots, empty for Intel's.
func (t *Trust) Roots() []*x509.Certificate { return t.config.Roots }

// Source is where collateral comes from.
func (t *Trust) Source() dcap.Source { return t.source }

// Verifier verifies evidence with collateral of the source.
func (t *Trust) Verifier() attest.Verifier { return t.With(t.source) }

// Stapled verifies evidence with the collateral that came with it.
func (t *Trust) Stapled(c *dcap.Collateral) attest.Verifier { return t.With(pccs.Stapled(c)) }

// With verifies evidence with collateral of another source.
func (t *Trust) With(source dcap.Source) attest.Verifier {
	c := t.config
	quotes := dcap.NewVerifier(dcap.Config{
		Roots: c.Roots, Source: source, PCKChain: c.PCKChain, Vouched: c.Vouched, MinimumEvaluation: c.MinimumEvaluation,
		MinimumRootCRLNumber: c.MinimumRootCRL, MinimumPCKCRLNumber: c.MinimumPCKCRL,
	})
	all := attest.Verifiers{attest.SGX: quotes, attest.TDX: quotes}
	for _, kind := range c.Kinds {
		if kind.Verifier != nil {
			all[kind.Type] = kind.Verifier(c)
		}
	}
	return all
}

// Remarks are warnings: of collateral that comes without TLS, and of each root that is trusted instead of Intel's. from says
// where roots come from: a file, or "the policy".
func (t *Trust) Remarks(from string) []string {
	var remarks []string
	if strings.HasPrefix(t.config.Collateral.URL, "http://") {
		remarks = append(remarks,
			"collateral comes over http: anyone on the network path sees which platforms are asked for and can withhold it")
	}
	for _, root := range t.config.Roots {
		remarks = append(remarks,
			fmt.Sprintf("trust root is %s from %s, not Intel's: this is not for production", root.Subject.CommonName, from))
	}
	return remarks
}

// Close ends what the source of collateral has running.
func (t *Trust) Close() {
	if c, ok := t.source.(interface{ Close() }); ok {
		c.Close()
	}
}

// noSource is that of a trust which is for evidence without collateral, or for stapled collateral only.
type noSource struct{}

// Collateral implements [dcap.Source].
func (noSource) Collateral(context.Context, dcap.Request) (*dcap.Collateral, error) {
	return nil, attest.Errorf(attest.CodeCollateral, "finding collateral",
		"Name a PCCS, or a directory with collateral (in the broker's policy: trust.collateral).",
		"no source of collateral is named")
}
