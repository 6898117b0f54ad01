package session

import (
	"context"
	"runtime"

	"golang.org/x/mod/sumdb/tlog"
)

// Tree and Root are for tests.
var (
	Tree = tree
	Root = (*Proof).root
)

// Quote is the place of a session in the quote that covers it.
func Quote(q *Quoter, ctx context.Context, leaf tlog.Hash) (Proof, error) {
	made, err := q.quote(ctx, leaf)
	return made.proof, err
}

// WaitFor returns when n sessions wait for a quote.
func WaitFor(q *Quoter, n int) {
	for {
		q.mu.Lock()
		waiting := len(q.waiting)
		q.mu.Unlock()
		if waiting == n {
			return
		}
		runtime.Gosched()
	}
}
