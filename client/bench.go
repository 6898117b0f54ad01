package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/status"
)

// Bench measures in a closed loop: each of Clients sends its next request when it has the answer to the last one.
// Such a loop goes slower when the server does, so that it shows what a server can do at most, not what users wait
// for at a given load.
type Bench struct {
	Clients int // that send at the same time
	Loops   int // measured requests of each
	Warmup  int // requests of each that come first and are not measured
	// Call makes one request for a client, counted from 0. It is called concurrently for different clients.
	Call func(ctx context.Context, client int) error
	// Done, which may be nil, is told of each measured request, one at a time.
	Done func(Query)
	Now  func() time.Time
}

// Query is a measured request.
type Query struct {
	Client, Loop int
	Latency      time.Duration
	Err          error
}

// Result is what came out.
type Result struct {
	Clients   int
	Elapsed   time.Duration  // from the first measured request to the last answer
	Errors    map[string]int // failed requests by gRPC status
	Latencies Latencies      // of successful requests
}

// Latencies is a histogram of three significant digits, from a microsecond to an hour.
type Latencies struct{ h *hdrhistogram.Histogram }

// Count is the number of requests.
func (l Latencies) Count() int { return int(l.h.TotalCount()) }

// Mean is their arithmetic mean, zero where there are none.
func (l Latencies) Mean() time.Duration { return time.Duration(l.h.Mean() * float64(time.Microsecond)) }

// Max is the longest.
func (l Latencies) Max() time.Duration { return time.Duration(l.h.Max()) * time.Microsecond }

// Percentile is what the given share of them, in per cent, did not exceed.
func (l Latencies) Percentile(p float64) time.Duration {
	return time.Duration(l.h.ValueAtQuantile(p)) * time.Microsecond
}

// Failed is the number of failed requests.
func (r *Result) Failed() int {
	failed := 0
	for _, n := range r.Errors {
		failed += n
	}
	return failed
}

// Throughput is the number of successful requests a second.
func (r *Result) Throughput() float64 {
	if r.Elapsed <= 0 {
		return 0
	}
	return float64(r.Latencies.Count()) / r.Elapsed.Seconds()
}

// Run measures. A failed request is counted and the loop goes on, except for the warm-up: where even that fails
// there is nothing to measure. When ctx ends, Run ends with what it says.
func (b Bench) Run(ctx context.Context) (*Result, error) {
	if b.Clients < 1 || b.Loops < 1 || b.Warmup < 0 {
		return nil, errors.New("a measurement needs at least one client and one loop")
	}
	each := func(f func(ctx context.Context, client int) error) error {
		group, ctx := errgroup.WithContext(ctx)
		for client := range b.Clients {
			group.Go(func() error { return f(ctx, client) })
		}
		return group.Wait()
	}
	err := each(func(ctx context.Context, client int) error {
		for range b.Warmup {
			if err := b.Call(ctx, client); err != nil {
				return fmt.Errorf("warming up: %w", err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}

	queries := make(chan Query)
	start := b.Now()
	var end time.Time
	var measured error
	go func() {
		defer close(queries)
		measured = each(func(ctx context.Context, client int) error {
			for loop := range b.Loops {
				if err := ctx.Err(); err != nil {
					return err
				}
				sent := b.Now()
				err := b.Call(ctx, client)
				queries <- Query{client, loop, b.Now().Sub(sent), err}
			}
			return nil
		})
		end = b.Now()
	}()
	r := &Result{
		Clients:   b.Clients,
		Errors:    map[string]int{},
		Latencies: Latencies{hdrhistogram.New(1, time.Hour.Microseconds(), 3)},
	}
	for q := range queries {
		if q.Err != nil {
			r.Errors[status.Code(q.Err).String()]++
		} else if err := r.Latencies.h.RecordValue(max(q.Latency.Microseconds(), 1)); err != nil {
			r.Errors["longer than an hour"]++
		}
		if b.Done != nil {
			b.Done(q)
		}
	}
	r.Elapsed = end.Sub(start)
	if measured == nil {
		measured = ctx.Err()
	}
	return r, measured
}
