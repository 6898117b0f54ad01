package keystore

import (
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"sync"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
	"github.com/sesame-init/sesame/internal/broker/store"
)

// A mark is the newest state of the log that this process has seen committed. Epoch counts the rollbacks that
// administrators have accepted: a state of a higher epoch need not continue one of a lower epoch.
type mark struct {
	epoch uint64
	size  int64
	root  tlog.Hash
}

func (m mark) String() string {
	return fmt.Sprintf("%d:%s", m.size, base64.StdEncoding.EncodeToString(m.root[:]))
}

func markOf(h *head) (mark, error) {
	root, err := h.Log.Root()
	return mark{epoch: h.Epoch, size: h.Log.Size, root: root}, err
}

// A watermark remembers the newest mark, and what speaks against the log as it is in the store.
type watermark struct {
	mu       sync.Mutex
	newest   *mark            // nil: none was seen yet
	shrunk   error            // what the last comparison with newest has found
	disputes map[string]error // of witnesses, by name
}

func (m *watermark) read() *mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.newest
}

// raise remembers a committed state, if it is newer.
func (m *watermark) raise(next mark) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.newest == nil || next.epoch > m.newest.epoch || next.epoch == m.newest.epoch && next.size > m.newest.size {
		m.newest = &next
	}
}

// note keeps the outcome of a comparison and reports whether it is another one than before.
func (m *watermark) note(found error) (changed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	changed = (found == nil) != (m.shrunk == nil)
	m.shrunk = found
	return changed
}

// Disputed is why witnesses keep the keystore from releasing, nil if none does.
func (k *Keystore) Disputed() error { return k.watermark.dispute() }

// dispute is what a witness has against the log, or nil.
func (m *watermark) dispute() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(m.disputes)) {
		return m.disputes[name]
	}
	return nil
}

const stepRollback = "comparing release log"

// compare makes sure that a state that was read continues the one that was known before the reading began.
func (k *Keystore) compare(r store.Reader, before *mark, h *head) error {
	now, err := markOf(h)
	if err != nil {
		return err
	}
	if before != nil && now.epoch <= before.epoch && now != *before {
		why := ""
		switch {
		case now.epoch < before.epoch || now.size < before.size:
			why = fmt.Sprintf("the log in the store has %d entries, and it had %d: an older state was put back", now.size, before.size)
		case now.size == before.size:
			why = fmt.Sprintf("the log in the store has other entries than before, %d of them", now.size)
		default:
			continues, err := releaselog.Continues(r, h.Log, before.size, before.root)
			if err != nil {
				return err
			}
			if !continues {
				why = fmt.Sprintf("the log in the store, of %d entries, does not continue the one of %d that it was", now.size, before.size)
			}
		}
		if why != "" {
			err := attest.Errorf(attest.CodeInternal, stepRollback,
				"Put the newest state of the store back. If this one was restored on purpose: sesame log accept-rollback "+now.String(), "%s", why)
			k.alarm(err)
			return err
		}
	}
	k.alarm(nil)
	k.watermark.raise(now)
	return nil
}

// alarm tells the owner of the keystore, once, that the log is not the one that it was, or that it is again.
func (k *Keystore) alarm(err error) {
	if k.watermark.note(err) && k.options.RolledBack != nil {
		k.options.RolledBack(err)
	}
}

// committed remembers what a transaction has committed.
func (k *Keystore) committed(s *state) {
	if now, err := markOf(&s.head); err == nil {
		k.watermark.raise(now)
	}
}

// Expect makes the keystore wait for the word of witnesses: it releases nothing and signs for no one else until each has
// taken the log once ([Keystore.Witnessed]). Call it before the keystore is used.
func (k *Keystore) Expect(witnesses ...string) {
	m := &k.watermark
	m.mu.Lock()
	defer m.mu.Unlock()
	m.disputes = map[string]error{}
	for _, name := range witnesses {
		m.disputes[name] = attest.Errorf(attest.CodeUnreachable, stepRollback,
			"See whether the witness can be reached. Without its word no one knows that the store is the newest.",
			"witness %s has not taken the log since the start", name)
	}
}

