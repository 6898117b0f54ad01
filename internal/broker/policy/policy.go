// Package policy reads the key broker's policy: one YAML file that a person can review, which says what workloads are
// and which secrets they may have. docs/broker.md is the manual of the file.
//
// Reading is strict and complete: unknown keys, keys given twice, keys without a value, anchors, values of another
// type, and a workload that pins less than [appraisal.Policy.Validate] demands are reported all at once, each with its
// line. A policy that was read does not change.
//
// The package decides and says why. It knows no network, no clock and no secret: evidence is verified, and secrets
// are kept, elsewhere.
package policy

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest"
	appraisal "github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/trust"
	"github.com/sesame-init/sesame/internal/pki"
)

// MaxSize bounds a policy in bytes.
const MaxSize = 1 << 20

// Policy is one that was read and found sound.
type Policy struct {
	// Version is a number that rises with every change. It decides if a policy is signed.
	Version   uint64               `yaml:"version"`
	Trust     Trust                `yaml:"trust"`
	TCB       appraisal.TCB        `yaml:"tcb"` // of the versions of workloads that have none of their own
	Workloads map[string]*Workload `yaml:"workloads"`
	Secrets   map[string]*Secret   `yaml:"secrets"`
	// Broker holds the settings of the broker itself. They are read at its start; a reload cannot change them.
	Broker Settings `yaml:"broker"`

	text  []byte
	order []string // names of workloads, sorted
	all   bool     // every workload may have every secret, as Occlum's two files say
}

// Trust says below which roots, and by which collateral, evidence is genuine.
type Trust struct {
	// Roots are certificates in PEM to trust instead of Intel's. They are logged at every start.
	Roots      []string   `yaml:"roots"`
	Collateral Collateral `yaml:"collateral"`
	// TPMCertificates are certificates in PEM that complete the chains of TPMs' endorsement keys: intermediates and
	// roots. They are not trusted by standing here: a workload's ek_roots names the root by its fingerprint.
	TPMCertificates []string `yaml:"tpm_certificates"`
	// The least numbers that are believed, whatever the clock says.
	MinimumEvaluation uint32 `yaml:"minimum_evaluation"`
	MinimumRootCRL    uint64 `yaml:"minimum_root_crl"`
	MinimumPCKCRL     uint64 `yaml:"minimum_pck_crl"`
}

// Collateral names the source of collateral for SGX and TDX: one of URL and Directory.
type Collateral struct {
	URL       string `yaml:"url"` // of a PCCS
	AllowHTTP bool   `yaml:"allow_http"`
	CA        string `yaml:"ca"`        // certificate in PEM of a PCCS with a private authority
	Directory string `yaml:"directory"` // with collateral of one platform
}

// The wires that a workload may use.
const (
	WireSession = "session" // only the session protocol; the default
	WireLegacy  = "legacy"  // GRPC-RATLS, too
)

// Workload is a kind of peer.
type Workload struct {
	Wire string `yaml:"wire"`
	// Broker is set if the workload is another replica of this broker: it may have the root key of the store.
	Broker bool `yaml:"broker"`
	// Versions are what it may be: any of them. A roll-out has two for a while.
	Versions []Version `yaml:"versions"`

	name string
}

// Name is its key in the policy.
func (w *Workload) Name() string { return w.name }

// Version is one way to be a workload: evidence that an appraisal policy accepts, in a span of time. Its entries are
// those of package [appraisal], one of which must match.
type Version struct {
	Name             string `yaml:"name"` // for people and logs
	From             Time   `yaml:"from"` // accepted from this moment on
	Until            Time   `yaml:"until"`
	appraisal.Policy `yaml:",inline"`

	appraiser appraiser // instead of Policy: Occlum's file
}

// Secret says who may have a secret.
type Secret struct {
	Workloads []string `yaml:"workloads"`
	// Versions pins, by workload, the id of the version that it gets, as sesame secret list shows it: a roll-out has
	// images of the old key for a while. Other workloads get the newest that is not withdrawn.
	Versions map[string]string `yaml:"versions"`
	Releases *uint64           `yaml:"releases"` // most releases, ever; nil is no limit, 0 is none
	From     Time              `yaml:"from"`
	Until    Time              `yaml:"until"`
	// Wrap is set if the secret may leave the broker only encrypted to the hardware of its receiver: to a TPM whose
	// entry says wrap.
	Wrap bool `yaml:"wrap"`
}

// Reserved begins the names of what the broker keeps for itself. A policy does not name it, and "every secret" of
// Occlum's files does not mean it.
const Reserved = "sesame:"

