package grpcratls_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/lab/attesttest"
	"github.com/sesame-init/sesame/lab/backendtest"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// start makes a broker with a fault and a client for it, after the changes
func start(t *testing.T, s backendtest.Service, protocol grpcratls.Protocol, changes ...func(*grpcratls.Config)) backend.Backend {
	t.Helper()
	platform := brokertest.Platform(t, softsgx.Options{})
	c := grpcratls.Config{
		Protocol: protocol,
		Attester: platform.Attester(brokertest.Workload()),
		Verifier: brokertest.Verifier(platform),
		Policy:   brokertest.BrokerPolicy(),
		Now:      brokertest.Clock,
		Logger:   brokertest.Logger(s.Log),
		Pause:    time.Millisecond,
	}
	server := brokertest.Config(t, platform, s.Secrets, s.Log)
	switch s.Fault {
	case backendtest.WrongPeer:
		old := brokertest.Enclave(0xcc, 100, 2)
		server.Identity, server.Quoter = brokertest.Identity(t, platform, old), brokertest.Quoter(platform, old)
	case backendtest.NotGenuine:
		fake := brokertest.Platform(t, softsgx.Options{})
		server.Identity = brokertest.Identity(t, fake, brokertest.Broker())
		server.Quoter = brokertest.Quoter(fake, brokertest.Broker())
	case backendtest.Refuses:
		c.Attester = platform.Attester(brokertest.Enclave(0xab, 1, 2))
	case backendtest.Silent, backendtest.Down:
		c.Servers = []string{s.Address(t)}
	}
	if c.Servers == nil {
		c.Servers = []string{brokertest.Listen(t, server)}
	}
	for _, change := range changes {
		change(&c)
	}
	client, err := grpcratls.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func TestConformance(t *testing.T) {
	for _, protocol := range []grpcratls.Protocol{grpcratls.Legacy, grpcratls.SessionV1} {
		t.Run(string(protocol), func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T, s backendtest.Service) backend.Backend { return start(t, s, protocol) })
		})
	}
}

func TestADeadlineThatEndsWhileEvidenceIsMadeIsNoFaultOfTheAttester(t *testing.T) {
	for _, protocol := range []grpcratls.Protocol{grpcratls.Legacy, grpcratls.SessionV1} {
		ctx, cancel := context.WithCancel(t.Context())
		service := backendtest.Service{Secrets: map[string][]byte{"k": []byte("value")}, Log: io.Discard}
		client := start(t, service, protocol, func(c *grpcratls.Config) { c.Attester = attesttest.Overtaken{Attester: c.Attester, End: cancel} })
		_, err := client.Fetch(ctx, []string{"k"})
		if attest.CodeOf(err) != attest.CodeUnreachable || !errors.Is(err, context.Canceled) || attest.HintOf(err) == "" {
			t.Errorf("%s: %v", protocol, err)
		}
	}
}

