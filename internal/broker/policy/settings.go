package policy

import (
	"crypto/x509"
	"fmt"
	"net"
	"time"

	"golang.org/x/mod/sumdb/note"

	appraisal "github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/internal/pki"
)

// Settings are of the broker itself.
type Settings struct {
	Limits Limits `yaml:"limits"`
	Quotes Quotes `yaml:"quotes"`
	// PolicyKey signs later policies ("NAME+HASH+KEY", as sesame policy keygen prints it). In an enclave it is in
	// the measured policy, and pins who may change it.
	PolicyKey string  `yaml:"policy_key"`
	Store     StoreAt `yaml:"store"`
	RootKey   KeyFrom `yaml:"root_key"`
	Admin     Admin   `yaml:"admin"`
	// Witnesses get the checkpoints of the release log: URLs (c2sp.org/tlog-witness) or folders, each Interval.
	Witnesses Witnesses `yaml:"witnesses"`
}

// Witnesses say who else keeps the head of the release log.
type Witnesses struct {
	At       []string           `yaml:"at"`
	Interval appraisal.Duration `yaml:"interval"` // default 1 min, at least 1 s
}

// StoreAt names the store of secrets and release log: one of them, or neither for Occlum's secret_config.json alone.
type StoreAt struct {
	SQLite   string `yaml:"sqlite"`   // file of the embedded store, of one broker
	Postgres string `yaml:"postgres"` // URL of a database that several replicas share
}

// KeyFrom says how the broker finds the key of its store at the start: sealed or in a file. With neither, or if it
// fails, the broker asks the replicas, and stays locked until one of them or an administrator unlocks it.
type KeyFrom struct {
	Sealed bool   `yaml:"sealed"` // to processor and measurement, in an SGX enclave
	File   string `yaml:"file"`   // with the key, made where there is none; outside of enclaves
	// Replicas are addresses of running brokers, which hand it over to a workload that their policy marks as a broker.
	Replicas []string `yaml:"replicas"`
}

// Admin is the administrators' channel; without Listen there is none.
type Admin struct {
	Listen string   `yaml:"listen"` // HOST:PORT
	Roots  []string `yaml:"roots"`  // PEM, of the administrators' certificates
}

// RootCertificates are those of Roots.
func (a *Admin) RootCertificates() (*x509.CertPool, error) {
	roots, err := certificates(a.Roots)
	if err != nil {
		return nil, err
	}
	return pki.Pool(roots), nil
}

// check reports what is missing or contradicts itself in store, root key and admin channel.
func (s *Settings) check(fault func(key, format string, args ...any)) {
	stored := s.Store.SQLite != "" || s.Store.Postgres != ""
	if s.Store.SQLite != "" && s.Store.Postgres != "" {
		fault("broker.store", "names two stores")
	}
	switch {
	case s.RootKey.Sealed && s.RootKey.File != "":
		fault("broker.root_key", "names more than one way")
	case (s.RootKey.Sealed || s.RootKey.File != "" || len(s.RootKey.Replicas) > 0) && !stored:
		fault("broker.root_key", "is of a store, and none is named")
	}
	if s.Witnesses.Interval < appraisal.Duration(time.Second) {
		fault("broker.witnesses.interval", "is less than a second")
	}
	if len(s.Witnesses.At) > 0 && !stored {
		fault("broker.witnesses", "keep the log of a store, and none is named")
	}
	for i, address := range s.RootKey.Replicas {
		if _, port, err := net.SplitHostPort(address); err != nil || port == "" {
			fault(fmt.Sprintf("broker.root_key.replicas[%d]", i), "is not HOST:PORT")
		}
	}
	switch {
	case s.Admin.Listen == "" && len(s.Admin.Roots) > 0:
		fault("broker.admin.listen", "is missing")
	case s.Admin.Listen != "" && len(s.Admin.Roots) == 0:
		fault("broker.admin.roots", "is missing: whose certificates make an administrator")
	case s.Admin.Listen != "" && !stored:
		fault("broker.admin", "administers a store, and none is named")
	}
	for i, text := range s.Admin.Roots {
		if _, err := pki.ParseCertificate([]byte(text)); err != nil {
			fault(fmt.Sprintf("broker.admin.roots[%d]", i), "%v", err)
		}
	}
}