// RootKey is the name of the root key of the broker's store, which only a workload marked as a broker may have.
const RootKey = Reserved + "root-key"

// Time is a moment, written as RFC 3339 has it: 2026-12-31T23:59:59Z. The zero value means: none is named.
type Time struct{ time.Time }

// UnmarshalYAML takes the text as it is written.
func (t *Time) UnmarshalYAML(text []byte) error {
	s := string(bytes.Trim(text, " \"'\n"))
	parsed, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return fmt.Errorf("%q is not a moment like 2026-12-31T23:59:59Z", s)
	}
	t.Time = parsed.UTC()
	return nil
}

var (
	nameForm    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	versionForm = regexp.MustCompile(`^[0-9a-f]{32}$`)
	secretForm  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
)

// Parse reads a policy. The error has code [attest.CodeConfig] and wraps [Faults].
func Parse(text []byte) (*Policy, error) {
	fail := func(f Faults) (*Policy, error) {
		return nil, &attest.Error{Code: attest.CodeConfig, Step: "reading policy", Err: f, Hint: appraisal.HintMinimum}
	}
	if len(text) > MaxSize {
		return fail(Faults{{Text: fmt.Sprintf("has %d bytes, more than %d", len(text), MaxSize)}})
	}
	p := &Policy{}
	d := &document{}
	d.decode(text, p)
	if len(d.faults) == 0 {
		p.complete(d.fault, d.written)
	}
	if len(d.faults) > 0 {
		return fail(d.faults)
	}
	p.text = bytes.Clone(text)
	return p, nil
}

// Text is what the policy was read from; nil for Occlum's files.
func (p *Policy) Text() []byte { return bytes.Clone(p.text) }

// Digest is the SHA-256 of the text.
func (p *Policy) Digest() [32]byte { return sha256.Sum256(p.text) }

// complete fills in defaults and reports what is missing or contradicts itself. written says which keys the text has.
func (p *Policy) complete(fault func(key, format string, args ...any), written func(key string) bool) {
	if p.Version == 0 {
		fault("version", "is missing: a whole number from 1 that rises with every change")
	}
	p.Trust.check(p.quotes(), fault)
	if len(p.Workloads) == 0 {
		fault("workloads", "is missing: no one could get a secret")
	}
	p.order = sortedKeys(p.Workloads)
	for _, name := range p.order {
		if w := p.Workloads[name]; w != nil {
			w.complete(name, p.TCB, fault)
		} else {
			fault("workloads."+name, "has no value")
		}
	}
	folded := map[string]string{}
	for _, name := range sortedKeys(p.Secrets) {
		key := "secrets." + name
		if !secretForm.MatchString(name) {
			fault(key, "is no name of a secret: up to 128 letters, digits, dots, dashes, underscores")
		}
		if other := folded[strings.ToLower(name)]; other != "" {
			fault(key, "differs from %s in case alone, which the legacy wire does not tell apart", other)
		}
		folded[strings.ToLower(name)] = name
		if s := p.Secrets[name]; s != nil {
			s.check(key, p.Workloads, fault)
		} else {
			fault(key, "has no value")
		}
	}
	p.Broker.complete(fault, written)
}

func (w *Workload) complete(name string, tcb appraisal.TCB, fault func(key, format string, args ...any)) {
	key := "workloads." + name
	w.name = name
	if !nameForm.MatchString(name) {
		fault(key, "is no name of a workload: up to 64 letters, digits, dots, dashes, underscores")
	}
	switch w.Wire {
	case "":
		w.Wire = WireSession
	case WireSession, WireLegacy:
	default:
		fault(key+".wire", `is %q, want "session" or "legacy"`, w.Wire)
	}
	if w.Broker && w.Wire == WireLegacy {
		fault(key+".wire", `is "legacy" and broker is true: the root key leaves by a fresh session only`)
	}
	if len(w.Versions) == 0 {
		fault(key+".versions", "is missing: what the workload must be")
	}
	for i := range w.Versions {
		v := &w.Versions[i]
		at := fmt.Sprintf("%s.versions[%d]", key, i)
		if reflect.ValueOf(v.TCB).IsZero() {
			v.TCB = tcb
		}
		for _, text := range v.Faults() {
			field, rest, _ := strings.Cut(text, " ")
			if strings.ContainsAny(field, ".[") {
				fault(at+"."+strings.TrimSuffix(field, ":"), "%s", rest)
			} else {
				fault(at, "%s", text)
			}
		}
		for _, entry := range v.LegacyBindings() {
			fault(at+"."+entry, "is for policies of an application's clients; the word here is wire: legacy")
		}
		if w.Broker {
			v.checkReplica(at, fault)
		}
		checkSpan(at, v.From, v.Until, fault)
	}
}

