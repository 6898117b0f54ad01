package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/clock"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/admin"
	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store"
	"github.com/sesame-init/sesame/internal/broker/store/memory"
	"github.com/sesame-init/sesame/internal/broker/store/postgres"
	"github.com/sesame-init/sesame/internal/broker/store/sqlite"
	"github.com/sesame-init/sesame/internal/fault"
	"github.com/sesame-init/sesame/internal/privatefile"
)

// unlockInterval is how often a locked broker looks whether it was unlocked, and asks the other replicas.
const unlockInterval = 2 * time.Second

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

// openStore opens the store that a policy names, nil if it names none.
func openStore(ctx context.Context, s policy.StoreAt, rule privatefile.Rule) (store.Store, error) {
	switch {
	case s.SQLite != "":
		return sqlite.Open(ctx, s.SQLite, rule)
	case s.Postgres != "":
		if err := postgres.CheckFiles(s.Postgres, os.Getenv, rule); err != nil {
			return nil, err
		}
		return postgres.Open(ctx, s.Postgres)
	}
	return nil, nil
}

// keeper opens the keeper of secrets and log. close is never nil.
func (c *command) keeper(ctx context.Context, first *begun, own attester, now func() time.Time, metrics *broker.Metrics,
	log *logrus.Logger) (keys *keystore.Keystore, close func(), err error) {
	settings := first.policy.Broker
	if how := postgres.Exposed(settings.Store.Postgres); settings.Store.Postgres != "" && how != "" {
		log.WithField("hint", "Write sslmode=verify-full, and sslrootcert if the server has a CA of its own.").
			Warnf("the database is reached over the network %s: anyone on the network path can read the broker's password, names and counts", how)
	}
	rule := c.private(log.Warn)
	kept, err := openStore(ctx, settings.Store, rule)
	if err != nil {
		return nil, func() {}, err
	}
	var way rootkey.Way
	if kept != nil {
		way, err = c.way(settings.RootKey, own, rule)
	} else {
		if first.secrets == nil {
			return nil, func() {}, attest.Errorf(attest.CodeConfig, "finding secrets",
				"Name a store in the policy (broker.store), or a file with --secrets.", "neither is named")
		}
		kept, way = memory.New(), &rootkey.Process{}
		log.Warn("secrets, release counts and the release log are kept in memory: they end with this process")
	}
	if err == nil {
		keys, err = keystore.Open(ctx, keystore.Options{Store: kept, Root: way, Fixed: first.secrets, Now: now,
			RolledBack: func(err error) {
				metrics.RolledBack(err != nil)
				if err == nil {
					log.Warn("the release log is the one that it was, or its rollback was accepted: releases go on")
					return
				}
				log.WithField("hint", attest.HintOf(err)).Errorf("ROLLED BACK, and nothing is released or signed: %v", err)
			}})
	}
	if err != nil {
		return nil, func() {}, errors.Join(err, kept.Close())
	}
	return keys, func() {
		keys.Close()
		if err := kept.Close(); err != nil {
			log.Errorf("closing the store: %v", err)
		}
	}, nil
}

// way is how the root key is found at the start; nil if someone else brings it.
func (c *command) way(r policy.KeyFrom, own attester, rule privatefile.Rule) (rootkey.Way, error) {
	const step = "finding the root key"
	switch {
	case r.Sealed:
		processor, ok := own.(rootkey.Processor)
		if !ok {
			return nil, attest.Errorf(attest.CodeConfig, step, "Take sealed out of broker.root_key.", "only an SGX enclave seals")
		}
		return rootkey.Sealed{Processor: processor}, nil
	case r.File != "":
		if c.place.enclave {
			return nil, attest.Errorf(attest.CodeConfig, step, "Write sealed: true, or let administrators unlock the broker.",
				"in an enclave a key in a file would be the host's")
		}
		// The store would only stay locked, which is for keys that someone may still bring.
		if err := rule.Check(r.File); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, &attest.Error{Code: attest.CodeConfig, Step: step, Err: err}
		}
		return rootkey.File{Path: r.File}, nil
	}
	return nil, nil
}

