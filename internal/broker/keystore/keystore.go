// Package keystore keeps the broker's secrets, its release log, its release counts and the record of its policies in a
// store (package store). It is the durable [broker.Keeper].
//
// What it promises:
//
//   - a secret is handed out only after the entry about it, the log's new head and the secret's count were committed,
//     together, in the transaction that read the secret. If any of that fails, nothing is handed out;
//   - the same decision, named by its binder, is recorded and counted once, however often it is repeated;
//   - a value in the store is encrypted under a key of its own version, which is encrypted under the root key; both are
//     bound to store, name, version and kind, so that no value can stand in another's place;
//   - names, versions, counts, policies and the log's head are authenticated under the root key, with one number over
//     all of them. Who can write to the store can only put back an older state of all of it together, or make it
//     unusable. The first is noticed by a keystore that is open, which then releases and signs nothing until an
//     administrator accepts it, and over a restart by a witness of the log (package releaselog).
//
// Names of secrets, kinds, times, counts and the log's entries are in the store in plain text.
//
// A keystore without its root key is locked: it answers nothing but how to unlock it.
package keystore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store"
	"github.com/sesame-init/sesame/internal/fault"
	"github.com/sesame-init/sesame/internal/retry"
)

// Options of a [Keystore].
type Options struct {
	Store store.Store // stays the caller's, who closes it after the keystore
	// Root is how the root key is found at the start, and protected if the store is new. Nil: the keystore starts
	// locked, and a new store gets its root key from [Keystore.Unlock].
	Root rootkey.Way
	// Fixed are secrets of a file beside those of the store: read-only, and first if both have a name. The keystore
	// takes ownership.
	Fixed map[string]attest.Secret
	// Refusals bounds how many refusals of unknown peers are recorded. Zero fields take the defaults.
	Refusals Budget
	// Ticks say when to write the entry that counts the refusals which were not recorded. Default: every minute.
	Ticks <-chan time.Time
	Now   func() time.Time // default time.Now
	// Patience is for how long a decision waits for a store that is unavailable. Default 10 s.
	Patience time.Duration
	// Gather is for how long a decision waits for others, to share a commit with them, if decisions come several at a
	// time. One that comes alone does not wait. Default 5 ms; negative: none waits.
	Gather time.Duration
	// RolledBack, if it is set, is told once that the log in the store is no longer the one that it was, or does not
	// continue it, and with nil once it does again. While that lasts, nothing is released and nothing signed.
	RolledBack func(error)
}

// Budget bounds a rate: Burst at once, and one more every Every.
type Budget struct {
	Burst int           // default 1000
	Every time.Duration // default 10 s, which at 2 KiB an entry is 6 GiB in a year of attack
}

// Keystore is a [broker.Keeper]. Make it with [Open]; it is safe for concurrent use.
type Keystore struct {
	options Options
	id      string // of the store
	stop    context.CancelFunc
	ended   sync.WaitGroup
	queue   chan *job
	done    <-chan struct{}

	mu      sync.RWMutex
	keys    *keys                   // nil while it is locked
	locked  error                   // why
	catalog atomic.Pointer[catalog] // as last seen

	sharing sync.Mutex
	shares  rootkey.Shares // that were brought so far

	watermark watermark
	refusals  bucket
	dropped   dropCounter
	vouched   atomic.Pointer[time.Time] // newest moment of [Keystore.Vouch]; nil before the first
	lag       atomic.Pointer[lag]       // of [Keystore.Follow]; nil where it has none
}

var _ broker.Keeper = (*Keystore)(nil)

const (
	metaSpace  store.Space = "meta"
	stateSpace store.Space = "state"
	format                 = 1
)

var metaKey = []byte("store")

// meta is what names a store. Its id is in everything that is encrypted or authenticated.
type meta struct {
	Format  int       `json:"format"`
	ID      string    `json:"id"` // 16 random bytes, hexadecimal
	Created time.Time `json:"created"`
}

const stepOpen = "opening keystore"