func TestTheNextServerIsAsked(t *testing.T) {
	var log bytes.Buffer
	platform := brokertest.Platform(t, softsgx.Options{})
	config := func(product uint16) broker.Config {
		c := brokertest.Config(t, platform, map[string][]byte{"k": []byte("v")}, &bytes.Buffer{})
		c.Identity = brokertest.Identity(t, platform, brokertest.Enclave(0xcc, product, 3))
		return c
	}
	down, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = down.Close()
	client, err := grpcratls.New(grpcratls.Config{
		Pause: 10 * time.Millisecond, Protocol: grpcratls.Legacy,
		Servers: []string{
			down.Addr().String(), brokertest.Listen(t, config(99)), brokertest.Listen(t, config(100)),
		},
		Attester: platform.Attester(brokertest.Workload()),
		Verifier: brokertest.Verifier(platform),
		Policy:   brokertest.BrokerPolicy(),
		Now:      brokertest.Clock,
		Logger:   brokertest.Logger(&log),
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := client.Fetch(context.Background(), []string{"k"})
	if err != nil || string(got["k"].Expose()) != "v" {
		t.Fatalf("%v\n%s", err, log.String())
	}
	for _, want := range []string{"connection refused", "product_id"} {
		if !bytes.Contains(log.Bytes(), []byte(want)) {
			t.Errorf("the log does not say %q:\n%s", want, log.String())
		}
	}
}

func TestAConfigThatCannotWorkIsRefused(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{})
	good := grpcratls.Config{
		Pause:    10 * time.Millisecond,
		Servers:  []string{"localhost:5000"},
		Attester: platform.Attester(brokertest.Workload()),
		Verifier: brokertest.Verifier(platform),
		Policy:   brokertest.BrokerPolicy(),
	}
	if _, err := grpcratls.New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*grpcratls.Config){
		"no server":   func(c *grpcratls.Config) { c.Servers = nil },
		"no port":     func(c *grpcratls.Config) { c.Servers = []string{"broker"} },
		"no host":     func(c *grpcratls.Config) { c.Servers = []string{":5000"} },
		"no attester": func(c *grpcratls.Config) { c.Attester = nil },
		"no verifier": func(c *grpcratls.Config) { c.Verifier = nil },
		"no policy":   func(c *grpcratls.Config) { c.Policy = nil },
		"challenged": func(c *grpcratls.Config) {
			c.Policy = &policy.Policy{TPM: []policy.TPM{{EK: make([]byte, 32), Wrap: true, PCRs: policy.PCRs{7: make([]byte, 32)}}}}
		},
		"no protocol": func(c *grpcratls.Config) { c.Protocol = "best" },
	} {
		c := good
		change(&c)
		if _, err := grpcratls.New(c); attest.CodeOf(err) != attest.CodeConfig {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// replaying shows evidence that was made for another session.
type replaying struct{ attest.Attester }

func (r replaying) Evidence(ctx context.Context, _ attest.ReportData) (attest.Evidence, error) {
	return r.Attester.Evidence(ctx, attest.ReportData{1})
}

func TestReplayedEvidenceIsRefusedByBothSides(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{})
	workload, own := platform.Attester(brokertest.Workload()), platform.Attester(brokertest.Broker())
	for _, c := range []struct {
		name             string
		workload, broker attest.Attester
		code             attest.Code
	}{
		{"fresh", workload, own, ""},
		{"client replays", replaying{workload}, own, attest.CodeDenied},
		{"broker replays", workload, replaying{own}, attest.CodeEvidence},
	} {
		config := brokertest.Config(t, platform, map[string][]byte{"k": []byte("v")}, io.Discard)
		config.Quoter = session.NewQuoter(session.QuoterOptions{Attester: c.broker})
		address := brokertest.Listen(t, config)
		client, err := grpcratls.New(grpcratls.Config{
			Pause:   10 * time.Millisecond,
			Servers: []string{address}, Protocol: grpcratls.SessionV1, Attester: c.workload,
			Verifier: brokertest.Verifier(platform), Policy: brokertest.BrokerPolicy(), Now: brokertest.Clock,
		})
		if err != nil {
			t.Fatal(err)
		}
		got, err := client.Fetch(context.Background(), []string{"k"})
		if c.code == "" && (err != nil || string(got["k"].Expose()) != "v") {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.code != "" && (got != nil || attest.CodeOf(err) != c.code) {
			t.Errorf("%s: %s: %v", c.name, attest.CodeOf(err), err)
		}
	}
}

// A quote that was made for another use is refused by broker and client, on both wires.
func TestAQuoteOfAnotherUseIsRefusedByBothSides(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{})
	workload, own := platform.Attester(brokertest.Workload()), platform.Attester(brokertest.Broker())
	for _, protocol := range []grpcratls.Protocol{grpcratls.Legacy, grpcratls.SessionV1} {
		for name, other := range attesttest.OtherMeanings() {
			for _, side := range []string{"client", "broker"} {
				config := brokertest.Config(t, platform, map[string][]byte{"k": []byte("v")}, io.Discard)
				c := grpcratls.Config{
					Pause:    10 * time.Millisecond,
					Protocol: protocol, Attester: workload,
					Verifier: brokertest.Verifier(platform), Policy: brokertest.BrokerPolicy(), Now: brokertest.Clock,
				}
				code := attest.CodeEvidence
				if side == "client" {
					c.Attester, code = attesttest.Rebound{Attester: workload, Data: other}, attest.CodeDenied
				} else {
					liar := attesttest.Rebound{Attester: own, Data: other}
					identity, err := ratls.NewIdentity(liar, ratls.Options{Now: brokertest.Clock})
					if err != nil {
						t.Fatal(err)
					}
					config.Identity, config.Quoter = identity, session.NewQuoter(session.QuoterOptions{Attester: liar})
				}
				c.Servers = []string{brokertest.Listen(t, config)}
				client, err := grpcratls.New(c)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := client.Fetch(t.Context(), []string{"k"}); got != nil || attest.CodeOf(err) != code {
					t.Errorf("%s, %s, %s: %s: %v", protocol, side, name, attest.CodeOf(err), err)
				}
			}
		}
	}
}

// identityOf shows one certificate.
type identityOf struct{ certificate tls.Certificate }

func (i identityOf) Certificate(context.Context) (*tls.Certificate, error) {
	return &i.certificate, nil
}

// Neither does an application's certificate make a broker, nor one that has expired.
func TestOnlyACurrentBrokersCertificateMakesABroker(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{})
	own := platform.Attester(brokertest.Broker())
	certificate := func(make func(context.Context, attest.Attester, ratls.Options) (tls.Certificate, error), at time.Time) tls.Certificate {
		c, err := make(t.Context(), own, ratls.Options{Now: func() time.Time { return at }})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for name, test := range map[string]struct {
		shown tls.Certificate
		says  string // "" where it is taken
	}{
		"a broker's":       {certificate(ratls.NewCertificate, brokertest.Now), ""},
		"expired":          {certificate(ratls.NewCertificate, brokertest.Now.Add(-ratls.DefaultValidity-time.Second)), "valid from"},
		"an application's": {certificate(ratls.NewApplicationCertificate, brokertest.Now), "that of an application"},
	} {
		config := brokertest.Config(t, platform, map[string][]byte{"k": []byte("v")}, io.Discard)
		config.Identity = identityOf{test.shown}
		client, err := grpcratls.New(grpcratls.Config{
			Pause:   10 * time.Millisecond,
			Servers: []string{brokertest.Listen(t, config)}, Protocol: grpcratls.Legacy, Attester: platform.Attester(brokertest.Workload()),
			Verifier: brokertest.Verifier(platform), Policy: brokertest.BrokerPolicy(), Now: brokertest.Clock,
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Fetch(t.Context(), []string{"k"})
		if (err == nil) != (test.says == "") || err != nil && (attest.CodeOf(err) != attest.CodeEvidence || !strings.Contains(err.Error(), test.says)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
