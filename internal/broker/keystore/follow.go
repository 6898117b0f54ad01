package keystore

import (
	"context"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/store"
	"github.com/sesame-init/sesame/internal/fault"
)

const (
	// lookEvery is how often the store is looked at for another policy without being told of one. Notifications make it
	// quick; that none is missed for good does not depend on them.
	lookEvery = 30 * time.Second
	// retryEvery is the pause after a failure. Notifications, which come with every commit of the others, do not end it.
	retryEvery = 5 * time.Second
)

// lag is why the newest policy is not in force.
type lag struct{ err error }

// Follow gives the newest policy of the store to take, until ctx ends: the one that is there at first, and each that
// another replica adopts later. Calls come one after the other. What fails is repeated until it succeeds or another
// policy is the newest, and [Keystore.Ready] says so meanwhile; only a policy that take refuses with
// [attest.CodeConfig], as one that it cannot read, is done with. Take may be given the policy that is in force. End it
// before Close.
func (k *Keystore) Follow(ctx context.Context, take func(ctx context.Context, text []byte) error) {
	notified := make(chan struct{}, 1)
	ended := make(chan struct{})
	fault.Go(func() {
		k.watch(ctx, notified)
		close(ended)
	})
	defer func() { <-ended }()
	for done := ""; ctx.Err() == nil; {
		err := k.catchUp(ctx, &done, take)
		if err != nil {
			k.lag.Store(&lag{err})
			wait(ctx, retryEvery, nil)
			continue
		}
		k.lag.Store(nil)
		wait(ctx, lookEvery, notified)
	}
}

// catchUp takes over the newest policy, unless it is the one whose digest is in done.
func (k *Keystore) catchUp(ctx context.Context, done *string, take func(context.Context, []byte) error) error {
	var text []byte
	var digest string
	err := k.readLog(ctx, func(r store.Reader, s *state, _ *keys) (err error) {
		text, digest = nil, s.catalog.Policy.Digest
		if digest != *done {
			text, err = s.policy(r)
		}
		return err
	})
	if err == nil && text != nil {
		err = take(ctx, text)
	}
	if err != nil && attest.CodeOf(err) != attest.CodeConfig {
		return err
	}
	*done = digest
	return nil
}

// watch says until ctx ends that another replica may have changed the store. What it says waits until it is heard, and
// is said again after each time that the store could not be watched.
func (k *Keystore) watch(ctx context.Context, notified chan<- struct{}) {
	for ctx.Err() == nil {
		_ = k.options.Store.Watch(ctx, func() {
			select {
			case notified <- struct{}{}:
			default: // one waits already
			}
		})
		wait(ctx, time.Second, nil) // the database is away
	}
}

// wait waits for so long, for ctx to end or for a notification.
func wait(ctx context.Context, long time.Duration, notified <-chan struct{}) {
	timer := time.NewTimer(long)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-notified:
	case <-timer.C:
	}
}
