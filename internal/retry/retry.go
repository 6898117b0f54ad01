// Package retry holds the pauses between tries.
package retry

import (
	"context"
	"math/rand/v2"
	"time"
)

// Pauses are the pauses between the tries of one thing: each is twice as long as the one before, and shortened at random by up
// to half, so that many who fail together do not come back together.
type Pauses struct {
	First   time.Duration // before it is shortened
	Longest time.Duration // before it is shortened

	next time.Duration // 0: First
}

// Next is the pause after another failure.
func (p *Pauses) Next() time.Duration {
	pause := min(max(p.First, p.next), p.Longest)
	p.next = min(2*pause, p.Longest)
	return pause/2 + rand.N(pause/2+1)
}

// Reset says that a try has succeeded: the next pause is the first one again.
func (p *Pauses) Reset() { p.next = 0 }

// Heed is how much of a pause that a server asks for is kept: at most a quarter of the time that is left.
func Heed(ctx context.Context, asked time.Duration) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return min(asked, max(0, time.Until(deadline)/4))
	}
	return asked
}

// Wait returns the context's error if it ends, or is certain to end, before the pause is over.
func Wait(ctx context.Context, pause time.Duration) error {
	if ctx.Err() != nil { // before a timer that may be as quick
		return ctx.Err()
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < pause {
		return context.DeadlineExceeded
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