// Open opens the keystore in a store, and makes it if the store is empty. It succeeds with a locked keystore if
// the root key cannot be found: [Keystore.Ready] says why. Close it before the store.
func Open(ctx context.Context, o Options) (*Keystore, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Patience == 0 {
		o.Patience = 10 * time.Second
	}
	if o.Gather == 0 {
		o.Gather = 5 * time.Millisecond
	}
	if o.Refusals.Burst == 0 {
		o.Refusals.Burst = 1000
	}
	if o.Refusals.Every == 0 {
		o.Refusals.Every = 10 * time.Second
	}
	background, stop := context.WithCancel(context.Background())
	k := &Keystore{options: o, stop: stop, done: background.Done(), queue: make(chan *job),
		refusals: bucket{budget: o.Refusals, tokens: float64(o.Refusals.Burst)}}
	k.locked = attest.Errorf(attest.CodeInternal, stepOpen, "Unlock it: sesame rootkey unlock.", "the root key is not known")
	if err := k.identify(ctx); err != nil {
		stop()
		return nil, err
	}
	if o.Root != nil {
		if err := k.unlockBy(ctx, o.Root, true); err != nil {
			k.locked = err
		}
	}
	k.ended.Go(fault.Guard(func() { k.commit(background) }))
	k.ended.Go(fault.Guard(func() {
		ticks := o.Ticks
		if ticks == nil {
			ticker := time.NewTicker(toldEvery)
			defer ticker.Stop()
			ticks = ticker.C
		}
		k.tellAll(background, ticks)
	}))
	return k, nil
}

// Close ends what the keystore does in the background and overwrites its keys.
func (k *Keystore) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), closing)
	k.tell(ctx)
	cancel()
	k.stop()
	k.ended.Wait()
	k.sharing.Lock()
	k.shares.Forget()
	k.sharing.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys != nil {
		k.keys.wipe()
		k.keys = nil
	}
	for _, s := range k.options.Fixed {
		s.Wipe()
	}
	k.locked = attest.Errorf(attest.CodeInternal, stepOpen, "", "the keystore is closed")
}

// StoreID is the name of the store, which its log's origin has, too.
func (k *Keystore) StoreID() string { return k.id }

// identify reads the store's id, or gives it one.
func (k *Keystore) identify(ctx context.Context) error {
	id := make([]byte, 16)
	if _, err := io.ReadFull(rand.Reader, id); err != nil {
		return attest.Errorf(attest.CodeInternal, stepOpen, "", "%w", err)
	}
	fresh := meta{Format: format, ID: hex.EncodeToString(id), Created: k.options.Now().UTC().Truncate(time.Second)}
	var found meta
	err := k.options.Store.Update(ctx, func(w store.Writer) error {
		rows, err := w.Get(metaSpace, metaKey)
		if err != nil {
			return err
		}
		if rows[0] == nil {
			found = fresh
			text, err := json.Marshal(fresh)
			if err != nil {
				return err
			}
			return w.Put(metaSpace, store.Row{Key: metaKey, Value: text})
		}
		found = meta{}
		return json.Unmarshal(rows[0], &found)
	})
	if err != nil {
		return attest.Errorf(attest.CodeInternal, stepOpen, "See whether the store can be reached and written.", "%w", err)
	}
	if found.Format != format || len(found.ID) != hex.EncodedLen(len(id)) {
		return attest.Errorf(attest.CodeConfig, stepOpen, "Start the version of the broker that made it.",
			"the store has format %d, this broker knows %d", found.Format, format)
	}
	k.id = found.ID
	return nil
}

// Ready implements [broker.Keeper]. A keystore that follows other replicas is not ready, either, while it has failed to
// take over the newest policy ([Keystore.Follow]).
func (k *Keystore) Ready(ctx context.Context) error {
	ring, err := k.ring()
	if err != nil {
		return fmt.Errorf("locked: %w", err)
	}
	err = k.view(ctx, func(r store.Reader) error {
		_, err := k.load(r, ring)
		return err
	})
	if behind := k.lag.Load(); err == nil && behind != nil {
		return fmt.Errorf("the newest policy of the store could not be taken over, which is tried again: %w", behind.err)
	}
	return err
}

// ring is the keys, or why there are none.
func (k *Keystore) ring() (*keys, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.keys == nil {
		return nil, k.locked
	}
	return k.keys, nil
}

