package releaselog

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// MaxCheckpoint is the largest checkpoint in bytes.
const MaxCheckpoint = 8 << 10

// A Checkpoint says how large a log is and what its root is.
type Checkpoint struct {
	Origin string // name of the log, which is the name of its key
	Size   int64
	Root   tlog.Hash
}

// A Signer signs the checkpoints of one log as notes (golang.org/x/mod/sumdb/note) in the format of
// https://c2sp.org/tlog-checkpoint. It implements [note.Signer].
type Signer struct {
	key    ed25519.PrivateKey
	origin string
	id     uint32
	public string
}

// NewSigner makes the signer of the log that a store has. The seed has 32 bytes.
func NewSigner(origin string, seed []byte) (*Signer, error) {
	if len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("a seed of %d bytes", len(seed))
	}
	s := &Signer{key: ed25519.NewKeyFromSeed(seed), origin: origin}
	var err error
	if s.public, err = note.NewEd25519VerifierKey(origin, s.key.Public().(ed25519.PublicKey)); err != nil {
		return nil, err
	}
	verifier, err := note.NewVerifier(s.public)
	if err != nil {
		return nil, err
	}
	s.id = verifier.KeyHash()
	return s, nil
}

// Name implements [note.Signer].
func (s *Signer) Name() string { return s.origin }

// KeyHash implements [note.Signer].
func (s *Signer) KeyHash() uint32 { return s.id }

// Sign implements [note.Signer].
func (s *Signer) Sign(message []byte) ([]byte, error) { return ed25519.Sign(s.key, message), nil }

// Key is the log's public key, as [Open] takes it: NAME+ID+BASE64.
func (s *Signer) Key() string { return s.public }

// Checkpoint signs a head.
func (s *Signer) Checkpoint(h Head) ([]byte, error) {
	root, err := h.Root()
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf("%s\n%d\n%s\n", s.origin, h.Size, base64.StdEncoding.EncodeToString(root[:]))
	return note.Sign(&note.Note{Text: text}, s)
}

// Open verifies a signed checkpoint with a log's public key.
func Open(signed []byte, key string) (Checkpoint, error) {
	fail := func(err error) (Checkpoint, error) { return Checkpoint{}, fmt.Errorf("reading checkpoint: %w", err) }
	if len(signed) > MaxCheckpoint {
		return fail(fmt.Errorf("it has %d bytes", len(signed)))
	}
	verifier, err := note.NewVerifier(key)
	if err != nil {
		return fail(fmt.Errorf("the log's public key: %w", err))
	}
	n, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return fail(err)
	}
	lines := strings.SplitN(n.Text, "\n", 4)
	if len(lines) != 4 || lines[0] != verifier.Name() {
		return fail(errors.New("it is of another log"))
	}
	c := Checkpoint{Origin: lines[0]}
	c.Size, err = strconv.ParseInt(lines[1], 10, 64)
	if err != nil || c.Size < 0 || strconv.FormatInt(c.Size, 10) != lines[1] {
		return fail(errors.New("its size is not a number"))
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		return fail(errors.New("its root is not a hash"))
	}
	c.Root = tlog.Hash(root)
	return c, nil
}

// CheckInclusion makes sure that a checkpoint covers an entry at an index.
func (c Checkpoint) CheckInclusion(proof tlog.RecordProof, index int64, entry []byte) error {
	if index < 0 || index >= c.Size {
		return fmt.Errorf("entry %d is not in a log of %d", index, c.Size)
	}
	if err := tlog.CheckRecord(proof, c.Size, c.Root, index, tlog.RecordHash(entry)); err != nil {
		return fmt.Errorf("entry %d is not in the log: %w", index, err)
	}
	return nil
}

// CheckConsistency makes sure that c continues an older checkpoint.
func (c Checkpoint) CheckConsistency(old Checkpoint, proof tlog.TreeProof) error {
	switch {
	case old.Origin != c.Origin:
		return fmt.Errorf("the checkpoints are of two logs, %s and %s", old.Origin, c.Origin)
	case old.Size > c.Size:
		return fmt.Errorf("the log has shrunk from %d to %d entries: an older state was put back", old.Size, c.Size)
	case old.Size == c.Size && old.Root != c.Root:
		return fmt.Errorf("two different logs of %d entries are signed", c.Size)
	case old.Size == c.Size || old.Size == 0:
		return nil
	}
	if err := tlog.CheckTree(proof, c.Size, c.Root, old.Size, old.Root); err != nil {
		return fmt.Errorf("the first %d entries are no longer what they were: %w", old.Size, err)
	}
	return nil
}

// A Recomputed tree grows entry by entry, for a reader who has them all.
type Recomputed struct{ head Head }

// Add adds the next entry.
func (t *Recomputed) Add(entry []byte) error {
	a, err := NewAppender(nil, t.head)
	if err == nil {
		_, err = a.Append(entry)
	}
	if err == nil {
		t.head = a.head
	}
	return err
}

// Check makes sure that the entries are those of a checkpoint, all of them.
func (t *Recomputed) Check(c Checkpoint) error {
	root, err := t.head.Root()
	if err != nil {
		return err
	}
	if t.head.Size != c.Size || root != c.Root {
		return fmt.Errorf("the %d entries are not those that the checkpoint over %d signs", t.head.Size, c.Size)
	}
	return nil
}

// Size is the number of entries so far.
func (t *Recomputed) Size() int64 { return t.head.Size }

// Hashes takes hashes from the wire.
func Hashes(raw [][]byte) (hashes []tlog.Hash, err error) {
	for _, h := range raw {
		if len(h) != tlog.HashSize || len(hashes) > 128 {
			return nil, errors.New("the proof is malformed")
		}
		hashes = append(hashes, tlog.Hash(h))
	}
	return hashes, nil
}
