package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store"
)

// commits is a store that counts what was committed.
type commits struct {
	store.Store
	made atomic.Int64
}

// Update implements [store.Store].
func (c *commits) Update(ctx context.Context, change func(store.Writer) error) error {
	err := c.Store.Update(ctx, change)
	if err == nil {
		c.made.Add(1)
	}
	return err
}

func (c *commits) write(dir string) error {
	return os.WriteFile(filepath.Join(dir, "commits"), fmt.Append(nil, c.made.Load()), 0o600)
}

// readCommits reads what a server has written at its end.
func readCommits(dir string) (int64, error) {
	text, err := os.ReadFile(filepath.Join(dir, "commits"))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(text), 10, 64)
}

// Sizes as the broker has them in this measurement: of an entry, of the state's head with its peaks, and of a proof in a
// log of 2000 entries.
const (
	entrySize = 758
	headSize  = 450
	proofSize = 11
	peaks     = 6
)

// recorder does the cryptography that package keystore does for recorded releases of a stored secret, with constant
// bytes of the same sizes, and nothing of the rest (encoding, deciding, storing). For each release:
//
//   - AES-256-GCM opens the data key, then, with a fresh key schedule, the value;
//   - SHA-256 of the entry, and of one node of the tree (a tree of n entries has n-1);
//   - SHA-256 over the peaks to the root, and over the inclusion proof, which is checked before it goes out.
//
// For each commit, of which the broker has made one for so many releases:
//
//   - HMAC-SHA-256 over the state's head, to check the old one and to authenticate the new one;
//   - SHA-256 over the peaks to the root that is signed, and the Ed25519 signature of the checkpoint.
type recorder struct {
	wrap                     cipher.AEAD
	signer                   ed25519.PrivateKey
	wrapped, sealed          []byte
	boundKey, boundValue     []byte
	entry, head, mac, signed []byte
	commits                  share
}

// share does something for one of so many releases, as evenly as it goes.
type share struct {
	of float64 // releases

	mu   sync.Mutex
	debt float64
}

// due says whether this release is one of those.
func (s *share) due() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.debt += 1 / s.of
	if s.debt < 1 {
		return false
	}
	s.debt--
	return true
}

func newRecorder(commitEvery float64) (*recorder, error) {
	key := make([]byte, rootkey.Size)
	wrap, err := aead(key)
	if err != nil {
		return nil, err
	}
	_, signer, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	id := string(make([]byte, 32)) // of the store, and of the version
	r := &recorder{
		wrap: wrap, signer: signer, mac: key, commits: share{of: commitEvery},
		boundKey:   rootkey.Bind("sesame secret v1", "key", id, secretName, id, "image-key"),
		boundValue: rootkey.Bind("sesame secret v1", "value", id, secretName, id, "image-key"),
		entry:      make([]byte, entrySize), head: make([]byte, headSize),
		signed: make([]byte, 100), // a checkpoint's origin, size and root
	}
	r.wrapped = wrap.Seal(nil, nil, key, r.boundKey)
	r.sealed = wrap.Seal(nil, nil, secret, r.boundValue)
	return r, nil
}

func aead(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// release does what a release takes, and what a commit takes if one is due.
func (r *recorder) release() error {
	key, err := r.wrap.Open(nil, nil, r.wrapped, r.boundKey)
	if err != nil {
		return err
	}
	data, err := aead(key)
	if err != nil {
		return err
	}
	if _, err := data.Open(nil, nil, r.sealed, r.boundValue); err != nil {
		return err
	}
	node := tlog.RecordHash(r.entry)
	for range 1 + (peaks - 1) + proofSize {
		node = tlog.NodeHash(node, node)
	}
	if !r.commits.due() {
		return nil
	}
	for range peaks - 1 {
		node = tlog.NodeHash(node, node)
	}
	var sums [2][]byte
	for i := range sums {
		m := hmac.New(sha256.New, r.mac)
		m.Write(r.head)
		sums[i] = m.Sum(nil)
	}
	if !hmac.Equal(sums[0], sums[1]) {
		return errors.New("the state is not authentic")
	}
	ed25519.Sign(r.signer, r.signed)
	return nil
}
