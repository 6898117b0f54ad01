package keystore

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store"
)

// keys are what the root key gives: each for one purpose and one store.
type keys struct {
	root   attest.Secret
	wrap   cipher.AEAD // data keys
	mac    []byte      // of the state
	signer *releaselog.Signer
}

func newKeys(storeID string, root attest.Secret) (*keys, error) {
	derive := func(purpose string) ([]byte, error) {
		return hkdf.Key(sha256.New, root.Expose(), []byte(storeID), "sesame keystore v1: "+purpose, rootkey.Size)
	}
	wrap, err1 := derive("data keys")
	mac, err2 := derive("state")
	seed, err3 := derive("log")
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	defer clear(wrap)
	defer clear(seed)
	k := &keys{root: root, mac: mac}
	var err error
	if k.wrap, err = newAEAD(wrap); err != nil {
		return nil, err
	}
	k.signer, err = releaselog.NewSigner("sesame-broker/"+storeID, seed)
	return k, err
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func (k *keys) wipe() {
	k.root.Wipe()
	clear(k.mac)
}

// An address is the place that a value belongs to.
type address struct{ store, name, version, kind string }

// bound is what ciphertexts are bound to: the parts with their lengths.
func (a address) bound(what string) []byte {
	return rootkey.Bind("sesame secret v1", what, a.store, a.name, a.version, a.kind)
}

// envelope is a value at rest.
type envelope struct {
	Key   []byte `json:"key"`   // the data key, wrapped: nonce and AES-256-GCM
	Value []byte `json:"value"` // under the data key: nonce and AES-256-GCM
}

// seal encrypts a value under a fresh key.
func (k *keys) seal(a address, value attest.Secret) ([]byte, error) {
	key := make([]byte, rootkey.Size)
	defer clear(key)
	if _, err := io.ReadFull(rand.Reader, key); err != nil {
		return nil, err
	}
	data, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	return json.Marshal(envelope{
		Key:   k.wrap.Seal(nil, nil, key, a.bound("key")),
		Value: data.Seal(nil, nil, value.Expose(), a.bound("value")),
	})
}

func (k *keys) open(a address, text []byte) (attest.Secret, error) {
	const step = "decrypting secret"
	var e envelope
	if err := json.Unmarshal(text, &e); err != nil {
		return attest.Secret{}, attest.Errorf(attest.CodeSecret, step, "", "secret %q is malformed in the store", a.name)
	}
	key, err := k.wrap.Open(nil, nil, e.Key, a.bound("key"))
	defer clear(key)
	var value []byte
	if err == nil {
		var data cipher.AEAD
		if data, err = newAEAD(key); err == nil {
			value, err = data.Open(nil, nil, e.Value, a.bound("value"))
		}
	}
	if err != nil {
		return attest.Secret{}, attest.Errorf(attest.CodeSecret, step,
			"The store was changed by something else than the broker: restore a backup, and ask who can write to it.",
			"secret %q, version %s does not decrypt", a.name, a.version)
	}
	return attest.NewSecret(value), nil
}

// authenticate puts a MAC before a record of the state.
func (k *keys) authenticate(record string, text []byte) []byte {
	m := hmac.New(sha256.New, k.mac)
	m.Write(rootkey.Bind(record, string(text)))
	return append(m.Sum(nil), text...)
}

var errForged = attest.Errorf(attest.CodeInternal, stepStore,
	"It was changed by something else than the broker: restore a backup, and ask who can write to it.",
	"the store's state is not authentic")

func (k *keys) authentic(record string, row []byte) ([]byte, error) {
	if len(row) < sha256.Size || !hmac.Equal(k.authenticate(record, row[sha256.Size:])[:sha256.Size], row[:sha256.Size]) {
		return nil, errForged
	}
	return row[sha256.Size:], nil
}

// Unlock finds the root key by a way that an operator has brought. A store that has none yet gets one. If the
// keystore has a way of its own ([Options]) that did not work, it gets a slot, so that the next start needs no one.
func (k *Keystore) Unlock(ctx context.Context, way rootkey.Way) error {
	if err := k.unlockBy(ctx, way, true); err != nil {
		return err
	}
	return k.resume(ctx)
}

// resume adds the slot that lets this broker start by itself.
func (k *Keystore) resume(ctx context.Context) error {
	own := k.options.Root
	if own == nil {
		return nil
	}
	slots, err := k.Slots(ctx)
	if err != nil {
		return err
	}
	for _, s := range slots {
		if s.Kind != own.Kind() {
			continue
		}
		if root, err := rootkey.Unwrap(ctx, k.id, s, own); err == nil {
			root.Wipe()
			return nil
		}
	}
	_, err = k.Protect(ctx, "the broker itself", own)
	return err
}

// UnlockShare takes one share and, if there are enough, unlocks. It says how many are still missing.
func (k *Keystore) UnlockShare(ctx context.Context, share attest.Secret) (missing int, err error) {
	slots, err := k.Slots(ctx)
	if err != nil {
		return 0, err
	}
	k.sharing.Lock()
	defer k.sharing.Unlock()
	missing, err = k.shares.Add(share, slots)
	if err != nil || missing > 0 {
		return missing, err
	}
	defer k.shares.Forget()
	if err := k.unlockBy(ctx, &k.shares, false); err != nil {
		return 0, err
	}
	return 0, k.resume(ctx)
}

// Slots lists the ways in which the root key is protected.
func (k *Keystore) Slots(ctx context.Context) (slots []rootkey.Slot, err error) {
	err = k.view(ctx, func(r store.Reader) error {
		slots, err = rootkey.Slots(r)
		return err
	})
	return slots, err
}

// unlockBy finds the root key in one of the slots, or makes it if the store has no slot and create is set.
func (k *Keystore) unlockBy(ctx context.Context, way rootkey.Way, create bool) error {
	slots, err := k.Slots(ctx)
	if err != nil {
		return err
	}
	if len(slots) == 0 && create {
		return k.create(ctx, way)
	}
	err = attest.Errorf(attest.CodeDenied, stepOpen,
		"Unlock it with shares, the passphrase or the key file that it has (sesame rootkey list), or let a running replica hand over the root key.",
		"the store has no slot of kind %s", way.Kind())
	for _, s := range slots {
		if s.Kind != way.Kind() {
			continue
		}
		root, failed := rootkey.Unwrap(ctx, k.id, s, way)
		if failed != nil {
			err = &attest.Error{Code: attest.CodeOf(failed), Step: stepOpen, Err: failed}
			continue
		}
		return k.unlockWith(ctx, root)
	}
	return err
}

// create makes a root key and the first state. Of two replicas that try at once one succeeds, and the other opens what
// that has made.
func (k *Keystore) create(ctx context.Context, way rootkey.Way) error {
	root, err := rootkey.New()
	if err != nil {
		return err
	}
	slot, err := rootkey.Wrap(ctx, k.id, root, way, k.options.Now())
	if err != nil {
		root.Wipe()
		return err
	}
	ring, err := newKeys(k.id, root)
	if err != nil {
		root.Wipe()
		return attest.Errorf(attest.CodeInternal, stepOpen, "", "%w", err)
	}
	lost := false
	err = k.update(ctx, func(w store.Writer) error {
		slots, err := rootkey.Slots(w)
		if err != nil {
			return err
		}
		if lost = len(slots) > 0 && slots[0].ID != slot.ID; lost || len(slots) > 0 {
			return nil
		}
		rows, err := w.Scan(stateSpace, nil, nil, 1)
		if err != nil {
			return err
		}
		if len(rows) > 0 {
			return attest.Errorf(attest.CodeInternal, stepOpen, "Restore a backup.", "the store has secrets, but no slot for their root key")
		}
		if err := rootkey.Add(w, slot); err != nil {
			return err
		}
		return (&state{catalog: newCatalog(), dirty: true}).write(w, ring)
	})
	switch {
	case err != nil:
		ring.wipe()
		return err
	case lost:
		ring.wipe()
		return k.unlockBy(ctx, way, false)
	}
	k.unlocked(ring)
	return nil
}

// UnlockWith takes the root key itself, as a running replica hands it over ([broker.RootKey]), and the ownership of it.
func (k *Keystore) UnlockWith(ctx context.Context, root attest.Secret) error {
	if root.Len() != rootkey.Size {
		root.Wipe()
		return attest.Errorf(attest.CodeSecret, stepOpen, "", "a root key does not have %d bytes", rootkey.Size)
	}
	if err := k.unlockWith(ctx, root); err != nil {
		return err
	}
	return k.resume(ctx)
}

func (k *Keystore) unlockWith(ctx context.Context, root attest.Secret) error {
	ring, err := newKeys(k.id, root)
	if err != nil {
		root.Wipe()
		return attest.Errorf(attest.CodeInternal, stepOpen, "", "%w", err)
	}
	err = k.view(ctx, func(r store.Reader) error {
		_, err := k.load(r, ring)
		return err
	})
	if err != nil {
		ring.wipe()
		return err
	}
	k.unlocked(ring)
	return nil
}

func (k *Keystore) unlocked(ring *keys) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys != nil {
		ring.wipe() // the keystore was open, with the same key: the state was authentic under both
		return
	}
	k.keys, k.locked = ring, nil
}

// Protect adds a slot for the root key, and records it.
func (k *Keystore) Protect(ctx context.Context, by string, way rootkey.Way) (rootkey.Slot, error) {
	ring, err := k.ring()
	if err != nil {
		return rootkey.Slot{}, err
	}
	slot, err := rootkey.Wrap(ctx, k.id, ring.root, way, k.options.Now())
	if err != nil {
		return rootkey.Slot{}, err
	}
	err = k.administer(ctx, by, "rootkey.protect", fmt.Sprintf("slot %s, %s", slot.ID, slot.Kind), func(w store.Writer, _ *state) error {
		return rootkey.Add(w, slot)
	})
	return slot, err
}

// Unprotect removes a slot, and records it.
func (k *Keystore) Unprotect(ctx context.Context, by, slot string) error {
	return k.administer(ctx, by, "rootkey.remove", "slot "+slot, func(w store.Writer, _ *state) error {
		return rootkey.Remove(w, slot)
	})
}
