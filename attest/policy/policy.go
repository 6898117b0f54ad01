// Package policy says which genuine evidence is wanted: it appraises [attest.Claims] against data that a
// person can review, and answers with a reason for every rule.
//
// A [Policy] lists what the environment may be, any of several entries, and in which state its platform may
// be. What an entry does not name is not checked, with these exceptions, which hold without being named:
//
//   - debug is refused unless the entry says debug: true;
//   - an enclave's CONFIGID, which the host chooses at launch, must be all zero unless the entry names it, and
//     one that is named counts only for an enclave with key separation and sharing (KSS);
//   - of the TCB statuses only UpToDate is accepted unless tcb.accept lists others;
//   - Revoked, and whatever the verifier could not place, is never accepted;
//   - a server's certificate must bind its key under Sesame's label of an application, unless the entry says
//     binding: legacy, which then is the only form that it accepts;
//   - an SEV-SNP guest's HOST_DATA, which the host chooses, must be all zero unless the entry names it, and its
//     report must come from privilege level 0 unless the entry names a higher max_vmpl.
//
// [Policy.Validate] demands that every entry pins an environment: an enclave by mr_enclave, or by mr_signer
// with product_id and min_svn; a trust domain by mr_td; an SEV-SNP guest by measurement, guest_policy and min_tcb; a
// machine with a TPM by its attestation key, or by its endorsement key or the roots of that key's certificate together
// with wrap, and in every case by PCRs. A signer whose private key is public is refused.
//
// What the package does not do: it does not verify evidence (attest/dcap does), and it has no clock. Grace
// periods bind only if the caller's time is honest.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning. A policy that
// loads today loads in every release of the same major version and means the same, unless the changelog names a breach
// that this would keep open.
package policy

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest"
)

// Policy says which claims are wanted. The zero value wants nothing and does not validate.
type Policy struct {
	SGX []SGX `json:"sgx,omitempty" yaml:"sgx,omitempty"` // an enclave must match one of them
	TDX []TDX `json:"tdx,omitempty" yaml:"tdx,omitempty"` // a trust domain must match one of them
	SNP []SNP `json:"snp,omitempty" yaml:"snp,omitempty"` // an SEV-SNP guest must match one of them
	TPM []TPM `json:"tpm,omitempty" yaml:"tpm,omitempty"` // a machine with a TPM must match one of them
	TCB TCB   `json:"tcb,omitzero" yaml:"tcb,omitempty"`  // of enclaves and trust domains
}

// SGX describes an enclave. All fields that are set must match.
type SGX struct {
	Name         string  `json:"name,omitempty" yaml:"name,omitempty"`             // for people and logs only
	MREnclave    Hex     `json:"mr_enclave,omitempty" yaml:"mr_enclave,omitempty"` // 32 bytes
	MRSigner     Hex     `json:"mr_signer,omitempty" yaml:"mr_signer,omitempty"`   // 32 bytes
	ProductID    *uint16 `json:"product_id,omitempty" yaml:"product_id,omitempty"` // ISVPRODID
	MinSVN       *uint16 `json:"min_svn,omitempty" yaml:"min_svn,omitempty"`       // least ISVSVN
	Debug        bool    `json:"debug,omitempty" yaml:"debug,omitempty"`           // accept debug enclaves, too
	ConfigID     Hex     `json:"config_id,omitempty" yaml:"config_id,omitempty"`   // 64 bytes; absent: all zero
	MinConfigSVN *uint16 `json:"min_config_svn,omitempty" yaml:"min_config_svn,omitempty"`
	FamilyID     Hex     `json:"family_id,omitempty" yaml:"family_id,omitempty"`     // 16 bytes, ISVFAMILYID
	ExtProdID    Hex     `json:"ext_prod_id,omitempty" yaml:"ext_prod_id,omitempty"` // 16 bytes, ISVEXTPRODID
	// Binding is "legacy" for servers whose certificates bind their key without Sesame's label: see [Policy.LegacyBindings].
	Binding attest.Binding `json:"binding,omitempty" yaml:"binding,omitempty"`
}

