// Package report says what a measurement of an inference server came to: as text for people, as JSON and CSV for
// programs, as one self-contained HTML page with plots, and as a comparison of two runs.
//
// JSON is the form that is kept: [Read] takes back what [Run.WriteJSON] wrote, so that a page and a comparison can be
// made from runs of another day. Latencies are milliseconds, of successful requests only; failed ones are counted by
// gRPC status beside them.
//
// # Compatibility
//
// This package serves the rest of the module: its names may change in any release. The JSON of a run stays readable.
package report

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/sesame-init/sesame/client"
	"github.com/sesame-init/sesame/internal/strictjson"
)

// Run is one measurement in the form in which it is kept.
type Run struct {
	Clients    int            `json:"cnum"`           // that sent at once, or could
	Rate       float64        `json:"rate,omitempty"` // requests a second that were due; absent in a closed loop
	Requests   int            `json:"requests"`       // failed ones included
	Errors     map[string]int `json:"errors"`         // failed requests by gRPC status
	Retries    int            `json:"retries"`        // tries of requests that were not the first one
	Elapsed    float64        `json:"e2e_seconds"`
	Mean       float64        `json:"mean_ms"`
	P50        float64        `json:"p50_ms"`
	P90        float64        `json:"p90_ms"`
	P95        float64        `json:"p95_ms"`
	P99        float64        `json:"p99_ms"`
	Max        float64        `json:"max_ms"`
	Throughput float64        `json:"tps"` // successful requests a second
	Start      time.Time      `json:"start"`
	// Distribution is the latency at rising percentiles, as far as there are enough requests to tell them apart.
	Distribution []Point  `json:"distribution"`
	Seconds      []Second `json:"seconds"`
}

// Point is what a share of the latencies, in per cent, did not exceed.
type Point struct {
	Percentile float64 `json:"percentile"`
	Latency    float64 `json:"ms"`
}

// Second is one second of a run; its latencies are 0 if no request succeeded.
type Second struct {
	Succeeded int     `json:"succeeded"`
	Failed    int     `json:"failed"`
	P50       float64 `json:"p50_ms"`
	P99       float64 `json:"p99_ms"`
	Max       float64 `json:"max_ms"`
}

// New makes a run of what was measured.
func New(r *client.Result, retries int) *Run {
	l := r.Latencies
	run := &Run{
		Clients: r.Clients, Rate: r.Rate, Requests: l.Count() + r.Failed(), Errors: r.Errors, Retries: retries,
		Elapsed: r.Elapsed.Seconds(), Mean: milliseconds(l.Mean()), P50: milliseconds(l.Percentile(50)),
		P90: milliseconds(l.Percentile(90)), P95: milliseconds(l.Percentile(95)), P99: milliseconds(l.Percentile(99)),
		Max: milliseconds(l.Max()), Throughput: r.Throughput(), Start: r.Start.UTC().Truncate(time.Millisecond),
		Distribution: []Point{}, Seconds: []Second{},
	}
	for _, p := range []float64{25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99} {
		if float64(l.Count())*(100-p) >= 100 { // at least one request is above it
			run.Distribution = append(run.Distribution, Point{p, milliseconds(l.Percentile(p))})
		}
	}
	for _, s := range r.Seconds {
		second := Second{Succeeded: s.Latencies.Count(), Failed: s.Failed}
		if second.Succeeded > 0 {
			second.P50, second.P99 = milliseconds(s.Latencies.Percentile(50)), milliseconds(s.Latencies.Percentile(99))
			second.Max = milliseconds(s.Latencies.Max())
		}
		run.Seconds = append(run.Seconds, second)
	}
	return run
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Failed is the number of failed requests.
func (r *Run) Failed() int {
	failed := 0
	for _, n := range r.Errors {
		failed += n
	}
	return failed
}

// WriteText writes a few lines for people. The last one is the one that users of TensorFlow Serving's Occlum example
// know.
func (r *Run) WriteText(w io.Writer) error {
	var err error
	line := func(format string, args ...any) {
		_, e := fmt.Fprintf(w, format+"\n", args...)
		err = errors.Join(err, e)
	}
	if r.Requests > r.Failed() {
		line("latency(ms): p50 %.1f, p90 %.1f, p95 %.1f, p99 %.1f, max %.1f", r.P50, r.P90, r.P95, r.P99, r.Max)
	}
	if r.Rate > 0 {
		line("open loop: %g requests a second were due, %d in all", r.Rate, r.Requests)
	}
	if r.Retries > 0 {
		line("retries: %d", r.Retries)
	}
	for _, kind := range slices.Sorted(maps.Keys(r.Errors)) {
		line("errors: %s %d", kind, r.Errors[kind])
	}
	line("summary: cnum %d, e2e time(s) %.3f, average latency(ms) %.1f, tps: %.1f", r.Clients, r.Elapsed, r.Mean, r.Throughput)
	return err
}

// WriteJSON writes one line of JSON.
func (r *Run) WriteJSON(w io.Writer) error { return json.NewEncoder(w).Encode(r) }

// WriteCSV writes a row for each second of the run, with a header.
func (r *Run) WriteCSV(w io.Writer) error {
	rows := csv.NewWriter(w)
	_ = rows.Write([]string{"second", "succeeded", "failed", "p50_ms", "p99_ms", "max_ms"}) // Error says what failed
	number := func(x float64) string { return strconv.FormatFloat(x, 'f', 3, 64) }
	for i, s := range r.Seconds {
		_ = rows.Write([]string{strconv.Itoa(i), strconv.Itoa(s.Succeeded), strconv.Itoa(s.Failed),
			number(s.P50), number(s.P99), number(s.Max)})
	}
	rows.Flush()
	return rows.Error()
}

// maxRun bounds a run that is read, in bytes: the seconds of a day take less.
const maxRun = 16 << 20

// Read reads what WriteJSON wrote.
func Read(from io.Reader) (*Run, error) {
	text, err := io.ReadAll(io.LimitReader(from, maxRun))
	if err != nil {
		return nil, fmt.Errorf("reading a run: %w", err)
	}
	r := new(Run)
	if err := strictjson.Decode(text, r); err != nil {
		return nil, fmt.Errorf("reading a run: %w", err)
	}
	if r.Clients < 1 || r.Elapsed <= 0 || r.Requests < 1 {
		return nil, errors.New("reading a run: it has no clients, no requests or took no time")
	}
	return r, nil
}