// unlocked waits until the keystore has its root key, from operators or from another replica.
func (c *command) unlocked(ctx context.Context, keys *keystore.Keystore, first *begun, own attester, clock *timekeeper,
	log *logrus.Logger) error {
	tick := time.NewTicker(unlockInterval)
	defer tick.Stop()
	for said := false; ; said = true {
		_, err := keys.LogKey()
		if err == nil {
			return nil
		}
		if !said {
			log.WithField("hint", attest.HintOf(err)).Warnf("locked, and nothing is released: %v", err)
		}
		if addresses := first.policy.Broker.RootKey.Replicas; len(addresses) > 0 && own != nil {
			if err := c.askReplicas(ctx, keys, addresses, first.policy, own, clock, log); err == nil {
				log.Info("unlocked by another replica")
				return nil
			} else if !said {
				log.Warnf("no replica has handed the root key over: %v", err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// askReplicas gets the root key from a running broker that the policy knows as a replica, as that one's policy must know
// this one.
func (c *command) askReplicas(ctx context.Context, keys *keystore.Keystore, addresses []string, p *policy.Policy, own attester,
	clock *timekeeper, log *logrus.Logger) error {
	trust, err := c.trust(p.Trust, clock, log)
	if err != nil {
		return err
	}
	defer trust.Close()
	client, err := grpcratls.New(grpcratls.Config{
		Servers: addresses, Protocol: grpcratls.SessionV1, Attester: own, Verifier: trust.Verifier, Policy: p.Replicas(), Now: clock.Now,
		Staple: trust.Stapled,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	got, err := client.Fetch(ctx, []string{broker.RootKey})
	if err != nil {
		return err
	}
	return keys.UnlockWith(ctx, got[broker.RootKey])
}

// administer serves the admin channel until ctx ends. It returns a function that waits for its end.
func (c *command) administer(ctx context.Context, settings policy.Admin, keys *keystore.Keystore, late *latePolicies,
	identity broker.Identity, prove session.BrokerConfig, now func() time.Time, log *logrus.Logger) (wait func(), err error) {
	if settings.Listen == "" {
		return func() {}, nil
	}
	roots, err := settings.RootCertificates()
	if err != nil {
		return nil, attest.Errorf(attest.CodeConfig, "reading broker.admin.roots", "", "%w", err)
	}
	options := admin.Options{Keystore: keys, Identity: identity, Session: prove, Roots: roots, Now: now, Logger: log}
	if c.place.enclave { // elsewhere the policy is a file
		options.Policies = late
	}
	server, err := admin.New(options)
	if err != nil {
		return nil, err
	}
	listener, err := listenOn(ctx, settings.Listen)
	if err != nil {
		return nil, err
	}
	log.Infof("administrators are served on %s", listener.Addr())
	ended := make(chan struct{})
	fault.Go(func() {
		if err := server.Serve(ctx, listener); err != nil {
			log.Errorf("serving administrators: %v", err)
		}
		close(ended)
	})
	return func() { <-ended }, nil
}

// newest picks, of the policy that the broker starts with and those that were brought later, the one of the highest
// version. All are the owner's word: the first is measured, a pushed one was authenticated by the store, a signed one is
// by its key. Settings are always those of the first.
func (c *command) newest(ctx context.Context, first *begun, keys *keystore.Keystore, log *logrus.Logger) error {
	if !c.place.enclave {
		return nil
	}
	consider := func(text []byte, from string) {
		p, err := policy.Parse(text)
		if err != nil {
			log.Errorf("the policy of %s is not taken: %v", from, err)
			return
		}
		if p.Version > first.policy.Version {
			p.Broker = first.policy.Broker
			first.policy, first.from = p, from
		}
	}
	text, err := keys.Policy(ctx)
	if err != nil {
		return err
	}
	if text != nil {
		consider(text, "the store")
	}
	if c.signedPolicy != "" {
		key, err := policyKey(first.policy)
		if err != nil {
			return err
		}
		signed, err := readPolicyFile(c.signedPolicy)
		if err == nil {
			signed, err = broker.OpenSigned(signed, key)
		}
		if err != nil {
			log.Errorf("no signed policy is taken: %v", err)
			return nil
		}
		consider(signed, "key "+key.Name())
	}
	return nil
}

// fixedSecrets reads secret_config.json: of the option, or of the measured folder. It is nil if there is none.
func (c *command) fixedSecrets(rule privatefile.Rule) (map[string]attest.Secret, error) {
	file := c.secretsFile
	if c.place.enclave {
		file = filepath.Join(c.folder, broker.SecretsFile)
	}
	if file == "" {
		return nil, nil
	}
	content, err := rule.Read(file, maxSecrets)
	if c.place.enclave && errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &attest.Error{Code: attest.CodeConfig, Step: "reading secrets", Err: err}
	}
	return broker.ParseSecrets(content)
}

const maxSecrets = 16 << 20 // bytes of the file

// timekeeper is the broker's clock. The date of the sources bounds it, and what the vendor's own root vouches for, which the
// keystore remembers beside the log.
type timekeeper struct {
	*clock.Bounded
	keys *keystore.Keystore // nil until it is open
}

// vouched takes the issue date of verified collateral.
func (t *timekeeper) vouched(at time.Time) {
	t.AtLeast(at)
	if t.keys != nil {
		t.keys.Vouch(at)
	}
}

// recall takes what the keystore remembers.
func (t *timekeeper) recall(ctx context.Context) error {
	at, err := t.keys.Vouched(ctx)
	if err != nil {
		return fmt.Errorf("reading the store: %w", err)
	}
	t.AtLeast(at)
	return nil
}

// witnessed waits until every witness has taken the log, and says what it waits for. False: ctx has ended before.
func witnessed(ctx context.Context, keys *keystore.Keystore, log *logrus.Logger) bool {
	tick := time.NewTicker(witnessLook)
	defer tick.Stop()
	said := ""
	for {
		err := keys.Disputed()
		if err == nil {
			return ctx.Err() == nil
		}
		if text := err.Error(); text != said {
			said = text
			log.WithField("hint", attest.HintOf(err)).Warnf("nothing is released: %v", err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

const witnessLook = 50 * time.Millisecond

// witness pushes the log's head to the witnesses that the policy names, until ctx ends. It returns a function that
// waits for its end.
func witness(ctx context.Context, w policy.Witnesses, keys *keystore.Keystore, log *logrus.Logger) (wait func(), err error) {
	key, err := keys.LogKey()
	if err != nil {
		return nil, err
	}
	keys.Expect(w.At...)
	client := &http.Client{Timeout: 30 * time.Second}
	var all []releaselog.Witness
	for _, at := range w.At {
		one, err := releaselog.NewWitness(at, key, client)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	var running sync.WaitGroup
	for i, one := range all {
		log := log.WithField("witness", w.At[i])
		running.Go(fault.Guard(func() {
			good := true
			releaselog.Run(ctx, keys.Prover(), one, time.Duration(w.Interval), func(err error) {
				keys.Witnessed(w.At[i], err)
				switch {
				case err != nil:
					log.WithField("hint", attest.HintOf(err)).Errorf("%v", err)
				case !good:
					log.Info("the witness has the log again")
				}
				good = err == nil
			})
		}))
	}
	return running.Wait, nil
}
