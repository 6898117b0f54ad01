package releaselog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/sesame-init/sesame/internal/broker/store"
)

// Spaces of the store that the log is in. Keys are numbers of 8 bytes, big-endian.
const (
	entrySpace store.Space = "entry" // by index of the entry
	hashSpace  store.Space = "hash"  // by tlog's index of stored hashes
)

// A Head is the state of a tree: how many entries, and the roots of its complete subtrees, the largest first. To
// append needs no more. A head that is kept in a place to which others can write must be authenticated.
type Head struct {
	Size  int64       `json:"size"`
	Peaks []tlog.Hash `json:"peaks"`
}

// Root is the root hash of the tree.
func (h Head) Root() (tlog.Hash, error) {
	if err := h.check(); err != nil {
		return tlog.Hash{}, err
	}
	if h.Size == 0 {
		return tlog.TreeHash(0, nil)
	}
	root := h.Peaks[len(h.Peaks)-1]
	for i := len(h.Peaks) - 2; i >= 0; i-- {
		root = tlog.NodeHash(h.Peaks[i], root)
	}
	return root, nil
}

func (h Head) check() error {
	if h.Size < 0 || len(h.Peaks) != bits.OnesCount64(uint64(h.Size)) {
		return fmt.Errorf("a tree of %d entries does not have %d peaks", h.Size, len(h.Peaks))
	}
	return nil
}

// peakIndexes are the places of the peaks among the stored hashes.
func (h Head) peakIndexes() (indexes []int64) {
	done := int64(0)
	for level := 62; level >= 0; level-- {
		if h.Size&(1<<level) != 0 {
			indexes = append(indexes, tlog.StoredHashIndex(level, done>>level))
			done += 1 << level
		}
	}
	return indexes
}

// An Appender adds entries to a log in one transaction. Its promise rests on the head that it was made with: it reads
// no hash from the store to append.
type Appender struct {
	w      store.Writer
	head   Head
	hashes map[int64]tlog.Hash // those known without the store
	rows   []store.Row         // of hashes
	texts  []store.Row
}

// NewAppender continues the log at head.
func NewAppender(w store.Writer, head Head) (*Appender, error) {
	if err := head.check(); err != nil {
		return nil, err
	}
	a := &Appender{w: w, head: head, hashes: map[int64]tlog.Hash{}}
	for i, index := range head.peakIndexes() {
		a.hashes[index] = head.Peaks[i]
	}
	return a, nil
}

// Append adds an entry and returns its index.
func (a *Appender) Append(entry []byte) (index int64, err error) {
	added, err := tlog.StoredHashesForRecordHash(a.head.Size, tlog.RecordHash(entry), tlog.HashReaderFunc(a.known))
	if err != nil {
		return 0, err
	}
	first := tlog.StoredHashIndex(0, a.head.Size)
	for i, h := range added {
		a.hashes[first+int64(i)] = h
		a.rows = append(a.rows, store.Row{Key: key(first + int64(i)), Value: append([]byte(nil), h[:]...)})
	}
	a.texts = append(a.texts, store.Row{Key: key(a.head.Size), Value: entry})
	index = a.head.Size
	a.head.Size++
	a.head.Peaks = nil
	for _, i := range a.head.peakIndexes() {
		a.head.Peaks = append(a.head.Peaks, a.hashes[i])
	}
	return index, nil
}

// Write writes what was appended, and returns the new head.
func (a *Appender) Write() (Head, error) {
	if err := a.w.Put(entrySpace, a.texts...); err != nil {
		return Head{}, err
	}
	if err := a.w.Put(hashSpace, a.rows...); err != nil {
		return Head{}, err
	}
	a.texts, a.rows = nil, nil
	return a.head, nil
}

// Prove is the inclusion proof of an entry in the tree as it is now. Hashes that it needs of the store are checked
// against the head.
func (a *Appender) Prove(index int64) (tlog.RecordProof, error) {
	return prove(a.w, a.head, index, a.hashes)
}

func (a *Appender) known(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		h, ok := a.hashes[index]
		if !ok {
			return nil, fmt.Errorf("hash %d is not among the peaks", index)
		}
		out[i] = h
	}
	return out, nil
}

// Prove is the inclusion proof of an entry in the tree of head.
func Prove(r store.Reader, head Head, index int64) (tlog.RecordProof, error) {
	return prove(r, head, index, nil)
}

func prove(r store.Reader, head Head, index int64, known map[int64]tlog.Hash) (tlog.RecordProof, error) {
	if index < 0 || index >= head.Size {
		return nil, fmt.Errorf("there is no entry %d in a log of %d", index, head.Size)
	}
	root, err := head.Root()
	if err != nil {
		return nil, err
	}
	read := reader(r, known)
	proof, err := tlog.ProveRecord(head.Size, index, read)
	if err != nil {
		return nil, err
	}
	leaf, err := read.ReadHashes([]int64{tlog.StoredHashIndex(0, index)})
	if err != nil {
		return nil, err
	}
	if err := tlog.CheckRecord(proof, head.Size, root, index, leaf[0]); err != nil {
		return nil, errDamaged
	}
	return proof, nil
}

// ProveConsistency shows that the tree of head continues the one of size old.
func ProveConsistency(r store.Reader, head Head, old int64) (tlog.TreeProof, error) {
	if old < 1 || old > head.Size {
		return nil, fmt.Errorf("no proof from %d to %d entries", old, head.Size)
	}
	root, err := head.Root()
	if err != nil {
		return nil, err
	}
	read := reader(r, nil)
	proof, err := tlog.ProveTree(head.Size, old, read)
	if err != nil {
		return nil, err
	}
	before, err := tlog.TreeHash(old, read)
	if err != nil {
		return nil, err
	}
	if err := tlog.CheckTree(proof, head.Size, root, old, before); err != nil {
		return nil, errDamaged
	}
	return proof, nil
}

// Continues reports whether the first old entries of the tree of head are those of the tree with this root. A store whose
// hashes do not belong to head continues nothing.
func Continues(r store.Reader, head Head, old int64, root tlog.Hash) (bool, error) {
	now, err := head.Root()
	if err != nil || old > head.Size || old < 0 {
		return false, err
	}
	if old == 0 || old == head.Size {
		return old == 0 || root == now, nil
	}
	proof, err := tlog.ProveTree(head.Size, old, reader(r, nil))
	if errors.Is(err, errDamaged) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return tlog.CheckTree(proof, head.Size, now, old, root) == nil, nil
}

var errDamaged = errors.New("the log in the store is not the one whose head is signed: its hashes were changed")

// Entries reads at most limit entries from an index on.
func Entries(r store.Reader, from int64, limit int) (entries [][]byte, err error) {
	rows, err := r.Scan(entrySpace, key(from), nil, limit)
	for i, row := range rows {
		if int64(binary.BigEndian.Uint64(row.Key)) != from+int64(i) {
			return nil, errDamaged
		}
		entries = append(entries, row.Value)
	}
	return entries, err
}

func key(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

func reader(r store.Reader, known map[int64]tlog.Hash) tlog.HashReaderFunc {
	return func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		var missing [][]byte
		var places []int
		for i, index := range indexes {
			if h, ok := known[index]; ok {
				out[i] = h
				continue
			}
			missing, places = append(missing, key(index)), append(places, i)
		}
		if len(missing) == 0 {
			return out, nil
		}
		values, err := r.Get(hashSpace, missing...)
		if err != nil {
			return nil, err
		}
		for i, v := range values {
			if len(v) != tlog.HashSize {
				return nil, errDamaged
			}
			out[places[i]] = tlog.Hash(v)
		}
		return out, nil
	}
}
