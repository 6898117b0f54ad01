package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/client"
)

// warmUp is the number of rounds before the measured ones.
const warmUp = 5

func benchCommand() *cobra.Command {
	var o inference
	var clients, loops int
	var each, asJSON bool
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure how fast an inference server answers",
		Long: `bench runs clients that each send an image, wait for the answer, and send it again, over a connection of
their own. After 5 rounds of warm-up it measures, and prints the percentiles of the latency, the failed requests by
kind, and last a line

  summary: cnum C, e2e time(s) E, average latency(ms) A, tps: T

The exit status is 1 where a request failed.`,
		Example: "  sesame bench --server localhost:31001 --crt server.crt --cnum 4 --loop 10 --image cat.jpg",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if clients < 1 || loops < 1 {
				return attest.Errorf(attest.CodeUsage, "reading command line", "", "--cnum and --loop are at least 1")
			}
			out := cmd.OutOrStdout()
			done := func(client.Query) {}
			switch {
			case each && !asJSON:
				done = func(q client.Query) { printQuery(out, q) }
			case term.IsTerminal(int(os.Stderr.Fd())):
				bar := progressbar.NewOptions(clients*loops, progressbar.OptionSetWriter(os.Stderr),
					progressbar.OptionSetDescription("measuring"), progressbar.OptionClearOnFinish(),
					progressbar.OptionShowCount(), progressbar.OptionThrottle(100*time.Millisecond))
				defer bar.Clear()
				done = func(client.Query) { bar.Add(1) }
			}
			r, err := o.bench(cmd.Context(), clients, loops, done)
			if err != nil {
				return err
			}
			if asJSON {
				err = printResultJSON(out, r)
			} else {
				err = printResult(out, r)
			}
			if err == nil && r.Failed() > 0 {
				return errQuiet
			}
			return err
		},
	}
	o.addFlags(cmd)
	cmd.Flags().IntVar(&clients, "cnum", 8, "`number` of clients")
	cmd.Flags().IntVar(&loops, "loop", 100, "`number` of requests of each client")
	cmd.Flags().BoolVar(&each, "each", false, "print a line for each request")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (o *inference) bench(ctx context.Context, clients, loops int, done func(client.Query)) (_ *client.Result, err error) {
	image, creds, err := o.open()
	if err != nil {
		return nil, err
	}
	connections := make([]*client.Client, clients)
	for i := range connections {
		c, err := client.Dial(o.server, creds)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		connections[i] = c
	}
	return client.Bench{
		Clients: clients, Loops: loops, Warmup: warmUp, Done: done, Now: time.Now,
		Call: func(ctx context.Context, i int) error {
			ctx, cancel := context.WithTimeout(ctx, o.timeout)
			defer cancel()
			_, err := connections[i].Predict(ctx, client.ResNet(o.model), image)
			return err
		},
	}.Run(ctx)
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func printQuery(w io.Writer, q client.Query) {
	if q.Err != nil {
		fmt.Fprintf(w, "query: secure channel, task %d, loop_idx %d, failed: %v\n", q.Client, q.Loop, q.Err)
		return
	}
	fmt.Fprintf(w, "query: secure channel, task %d, loop_idx %d, latency(ms) %.1f, tps: %.1f\n",
		q.Client, q.Loop, milliseconds(q.Latency), 1/q.Latency.Seconds())
}

func printResult(w io.Writer, r *client.Result) error {
	l := r.Latencies
	var err error
	line := func(format string, args ...any) {
		_, e := fmt.Fprintf(w, format+"\n", args...)
		err = errors.Join(err, e)
	}
	if l.Count() > 0 {
		line("latency(ms): p50 %.1f, p90 %.1f, p95 %.1f, p99 %.1f, max %.1f", milliseconds(l.Percentile(50)),
			milliseconds(l.Percentile(90)), milliseconds(l.Percentile(95)), milliseconds(l.Percentile(99)), milliseconds(l.Max()))
	}
	for _, kind := range slices.Sorted(maps.Keys(r.Errors)) {
		line("errors: %s %d", kind, r.Errors[kind])
	}
	line("summary: cnum %d, e2e time(s) %.3f, average latency(ms) %.1f, tps: %.1f",
		r.Clients, r.Elapsed.Seconds(), milliseconds(l.Mean()), r.Throughput())
	return err
}

func printResultJSON(w io.Writer, r *client.Result) error {
	l := r.Latencies
	return json.NewEncoder(w).Encode(struct {
		Clients    int            `json:"cnum"`
		Requests   int            `json:"requests"`
		Errors     map[string]int `json:"errors"`
		Elapsed    float64        `json:"e2e_seconds"`
		Mean       float64        `json:"mean_ms"`
		P50        float64        `json:"p50_ms"`
		P90        float64        `json:"p90_ms"`
		P95        float64        `json:"p95_ms"`
		P99        float64        `json:"p99_ms"`
		Max        float64        `json:"max_ms"`
		Throughput float64        `json:"tps"`
	}{
		r.Clients, l.Count() + r.Failed(), r.Errors, r.Elapsed.Seconds(), milliseconds(l.Mean()),
		milliseconds(l.Percentile(50)), milliseconds(l.Percentile(90)), milliseconds(l.Percentile(95)),
		milliseconds(l.Percentile(99)), milliseconds(l.Max()), r.Throughput(),
	})
}
