package broker

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sesame-init/sesame/attest"
)

// Metrics count what the broker does, for Prometheus. docs/broker.md lists the names. A label is a word of this
// program or a name of the policy, never a secret's name or anything that a peer chooses.
type Metrics struct {
	registry    *prometheus.Registry
	releases    *prometheus.CounterVec
	secrets     *prometheus.CounterVec
	refusals    *prometheus.CounterVec
	faults      *prometheus.CounterVec
	overloads   *prometheus.CounterVec
	open        prometheus.Gauge
	shakes      *prometheus.HistogramVec
	sessionTime *prometheus.HistogramVec
	keeper      *prometheus.HistogramVec
	reloads     *prometheus.CounterVec
	version     prometheus.Gauge
	expiry      prometheus.Gauge
	ready       *prometheus.GaugeVec
	rolledBack  prometheus.Gauge
}

// NewMetrics makes the metrics in a registry of their own.
func NewMetrics() *Metrics {
	const ns, sub = "sesame", "broker"
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help})
	}
	histogram := func(name, help string, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help,
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}}, labels)
	}
	m := &Metrics{
		registry:    prometheus.NewRegistry(),
		releases:    counter("releases_total", "Requests whose secrets were released.", "wire", "workload"),
		secrets:     counter("secrets_released_total", "Secrets that were released.", "wire", "workload"),
		refusals:    counter("refusals_total", "Requests that were refused, by class of refusal.", "wire", "code"),
		faults:      counter("undecided_total", "Requests that could not be decided through a fault of the broker's side.", "wire", "code"),
		overloads:   counter("overload_total", "Connections and sessions that were sent away, by limit.", "limit"),
		open:        gauge("connections", "Open connections."),
		shakes:      histogram("handshake_seconds", "TLS handshakes with their verification.", "outcome"),
		sessionTime: histogram("session_seconds", "Sessions, from their greeting to their end.", "outcome"),
		keeper:      histogram("keeper_seconds", "Recording a decision and reading its secrets.", "outcome"),
		reloads:     counter("policy_reloads_total", "Attempts to replace the policy.", "outcome"),
		version:     gauge("policy_version", "Version of the policy in force."),
		expiry:      gauge("collateral_expiry_timestamp_seconds", "When the collateral in use expires; 0 where none is."),
		rolledBack:  gauge("log_rolled_back", "1 while the release log in the store is not the one that this process has seen."),
		ready: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: "ready",
			Help: "1 where a condition of readiness holds."}, []string{"condition"}),
	}
	m.registry.MustRegister(m.releases, m.secrets, m.refusals, m.faults, m.overloads, m.open, m.shakes, m.sessionTime, m.keeper, m.reloads,
		m.version, m.expiry, m.ready, m.rolledBack, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler serves the metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// show sets the conditions of readiness.
func (m *Metrics) show(r Readiness) {
	for name, err := range r.conditions() {
		holds := 0.0
		if err == nil {
			holds = 1
		}
		m.ready.WithLabelValues(name).Set(holds)
	}
}

// RolledBack says whether the release log in the store is not the one that this process has seen.
func (m *Metrics) RolledBack(is bool) {
	value := 0.0
	if is {
		value = 1
	}
	m.rolledBack.Set(value)
}

func outcome(err error) string {
	if err != nil {
		return "failed"
	}
	return "done"
}

func (m *Metrics) released(wire, workload string, secrets int) {
	m.releases.WithLabelValues(wire, workload).Inc()
	m.secrets.WithLabelValues(wire, workload).Add(float64(secrets))
}

func (m *Metrics) refused(wire string, code attest.Code) {
	m.refusals.WithLabelValues(wire, string(code)).Inc()
}

func (m *Metrics) undecided(wire string, code attest.Code) {
	m.faults.WithLabelValues(wire, string(code)).Inc()
}

func (m *Metrics) overload(limit string) { m.overloads.WithLabelValues(limit).Inc() }

func (m *Metrics) connections(n float64) { m.open.Add(n) }

func (m *Metrics) handshake(took time.Duration, err error) {
	m.shakes.WithLabelValues(outcome(err)).Observe(took.Seconds())
}

func (m *Metrics) session(took time.Duration, err error) {
	m.sessionTime.WithLabelValues(outcome(err)).Observe(took.Seconds())
}

func (m *Metrics) kept(took time.Duration, err error) {
	m.keeper.WithLabelValues(outcome(err)).Observe(took.Seconds())
}

func (m *Metrics) reloaded(err error) { m.reloads.WithLabelValues(outcome(err)).Inc() }
