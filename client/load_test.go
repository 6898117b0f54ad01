package client_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/client"
)

// fakeTime is a clock that only calls move.
type fakeTime struct {
	mu  sync.Mutex
	now time.Time
}

func (f *fakeTime) Now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *fakeTime) pass(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = f.now.Add(d)
}

func TestBenchMeasuresEachRequestAfterTheWarmup(t *testing.T) {
	clock, calls, seen := &fakeTime{}, 0, 0
	r, err := client.ClosedLoop{
		Clients: 1, Loops: 100, Warmup: 5, Now: clock.Now,
		Call: func(context.Context, int) error {
			calls++
			if calls <= 5 {
				clock.pass(time.Hour) // a cold server
			} else {
				clock.pass(time.Duration(calls-5) * time.Millisecond)
			}
			return nil
		},
		Done: func(q client.Query) {
			if q.Latency != time.Duration(q.Loop+1)*time.Millisecond || q.Err != nil {
				t.Errorf("loop %d took %v, error %v", q.Loop, q.Latency, q.Err)
			}
			seen++
		},
	}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if calls != 105 || seen != 100 || r.Latencies.Count() != 100 || r.Failed() != 0 {
		t.Errorf("%d calls, %d seen, %d counted, %d failed", calls, seen, r.Latencies.Count(), r.Failed())
	}
	if r.Elapsed != 5050*time.Millisecond {
		t.Errorf("elapsed %v, not 5.05 s", r.Elapsed)
	}
	if got := r.Throughput(); got < 19.80 || got > 19.81 {
		t.Errorf("throughput is %v/s, not 100 in 5.05 s", got)
	}
	for _, test := range []struct {
		name      string
		got, want time.Duration
	}{
		{"mean", r.Latencies.Mean(), 50500 * time.Microsecond},
		{"p50", r.Latencies.Percentile(50), 50 * time.Millisecond},
		{"p99", r.Latencies.Percentile(99), 99 * time.Millisecond},
		{"max", r.Latencies.Max(), 100 * time.Millisecond},
	} {
		if (test.got - test.want).Abs() > test.want/500 {
			t.Errorf("%s is %v, not %v", test.name, test.got, test.want)
		}
	}
}

func TestBenchCountsFailuresByKindAndGoesOn(t *testing.T) {
	var mu sync.Mutex
	calls := map[int]int{}
	r, err := client.ClosedLoop{
		Clients: 3, Loops: 4, Now: (&fakeTime{}).Now,
		Call: func(_ context.Context, c int) error {
			mu.Lock()
			defer mu.Unlock()
			calls[c]++
			switch {
			case c == 1:
				return status.Error(codes.Unavailable, "gone")
			case calls[c] == 2:
				return status.Error(codes.DeadlineExceeded, "slow")
			}
			return nil
		},
	}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]int{"Unavailable": 4, "DeadlineExceeded": 2}; !maps.Equal(r.Errors, want) {
		t.Errorf("errors are %v, not %v", r.Errors, want)
	}
	if r.Latencies.Count() != 6 || r.Failed() != 6 {
		t.Errorf("%d succeeded and %d failed, not 6 and 6", r.Latencies.Count(), r.Failed())
	}
}

func TestBenchSendsFromAllClientsAtOnce(t *testing.T) {
	const clients = 4
	var together sync.WaitGroup
	together.Add(clients)
	_, err := client.ClosedLoop{Clients: clients, Loops: 1, Now: time.Now, Call: func(context.Context, int) error {
		together.Done()
		together.Wait() // for the others; a client that came later would wait for ever
		return nil
	}}.Run(t.Context())
	if err != nil {
		t.Error(err)
	}
}

func TestBenchEndsWhenTheWarmupFails(t *testing.T) {
	gone := errors.New("gone")
	_, err := client.ClosedLoop{Clients: 2, Loops: 1, Warmup: 1, Now: time.Now,
		Call: func(context.Context, int) error { return gone }}.Run(t.Context())
	if !errors.Is(err, gone) {
		t.Errorf("error is %v, not %v", err, gone)
	}
}

func TestBenchEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	_, err := client.ClosedLoop{Clients: 1, Loops: 1 << 40, Now: time.Now, Call: func(context.Context, int) error {
		cancel()
		return nil
	}}.Run(ctx)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, not %v", err, context.Canceled)
	}
}

