package keystore_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/store"
	"github.com/sesame-init/sesame/internal/broker/store/memory"
)

// held is a store whose updates wait while it is held, and are counted.
type held struct {
	store.Store
	hold    atomic.Pointer[chan struct{}]
	commits atomic.Int64
}

func (h *held) Update(ctx context.Context, change func(store.Writer) error) error {
	if c := h.hold.Load(); c != nil {
		<-*c
	}
	h.commits.Add(1)
	return h.Store.Update(ctx, change)
}

func TestDecisionsThatComeSeveralAtATimeShareACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const gather = 5 * time.Millisecond
		s := &held{Store: memory.New()}
		k := open(t, s, func(o *keystore.Options) { o.Gather = gather })
		put(t, k, "a", "value")
		expect := func(what string, commits int64, took time.Duration, releases func()) {
			t.Helper()
			before, start := s.commits.Load(), time.Now()
			releases()
			if n, d := s.commits.Load()-before, time.Since(start); n != commits || d != took {
				t.Errorf("%s: %d commits in %s, want %d in %s", what, n, d, commits, took)
			}
		}
		one := func(n uint64) func() { return func() { release(t, k, decision(n, "a")) } }

		expect("alone", 1, 0, one(1))
		expect("alone again", 1, 0, one(2))
		expect("while a commit is under way", 2, 0, func() {
			hold := make(chan struct{})
			s.hold.Store(&hold)
			var wg sync.WaitGroup
			wg.Go(one(3))
			synctest.Wait()
			wg.Go(one(4))
			wg.Go(one(5))
			synctest.Wait()
			s.hold.Store(nil)
			close(hold)
			wg.Wait()
		})
		expect("soon after one another", 1, gather, func() {
			var wg sync.WaitGroup
			wg.Go(one(6))
			wg.Go(func() {
				time.Sleep(gather - time.Millisecond)
				one(7)()
			})
			wg.Wait()
		})
		expect("alone after several", 1, gather, one(8))
		expect("alone after that", 1, 0, one(9))
		if n := count(t, k, "a"); n != 9 {
			t.Errorf("%d releases are counted", n)
		}
	})
}