// checkReplica reports what a replica cannot prove: a broker that starts judges those that run as servers.
func (v *Version) checkReplica(at string, fault func(key, format string, args ...any)) {
	if len(v.Faults()) > 0 {
		return // said before
	}
	if err := v.ValidateServer(); err != nil {
		fault(at+".tpm", "is of a workload with broker: true, which others judge as a server: %v", errors.Unwrap(err))
	}
}

func checkSpan(key string, from, until Time, fault func(key, format string, args ...any)) {
	if !from.IsZero() && !until.IsZero() && !from.Before(until.Time) {
		fault(key+".until", "is not after from")
	}
}

func (s *Secret) check(key string, workloads map[string]*Workload, fault func(key, format string, args ...any)) {
	if len(s.Workloads) == 0 {
		fault(key+".workloads", "is missing: the names of the workloads that may have it")
	}
	for i, name := range s.Workloads {
		if workloads[name] == nil {
			fault(fmt.Sprintf("%s.workloads[%d]", key, i), "%q is not a workload of this policy", name)
		}
	}
	for _, name := range sortedKeys(s.Versions) {
		if !slices.Contains(s.Workloads, name) {
			fault(key+".versions."+name, "is not among the secret's workloads")
		}
		if !versionForm.MatchString(s.Versions[name]) {
			fault(key+".versions."+name, "%.64q is not the id of a version: 32 hexadecimal digits", s.Versions[name])
		}
	}
	checkSpan(key, s.From, s.Until, fault)
}

// quotes reports whether any workload is one of SGX or TDX.
func (p *Policy) quotes() bool {
	for _, w := range p.Workloads {
		if w != nil && slices.ContainsFunc(w.Versions, func(v Version) bool { return len(v.SGX)+len(v.TDX) > 0 || v.appraiser != nil }) {
			return true
		}
	}
	return len(p.Workloads) == 0
}

// check reports what is wrong. quotes says whether any workload is one of SGX or TDX, whose quotes need collateral.
func (t *Trust) check(quotes bool, fault func(key, format string, args ...any)) {
	for i, text := range t.TPMCertificates {
		if _, err := pki.ParseCertificate([]byte(text)); err != nil {
			fault(fmt.Sprintf("trust.tpm_certificates[%d]", i), "%v", err)
		}
	}
	for i, text := range t.Roots {
		if _, err := pki.ParseCertificate([]byte(text)); err != nil {
			fault(fmt.Sprintf("trust.roots[%d]", i), "%v", err)
		}
	}
	c := &t.Collateral
	if c.CA != "" {
		if _, err := pki.ParseCertificate([]byte(c.CA)); err != nil {
			fault("trust.collateral.ca", "%v", err)
		}
	}
	switch u, err := url.Parse(c.URL); {
	case c.URL == "" && c.Directory == "" && !quotes:
	case c.URL == "" && c.Directory == "":
		fault("trust.collateral", "is missing: the url of a PCCS, or a directory with collateral")
	case c.URL != "" && c.Directory != "":
		fault("trust.collateral", "has both url and directory")
	case c.URL == "":
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		fault("trust.collateral.url", "is not an address like https://pccs:8081/sgx/certification/v4/")
	case u.Scheme == "http" && !c.AllowHTTP:
		fault("trust.collateral.url", "is without TLS: anyone on the network path can withhold collateral. "+
			"Write allow_http: true if that is meant")
	}
}

// CollateralAt is what a flag names: the URL of a PCCS, which may be without TLS, or a directory.
func CollateralAt(text string) Collateral {
	at := trust.CollateralAt(text)
	return Collateral{URL: at.URL, Directory: at.Directory, AllowHTTP: true}
}

// Authorities are those of CA.
func (c *Collateral) Authorities() ([]*x509.Certificate, error) {
	if c.CA == "" {
		return nil, nil
	}
	return certificates([]string{c.CA})
}

// RootCertificates are those of Roots.
func (t *Trust) RootCertificates() ([]*x509.Certificate, error) { return certificates(t.Roots) }

// TPMChains are those of TPMCertificates.
func (t *Trust) TPMChains() ([]*x509.Certificate, error) { return certificates(t.TPMCertificates) }

func certificates(texts []string) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, text := range texts {
		c, err := pki.ParseCertificate([]byte(text))
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}
