package life

import (
	"bytes"
	"context"
	"sync/atomic"

	"github.com/sirupsen/logrus"
	"golang.org/x/mod/sumdb/note"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/policy"
)

// latePolicies are policies that an administrator can replace once the keystore is unlocked.
type latePolicies struct {
	now atomic.Pointer[broker.Policies]
	// first is what the policy trusts that the broker starts with: a locked broker proves itself, too.
	first func(ctx context.Context, own attest.Evidence) (*dcap.Collateral, error)
}

// Replace implements [admin.PolicyStore].
func (l *latePolicies) Replace(ctx context.Context, text []byte, by string) error {
	p := l.now.Load()
	if p == nil {
		return attest.Errorf(attest.CodeConfig, "replacing policy", "Unlock the broker first.", "the broker is locked")
	}
	return p.Replace(ctx, text, by)
}

// collateral is that of the broker's own evidence, once its source is known.
func (l *latePolicies) collateral(ctx context.Context, own attest.Evidence) (*dcap.Collateral, error) {
	if p := l.now.Load(); p != nil {
		return p.Collateral(ctx, own)
	}
	return l.first(ctx, own)
}

// close ends what the policies in force have running, if there are any.
func (l *latePolicies) close() {
	if p := l.now.Load(); p != nil {
		p.Trust().Close()
	}
}

// trust makes what verifies evidence. Collateral is signed, so that a source that the host names can withhold it but not
// forge it.
func (l *Life) trust(t policy.Trust, log logrus.FieldLogger) (*broker.Trust, error) {
	if l.settings.Collateral != "" {
		t.Collateral = policy.CollateralAt(l.settings.Collateral)
	}
	verifies, err := broker.NewTrust(t, l.clock.Now, l.clock.vouched)
	if err != nil {
		return nil, err
	}
	for _, line := range verifies.Remarks() {
		log.Warn(line)
	}
	return verifies, nil
}

// pinnedKey is the key that a policy pins for later ones, nil if it pins none.
func pinnedKey(p *policy.Policy) (note.Verifier, error) {
	if p.Broker.PolicyKey == "" {
		return nil, nil
	}
	key, err := note.NewVerifier(p.Broker.PolicyKey)
	if err != nil {
		return nil, attest.Errorf(attest.CodeConfig, "reading policy_key", "", "%w", err)
	}
	return key, nil
}

// pickNewest picks, of the policy that the broker starts with and those that were brought later, the one of the highest
// version. All are the owner's word: the first is measured, a pushed one was authenticated by the store, a signed one is
// by its key. Settings are always those of the first.
func (l *Life) pickNewest(ctx context.Context) error {
	if !l.settings.Enclave {
		return nil
	}
	log := l.settings.Log
	consider := func(text []byte, from string) {
		p, err := policy.Parse(text)
		if err != nil {
			log.Errorf("the policy of %s is not taken: %v", from, err)
			return
		}
		if p.Version > l.settings.Policy.Version {
			p.Broker = l.settings.Policy.Broker
			l.settings.Policy, l.settings.From = p, from
		}
	}
	text, err := l.keys.Policy(ctx)
	if err != nil {
		return err
	}
	if text != nil {
		consider(text, "the store")
	}
	if l.settings.Signed == nil {
		return nil
	}
	key, err := pinnedKey(l.settings.Policy)
	if err != nil {
		return err
	}
	signed, err := l.settings.Signed()
	if err == nil {
		signed, err = broker.OpenSigned(signed, key)
	}
	if err != nil {
		log.Errorf("no signed policy is taken: %v", err)
		return nil
	}
	consider(signed, "key "+key.Name())
	return nil
}

// adopt puts the first policy in force.
func (l *Life) adopt(ctx context.Context) error {
	config := broker.PoliciesConfig{
		Trust:  func(t policy.Trust) (*broker.Trust, error) { return l.trust(t, l.settings.Log) },
		Keeper: l.keys, Pinned: l.settings.Enclave, Now: l.clock.Now, Metrics: l.config.Metrics, Logger: l.settings.Log,
	}
	key, err := pinnedKey(l.settings.Policy)
	if err != nil {
		return err
	}
	if key != nil {
		config.Key = key
	}
	policies, err := broker.NewPolicies(ctx, config, l.settings.Policy, l.settings.From)
	if err != nil {
		return err
	}
	l.config.Policies = policies
	l.late.now.Store(policies)
	return nil
}

// followPolicy keeps the policy up to date until ctx ends.
func (s *Serving) followPolicy(ctx context.Context) {
	policies, log := s.config.Policies, s.settings.Log
	f := broker.Follower{Now: s.settings.Hangup, Ticks: s.settings.Ticks, Reloading: s.reloading, Logger: log}
	var begin []byte
	switch {
	case s.settings.Signed != nil:
		f.Read = s.settings.Signed
		f.Replace = policies.ReplaceSigned
		begin, _ = f.Read() // which pickNewest has seen
	case s.settings.Edited != nil:
		begin = s.settings.Policy.Text()
		f.Read = s.settings.Edited
		f.Replace = func(ctx context.Context, text []byte) error {
			if bytes.Equal(text, policies.Current().Text()) {
				log.Info("the policy is as it was")
				return nil
			}
			return policies.Replace(ctx, text, "file "+s.settings.EditedName)
		}
	default:
		f.Read = func() ([]byte, error) { return nil, nil }
		f.Replace = func(context.Context, []byte) error { return nil }
	}
	f.Run(ctx, begin)
}

// followStore takes the policies that other replicas have put into the store.
func (s *Serving) followStore(ctx context.Context) {
	s.keys.Follow(ctx, func(ctx context.Context, text []byte) error {
		return s.config.Policies.Follow(ctx, text, "the store")
	})
}
