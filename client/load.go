package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// ClosedLoop measures with clients that each send their next request when they have the answer to the last one. Such a
// loop goes slower when the server does, so that it shows what a server can do at most, not what users wait for at a
// given load.
type ClosedLoop struct {
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
	Start        time.Time // when it was sent, in an open loop when it was due
	Latency      time.Duration
	Err          error
}

// Run measures. A failed request is counted and the loop goes on, except for the warm-up: if even that fails
// there is nothing to measure. When ctx ends, Run ends with what it says.
func (b ClosedLoop) Run(ctx context.Context) (*Result, error) {
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
	err := each(func(ctx context.Context, client int) error { return warmUp(ctx, b.Warmup, client, b.Call) })
	if err != nil {
		return nil, err
	}
	return measure(ctx, b.Clients, b.Now, b.Done, func(queries chan<- Query) error {
		return each(func(ctx context.Context, client int) error {
			for loop := range b.Loops {
				if err := ctx.Err(); err != nil {
					return err
				}
				sent := b.Now()
				err := b.Call(ctx, client)
				queries <- Query{client, loop, sent, b.Now().Sub(sent), err}
			}
			return nil
		})
	})
}

// OpenLoop measures with requests that become due at a fixed rate, whatever the server does, as those of many
// independent users do. Latency counts from the moment at which a request was due, so that a server that falls behind
// shows it.
type OpenLoop struct {
	Rate     float64       // requests a second
	Duration time.Duration // in which requests become due
	InFlight int           // most requests at once; one that is due beyond them is not sent and counts as failed
	Warmup   int           // number of requests that are sent first, one after the other, and not measured
	// Call makes one request in one of InFlight places, counted from 0.
	Call func(ctx context.Context, place int) error
	Done func(Query) // as in [ClosedLoop]; Client is the place
	Now  func() time.Time
	// Wait returns at a moment, or earlier with the context's error.
	Wait func(ctx context.Context, until time.Time) error
}

// ErrBusy is the failure of a request that was due when too many were in flight.
var ErrBusy = errors.New("not sent: too many requests are in flight")

// WaitUntil is [OpenLoop.Wait] for the system's clock.
func WaitUntil(ctx context.Context, until time.Time) error {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// Run measures, as [ClosedLoop.Run] does. It ends when the last request that was due is answered.
func (b OpenLoop) Run(ctx context.Context) (*Result, error) {
	requests := int(b.Rate * b.Duration.Seconds())
	if b.Rate <= 0 || requests < 1 || b.InFlight < 1 || b.Warmup < 0 {
		return nil, errors.New("a measurement needs a rate, a duration of at least one request, and one in flight")
	}
	if err := warmUp(ctx, b.Warmup, 0, b.Call); err != nil {
		return nil, err
	}
	r, err := measure(ctx, b.InFlight, b.Now, b.Done, func(queries chan<- Query) error {
		places := make(chan int, b.InFlight)
		for place := range b.InFlight {
			places <- place
		}
		group, calls := errgroup.WithContext(ctx)
		start := b.Now()
		for i := range requests {
			due := start.Add(time.Duration(float64(i) / b.Rate * float64(time.Second)))
			if b.Now().Before(due) {
				if err := b.Wait(calls, due); err != nil {
					return errors.Join(err, group.Wait())
				}
			}
			select {
			case place := <-places:
				group.Go(func() error {
					err := b.Call(calls, place)
					queries <- Query{place, i, due, b.Now().Sub(due), err}
					places <- place
					return nil
				})
			default:
				queries <- Query{0, i, due, b.Now().Sub(due), ErrBusy}
			}
		}
		return group.Wait()
	})
	if r != nil {
		r.Rate = b.Rate
	}
	return r, err
}

func warmUp(ctx context.Context, rounds, client int, call func(context.Context, int) error) error {
	for range rounds {
		if err := call(ctx, client); err != nil {
			return fmt.Errorf("warming up: %w", err)
		}
	}
	return nil
}

// measure counts the queries that load sends until it returns.
func measure(ctx context.Context, clients int, now func() time.Time, done func(Query),
	load func(chan<- Query) error) (*Result, error) {
	queries := make(chan Query)
	r := newResult(clients, now())
	var end time.Time
	var failed error
	go func() {
		defer close(queries)
		failed = load(queries)
		end = now()
	}()
	for q := range queries {
		r.add(q)
		if done != nil {
			done(q)
		}
	}
	r.Elapsed = end.Sub(r.Start)
	if failed == nil {
		failed = ctx.Err()
	}
	return r, failed
}
