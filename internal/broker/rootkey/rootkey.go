// Package rootkey protects the key that everything in a broker's store hangs on. The root key is 32 random bytes that
// exist only in the broker's memory; the store has it wrapped, in slots, once for each [Way] by which the broker or
// its operators can unwrap it:
//
//   - [Sealed]: a key that the processor derives for this very enclave (measurement, debug attribute) and this very
//     machine. The broker opens its store by itself after a restart, but not after a move, nor in another version;
//   - [Shares]: any k of n shares that operators hold (Shamir's scheme, verifiable);
//   - [Passphrase]: what an operator knows, through argon2id;
//   - [File]: a key file of mode 0600, for a broker outside an enclave.
//
// A running replica can also hand the root key to another one; that takes no slot (package keystore).
//
// A slot that an attacker adds to the store is harmless: to make one that opens takes the key of its way. One that he
// removes is lost, so operators keep shares or a passphrase beside the seal.
package rootkey

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/store"
)

// Size of the root key and of the keys that wrap it, in bytes.
const Size = 32

// Bounds.
const (
	MaxSlots  = 64
	maxParams = 8 << 10
)

const space store.Space = "slot"

const (
	stepUnwrap = "opening root key"
	stepWrap   = "protecting root key"
)

// A Way makes the key that wraps a root key, and makes it again from what it said about it.
type Way interface {
	// Kind names the way: "sealed", "shares", "passphrase", "file".
	Kind() string
	// New makes a fresh key and the public parameters from which Derive makes it again.
	New(ctx context.Context) (params []byte, key attest.Secret, err error)
	// Derive makes the key of parameters, which may be an attacker's.
	Derive(ctx context.Context, params []byte) (attest.Secret, error)
}

// A Slot is a wrapped root key.
type Slot struct {
	ID      string          `json:"id"` // 8 random bytes, hexadecimal
	Kind    string          `json:"kind"`
	Created time.Time       `json:"created"`
	Params  json.RawMessage `json:"params"`
	Wrapped []byte          `json:"wrapped"` // nonce and AES-256-GCM
}

// New makes a root key.
func New() (attest.Secret, error) {
	b := make([]byte, Size)
	if _, err := io.ReadFull(rand.Reader, b); err != nil {
		return attest.Secret{}, attest.Errorf(attest.CodeInternal, "making root key", "", "%w", err)
	}
	return attest.NewSecret(b), nil
}

// Wrap makes a slot for a root key of the store with this id.
func Wrap(ctx context.Context, storeID string, root attest.Secret, way Way, now time.Time) (Slot, error) {
	params, key, err := way.New(ctx)
	if err != nil {
		return Slot{}, &attest.Error{Code: attest.CodeOf(err), Step: stepWrap, Err: err}
	}
	defer key.Wipe()
	id := make([]byte, 8)
	if _, err := io.ReadFull(rand.Reader, id); err != nil {
		return Slot{}, attest.Errorf(attest.CodeInternal, stepWrap, "", "%w", err)
	}
	s := Slot{ID: hex.EncodeToString(id), Kind: way.Kind(), Created: now.UTC().Truncate(time.Second), Params: params}
	sealer, err := aead(key)
	if err != nil {
		return Slot{}, attest.Errorf(attest.CodeInternal, stepWrap, "", "%w", err)
	}
	s.Wrapped = sealer.Seal(nil, nil, root.Expose(), s.bound(storeID))
	return s, nil
}

// Unwrap opens a slot by its way. The error's code is [attest.CodeDenied] if the way's key is not the slot's.
func Unwrap(ctx context.Context, storeID string, s Slot, way Way) (attest.Secret, error) {
	if s.Kind != way.Kind() || len(s.Params) > maxParams {
		return attest.Secret{}, attest.Errorf(attest.CodeDenied, stepUnwrap, "", "slot %s is of kind %.20q", s.ID, s.Kind)
	}
	key, err := way.Derive(ctx, s.Params)
	if err != nil {
		return attest.Secret{}, &attest.Error{Code: attest.CodeOf(err), Step: stepUnwrap, Err: err}
	}
	defer key.Wipe()
	opener, err := aead(key)
	if err != nil {
		return attest.Secret{}, attest.Errorf(attest.CodeInternal, stepUnwrap, "", "%w", err)
	}
	root, err := opener.Open(nil, nil, s.Wrapped, s.bound(storeID))
	if err != nil || len(root) != Size {
		return attest.Secret{}, attest.Errorf(attest.CodeDenied, stepUnwrap, hints[s.Kind], "slot %s (%s) does not open", s.ID, s.Kind)
	}
	return attest.NewSecret(root), nil
}

var hints = map[string]string{
	"sealed":     "The store was sealed on another machine or by another version of the broker: unlock it with shares or the passphrase, or let a running replica hand over the root key.",
	"passphrase": "It is another passphrase.",
	"file":       "It is another key file.",
}

func aead(key attest.Secret) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key.Expose())
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// bound is the additional data of a slot's ciphertext: every part with its length, so that it differs between slots.
func (s *Slot) bound(storeID string) []byte {
	return Bind("sesame root key slot v1", storeID, s.ID, s.Kind, string(s.Params))
}

// Bind encodes parts such that different parts never encode alike: each has its length before it, in 4 bytes.
func Bind(parts ...string) []byte {
	var out []byte
	for _, p := range parts {
		n := len(p)
		out = append(out, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
		out = append(out, p...)
	}
	return out
}

// derive makes a key of [Size] bytes for one purpose from another key.
func derive(key []byte, purpose string) (attest.Secret, error) {
	out, err := hkdf.Key(sha256.New, key, nil, purpose, Size)
	if err != nil {
		return attest.Secret{}, err
	}
	return attest.NewSecret(out), nil
}

// Slots lists the slots of a store.
func Slots(r store.Reader) (slots []Slot, err error) {
	rows, err := r.Scan(space, nil, nil, MaxSlots+1)
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		var s Slot
		if err := json.Unmarshal(row.Value, &s); err != nil || s.ID != string(row.Key) {
			return nil, attest.Errorf(attest.CodeInternal, "reading root key's slots", "The store is damaged: restore a backup.",
				"slot %.20q is malformed", row.Key)
		}
		slots = append(slots, s)
	}
	return slots, nil
}

// Add writes a slot.
func Add(w store.Writer, s Slot) error {
	slots, err := Slots(w)
	if err != nil {
		return err
	}
	if len(slots) >= MaxSlots {
		return attest.Errorf(attest.CodeConfig, stepWrap, "Remove slots that no one needs (sesame rootkey remove).",
			"there are %d slots already", len(slots))
	}
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encoding slot: %w", err)
	}
	return w.Put(space, store.Row{Key: []byte(s.ID), Value: text})
}

// Remove removes a slot. The last one stays, since without any the store is lost at the broker's next start.
func Remove(w store.Writer, id string) error {
	slots, err := Slots(w)
	if err != nil {
		return err
	}
	for _, s := range slots {
		if s.ID != id {
			continue
		}
		if len(slots) == 1 {
			return attest.Errorf(attest.CodeConfig, "removing slot", "Add another one first.", "%s is the last one", id)
		}
		return w.Delete(space, []byte(id))
	}
	return attest.Errorf(attest.CodeConfig, "removing slot", "See sesame rootkey list.", "there is no slot %.20q", id)
}
