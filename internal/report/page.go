package report

import (
	_ "embed"
	"html/template"
	"io"
	"math"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Parse(pageText))

// Named is a run with a name for people.
type Named struct {
	Name string
	*Run
}

// colours of the runs of a page, told apart by people who see no red and green, too.
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7"}

// WriteHTML writes a page about one run, or several side by side. It holds all that it shows: nothing is loaded, no
// script runs.
func WriteHTML(w io.Writer, runs ...Named) error {
	var data struct {
		Runs  []shown
		Plots []*plot
	}
	throughput := newPlot("Throughput", "seconds", "successful requests a second")
	failures := newPlot("Failed requests", "seconds", "failed requests a second")
	latency := newPlot("Latency over time", "seconds", "ms, median and 99th percentile (dashed)")
	distribution := newPlot("Latency by percentile", "per cent of the requests", "ms")
	for i, r := range runs {
		colour := colours[i%len(colours)]
		data.Runs = append(data.Runs, shown{r, colour})
		var done, failed, p50, p99, byShare []point
		for at, s := range r.Seconds {
			x := float64(at)
			if x+1 <= r.Elapsed || at == 0 { // the last second is not a whole one
				done = append(done, point{x, float64(s.Succeeded)})
				failed = append(failed, point{x, float64(s.Failed)})
			}
			if s.Succeeded > 0 {
				p50, p99 = append(p50, point{x, s.P50}), append(p99, point{x, s.P99})
			}
		}
		for _, p := range r.Distribution {
			byShare = append(byShare, point{nines(p.Percentile), p.Latency})
			distribution.mark(nines(p.Percentile), p.Percentile)
		}
		throughput.line(colour, false, done)
		latency.line(colour, false, p50)
		latency.line(colour, true, p99)
		distribution.line(colour, false, byShare)
		if r.Failed() > 0 {
			failures.line(colour, false, failed)
		}
	}
	for _, p := range []*plot{throughput, latency, distribution, failures} {
		if p.finish() {
			data.Plots = append(data.Plots, p)
		}
	}
	return page.Execute(w, data)
}

type shown struct {
	Named
	Colour string
}

// nines spreads percentiles so that 90, 99 and 99.9 are equally far apart.
func nines(percentile float64) float64 { return -math.Log10(1 - percentile/100) }
