package report

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
)

// Comparison sets a run beside an earlier one.
type Comparison struct {
	Figures []Figure `json:"figures"`
}

// Figure is one figure of two runs.
type Figure struct {
	Name   string  `json:"name"`
	Before float64 `json:"before"`
	After  float64 `json:"after"`
	// Ratio is After/Before; 0 if Before is 0.
	Ratio float64 `json:"ratio"`
}

// Compare compares the figures of two runs. It judges nothing: two runs alone do not tell a change from noise.
func Compare(before, after *Run) *Comparison {
	c := new(Comparison)
	add := func(name string, a, b float64) {
		f := Figure{Name: name, Before: a, After: b}
		if a != 0 {
			f.Ratio = b / a
		}
		c.Figures = append(c.Figures, f)
	}
	add("tps", before.Throughput, after.Throughput)
	add("mean_ms", before.Mean, after.Mean)
	add("p50_ms", before.P50, after.P50)
	add("p90_ms", before.P90, after.P90)
	add("p95_ms", before.P95, after.P95)
	add("p99_ms", before.P99, after.P99)
	add("max_ms", before.Max, after.Max)
	add("failed", float64(before.Failed()), float64(after.Failed()))
	add("retries", float64(before.Retries), float64(after.Retries))
	return c
}

// WriteText writes a table.
func (c *Comparison) WriteText(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\tbefore\tafter\tratio\t")
	for _, f := range c.Figures {
		ratio := "-"
		if f.Ratio > 0 {
			ratio = fmt.Sprintf("%.2f", f.Ratio)
		}
		fmt.Fprintf(t, "%s\t%.1f\t%.1f\t%s\t\n", f.Name, f.Before, f.After, ratio)
	}
	return t.Flush()
}

// WriteJSON writes one line of JSON.
func (c *Comparison) WriteJSON(w io.Writer) error { return json.NewEncoder(w).Encode(c) }