// TDX describes a trust domain. All fields that are set must match.
type TDX struct {
	Name          string `json:"name,omitempty" yaml:"name,omitempty"`   // for people and logs only
	MRTD          Hex    `json:"mr_td,omitempty" yaml:"mr_td,omitempty"` // 48 bytes, as all that follow
	RTMR0         Hex    `json:"rtmr0,omitempty" yaml:"rtmr0,omitempty"`
	RTMR1         Hex    `json:"rtmr1,omitempty" yaml:"rtmr1,omitempty"`
	RTMR2         Hex    `json:"rtmr2,omitempty" yaml:"rtmr2,omitempty"`
	RTMR3         Hex    `json:"rtmr3,omitempty" yaml:"rtmr3,omitempty"`
	MRSeam        Hex    `json:"mr_seam,omitempty" yaml:"mr_seam,omitempty"`
	MRConfigID    Hex    `json:"mr_config_id,omitempty" yaml:"mr_config_id,omitempty"`
	MROwner       Hex    `json:"mr_owner,omitempty" yaml:"mr_owner,omitempty"`
	MROwnerConfig Hex    `json:"mr_owner_config,omitempty" yaml:"mr_owner_config,omitempty"`
	Debug         bool   `json:"debug,omitempty" yaml:"debug,omitempty"` // accept debug trust domains, too
	// Binding is as in [SGX].
	Binding attest.Binding `json:"binding,omitempty" yaml:"binding,omitempty"`
}

// TCB describes the state that the platform of an enclave or a trust domain may be in.
type TCB struct {
	// Accept lists the accepted statuses by Intel's names. Empty means UpToDate only; a list that is given
	// is the whole list.
	Accept []string `json:"accept,omitempty" yaml:"accept,omitempty"`
	// Advisories lists the accepted Intel security advisories ("INTEL-SA-00615"). If it is given, every
	// advisory that applies to the platform must be in it, whatever the status.
	Advisories []string `json:"advisories,omitempty" yaml:"advisories,omitempty"`
	// GracePeriod limits for how long a status that Accept names OutOfDate or OutOfDateConfigurationNeeded
	// is accepted: until the date of the TCB level that the platform has plus this. Nil is no limit, and zero no
	// grace.
	GracePeriod *Duration `json:"grace_period,omitempty" yaml:"grace_period,omitempty"`
	// MinimumEvaluation is the least tcbEvaluationDataNumber that the verdict may rest on.
	MinimumEvaluation uint32 `json:"minimum_evaluation,omitempty" yaml:"minimum_evaluation,omitempty"`
	// MinimumRootCRL and MinimumPCKCRL are the least CRL numbers of the revocation lists that it may rest on.
	MinimumRootCRL uint64 `json:"minimum_root_crl,omitempty" yaml:"minimum_root_crl,omitempty"`
	MinimumPCKCRL  uint64 `json:"minimum_pck_crl,omitempty" yaml:"minimum_pck_crl,omitempty"`
}

// Hex is a byte string that reads and prints as hexadecimal digits of either case. Nil means: not named, as does
// null in YAML.
type Hex []byte

// String prints lower-case digits.
func (h Hex) String() string { return hex.EncodeToString(h) }

// MarshalText implements [encoding.TextMarshaler].
func (h Hex) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler]. An empty string is an error: a measurement that is
// named must have a value.
func (h *Hex) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) == 0 {
		return fmt.Errorf("%q is not a string of hexadecimal digits", text)
	}
	*h = b
	return nil
}

// UnmarshalJSON refuses null, which [json.Unmarshal] would else take for a field that is not named.
func (h *Hex) UnmarshalJSON(text []byte) error {
	var s string
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	return h.UnmarshalText([]byte(s))
}

// UnmarshalYAML takes the text as it is written: digits without quotes are no number.
func (h *Hex) UnmarshalYAML(text []byte) error {
	return h.UnmarshalText(bytes.Trim(text, " \"'\n"))
}