func TestBenchWantsClientsAndLoops(t *testing.T) {
	for _, b := range []client.ClosedLoop{{Clients: 0, Loops: 1}, {Clients: 1, Loops: 0}, {Clients: 1, Loops: 1, Warmup: -1}} {
		if _, err := b.Run(t.Context()); err == nil {
			t.Errorf("%d clients, %d loops, %d rounds of warm-up were taken", b.Clients, b.Loops, b.Warmup)
		}
	}
}

func TestOpenLoopCountsFromWhenARequestWasDue(t *testing.T) {
	clock := &fakeTime{}
	calls := 0
	var starts []time.Duration
	start := clock.Now()
	r, err := client.OpenLoop{
		Rate: 10, Duration: time.Second, InFlight: 1, Warmup: 2, Now: clock.Now,
		Wait: func(_ context.Context, until time.Time) error {
			clock.pass(until.Sub(clock.Now()))
			return nil
		},
		Call: func(context.Context, int) error {
			calls++
			return nil
		},
		Done: func(q client.Query) {
			starts = append(starts, q.Start.Sub(start))
		},
	}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if calls+r.Errors["NotSent"] != 12 || len(starts) != 10 || r.Rate != 10 {
		t.Errorf("%d calls, errors %v, %d seen, rate %v", calls, r.Errors, len(starts), r.Rate)
	}
	slices.Sort(starts)
	for i, s := range starts {
		if want := time.Duration(i) * 100 * time.Millisecond; s != want {
			t.Errorf("request %d was due after %v, not %v", i, s, want)
		}
	}
}

func TestOpenLoopSendsNoMoreThanMayBeInFlight(t *testing.T) {
	const inFlight = 3
	clock := &fakeTime{}
	hold, due := make(chan struct{}), 0
	var failed []error
	r, err := client.OpenLoop{
		Rate: 1, Duration: 10 * time.Second, InFlight: inFlight, Now: clock.Now,
		Wait: func(_ context.Context, until time.Time) error {
			clock.pass(until.Sub(clock.Now()))
			if due++; due == 9 { // all have become due
				clock.pass(time.Second)
				close(hold)
			}
			return nil
		},
		Call: func(context.Context, int) error {
			<-hold
			return nil
		},
		Done: func(q client.Query) {
			if q.Err != nil {
				failed = append(failed, q.Err)
			}
		},
	}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The last one may find a place again.
	if n := r.Latencies.Count(); n < inFlight || n > inFlight+1 || r.Errors["NotSent"] != 10-n {
		t.Errorf("%d were answered, errors are %v", n, r.Errors)
	}
	for _, err := range failed {
		if !errors.Is(err, client.ErrBusy) {
			t.Errorf("error is %v", err)
		}
	}
	// The first was due at 0 and answered after the ninth wait: 9 s and one more.
	if got := r.Latencies.Max(); got < 9900*time.Millisecond {
		t.Errorf("the longest latency is %v, not 10 s", got)
	}
}

func TestOpenLoopEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	_, err := client.OpenLoop{Rate: 1, Duration: time.Hour, InFlight: 1, Now: time.Now, Wait: client.WaitUntil,
		Call: func(context.Context, int) error {
			cancel()
			return nil
		}}.Run(ctx)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, not %v", err, context.Canceled)
	}
}

func TestResultsAreKeptBySecond(t *testing.T) {
	clock, calls := &fakeTime{}, 0
	r, err := client.ClosedLoop{Clients: 1, Loops: 6, Now: clock.Now, Call: func(context.Context, int) error {
		clock.pass(400 * time.Millisecond)
		if calls++; calls == 3 {
			return errors.New("no")
		}
		return nil
	}}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Answers at 0.4 and 0.8; 1.2 (failed) and 1.6; 2.0 and 2.4 seconds.
	if len(r.Seconds) != 3 {
		t.Fatalf("%d seconds, not 3", len(r.Seconds))
	}
	for i, want := range []struct{ succeeded, failed int }{{2, 0}, {1, 1}, {2, 0}} {
		if s := r.Seconds[i]; s.Latencies.Count() != want.succeeded || s.Failed != want.failed {
			t.Errorf("second %d: %d succeeded, %d failed, not %+v", i, s.Latencies.Count(), s.Failed, want)
		}
	}
}
