package life

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store"
	"github.com/sesame-init/sesame/internal/broker/store/memory"
	"github.com/sesame-init/sesame/internal/broker/store/postgres"
	"github.com/sesame-init/sesame/internal/broker/store/sqlite"
	"github.com/sesame-init/sesame/internal/clock"
	"github.com/sesame-init/sesame/internal/privatefile"
)

// openStore opens the store that a policy names, nil if it names none.
func openStore(ctx context.Context, s policy.StoreAt, getenv func(string) string, rule privatefile.Rule) (store.Store, error) {
	switch {
	case s.SQLite != "":
		return sqlite.Open(ctx, s.SQLite, rule)
	case s.Postgres != "":
		if err := postgres.CheckFiles(s.Postgres, getenv, rule); err != nil {
			return nil, err
		}
		return postgres.Open(ctx, s.Postgres)
	}
	return nil, nil
}

// openKeystore opens the keeper of secrets and release log.
func (l *Life) openKeystore(ctx context.Context, metrics *broker.Metrics) error {
	settings, log := l.settings.Policy.Broker, l.settings.Log
	if how := postgres.Exposed(settings.Store.Postgres); settings.Store.Postgres != "" && how != "" {
		log.WithField("hint", "Write sslmode=verify-full, and sslrootcert if the server has a CA of its own.").
			Warnf("the database is reached over the network %s: anyone on the network path can read the broker's password, names and counts", how)
	}
	kept, err := openStore(ctx, settings.Store, l.settings.Getenv, l.settings.Private)
	if err != nil {
		return err
	}
	var way rootkey.Way
	if kept != nil {
		way, err = l.way(settings.RootKey)
	} else {
		if l.settings.Secrets == nil {
			return attest.Errorf(attest.CodeConfig, "finding secrets",
				"Name a store in the policy (broker.store), or a file with --secrets.", "neither is named")
		}
		kept, way = memory.New(), &rootkey.Process{}
		log.Warn("secrets, release counts and the release log are kept in memory: they end with this process")
	}
	if err == nil {
		l.keys, err = keystore.Open(ctx, keystore.Options{Store: kept, Root: way, Fixed: l.settings.Secrets, Now: l.clock.Now,
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
		return errors.Join(err, kept.Close())
	}
	l.onClose(func() {
		l.keys.Close()
		if err := kept.Close(); err != nil {
			log.Errorf("closing the store: %v", err)
		}
	})
	return nil
}

// way is how the root key is found at the start; nil if someone else brings it.
func (l *Life) way(r policy.KeyFrom) (rootkey.Way, error) {
	const step = "finding the root key"
	switch {
	case r.Sealed:
		processor, ok := l.settings.Attester.(rootkey.Processor)
		if !ok {
			return nil, attest.Errorf(attest.CodeConfig, step, "Take sealed out of broker.root_key.", "only an SGX enclave seals")
		}
		return rootkey.Sealed{Processor: processor}, nil
	case r.File != "":
		if l.settings.Enclave {
			return nil, attest.Errorf(attest.CodeConfig, step, "Write sealed: true, or let administrators unlock the broker.",
				"in an enclave a key in a file would be the host's")
		}
		// The store would only stay locked, which is for keys that someone may still bring.
		if err := l.settings.Private.Check(r.File); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, &attest.Error{Code: attest.CodeConfig, Step: step, Err: err}
		}
		return rootkey.File{Path: r.File}, nil
	}
	return nil, nil
}

// unlockInterval is how often a locked broker looks whether it was unlocked, and asks the other replicas.
const unlockInterval = 2 * time.Second

// awaitKey waits until the keystore has its root key, from operators or from another replica.
func (l *Locked) awaitKey(ctx context.Context) error {
	log := l.settings.Log
	tick := time.NewTicker(unlockInterval)
	defer tick.Stop()
	for said := false; ; said = true {
		_, err := l.keys.LogKey()
		if err == nil {
			return nil
		}
		if !said {
			log.WithField("hint", attest.HintOf(err)).Warnf("locked, and nothing is released: %v", err)
		}
		if addresses := l.settings.Policy.Broker.RootKey.Replicas; len(addresses) > 0 && l.settings.Attester != nil {
			if err := l.askReplicas(ctx, addresses); err == nil {
				log.Info("unlocked by another replica")
				return nil
			} else if !said {
				log.Warnf("no replica has handed the root key over: %v", err)
			}
		}
		select {
		case <-ctx.Done():
			return ErrStopped
		case <-tick.C:
		}
	}
}

// askReplicas gets the root key from a running broker that the policy knows as a replica, as that one's policy must know
// this one.
func (l *Locked) askReplicas(ctx context.Context, addresses []string) error {
	p := l.settings.Policy
	trust, err := l.trust(p.Trust, l.settings.Log)
	if err != nil {
		return err
	}
	defer trust.Close()
	client, err := grpcratls.New(grpcratls.Config{
		Servers: addresses, Protocol: grpcratls.SessionV1, Attester: l.settings.Attester, Verifier: trust.Verifier,
		Policy: p.Replicas(), Now: l.clock.Now, Staple: trust.Stapled,
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
	return l.keys.UnlockWith(ctx, got[broker.RootKey])
}

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
