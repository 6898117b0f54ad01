package broker

import (
	"bytes"
	"context"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/mod/sumdb/note"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/internal/broker/policy"
)

// Policies hold the policy in force. A request is decided by one policy from its beginning to its end, whatever is
// replaced meanwhile. They are safe for concurrent use. Make them with [NewPolicies].
type Policies struct {
	config  PoliciesConfig
	current atomic.Pointer[inForce]

	mu sync.Mutex // of Replace
}

var _ policy.Store = (*Policies)(nil)

// inForce is a policy with what it needs to decide.
type inForce struct {
	policy *policy.Policy
	trust  *Trust
}

// PoliciesConfig configures [Policies]. All fields are needed, except Key and Metrics.
type PoliciesConfig struct {
	// Trust makes what verifies evidence.
	Trust  func(policy.Trust) (*Trust, error)
	Keeper Keeper
	// Pinned is set in an enclave, where the version of a policy must rise.
	Pinned bool
	// Key signs policies that [Policies.ReplaceSigned] takes; nil: none is taken.
	Key note.Verifier
	Now func() time.Time
	// Metrics count replacements; nil: nothing is counted.
	Metrics *Metrics
	Logger  logrus.FieldLogger
}

// NewPolicies puts a first policy in force and records it. by names its origin.
func NewPolicies(ctx context.Context, c PoliciesConfig, first *policy.Policy, by string) (*Policies, error) {
	p := &Policies{config: c}
	trust, err := c.Trust(first.Trust)
	if err != nil {
		return nil, err
	}
	if err := p.adopt(ctx, first, by); err != nil {
		return nil, err
	}
	p.current.Store(&inForce{first, trust})
	return p, nil
}

// Collateral finds the collateral of the broker's own evidence, for [session.QuoterOptions], from the source that the
// policy in force names.
func (p *Policies) Collateral(ctx context.Context, evidence attest.Evidence) (*dcap.Collateral, error) {
	return p.current.Load().trust.Collateral(ctx, evidence, p.config.Now())
}

// Trust is what the policy in force trusts.
func (p *Policies) Trust() *Trust { return p.current.Load().trust }

// Current implements [policy.Store].
func (p *Policies) Current() *policy.Policy { return p.current.Load().policy }

func (p *Policies) adopt(ctx context.Context, next *policy.Policy, by string) error {
	_, err := p.config.Keeper.Adopt(ctx, Adoption{
		At: p.config.Now(), Version: next.Version, Digest: next.Digest(), Text: next.Text(), By: by, Pinned: p.config.Pinned,
	})
	if err != nil {
		return &attest.Error{Code: attest.CodeOf(err), Step: "recording policy", Err: err}
	}
	return nil
}

// Replace implements [policy.Store].
func (p *Policies) Replace(ctx context.Context, text []byte, by string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.replaceLocked(ctx, text, by)
}

// Follow is [Policies.Replace] by a text that may be the one in force, which changes nothing.
func (p *Policies) Follow(ctx context.Context, text []byte, by string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if bytes.Equal(text, p.current.Load().policy.Text()) {
		return nil
	}
	return p.replaceLocked(ctx, text, by)
}

func (p *Policies) replaceLocked(ctx context.Context, text []byte, by string) error {
	old := p.current.Load()
	log := p.config.Logger.WithField("by", by)
	err := p.replace(ctx, old, text, by)
	if p.config.Metrics != nil {
		p.config.Metrics.reloaded(err)
	}
	if err != nil {
		log.WithField("hint", attest.HintOf(err)).Errorf("the policy stays as it is, version %d: %v", old.policy.Version, err)
		return err
	}
	now := p.current.Load().policy
	changes := now.Changes(old.policy)
	if len(changes) == 0 {
		changes = []string{"nothing that decides"}
	}
	log.WithField("version", now.Version).Infof("new policy in force: %s", strings.Join(changes, ", "))
	return nil
}

func (p *Policies) replace(ctx context.Context, old *inForce, text []byte, by string) error {
	next, err := policy.Parse(text)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(next.Broker, old.policy.Broker) {
		return attest.Errorf(attest.CodeConfig, "replacing policy",
			"Keep the block as it was; to change it, change the policy that the broker starts with, and start it again.",
			"the block broker differs, and it is read at the start only")
	}
	trust := old.trust // with all that it has cached
	if !reflect.DeepEqual(next.Trust, old.policy.Trust) {
		if trust, err = p.config.Trust(next.Trust); err != nil {
			return err
		}
	}
	if err := p.adopt(ctx, next, by); err != nil {
		return err
	}
	p.current.Store(&inForce{next, trust})
	return nil
}

// ReplaceSigned is [Policies.Replace] for a policy that the pinned key has signed: a note of
// golang.org/x/mod/sumdb/note, as sesame policy sign writes it. Its bearer need not be trusted.
func (p *Policies) ReplaceSigned(ctx context.Context, signed []byte) error {
	text, err := OpenSigned(signed, p.config.Key)
	if err != nil {
		p.config.Logger.WithField("hint", attest.HintOf(err)).Errorf("the policy stays as it is: %v", err)
		return err
	}
	return p.Follow(ctx, text, "key "+p.config.Key.Name())
}

// OpenSigned checks the signature of a policy and returns its text. The error's code is [attest.CodeConfig].
func OpenSigned(signed []byte, key note.Verifier) ([]byte, error) {
	const step = "reading signed policy"
	if key == nil {
		return nil, attest.Errorf(attest.CodeConfig, step,
			"Name the key as broker.policy_key in the measured policy.", "no key is pinned")
	}
	if len(signed) > policy.MaxSize {
		return nil, attest.Errorf(attest.CodeConfig, step, "", "it has more than %d bytes", policy.MaxSize)
	}
	opened, err := note.Open(signed, note.VerifierList(key))
	if err != nil {
		return nil, attest.Errorf(attest.CodeConfig, step, "Sign it by sesame policy sign, with the pinned key.", "%w", err)
	}
	return []byte(opened.Text), nil
}
