package client

import (
	"errors"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"google.golang.org/grpc/status"
)

// Result is what came out of a measurement.
type Result struct {
	Clients   int     // that sent at once, or could
	Rate      float64 // requests a second that were due; 0 in a closed loop
	Start     time.Time
	Elapsed   time.Duration  // from the first measured request to the last answer
	Errors    map[string]int // failed requests by gRPC status
	Latencies Latencies      // of successful requests
	// Seconds are the seconds of the measurement in their order, by the moment of the answer.
	Seconds []Second
}

// Second is what was answered in one second.
type Second struct {
	Failed    int
	Latencies Latencies // of successful requests; two significant digits
}

// maxSeconds bounds the list of seconds: about a day.
const maxSeconds = 100_000

func newResult(clients int, start time.Time) *Result {
	return &Result{Clients: clients, Start: start, Errors: map[string]int{}, Latencies: newLatencies(3)}
}

func (r *Result) add(q Query) {
	second := r.second(q.Start.Add(q.Latency).Sub(r.Start))
	if q.Err != nil {
		kind := status.Code(q.Err).String()
		if errors.Is(q.Err, ErrBusy) {
			kind = "NotSent"
		}
		r.Errors[kind]++
		second.Failed++
		return
	}
	r.Latencies.record(q.Latency)
	second.Latencies.record(q.Latency)
}

func (r *Result) second(since time.Duration) *Second {
	n := min(max(int(since/time.Second), 0), maxSeconds-1)
	for len(r.Seconds) <= n {
		r.Seconds = append(r.Seconds, Second{Latencies: newLatencies(2)})
	}
	return &r.Seconds[n]
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

// Latencies is a histogram of two or three significant digits, from a microsecond to an hour; what is longer counts as
// an hour.
type Latencies struct{ h *hdrhistogram.Histogram }

func newLatencies(digits int) Latencies {
	return Latencies{hdrhistogram.New(1, time.Hour.Microseconds(), digits)}
}

func (l Latencies) record(d time.Duration) {
	// It fails for values beyond its bounds only.
	_ = l.h.RecordValue(min(max(d.Microseconds(), 1), time.Hour.Microseconds()))
}

// Count is the number of requests.
func (l Latencies) Count() int { return int(l.h.TotalCount()) }

// Mean is their arithmetic mean, zero if there are none.
func (l Latencies) Mean() time.Duration { return time.Duration(l.h.Mean() * float64(time.Microsecond)) }

// Max is the longest.
func (l Latencies) Max() time.Duration { return time.Duration(l.h.Max()) * time.Microsecond }

// Percentile is what the given share of them, in per cent, did not exceed.
func (l Latencies) Percentile(p float64) time.Duration {
	return time.Duration(l.h.ValueAtQuantile(p)) * time.Microsecond
}