// Duration reads and prints like [time.ParseDuration] and also takes whole days ("30d").
type Duration time.Duration

// String implements [fmt.Stringer].
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText implements [encoding.TextMarshaler].
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Duration) UnmarshalText(text []byte) error {
	s := string(text)
	days, isDays := strings.CutSuffix(s, "d")
	if isDays {
		s = days + "h"
	}
	parsed, err := time.ParseDuration(s)
	const century = 100 * 365 * 24 * time.Hour
	if isDays && parsed <= century/24 {
		parsed *= 24
	}
	if err != nil || parsed < 0 || parsed > century {
		return fmt.Errorf("%q is not a duration like 720h or 30d", text)
	}
	*d = Duration(parsed)
	return nil
}

// statuses are those that a policy may accept, by Intel's names.
var statuses = []string{
	"UpToDate",
	"SWHardeningNeeded",
	"ConfigurationNeeded",
	"ConfigurationAndSWHardeningNeeded",
	"OutOfDate",
	"OutOfDateConfigurationNeeded",
	"TDRelaunchAdvised",
	"TDRelaunchAdvisedConfigurationNeeded",
}

// occlumSigner is the MRSIGNER of the key that Occlum ships for everybody (etc/template/Enclave.pem).
var occlumSigner = Hex{
	0x83, 0xd7, 0x19, 0xe7, 0x7d, 0xea, 0xca, 0x14, 0x70, 0xf6, 0xba, 0xf6, 0x2a, 0x4d, 0x77, 0x43,
	0x03, 0xc8, 0x99, 0xdb, 0x69, 0x02, 0x0f, 0x9c, 0x70, 0xee, 0x1d, 0xfc, 0x08, 0xc7, 0xce, 0x9e,
}

const stepValidate = "checking policy"

// Validate makes sure that the policy pins what it accepts and can mean what it says. The error's code is
// [attest.CodeConfig], it names the field, and it joins all that is wrong.
func (p *Policy) Validate() error {
	faults := p.Faults()
	if len(faults) == 0 {
		return nil
	}
	return attest.Errorf(attest.CodeConfig, stepValidate, HintMinimum, "%s", strings.Join(faults, "; "))
}

// HintMinimum says what an entry must name.
const HintMinimum = "An entry names at least mr_enclave, or mr_signer with product_id and min_svn; for TDX mr_td; for SNP " +
	"measurement, guest_policy and min_tcb; for a TPM pcrs with ak, or with ek or ek_roots and wrap."

// Faults are all that [Policy.Validate] finds wrong, each beginning with the field that it is about.
func (p *Policy) Faults() []string {
	var faults []string
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	if len(p.SGX)+len(p.TDX)+len(p.SNP)+len(p.TPM) == 0 {
		fault("neither sgx nor tdx, snp or tpm has an entry")
	}
	for i := range p.SGX {
		p.SGX[i].validate(func(format string, args ...any) { fault("sgx[%d]."+format, append([]any{i}, args...)...) })
	}
	for i := range p.TDX {
		p.TDX[i].validate(func(format string, args ...any) { fault("tdx[%d]."+format, append([]any{i}, args...)...) })
	}
	for i := range p.SNP {
		p.SNP[i].validate(func(format string, args ...any) { fault("snp[%d]."+format, append([]any{i}, args...)...) })
	}
	for i := range p.TPM {
		p.TPM[i].validate(func(format string, args ...any) { fault("tpm[%d]."+format, append([]any{i}, args...)...) })
	}
	p.TCB.validate(fault)
	return faults
}

