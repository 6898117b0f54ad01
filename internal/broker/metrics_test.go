package broker

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
)

// TestMetricsAreThoseOfTheManual by name and label, no more and no less: operators alert on them.
func TestMetricsAreThoseOfTheManual(t *testing.T) {
	text, err := os.ReadFile("../../docs/broker.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, begun := strings.Cut(string(text), "\n| metric (`sesame_broker_…`) | labels | |\n")
	table, _, ended := strings.Cut(table, "\n\n")
	if !begun || !ended {
		t.Fatal("the manual has no table of metrics")
	}
	word := regexp.MustCompile("`([a-z_]+)`")
	documented := map[string]string{}
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		var labels []string
		for _, m := range word.FindAllStringSubmatch(cells[2], -1) {
			labels = append(labels, m[1])
		}
		slices.Sort(labels)
		for _, m := range word.FindAllStringSubmatch(cells[1], -1) {
			documented["sesame_broker_"+m[1]] = strings.Join(labels, " ")
		}
	}

	m := NewMetrics()
	m.released("session", "demo", 1)
	m.refused("session", attest.CodePolicy)
	m.undecided("session", attest.CodeUnreachable)
	m.overload("rate")
	m.connections(1)
	m.handshake(time.Second, nil)
	m.session(time.Second, nil)
	m.kept(time.Second, nil)
	m.reloaded(nil)
	m.show(Readiness{})
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]string{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "sesame_") {
			continue // Go's and the process's own
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		known[f.GetName()] = strings.Join(labels, " ")
	}
	if len(known) < 12 || !maps.Equal(known, documented) {
		t.Errorf("the broker has\n%v\nand the manual\n%v", known, documented)
	}
}
