package session

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/internal/fault"
)

// quoteTimeout bounds the making of one quote and the fetch of its collateral.
const quoteTimeout = 15 * time.Second

// A Quoter makes the broker's evidence for sessions, one quote for all that arrive within a window, or while the
// previous quote is being made. It is safe for concurrent use. A panic of the attester's is one of each session that the
// quote was for.
type Quoter struct {
	options QuoterOptions

	mu      sync.Mutex
	waiting []*ticket
	running bool
}

// QuoterOptions configure a [Quoter].
type QuoterOptions struct {
	Attester attest.Attester
	// Collateral finds the collateral for the quoter's own evidence, to be stapled to it. Nil, or an error that it
	// returns, leaves the client to find its own.
	Collateral func(ctx context.Context, own attest.Evidence) (*dcap.Collateral, error)
	Window     time.Duration // to wait for more sessions before quoting; may be 0
	Size       int           // most sessions that one quote covers; default and limit MaxSessions
}

// ticket is one session that waits for its quote.
type ticket struct {
	leaf tlog.Hash
	done chan struct{}
	made quoteResult
}

// quoteResult is the outcome for the tickets of one quote.
type quoteResult struct {
	evidence   attest.Evidence
	proof      Proof
	collateral *dcap.Collateral
	err        error
}

// NewQuoter returns a quoter.
func NewQuoter(o QuoterOptions) *Quoter {
	if o.Size <= 0 || o.Size > MaxSessions {
		o.Size = MaxSessions
	}
	return &Quoter{options: o}
}

// quote waits for evidence that covers leaf.
func (q *Quoter) quote(ctx context.Context, leaf tlog.Hash) (quoteResult, error) {
	t := &ticket{leaf: leaf, done: make(chan struct{})}
	q.mu.Lock()
	q.waiting = append(q.waiting, t)
	if !q.running {
		q.running = true
		go q.run()
	}
	q.mu.Unlock()
	select {
	case <-t.done:
		return t.made, fault.Raise(t.made.err)
	case <-ctx.Done():
		return quoteResult{}, ctx.Err()
	}
}

// run makes quotes until no session waits.
func (q *Quoter) run() {
	if q.options.Window > 0 {
		<-time.After(q.options.Window)
	}
	for {
		q.mu.Lock()
		n := min(len(q.waiting), q.options.Size)
		batch := slices.Clone(q.waiting[:n])
		q.waiting = slices.Delete(q.waiting, 0, n)
		q.running = n > 0
		q.mu.Unlock()
		if n == 0 {
			return
		}
		err := fault.Try(func() error { q.make(batch); return nil })
		for _, t := range batch {
			if err != nil {
				t.made.err = err
			}
			close(t.done)
		}
	}
}

// make quotes for a batch.
func (q *Quoter) make(batch []*ticket) {
	ctx, cancel := context.WithTimeout(context.Background(), quoteTimeout)
	defer cancel()
	leaves := make([]tlog.Hash, len(batch))
	for i, t := range batch {
		leaves[i] = t.leaf
	}
	root, proofs, err := tree(leaves)
	var evidence attest.Evidence
	if err == nil {
		evidence, err = q.options.Attester.Evidence(ctx, ReportData(Broker, uint32(len(batch)), root))
	}
	var collateral *dcap.Collateral
	if err == nil && q.options.Collateral != nil {
		if found, err := q.options.Collateral(ctx, evidence); err == nil {
			collateral = found
		}
	}
	for i, t := range batch {
		t.made = quoteResult{evidence: evidence, collateral: collateral, err: err}
		if err == nil {
			t.made.proof = proofs[i]
		}
	}
}

// tree is the Merkle tree of RFC 6962 over leaf hashes.
func tree(leaves []tlog.Hash) (root tlog.Hash, proofs []Proof, err error) {
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, at := range indexes {
			if at < 0 || at >= int64(len(stored)) {
				return nil, fmt.Errorf("no hash %d", at)
			}
			out[i] = stored[at]
		}
		return out, nil
	})
	for i, leaf := range leaves {
		hashes, err := tlog.StoredHashesForRecordHash(int64(i), leaf, reader)
		if err != nil {
			return root, nil, err
		}
		stored = append(stored, hashes...)
	}
	size := int64(len(leaves))
	if root, err = tlog.TreeHash(size, reader); err != nil {
		return root, nil, err
	}
	for i := range leaves {
		path, err := tlog.ProveRecord(size, int64(i), reader)
		if err != nil {
			return root, nil, err
		}
		proofs = append(proofs, Proof{Size: uint32(size), Index: uint32(i), Path: path})
	}
	return root, proofs, nil
}