// Witnessed says what a witness has answered. With [releaselog.ErrRolledBack] nothing is released until it has taken the
// log; other errors change nothing.
func (k *Keystore) Witnessed(name string, err error) {
	m := &k.watermark
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err == nil:
		delete(m.disputes, name)
	case releaselog.RolledBack(err):
		if m.disputes == nil {
			m.disputes = map[string]error{}
		}
		m.disputes[name] = attest.Errorf(attest.CodeInternal, stepRollback,
			"Put the newest state of the store back. If this one was restored on purpose, the witness's owner sets aside what it "+
				"knows of this log, as docs/releaselog.md says.", "witness %s: %w", name, err)
	}
}

// Prover signs for witnesses alone, also while their word is awaited.
func (k *Keystore) Prover() releaselog.Prover { return prover{k} }

type prover struct{ k *Keystore }

// Checkpoint implements [releaselog.Prover].
func (p prover) Checkpoint(ctx context.Context) ([]byte, error) {
	return p.k.checkpoint(ctx, p.k.loadUndisputed)
}

// ProveConsistency implements [releaselog.Prover].
func (p prover) ProveConsistency(ctx context.Context, old int64) ([][]byte, []byte, error) {
	return p.k.proveConsistency(ctx, old, p.k.loadUndisputed)
}

// AcceptRollback makes the state of the store the one that the log continues from, although this process or another
// replica has seen a newer one. accepted is what the administrator has accepted: the text SIZE:ROOT of exactly this
// state, as the refusal names it, or a checkpoint of this log that the state continues. The acceptance is the first new
// entry. What the lost entries have counted and changed is lost with them.
func (k *Keystore) AcceptRollback(ctx context.Context, by, accepted string) error {
	const step = "accepting rollback"
	ring, err := k.ring()
	if err != nil {
		return err
	}
	known := k.watermark.read()
	var s *state
	err = k.update(ctx, func(w store.Writer) (err error) {
		if s, err = k.read(w, ring); err != nil {
			return err
		}
		now, err := markOf(&s.head)
		if err != nil {
			return err
		}
		if known == nil || now.epoch > known.epoch || now == *known {
			return attest.Errorf(attest.CodeConfig, step, "", "the log is not rolled back: it has %d entries", now.size)
		}
		if accepted != now.String() {
			c, err := releaselog.Open([]byte(accepted), ring.signer.Key())
			if err != nil {
				return attest.Errorf(attest.CodeConfig, step, "Give a checkpoint of this log, or "+now.String()+".",
					"what is accepted is neither the state of the store nor a checkpoint of its log: %w", err)
			}
			continues, err := releaselog.Continues(w, s.head.Log, c.Size, c.Root)
			if err != nil {
				return err
			}
			if !continues {
				return attest.Errorf(attest.CodeConfig, step, "Give a checkpoint of the restored log, or "+now.String()+".",
					"the log in the store, of %d entries, does not continue the checkpoint of %d", now.size, c.Size)
			}
		}
		if now.epoch == known.epoch && now.size > known.size {
			continues, err := releaselog.Continues(w, s.head.Log, known.size, known.root)
			if err != nil {
				return err
			}
			if continues {
				return attest.Errorf(attest.CodeConfig, step, "", "the log is not rolled back: it has %d entries", now.size)
			}
		}
		if err := s.begin(w); err != nil {
			return err
		}
		s.head.Counts = maps.Clone(s.head.Counts)
		s.head.Epoch = max(now.epoch, known.epoch) + 1
		if _, err := s.note(k.options.Now(), by, "log.accept-rollback", fmt.Sprintf("from %s to %s", known, now)); err != nil {
			return err
		}
		return s.write(w, ring)
	})
	if err != nil {
		return err
	}
	k.catalog.Store(s.catalog)
	k.committed(s)
	k.alarm(nil)
	return nil
}
