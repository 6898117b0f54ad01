package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/client"
	"github.com/sesame-init/sesame/internal/report"
)

// warmUp is the number of rounds before the measured ones.
const warmUp = 5

// The default of --connections is four for each client, which is enough that chance gives every pod its share, but no more
// than this.
const maxConnections = 64

// openInFlight is the default of --cnum in an open loop.
const openInFlight = 256

// measurement is what the flags of sesame bench ask for.
type measurement struct {
	inference
	clients, loops int
	rate           float64
	duration       time.Duration
	each, asJSON   bool
	output         string
}

func benchCommand() *cobra.Command {
	var o measurement
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure how fast an inference server answers",
		Long: `bench measures in one of two ways. In a closed loop, --cnum clients each send the image, wait for the answer, and
send it again, --loop times. This shows how much the server can do. In an open loop requests become due --rate times a
second for --duration, whatever the server does. This shows how long users wait: latency counts from the moment a request
was due, and --cnum, with a default of 256, limits how many may be in flight.

Requests are spread over --connections connections. A Kubernetes service chooses a pod once per connection, so if there
are few connections, some pods stay idle.

After 5 rounds of warm-up bench measures. It prints the percentiles of the latency, the failed requests by kind, and the line

  summary: cnum C, e2e time(s) E, average latency(ms) A, tps: T

With --output it prints json, which sesame bench compare reads, csv with a row for each second, or html, a page with plots,
instead. The exit status is 1 if a request failed.`,
		Example: `  sesame bench --server localhost:31001 --crt server.crt --cnum 4 --loop 10 --image cat.jpg
  sesame bench --server localhost:31001 --crt server.crt --rate 50 --duration 1m --retries 4 --image cat.jpg --output html >run.html`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.rate > 0 && !cmd.Flags().Changed("cnum") {
				o.clients = openInFlight
			}
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.addFlags(cmd)
	f := cmd.Flags()
	f.IntVar(&o.clients, "cnum", 8, "`number` of clients")
	f.IntVar(&o.loops, "loop", 100, "`number` of requests of each client")
	f.Float64Var(&o.rate, "rate", 0, "`number` of requests that become due each second, in an open loop")
	f.DurationVar(&o.duration, "duration", 30*time.Second, "how long requests become due, with --rate")
	f.IntVar(&o.dial.Connections, "connections", 0, "`number` of connections (default four for each client, at most 64)")
	f.BoolVar(&o.each, "each", false, "print a line for each request")
	f.StringVar(&o.output, "output", "text", "what to print: text, json, csv or html")
	f.BoolVar(&o.asJSON, "json", false, "the same as --output json")
	cmd.MarkFlagsMutuallyExclusive("rate", "loop")
	cmd.AddCommand(benchCompareCommand())
	return cmd
}

func (o *measurement) run(ctx context.Context, out, warnings io.Writer) error {
	if o.asJSON {
		o.output = "json"
	}
	write, known := map[string]func(*report.Run) error{
		"text": func(r *report.Run) error { return r.WriteText(out) },
		"json": func(r *report.Run) error { return r.WriteJSON(out) },
		"csv":  func(r *report.Run) error { return r.WriteCSV(out) },
		"html": func(r *report.Run) error { return report.WriteHTML(out, report.Named{Name: o.server, Run: r}) },
	}[o.output]
	switch {
	case !known:
		return usage("", "--output is text, json, csv or html, not %q", o.output)
	case o.clients < 1 || o.loops < 1:
		return usage("", "--cnum and --loop are at least 1")
	case o.rate < 0 || math.IsNaN(o.rate) || o.rate > 1e6 || o.rate > 0 && o.rate*o.duration.Seconds() < 1:
		return usage("", "--rate and --duration make no request, or --rate is over a million")
	}
	if o.dial.Connections == 0 {
		o.dial.Connections = min(4*o.clients, maxConnections)
	}
	requests := o.clients * o.loops
	if o.rate > 0 {
		requests = int(o.rate * o.duration.Seconds())
	}
	done := func(client.Query) {}
	switch {
	case o.each && o.output == "text":
		done = func(q client.Query) { printQuery(out, q) }
	case term.IsTerminal(int(os.Stderr.Fd())):
		bar := progressbar.NewOptions(requests, progressbar.OptionSetWriter(os.Stderr),
			progressbar.OptionSetDescription("measuring"), progressbar.OptionClearOnFinish(),
			progressbar.OptionShowCount(), progressbar.OptionThrottle(100*time.Millisecond))
		defer bar.Clear()
		done = func(client.Query) { bar.Add(1) }
	}
	r, err := o.measure(ctx, done, warnings)
	if err != nil {
		return err
	}
	if err := write(r); err != nil {
		return err
	}
	if r.Failed() > 0 {
		return errQuiet
	}
	return nil
}

func (o *measurement) measure(ctx context.Context, done func(client.Query), warnings io.Writer) (_ *report.Run, err error) {
	image, creds, err := o.open(warnings)
	if err != nil {
		return nil, err
	}
	c, err := client.Dial(o.server, creds, o.dial)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	call := func(ctx context.Context, _ int) error {
		ctx, cancel := context.WithTimeout(ctx, o.timeout)
		defer cancel()
		_, err := c.Predict(ctx, client.ResNet(o.model), image)
		return err
	}
	var r *client.Result
	if o.rate > 0 {
		r, err = client.OpenLoop{
			Rate: o.rate, Duration: o.duration, InFlight: o.clients, Warmup: warmUp, Call: call, Done: done,
			Now: time.Now, Wait: client.WaitUntil,
		}.Run(ctx)
	} else {
		r, err = client.ClosedLoop{
			Clients: o.clients, Loops: o.loops, Warmup: warmUp, Call: call, Done: done, Now: time.Now,
		}.Run(ctx)
	}
	if err != nil {
		return nil, err
	}
	return report.New(r, c.Retries()), nil
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

func benchCompareCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "compare BEFORE AFTER",
		Short: "Compare two measurements side by side",
		Long: `compare reads two files written by sesame bench --output json. It prints each figure of both with its ratio, or a page
with both in the same plots. Two runs alone cannot tell a change from noise: measure each side several times.`,
		Example: `  sesame bench compare before.json after.json
  sesame bench compare before.json after.json --output html >runs.html`,
		Args: usageArgs(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var runs []report.Named
			for _, name := range args {
				r, err := readRun(name)
				if err != nil {
					return attest.Errorf(attest.CodeConfig, "reading "+name, "Make it with sesame bench --output json.", "%w", err)
				}
				runs = append(runs, report.Named{Name: name, Run: r})
			}
			out := cmd.OutOrStdout()
			c := report.Compare(runs[0].Run, runs[1].Run)
			switch output {
			case "text":
				return c.WriteText(out)
			case "json":
				return c.WriteJSON(out)
			case "html":
				return report.WriteHTML(out, runs...)
			}
			return usage("", "--output is text, json or html, not %q", output)
		},
	}
	cmd.Flags().StringVar(&output, "output", "text", "what to print: text, json or html")
	return cmd
}

func readRun(name string) (*report.Run, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return report.Read(f)
}