// LegacyBindings names the keys of the entries that say binding: legacy, in the order of the policy ("sgx[0].binding").
// Such an entry takes certificates that bind their key without Sesame's label, as Occlum, Gramine and images built before
// there was a label make them, and no others. They do not say what the key is for, so each use is worth a warning.
//
// The key is for policies of an application's clients. If a protocol fixes the form it means nothing.
func (p *Policy) LegacyBindings() []string {
	var keys []string
	for i := range p.SGX {
		if p.SGX[i].Binding != "" {
			keys = append(keys, fmt.Sprintf("sgx[%d].binding", i))
		}
	}
	for i := range p.TDX {
		if p.TDX[i].Binding != "" {
			keys = append(keys, fmt.Sprintf("tdx[%d].binding", i))
		}
	}
	return keys
}

// ValidateServer is [Policy.Validate] for a policy that judges a server: it has no entry that only a client of a broker can
// prove, by the answer to a challenge, or that says how secrets are released to it. Evidence alone would make anyone such a
// server who names the endorsement key of another machine.
func (p *Policy) ValidateServer() error {
	faults := p.Faults()
	for i := range p.TPM {
		switch t := &p.TPM[i]; {
		case t.Challenged():
			faults = append(faults, fmt.Sprintf("tpm[%d].ak is missing: a server is not challenged, so ek and ek_roots prove nothing of it", i))
		case t.Wrap:
			faults = append(faults, fmt.Sprintf("tpm[%d].wrap says how secrets are released, and nothing is released to a server", i))
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return attest.Errorf(attest.CodeConfig, stepValidate, hintServer, "%s", strings.Join(faults, "; "))
}

const hintServer = HintMinimum + " A policy for a server knows a TPM by ak alone."

// CheckServer is [Policy.ValidateServer] for what judges a server, whatever it is: policies say themselves whether they can.
func CheckServer(judge any) error {
	if p, ok := judge.(interface{ ValidateServer() error }); ok {
		return p.ValidateServer()
	}
	return nil
}

type faultFunc func(format string, args ...any)

func (f faultFunc) size(name string, h Hex, want int) {
	if h != nil && len(h) != want {
		f("%s has %d bytes, want %d", name, len(h), want)
	}
}

func (f faultFunc) binding(b attest.Binding) {
	if b != "" && b != attest.BindingLegacy {
		f(`binding is %.20q, want "legacy" or nothing`, b)
	}
}

func (s *SGX) validate(fault faultFunc) {
	fault.binding(s.Binding)
	fault.size("mr_enclave", s.MREnclave, 32)
	fault.size("mr_signer", s.MRSigner, 32)
	fault.size("config_id", s.ConfigID, 64)
	fault.size("family_id", s.FamilyID, 16)
	fault.size("ext_prod_id", s.ExtProdID, 16)
	if bytes.Equal(s.MRSigner, occlumSigner) {
		fault("mr_signer %s is Occlum's default signer, whose private key is public: anyone can sign with it", s.MRSigner)
	}
	if s.MREnclave != nil {
		return
	}
	if s.MRSigner == nil {
		fault("mr_enclave is missing (or mr_signer with product_id and min_svn)")
		return
	}
	if s.ProductID == nil {
		fault("product_id is missing: mr_signer alone accepts everything that this signer ever signs")
	}
	if s.MinSVN == nil {
		fault("min_svn is missing: without it old versions stay accepted")
	}
}

func (t *TDX) validate(fault faultFunc) {
	fault.binding(t.Binding)
	if t.MRTD == nil {
		fault("mr_td is missing")
	}
	for _, m := range t.measurements(&attest.TDXClaims{}) {
		fault.size(m.name, m.want, 48)
	}
}

func (t *TCB) validate(fault faultFunc) {
	for _, name := range t.Accept {
		if !slices.Contains(statuses, name) {
			fault("tcb.accept: %q is not one of %s", name, strings.Join(statuses, ", "))
		}
	}
	if t.GracePeriod != nil && !slices.Contains(t.Accept, "OutOfDate") && !slices.Contains(t.Accept, "OutOfDateConfigurationNeeded") {
		fault("tcb.grace_period limits nothing: tcb.accept names neither OutOfDate nor OutOfDateConfigurationNeeded")
	}
}
