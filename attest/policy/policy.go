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
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/cvm/cvmconfig"
	"github.com/sesame-init/sesame/attest/policy/rule"
	"github.com/sesame-init/sesame/attest/sgx/sgxconfig"
	"github.com/sesame-init/sesame/attest/tpm/tpmconfig"
)

// Policy says which claims are wanted. The zero value wants nothing and does not validate.
//
// An attester is added by one line here: the entries that its package has. Their key is the type of evidence.
type Policy struct {
	SGX Entries[sgxconfig.Entry, *sgxconfig.Entry] `json:"sgx,omitempty" yaml:"sgx,omitempty"` // an enclave must match one of them
	TDX Entries[cvmconfig.TDX, *cvmconfig.TDX]     `json:"tdx,omitempty" yaml:"tdx,omitempty"` // a trust domain must match one of them
	SNP Entries[cvmconfig.SNP, *cvmconfig.SNP]     `json:"snp,omitempty" yaml:"snp,omitempty"` // an SEV-SNP guest must match one of them
	TPM Entries[tpmconfig.Entry, *tpmconfig.Entry] `json:"tpm,omitempty" yaml:"tpm,omitempty"` // a machine with a TPM must match one of them

	TCB TCB `json:"tcb,omitzero" yaml:"tcb,omitempty"` // of enclaves and trust domains
}

// Names of entries and of what they are made of.
type (
	SGX         = sgxconfig.Entry
	TDX         = cvmconfig.TDX
	SNP         = cvmconfig.SNP
	SNPTCB      = cvmconfig.TCB
	GuestPolicy = cvmconfig.GuestPolicy
	TPM         = tpmconfig.Entry
	PCRs        = tpmconfig.PCRs
	Hex         = rule.Hex
	Reason      = rule.Reason
)

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
	empty := true
	p.each(func(key string, entry rule.Entry) {
		empty = false
		entry.Validate(below(key, fault))
	})
	if empty {
		var names []string
		for _, t := range Types() {
			names = append(names, string(t))
		}
		last := len(names) - 1
		fault("neither %s nor %s or %s has an entry", names[0], strings.Join(names[1:last], ", "), names[last])
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
	p.each(func(key string, entry rule.Entry) {
		if b, ok := entry.(rule.Binder); ok && b.LegacyBinding() {
			keys = append(keys, key+".binding")
		}
	})
	return keys
}

// below is a fault whose texts begin with a key.
func below(key string, fault rule.Fault) rule.Fault {
	return func(format string, args ...any) { fault("%s."+format, append([]any{key}, args...)...) }
}

// ValidateServer is [Policy.Validate] for a policy that judges a server: it has no entry that only a client of a broker can
// prove, by the answer to a challenge, or that says how secrets are released to it. Evidence alone would make anyone such a
// server who names the endorsement key of another machine.
func (p *Policy) ValidateServer() error {
	faults := p.Faults()
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	p.each(func(key string, entry rule.Entry) {
		if server, ok := entry.(rule.Server); ok {
			server.ValidateServer(below(key, fault))
		}
	})
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

func (t *TCB) validate(fault rule.Fault) {
	for _, name := range t.Accept {
		if !slices.Contains(statuses, name) {
			fault("tcb.accept: %q is not one of %s", name, strings.Join(statuses, ", "))
		}
	}
	if t.GracePeriod != nil && !slices.Contains(t.Accept, "OutOfDate") && !slices.Contains(t.Accept, "OutOfDateConfigurationNeeded") {
		fault("tcb.grace_period limits nothing: tcb.accept names neither OutOfDate nor OutOfDateConfigurationNeeded")
	}
}
