package keystore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/store"
)

// Adopt implements [broker.Keeper].
func (k *Keystore) Adopt(ctx context.Context, a broker.Adoption) (receipt broker.Receipt, err error) {
	const step = "adopting policy"
	ring, err := k.ring()
	if err != nil {
		return broker.Receipt{}, err
	}
	digest := hex.EncodeToString(a.Digest[:])
	if len(a.Text) > MaxPolicy || len(a.Text) > 0 && sha256.Sum256(a.Text) != a.Digest {
		return broker.Receipt{}, attest.Errorf(attest.CodeInternal, step, "", "a text of %d bytes that is not the policy's", len(a.Text))
	}
	var s *state
	err = k.update(ctx, func(w store.Writer) (err error) {
		if s, err = k.load(w, ring); err != nil {
			return err
		}
		if err := s.begin(w); err != nil {
			return err
		}
		if known := s.catalog.Policy; a.Pinned {
			if a.Version < known.Highest || a.Version == known.Highest && known.Digest != "" && digest != known.Digest {
				return attest.Errorf(attest.CodeConfig, step, "Give the policy a higher version.",
					"the policy has version %d, and version %d was in force already", a.Version, known.Highest)
			}
			if a.Version != known.Highest || known.Digest == "" {
				s.catalog, s.dirty = s.catalog.clone(), true
				s.catalog.Policy = policy{Highest: a.Version, Digest: digest, Kept: len(a.Text) > 0}
				if err := w.Put(stateSpace, store.Row{Key: policyKey, Value: a.Text}); err != nil {
					return err
				}
			}
		}
		n, err := s.note(a.At, a.By, "policy.adopt", "version "+strconv.FormatUint(a.Version, 10)+", SHA-256 "+digest)
		if err != nil {
			return err
		}
		if err := s.write(w, ring); err != nil {
			return err
		}
		proof, err := s.log.Prove(n.index)
		if err != nil {
			return err
		}
		signed, err := ring.signer.Checkpoint(s.head.Log)
		if err == nil {
			receipt = newReceipt(signed, n.index, n.text, proof)
		}
		return err
	})
	if err == nil {
		k.committed(s)
		k.catalog.Store(s.catalog)
	}
	return receipt, err
}

var policyKey = []byte("policy")

// MaxPolicy is the largest policy in bytes.
const MaxPolicy = 1 << 20

// Policy is the text of the policy of the highest version that was adopted, nil if none is kept.
func (k *Keystore) Policy(ctx context.Context) (text []byte, err error) {
	err = k.readLog(ctx, func(r store.Reader, s *state, _ *keys) error {
		text, err = s.policy(r)
		return err
	})
	return text, err
}

func (s *state) policy(r store.Reader) ([]byte, error) {
	if !s.catalog.Policy.Kept {
		return nil, nil
	}
	rows, err := r.Get(stateSpace, policyKey)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(rows[0]); hex.EncodeToString(sum[:]) != s.catalog.Policy.Digest {
		return nil, errForged
	}
	return rows[0], nil
}

// Vouched is the newest moment that was given to [Keystore.Vouch] of this or another replica, and is authenticated by the
// store: a lower bound of the present. Zero if there is none.
func (k *Keystore) Vouched(ctx context.Context) (at time.Time, err error) {
	err = k.readLog(ctx, func(_ store.Reader, s *state, _ *keys) error {
		at = s.head.Vouched
		return nil
	})
	return at, err
}

// Vouch remembers a moment that a signature vouches for, never the time of a clock or of an entry. It is written with the next
// entry of the log, in one transaction. An earlier one changes nothing.
func (k *Keystore) Vouch(at time.Time) {
	for {
		old := k.vouched.Load()
		if old != nil && !at.After(*old) || k.vouched.CompareAndSwap(old, &at) {
			return
		}
	}
}
