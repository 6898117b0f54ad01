package report_test

import (
	"bytes"
	"context"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/sesame-init/sesame/client"
	"github.com/sesame-init/sesame/internal/report"
)

// measured is a run of 200 requests of 10 ms each, the hundredth of which failed.
func measured(t *testing.T) *report.Run {
	t.Helper()
	now, calls := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), 0
	r, err := client.ClosedLoop{Clients: 1, Loops: 200, Now: func() time.Time { return now },
		Call: func(context.Context, int) error {
			now = now.Add(10 * time.Millisecond)
			if calls++; calls == 100 {
				return errors.New("no")
			}
			return nil
		}}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return report.New(r, 3)
}

func TestRunsSayWhatWasMeasured(t *testing.T) {
	r := measured(t)
	if r.Requests != 200 || r.Failed() != 1 || r.Retries != 3 || r.Elapsed != 2 || math.Abs(r.Throughput-99.5) > 1e-9 {
		t.Errorf("run is %+v", r)
	}
	if len(r.Seconds) != 3 || r.Seconds[0].Succeeded != 99 || r.Seconds[1].Failed != 1 {
		t.Errorf("seconds are %+v", r.Seconds)
	}
	if last := r.Distribution[len(r.Distribution)-1]; last.Percentile != 99 || math.Abs(last.Latency-10) > 0.02 {
		t.Errorf("the last percentile that 199 requests can tell is %+v", last)
	}
	var text strings.Builder
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	const want = "latency(ms): p50 10.0, p90 10.0, p95 10.0, p99 10.0, max 10.0\nretries: 3\nerrors: Unknown 1\n" +
		"summary: cnum 1, e2e time(s) 2.000, average latency(ms) 10.0, tps: 99.5\n"
	if text.String() != want {
		t.Errorf("text is\n%s\nnot\n%s", text.String(), want)
	}
}

func TestJSONIsReadBack(t *testing.T) {
	r := measured(t)
	var b bytes.Buffer
	if err := r.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	back, err := report.Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(back, r) {
		t.Errorf("read back %+v, not %+v", back, r)
	}
	for _, bad := range []string{"", "{}", `{"cnum":1,"surprise":2}`, `[]`, `{"cnum":1,"requests":1,"e2e_seconds":0}`} {
		if _, err := report.Read(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was taken for a run", bad)
		}
	}
}

func TestPagesAreWellFormedAndLoadNothing(t *testing.T) {
	r := measured(t)
	var b bytes.Buffer
	if err := report.WriteHTML(&b, report.Named{Name: "<b>before</b>", Run: r}, report.Named{Name: "after", Run: r}); err != nil {
		t.Fatal(err)
	}
	root, err := html.Parse(&b)
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for n := range root.Descendants() {
		switch n.Data {
		case "script", "link", "img", "iframe", "b":
			t.Errorf("the page has an element %s", n.Data)
		case "polyline":
			lines++
		}
	}
	if lines != 2*5 { // throughput, failures, distribution, and latency twice
		t.Errorf("the page has %d lines", lines)
	}
}

func TestComparisonsAreRatios(t *testing.T) {
	before, after := measured(t), measured(t)
	after.Throughput *= 2
	after.Errors = map[string]int{}
	c := report.Compare(before, after)
	byName := map[string]report.Figure{}
	for _, f := range c.Figures {
		byName[f.Name] = f
	}
	if f := byName["tps"]; f.Ratio != 2 {
		t.Errorf("throughput doubled, but its figure is %+v", f)
	}
	if f := byName["failed"]; f.Before != 1 || f.After != 0 || f.Ratio != 0 {
		t.Errorf("failed is %+v", f)
	}
}