// Limits bound what peers can make the broker do.
type Limits struct {
	Connections int                `yaml:"connections"` // at once, of peers that have proved nothing; see package admission
	Proved      int                `yaml:"proved"`      // at once, of peers whose evidence the policy has accepted, besides
	Sessions    int                `yaml:"sessions"`    // whose evidence is judged at once; further ones wait, and are told to come later
	Handshakes  int                `yaml:"handshakes"`  // of the legacy wire, whose evidence is verified at once; further ones wait
	Handshake   appraisal.Duration `yaml:"handshake"`   // that the TLS handshake may wait for the peer
	Begin       appraisal.Duration `yaml:"begin"`       // from the handshake to the greeting of a session
	Session     appraisal.Duration `yaml:"session"`     // that a session may wait for the peer
	Idle        appraisal.Duration `yaml:"idle"`        // without a call in flight
	Drain       appraisal.Duration `yaml:"drain"`       // for calls in flight when the broker stops
}

// Quotes say how sessions share a quote of the broker.
type Quotes struct {
	Window *appraisal.Duration `yaml:"window"` // to wait for more sessions before quoting
	Size   int                 `yaml:"size"`   // most sessions of one quote, up to 1024
}

// DefaultLimits are those of a policy that names none.
func DefaultLimits() Limits {
	return Limits{
		Connections: 1024, Proved: 1024, Sessions: 256, Handshakes: 64,
		Handshake: appraisal.Duration(20 * time.Second), // after which C++ peers give up
		Begin:     appraisal.Duration(5 * time.Second),
		Session:   appraisal.Duration(time.Minute), // a hardware TPM takes half of it
		Idle:      appraisal.Duration(2 * time.Minute),
		Drain:     appraisal.Duration(10 * time.Second),
	}
}

// DefaultSettings are those of Occlum's two files.
func DefaultSettings() Settings {
	var s Settings
	s.complete(func(string, string, ...any) {}, func(string) bool { return false })
	return s
}

const maxSessionsOfAQuote = 1024

// complete fills in defaults and reports what is wrong. A number that is written as zero is a fault: it would mean neither
// "none" nor "no limit".
func (s *Settings) complete(fault func(key, format string, args ...any), written func(key string) bool) {
	absent := func(key string, otherwise any) {
		if written("broker." + key) {
			fault("broker."+key, "is zero: write a number above it, or leave the key out for the default, %v", otherwise)
		}
	}
	l, d := &s.Limits, DefaultLimits()
	number := func(name string, n *int, otherwise int) {
		if *n == 0 {
			absent("limits."+name, otherwise)
			*n = otherwise
		}
		if *n < 0 || *n > 1<<20 {
			fault("broker.limits."+name, "is not between 1 and %d", 1<<20)
		}
	}
	number("connections", &l.Connections, d.Connections)
	number("proved", &l.Proved, d.Proved)
	number("sessions", &l.Sessions, d.Sessions)
	number("handshakes", &l.Handshakes, d.Handshakes)
	for _, span := range []struct {
		name      string
		value     *appraisal.Duration
		otherwise appraisal.Duration
	}{
		{"handshake", &l.Handshake, d.Handshake}, {"begin", &l.Begin, d.Begin}, {"session", &l.Session, d.Session},
		{"idle", &l.Idle, d.Idle}, {"drain", &l.Drain, d.Drain},
	} {
		if *span.value == 0 {
			absent("limits."+span.name, span.otherwise)
			*span.value = span.otherwise
		}
		if *span.value > appraisal.Duration(time.Hour) {
			fault("broker.limits."+span.name, "is more than an hour")
		}
	}
	if s.Quotes.Window == nil {
		window := appraisal.Duration(2 * time.Millisecond)
		s.Quotes.Window = &window
	}
	if *s.Quotes.Window == 0 {
		absent("quotes.window", "2ms")
	}
	if *s.Quotes.Window > appraisal.Duration(time.Second) {
		fault("broker.quotes.window", "is more than a second")
	}
	if s.Quotes.Size == 0 {
		absent("quotes.size", maxSessionsOfAQuote)
		s.Quotes.Size = maxSessionsOfAQuote
	}
	if s.Quotes.Size < 0 || s.Quotes.Size > maxSessionsOfAQuote {
		fault("broker.quotes.size", "is not between 1 and %d", maxSessionsOfAQuote)
	}
	if s.Witnesses.Interval == 0 {
		absent("witnesses.interval", "1m")
		s.Witnesses.Interval = appraisal.Duration(time.Minute)
	}
	s.check(fault)
	if s.PolicyKey != "" {
		if _, err := note.NewVerifier(s.PolicyKey); err != nil {
			fault("broker.policy_key", "%v: want NAME+HASH+KEY", err)
		}
	}
}