// LogKey is the public key of the release log.
func (k *Keystore) LogKey() (string, error) {
	ring, err := k.ring()
	if err != nil {
		return "", err
	}
	return ring.signer.Key(), nil
}

const stepStore = "reading store"

// view reads the store, with patience.
func (k *Keystore) view(ctx context.Context, read func(store.Reader) error) error {
	return k.patiently(ctx, func() error { return k.options.Store.View(ctx, read) })
}

// update changes the store, with patience: change may run again after it was committed without our knowing.
func (k *Keystore) update(ctx context.Context, change func(store.Writer) error) error {
	return k.patiently(ctx, func() error { return k.options.Store.Update(ctx, change) })
}

func (k *Keystore) patiently(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, k.options.Patience)
	defer cancel()
	pauses := retry.Pauses{First: 20 * time.Millisecond, Longest: time.Second}
	for {
		err := f()
		var ours *attest.Error
		switch {
		case err == nil || errors.As(err, &ours):
			return err
		case !errors.Is(err, store.ErrTemporary):
			return attest.Errorf(attest.CodeInternal, stepStore, "Look at the store's disk or database.", "%w", err)
		}
		if retry.Wait(ctx, pauses.Next()) != nil {
			return attest.Errorf(attest.CodeInternal, stepStore, "See whether the database runs.", "%w", err)
		}
	}
}

// Checkpoint is the log's head, signed.
func (k *Keystore) Checkpoint(ctx context.Context) (signed []byte, err error) {
	return k.checkpoint(ctx, k.load)
}

func (k *Keystore) checkpoint(ctx context.Context, load loader) (signed []byte, err error) {
	err = k.readLogBy(ctx, load, func(_ store.Reader, s *state, ring *keys) (err error) {
		signed, err = ring.signer.Checkpoint(s.head.Log)
		return err
	})
	return signed, err
}

// Entries reads at most limit entries of the log, from an index on, and a checkpoint that covers them.
func (k *Keystore) Entries(ctx context.Context, from int64, limit int) (entries [][]byte, checkpoint []byte, err error) {
	err = k.readLog(ctx, func(r store.Reader, s *state, ring *keys) (err error) {
		if entries, err = releaselog.Entries(r, from, limit); err != nil {
			return err
		}
		checkpoint, err = ring.signer.Checkpoint(s.head.Log)
		return err
	})
	return entries, checkpoint, err
}

// Prove reads an entry and proves that a checkpoint covers it.
func (k *Keystore) Prove(ctx context.Context, index int64) (receipt broker.Receipt, err error) {
	err = k.readLog(ctx, func(r store.Reader, s *state, ring *keys) error {
		receipt, err = s.receipt(r, ring, index)
		return err
	})
	return receipt, err
}

// ProveConsistency proves that a checkpoint continues the log as it was with old entries.
func (k *Keystore) ProveConsistency(ctx context.Context, old int64) (proof [][]byte, checkpoint []byte, err error) {
	return k.proveConsistency(ctx, old, k.load)
}

func (k *Keystore) proveConsistency(ctx context.Context, old int64, load loader) (proof [][]byte, checkpoint []byte, err error) {
	err = k.readLogBy(ctx, load, func(r store.Reader, s *state, ring *keys) error {
		hashes, err := releaselog.ProveConsistency(r, s.head.Log, old)
		if err != nil {
			return attest.Errorf(attest.CodeConfig, "proving consistency", "", "%w", err)
		}
		proof = nil
		for _, h := range hashes {
			proof = append(proof, append([]byte(nil), h[:]...))
		}
		checkpoint, err = ring.signer.Checkpoint(s.head.Log)
		return err
	})
	return proof, checkpoint, err
}

func (k *Keystore) readLog(ctx context.Context, f func(store.Reader, *state, *keys) error) error {
	return k.readLogBy(ctx, k.load, f)
}

// loader reads the state at the beginning of a transaction.
type loader func(store.Reader, *keys) (*state, error)

func (k *Keystore) readLogBy(ctx context.Context, load loader, f func(store.Reader, *state, *keys) error) error {
	ring, err := k.ring()
	if err != nil {
		return err
	}
	return k.view(ctx, func(r store.Reader) error {
		s, err := load(r, ring)
		if err != nil {
			return err
		}
		return f(r, s, ring)
	})
}
