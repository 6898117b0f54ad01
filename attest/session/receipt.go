package session

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
)

// A Receipt places what the broker decided in its release log.
type Receipt struct {
	Index      uint64   // of the entry
	Entry      []byte   // as it is hashed: a JSON object, whose member "binder" names the session in hexadecimal
	Checkpoint []byte   // signed tree head: a note with origin, size and root, a line each (c2sp.org/tlog-checkpoint)
	Proof      [][]byte // hashes of 32 bytes from the entry to the root
}

// Bounds of a receipt in bytes and hashes.
const (
	maxEntry      = 256 << 10
	maxCheckpoint = 16 << 10
	maxProof      = 64
)

// Check makes sure that the entry is about the session of this binder and that the tree which the log has signed
// includes it. The error's code is [attest.CodeEvidence].
func (r *Receipt) Check(log note.Verifier, binder [32]byte) error {
	if err := r.check(log, binder); err != nil {
		return attest.Errorf(attest.CodeEvidence, "checking receipt",
			"Compare log_key with what the broker prints at its start; else its log was tampered with.", "%w", err)
	}
	return nil
}

func (r *Receipt) check(log note.Verifier, binder [32]byte) error {
	if r == nil {
		return errors.New("the broker has sent none, so its release log may not know of this release")
	}
	var entry struct {
		Binder string `json:"binder"`
	}
	if err := json.Unmarshal(r.Entry, &entry); err != nil || entry.Binder != hex.EncodeToString(binder[:]) {
		return errors.New("the entry is not about this session")
	}
	signed, err := note.Open(r.Checkpoint, note.VerifierList(log))
	if err != nil {
		return fmt.Errorf("the checkpoint is not signed by %s: %w", log.Name(), err)
	}
	size, root, err := parseCheckpoint(signed.Text)
	if err != nil {
		return err
	}
	proof := make(tlog.RecordProof, len(r.Proof))
	for i, h := range r.Proof {
		if len(h) != tlog.HashSize {
			return errors.New("a hash of the proof is malformed")
		}
		proof[i] = tlog.Hash(h)
	}
	if r.Index >= uint64(size) {
		return fmt.Errorf("entry %d is not in a tree of %d", r.Index, size)
	}
	if err := tlog.CheckRecord(proof, size, root, int64(r.Index), tlog.RecordHash(r.Entry)); err != nil {
		return fmt.Errorf("entry %d is not in the tree: %w", r.Index, err)
	}
	return nil
}

// parseCheckpoint reads origin, size and root, and ignores further lines.
func parseCheckpoint(text string) (size int64, root tlog.Hash, err error) {
	lines := strings.SplitN(text, "\n", 4)
	if len(lines) < 4 || lines[0] == "" {
		return 0, root, errors.New("the checkpoint does not have three lines")
	}
	size, err = strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size <= 0 || strconv.FormatInt(size, 10) != lines[1] {
		return 0, root, errors.New("the checkpoint has no size")
	}
	hash, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(hash) != tlog.HashSize {
		return 0, root, errors.New("the checkpoint has no root")
	}
	return size, tlog.Hash(hash), nil
}

func encodeReceipt(r *Receipt) *sessionpb.Receipt {
	if r == nil {
		return nil
	}
	return &sessionpb.Receipt{Index: r.Index, Entry: r.Entry, Checkpoint: r.Checkpoint, Proof: r.Proof}
}

// decodeReceipt bounds a receipt from the wire.
func decodeReceipt(r *sessionpb.Receipt) (*Receipt, error) {
	if r == nil {
		return nil, nil
	}
	if len(r.GetEntry()) > maxEntry || len(r.GetCheckpoint()) > maxCheckpoint || len(r.GetProof()) > maxProof {
		return nil, errors.New("the receipt is too large")
	}
	return &Receipt{Index: r.GetIndex(), Entry: r.GetEntry(), Checkpoint: r.GetCheckpoint(), Proof: r.GetProof()}, nil
}
