package client_test

import (
	"context"
	"errors"
	"maps"
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
	r, err := client.Bench{
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
	r, err := client.Bench{
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
	_, err := client.Bench{Clients: clients, Loops: 1, Now: time.Now, Call: func(context.Context, int) error {
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
	_, err := client.Bench{Clients: 2, Loops: 1, Warmup: 1, Now: time.Now,
		Call: func(context.Context, int) error { return gone }}.Run(t.Context())
	if !errors.Is(err, gone) {
		t.Errorf("error is %v, not %v", err, gone)
	}
}

func TestBenchEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	_, err := client.Bench{Clients: 1, Loops: 1 << 40, Now: time.Now, Call: func(context.Context, int) error {
		cancel()
		return nil
	}}.Run(ctx)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, not %v", err, context.Canceled)
	}
}

func TestBenchWantsClientsAndLoops(t *testing.T) {
	for _, b := range []client.Bench{{Clients: 0, Loops: 1}, {Clients: 1, Loops: 0}, {Clients: 1, Loops: 1, Warmup: -1}} {
		if _, err := b.Run(t.Context()); err == nil {
			t.Errorf("%d clients, %d loops, %d rounds of warm-up were taken", b.Clients, b.Loops, b.Warmup)
		}
	}
}
