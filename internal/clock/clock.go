// Package clock reads a clock that nothing vouches for. An enclave's time is what its host says; what can be known is
// that it is later than certain moments: the date of its sources, and when something that it verified was issued. A
// [Bounded] clock gives the host's time, but never an earlier one than those.
//
// It cannot know that the host's clock is fast, or that it has stopped at the bound. So periods of validity and
// grace bind only an honest clock, and what must not be old is given a least version number besides.
//
// # Compatibility
//
// This package serves the rest of the module: its names may change in any release.
package clock

import (
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/sesame-init/sesame/internal/version"
)

// Bounded is a clock with a lower bound. It is safe for concurrent use.
type Bounded struct {
	host  func() time.Time
	bound atomic.Pointer[time.Time]
}

// New makes a clock that is never before bound. host is the clock below it, [time.Now] outside of tests.
func New(host func() time.Time, bound time.Time) *Bounded {
	b := &Bounded{host: host}
	b.bound.Store(&bound)
	return b
}

// Built makes a clock that is never before the date of the sources ([version.Date]). linked raises that bound: seconds since
// 1970 in decimal digits, which the linker can write into a variable of a program. "0" raises nothing, and an earlier time
// neither.
func Built(host func() time.Time, linked string) (*Bounded, error) {
	n, err := strconv.ParseInt(linked, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("time of the build: %w", err)
	}
	b := New(host, version.Date())
	b.AtLeast(time.Unix(n, 0))
	return b, nil
}

// Now is the host's time, or the bound if that is later.
func (b *Bounded) Now() time.Time {
	now, bound := b.host(), *b.bound.Load()
	if bound.After(now) {
		return bound
	}
	return now
}

// AtLeast raises the bound to t, a moment that has passed for certain: one that a signature or a measurement vouches
// behind, never what the host said. An earlier t changes nothing.
func (b *Bounded) AtLeast(t time.Time) {
	for {
		old := b.bound.Load()
		if !t.After(*old) || b.bound.CompareAndSwap(old, &t) {
			return
		}
	}
}
