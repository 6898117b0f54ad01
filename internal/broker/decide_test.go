package broker_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/dcap"
	appraisal "github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store/memory"
	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/attack"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// client fetches from a broker by the session protocol as the enclave that attester is.
func (f *fixture) client(t testing.TB, a attest.Attester, change ...func(*grpcratls.Config)) *grpcratls.Client {
	t.Helper()
	c := grpcratls.Config{
		Servers: []string{f.address}, Protocol: grpcratls.SessionV1, Attester: a, Verifier: brokertest.Verifier(f.platform),
		Policy: brokertest.BrokerPolicy(), Now: brokertest.Clock, Pause: time.Millisecond,
	}
	for _, change := range change {
		change(&c)
	}
	client, err := grpcratls.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func ask(t testing.TB, c *grpcratls.Client, names ...string) (map[string]attest.Secret, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	return c.Fetch(ctx, names)
}

// counted is a keeper that counts and may fail.
type counted struct {
	broker.Keeper
	released, refused atomic.Int64
	fail              error
	receipt           func(broker.Decision) broker.Receipt

	mu   sync.Mutex
	last broker.Decision
}

func (c *counted) Release(ctx context.Context, d broker.Decision) ([]attest.Secret, broker.Receipt, error) {
	c.note(d)
	if c.fail != nil {
		return nil, broker.Receipt{}, c.fail
	}
	c.released.Add(1)
	secrets, receipt, err := c.Keeper.Release(ctx, d)
	if c.receipt != nil {
		receipt = c.receipt(d)
	}
	return secrets, receipt, err
}

func (c *counted) Refuse(ctx context.Context, d broker.Decision) (broker.Receipt, error) {
	c.note(d)
	c.refused.Add(1)
	if c.fail != nil {
		return broker.Receipt{}, c.fail
	}
	return c.Keeper.Refuse(ctx, d)
}

func (c *counted) note(d broker.Decision) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = d
}

func (c *counted) decision() broker.Decision {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// startCounted is a broker whose keeper counts.
func startCounted(t *testing.T, text string, change func(*counted)) (*fixture, *counted) {
	k := &counted{}
	f := start(t, func(f *fixture, c *broker.Config) {
		k.Keeper, c.Keeper = c.Keeper, k
		decide(t, f, c, nil, text)
	})
	if change != nil {
		change(k)
	}
	return f, k
}

func TestNoSecretLeavesToThousandsOfBadPeersOnBothWires(t *testing.T) {
	f, keeper := startCounted(t, twoWorkloads, nil)
	rounds := testenv.Effort(120, 5) // of 9 sessions and 11 connections
	type try func() (got string, err error)
	var bad []try
	for _, a := range attack.BadEnclaves(t, f.platform) {
		client := f.client(t, a)
		bad = append(bad, func() (string, error) {
			got, err := ask(t, client, "image_key")
			return fmt.Sprint(len(got)), err
		})
	}
	sessions := len(bad)
	for _, certificate := range attack.BadPeers(t, f.platform) {
		bad = append(bad, func() (string, error) {
			conn := f.dial(t, certificate)
			defer conn.Close()
			got, err := get(t, conn, "image_key")
			return fmt.Sprint(len(got)), err
		})
	}
	good := f.client(t, f.platform.Attester(brokertest.Workload()))
	work := make(chan try)
	var wg sync.WaitGroup
	var leaked atomic.Int64
	for range 16 {
		wg.Go(func() {
			for attempt := range work {
				if got, err := attempt(); err == nil || got != "0" {
					leaked.Add(1)
					t.Errorf("a bad peer got %s secrets, %v", got, err)
				}
			}
		})
	}
	served := int64(0)
	for range rounds {
		for _, attempt := range bad {
			work <- attempt
		}
		if got, err := ask(t, good, "image_key"); err == nil && string(got["image_key"].Expose()) == canary {
			served++
		} else {
			t.Errorf("a good peer among them: %v", err)
		}
	}
	close(work)
	wg.Wait()
	if n := keeper.released.Load(); n != served || leaked.Load() != 0 {
		t.Errorf("%d releases for %d good sessions, %d leaked", n, served, leaked.Load())
	}
	// Every one of them is a decision, except for connections that show no evidence at all: they begin no session.
	if n, want := keeper.refused.Load(), int64(rounds*(sessions+10)); n < want {
		t.Errorf("%d refusals recorded, want %d", n, want)
	}
	if strings.Contains(f.log.String(), canary) {
		t.Error("the log holds a secret")
	}
	t.Logf("%d bad sessions and %d bad connections refused, %d good sessions served", rounds*sessions, rounds*11, served)
}

func TestADecisionSaysWhoAskedForWhatAndWhichRuleDecided(t *testing.T) {
	f, keeper := startCounted(t, twoWorkloads, nil)
	if _, err := ask(t, f.client(t, f.platform.Attester(brokertest.Workload())), "image_key", "empty"); err != nil {
		t.Fatal(err)
	}
	d := keeper.decision()
	want := []broker.Grant{{Secret: "image_key", Rule: "secrets.image_key.workloads"}, {Secret: "empty", Rule: "secrets.empty.workloads"}}
	if d.Wire != "session" || d.Workload != "demo" || d.Binder == [32]byte{} || d.Evidence == [32]byte{} || d.Claims.SGX == nil ||
		d.Code != "" || d.Reason != "" || !d.At.Equal(brokertest.Now) || !strings.HasPrefix(d.Peer, "127.0.0.1:") ||
		fmt.Sprint(d.Grants) != fmt.Sprint(want) {
		t.Errorf("%+v", d)
	}
	_, err := ask(t, f.client(t, f.platform.Attester(brokertest.Enclave(0x11, 1, 1))), "image_key")
	if attest.CodeOf(err) != attest.CodeSecret || !strings.Contains(err.Error(), "there is none for this workload") {
		t.Errorf("%v", err)
	}
	if d := keeper.decision(); d.Code != attest.CodeDenied || d.Workload != "other" || d.Grants[0].Rule != "secrets.image_key.workloads" ||
		!strings.Contains(d.Reason, "other may not have it") {
		t.Errorf("%+v", d)
	}
	conn := f.dial(t, f.workload(t))
	var binders [2][32]byte
	for i := range binders {
		if _, err := get(t, conn, "IMAGE_KEY"); err != nil {
			t.Fatal(err)
		}
		d := keeper.decision()
		if binders[i] = d.Binder; d.Wire != "legacy" || d.Grants[0].Secret != "image_key" {
			t.Errorf("%+v", d)
		}
	}
	if binders[0] == binders[1] {
		t.Error("two calls have one binder")
	}
	// The session protocol does not fold case.
	if _, err := ask(t, f.client(t, f.platform.Attester(brokertest.Workload())), "IMAGE_KEY"); attest.CodeOf(err) != attest.CodeSecret {
		t.Errorf("%v", err)
	}
}

func TestWhatCannotBeRecordedIsNotReleased(t *testing.T) {
	f, _ := startCounted(t, "", func(k *counted) { k.fail = errors.New("disk full") })
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	got, err := f.client(t, f.platform.Attester(brokertest.Workload()), func(c *grpcratls.Config) {
		c.Logger = brokertest.Logger(writer(func(string) { cancel() })) // before it tries again
	}).Fetch(ctx, []string{"image_key"})
	if got != nil || attest.CodeOf(err) != attest.CodeUnreachable || strings.Contains(fmt.Sprint(err), "disk") ||
		!strings.Contains(fmt.Sprint(err), "cannot reach its store") {
		t.Errorf("session: %v, %v", got, err)
	}
	if got, err := get(t, f.dial(t, f.workload(t)), "image_key"); got != "" || status.Code(err) != codes.Unavailable {
		t.Errorf("legacy: %q, %v", got, err)
	}
	if got, err := ask(t, f.client(t, attack.BadEnclaves(t, f.platform)["debug"]), "image_key"); got != nil || attest.CodeOf(err) != attest.CodeDenied {
		t.Errorf("a refusal that cannot be recorded: %v, %v", got, err)
	}
	f.log.wait(t, "could not be recorded")
}

func TestReleasesAreCountedUpToTheirLimit(t *testing.T) {
	f, _ := startCounted(t, strings.Replace(twoWorkloads, "[demo]}", "[demo], releases: 2}", 1), nil)
	client := f.client(t, f.platform.Attester(brokertest.Workload()))
	for i := range 3 {
		_, err := ask(t, client, "image_key")
		if (err == nil) != (i < 2) || err != nil && (attest.CodeOf(err) != attest.CodeDenied || !strings.Contains(err.Error(), "2 times")) {
			t.Errorf("release %d: %v", i+1, err)
		}
	}
}

// TestAReleaseLimitOfZeroReleasesNothing reads the limit from a policy file and asks on both wires.
func TestAReleaseLimitOfZeroReleasesNothing(t *testing.T) {
	zero := strings.Replace(twoWorkloads, "[demo]}", "[demo], releases: 0}", 1)
	for name, store := range map[string]func(*testing.T) broker.Keeper{
		"of a file": func(t *testing.T) broker.Keeper {
			return brokertest.Secrets(t, map[string][]byte{"image_key": []byte(canary), "empty": nil})
		},
		"with a store": func(t *testing.T) broker.Keeper {
			k, err := keystore.Open(t.Context(), keystore.Options{Store: memory.New(), Root: &rootkey.Process{}, Now: brokertest.Clock})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(k.Close)
			for name, value := range map[string]string{"image_key": canary, "empty": "not here"} {
				if _, err := k.Put(t.Context(), "alice", name, keystore.Value, attest.NewSecret([]byte(value))); err != nil {
					t.Fatal(err)
				}
			}
			return k
		},
	} {
		t.Run(name, func(t *testing.T) {
			keeper := &counted{Keeper: store(t)}
			var policies *broker.Policies
			f := start(t, func(f *fixture, c *broker.Config) {
				c.Keeper = keeper
				decide(t, f, c, nil, zero)
				policies = c.Policies
			})
			client := f.client(t, f.platform.Attester(brokertest.Workload()))
			for _, names := range [][]string{{"image_key"}, {"empty", "image_key"}} { // all or none
				got, err := ask(t, client, names...)
				if got != nil || attest.CodeOf(err) != attest.CodeDenied || !strings.Contains(err.Error(), "allows no release of secret \"image_key\"") {
					t.Errorf("%v: %v, %v", names, got, err)
				}
			}
			if limit := keeper.decision().Grants[1].Limit; limit == nil || *limit != 0 {
				t.Errorf("the keeper gets the limit %v", limit)
			}
			if got, err := get(t, f.dial(t, f.workload(t)), "image_key"); got != "" || err == nil {
				t.Errorf("legacy: %q, %v", got, err)
			}
			if _, err := ask(t, client, "empty"); err != nil { // without the key there is no limit
				t.Error(err)
			}
			if k, ok := keeper.Keeper.(*keystore.Keystore); ok {
				list, err := k.List(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range list {
					if want := map[string]uint64{"empty": 1}[s.Name]; s.Releases != want {
						t.Errorf("%d releases of %s are counted, want %d", s.Releases, s.Name, want)
					}
				}
			}
			if err := policies.Replace(t.Context(), []byte(brokertest.PolicyText(2, strings.Replace(zero, "releases: 0", "releases: 1", 1))), "test"); err != nil {
				t.Fatal(err)
			}
			for i := range 2 { // the refusals have used nothing up
				_, err := ask(t, client, "image_key")
				if (err == nil) != (i == 0) {
					t.Errorf("releases: 1, request %d: %v", i+1, err)
				}
			}
		})
	}
}

func TestAClientThatKnowsTheLogTakesNoSecretWithoutAReceiptThatHolds(t *testing.T) {
	keys := func() (note.Signer, note.Verifier) {
		private, public, err := note.GenerateKey(nil, "broker.example")
		if err != nil {
			t.Fatal(err)
		}
		signer, err := note.NewSigner(private)
		if err != nil {
			t.Fatal(err)
		}
		verifier, err := note.NewVerifier(public)
		if err != nil {
			t.Fatal(err)
		}
		return signer, verifier
	}
	signer, verifier := keys()
	_, other := keys()
	f, keeper := startCounted(t, "", nil)
	attester := f.platform.Attester(brokertest.Workload())
	know := func(v note.Verifier) func(*grpcratls.Config) { return func(c *grpcratls.Config) { c.Log = v } }
	if got, err := ask(t, f.client(t, attester, know(verifier)), "image_key"); got != nil || attest.CodeOf(err) != attest.CodeEvidence {
		t.Errorf("no receipt: %v", err)
	}
	keeper.receipt = func(d broker.Decision) broker.Receipt { // a log of one entry
		entry := fmt.Appendf(nil, `{"binder":%q}`, hex.EncodeToString(d.Binder[:]))
		text := fmt.Sprintf("broker.example\n1\n%s\n", tlog.RecordHash(entry))
		checkpoint, err := note.Sign(&note.Note{Text: text}, signer)
		if err != nil {
			t.Error(err)
		}
		return broker.Receipt{Entry: entry, Checkpoint: checkpoint}
	}
	if _, err := ask(t, f.client(t, attester, know(verifier)), "image_key"); err != nil {
		t.Errorf("a receipt that holds: %v", err)
	}
	if got, err := ask(t, f.client(t, attester, know(other)), "image_key"); got != nil || attest.CodeOf(err) != attest.CodeEvidence {
		t.Errorf("a receipt of another log: %v", err)
	}
}

// slowed is a broker whose verifications wait for a word.
func slowed(t *testing.T, text string) (*fixture, *blocking, *broker.Policies) {
	slow := &blocking{asked: make(chan struct{}, 1000), release: make(chan struct{})}
	var policies *broker.Policies
	f := start(t, func(f *fixture, c *broker.Config) {
		trust := brokertest.Trust(t, f.platform)
		slow.Verifier, trust.Verifier = trust.Verifier, slow
		decide(t, f, c, trust, text)
		policies = c.Policies
	})
	return f, slow, policies
}

func TestARequestIsDecidedByThePolicyThatItBeganUnder(t *testing.T) {
	f, slow, policies := slowed(t, twoWorkloads)
	client := f.client(t, f.platform.Attester(brokertest.Workload()))
	begun := make(chan error, 1)
	go func() {
		_, err := ask(t, client, "image_key")
		begun <- err
	}()
	<-slow.asked
	without := strings.Replace(twoWorkloads, "image_key: {workloads: [demo]}", "image_key: {workloads: [other]}", 1)
	if err := policies.Replace(context.Background(), []byte(brokertest.PolicyText(2, without)), "test"); err != nil {
		t.Fatal(err)
	}
	close(slow.release)
	if err := <-begun; err != nil {
		t.Errorf("begun before the change: %v", err)
	}
	if _, err := ask(t, client, "image_key"); attest.CodeOf(err) != attest.CodeSecret {
		t.Errorf("begun after the change: %v", err)
	}
}

func TestALegacyConnectionLosesWhatANewPolicyTakes(t *testing.T) {
	f, slow, policies := slowed(t, twoWorkloads)
	close(slow.release)
	conn := f.dial(t, f.workload(t))
	if _, err := get(t, conn, "image_key"); err != nil {
		t.Fatal(err)
	}
	replace := func(version int, text string) {
		t.Helper()
		if err := policies.Replace(context.Background(), []byte(brokertest.PolicyText(version, text)), "test"); err != nil {
			t.Fatal(err)
		}
	}
	replace(2, strings.Replace(twoWorkloads, "demo:  {wire: legacy,", "demo:  {", 1))
	if got, err := get(t, conn, "image_key"); status.Code(err) != codes.PermissionDenied || got != "" {
		t.Errorf("the wire was taken: %q, %v", got, err)
	}
	replace(3, twoWorkloads)
	if _, err := get(t, conn, "image_key"); err != nil {
		t.Errorf("it was given back: %v", err)
	}
}

func TestAPolicyThatIsNotSoundChangesNothing(t *testing.T) {
	f, slow, policies := slowed(t, twoWorkloads)
	close(slow.release)
	before := policies.Current()
	for name, text := range map[string]string{
		"broken":       brokertest.PolicyText(2, twoWorkloads[:len(twoWorkloads)-20]),
		"below":        brokertest.PolicyText(2, strings.Replace(twoWorkloads, "mr_enclave", "mr_signer", 1)),
		"settings":     brokertest.PolicyText(2, twoWorkloads+"broker: {limits: {sessions: 1}}"),
		"nothing":      "",
		"not a policy": "\x00",
	} {
		if err := policies.Replace(context.Background(), []byte(text), "test"); attest.CodeOf(err) != attest.CodeConfig {
			t.Errorf("%s: %v", name, err)
		}
		if policies.Current() != before {
			t.Fatalf("%s: another policy is in force", name)
		}
	}
	if _, err := ask(t, f.client(t, f.platform.Attester(brokertest.Workload())), "image_key"); err != nil {
		t.Error(err)
	}
}

func TestTooManySessionsAreToldToComeLaterAndComeLater(t *testing.T) {
	f, slow, _ := slowed(t, twoWorkloads+"broker: {limits: {sessions: 2}}")
	attester := f.platform.Attester(brokertest.Workload())
	busy := make(chan struct{}, 100_000)
	results := make(chan error, 6)
	for range cap(results) {
		client := f.client(t, attester, func(c *grpcratls.Config) {
			c.Logger = brokertest.Logger(writer(func(line string) {
				if strings.Contains(line, "too many sessions") {
					busy <- struct{}{}
				}
			}))
		})
		go func() {
			_, err := ask(t, client, "image_key")
			results <- err
		}()
	}
	<-slow.asked
	<-slow.asked
	for range 4 {
		<-busy // the others are told
	}
	close(slow.release)
	for range cap(results) {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

type writer func(string)

func (w writer) Write(p []byte) (int, error) {
	w(string(p))
	return len(p), nil
}

func TestASessionInFlightIsServedWhileTheBrokerStops(t *testing.T) {
	slow := &blocking{asked: make(chan struct{}, 10), release: make(chan struct{})}
	f := &fixture{platform: brokertest.Platform(t, softsgx.Options{}), log: &log{}}
	c := brokertest.Config(t, f.platform, map[string][]byte{"image_key": []byte(canary)}, f.log)
	trust := brokertest.Trust(t, f.platform)
	slow.Verifier, trust.Verifier = trust.Verifier, slow
	decide(t, f, &c, trust, "")
	address, stop, ended := brokertest.Serve(t, c)
	f.address = address
	served := make(chan error, 1)
	client := f.client(t, f.platform.Attester(brokertest.Workload()))
	go func() {
		_, err := ask(t, client, "image_key")
		served <- err
	}()
	<-slow.asked
	stop()
	for { // until the port is closed
		conn, err := net.Dial("tcp", f.address)
		if err != nil {
			break
		}
		_ = conn.Close()
	}
	close(slow.release)
	if err := <-served; err != nil {
		t.Errorf("the session in flight: %v", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestASessionThatSaysNothingEnds(t *testing.T) {
	f := start(t, func(f *fixture, c *broker.Config) {
		decide(t, f, c, nil, twoWorkloads+"broker: {limits: {session: 50ms}}")
	})
	silent := attack.Forger{Attester: f.platform.Attester(brokertest.Workload()), Data: func(d attest.ReportData) attest.ReportData {
		f.log.wait(t, "session failed") // longer than the broker waits
		return d
	}}
	if got, err := ask(t, f.client(t, silent), "image_key"); err == nil {
		t.Errorf("it has got %d secrets", len(got))
	}
}

func TestPeersThatSayNothingHoldUpNobody(t *testing.T) {
	f := start(t, func(f *fixture, c *broker.Config) {
		decide(t, f, c, nil, twoWorkloads+"broker: {limits: {handshakes: 1, handshake: 10m}}")
	})
	for range 20 {
		conn, err := net.Dial("tcp", f.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = conn.Write([]byte{0x16, 0x03}) // the beginning of a greeting
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second) // a handshake may take longer
	defer cancel()
	if _, err := f.client(t, f.platform.Attester(brokertest.Workload())).Fetch(ctx, []string{"image_key"}); err != nil {
		t.Error(err)
	}
}

// source is a source of collateral that may fail.
type source func(context.Context, dcap.Request) (*dcap.Collateral, error)

func (s source) Collateral(ctx context.Context, r dcap.Request) (*dcap.Collateral, error) {
	return s(ctx, r)
}

func TestWithoutTrueCollateralNothingIsReleasedAndReadinessSaysSo(t *testing.T) {
	stranger := brokertest.Platform(t, softsgx.Options{})
	old := brokertest.Platform(t, softsgx.Options{Now: brokertest.Now.Add(-60 * 24 * time.Hour)})
	const reach, invalid = "something that it needs cannot be reached", "it has no valid collateral for this platform now"
	for name, c := range map[string]struct {
		source source
		reason string // that a peer hears
	}{
		"down": {func(context.Context, dcap.Request) (*dcap.Collateral, error) {
			return nil, attest.Errorf(attest.CodeUnreachable, "fetching collateral", "", "connection refused")
		}, reach},
		"slow": {func(ctx context.Context, _ dcap.Request) (*dcap.Collateral, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, reach},
		"lying": {func(context.Context, dcap.Request) (*dcap.Collateral, error) { return stranger.Collateral(), nil }, invalid},
		"garbage": {func(context.Context, dcap.Request) (*dcap.Collateral, error) {
			return &dcap.Collateral{TCBInfo: []byte("{")}, nil
		}, invalid},
		"expired": {func(context.Context, dcap.Request) (*dcap.Collateral, error) { return old.Collateral(), nil }, invalid},
	} {
		k := &counted{}
		var server *broker.Server
		platform := brokertest.Platform(t, softsgx.Options{})
		if name == "expired" {
			platform = old
		}
		f := start(t, func(f *fixture, config *broker.Config) {
			f.platform = platform
			config.Identity, config.Quoter = brokertest.Identity(t, platform, brokertest.Broker()), brokertest.Quoter(platform, brokertest.Broker())
			k.Keeper, config.Keeper = config.Keeper, k
			trust := brokertest.TrustWith(t, platform, c.source)
			limits := ""
			if name == "slow" { // the others answer, on a busy machine later than so
				limits = "broker: {limits: {session: 300ms, handshake: 300ms}}"
			}
			decide(t, f, config, trust, twoWorkloads+limits)
			var err error
			if server, err = broker.New(*config); err != nil {
				t.Fatal(err)
			}
		})
		a := f.platform.Attester(brokertest.Workload())
		byKey := func(c *grpcratls.Config) { // the client's own collateral is not what is tested
			c.Verifier, c.Policy = believing{}, believing{}
		}
		if err := untilSaid(t, "the broker cannot decide now: "+c.reason, f, a, byKey); err == nil {
			t.Errorf("%s: no error", name)
		}
		got, err := get(t, f.dial(t, f.workload(t)), "image_key")
		if fault := session.Fault(err); got != "" || fault == nil || !strings.Contains(fault.Error(), c.reason) {
			t.Errorf("%s: a legacy peer has got %q, %v", name, got, err)
		}
		if released, refused := k.released.Load(), k.refused.Load(); released != 0 || refused != 0 {
			t.Errorf("%s: %d releases, %d refusals", name, released, refused)
		}
		// Only a source that has answered is known to be needed.
		if ready := server.Ready(context.Background()); name == "expired" && ready.Collateral == nil {
			t.Errorf("%s: ready", name)
		}
	}
}

// saysTo has a client log to l.
func saysTo(l *log) func(*grpcratls.Config) {
	return func(c *grpcratls.Config) { c.Logger = brokertest.Logger(l) }
}

// untilSaid lets a client ask until it has logged a text, as one that tries again does, and returns what it ends with.
func untilSaid(t *testing.T, text string, f *fixture, a attest.Attester, change func(*grpcratls.Config)) error {
	t.Helper()
	said := &log{}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	client := f.client(t, a, change, saysTo(said))
	ended := make(chan error, 1)
	go func() {
		got, err := client.Fetch(ctx, []string{"image_key"})
		if got != nil {
			t.Errorf("a session has got %d secrets", len(got))
		}
		ended <- err
	}()
	said.wait(t, text)
	cancel()
	return <-ended
}

// believing takes any broker's evidence.
type believing struct{}

func (believing) Verify(_ context.Context, e attest.Evidence, _ time.Time) (attest.Claims, error) {
	q, err := sgx.ParseQuote(e.Raw)
	if err != nil {
		return attest.Claims{}, err
	}
	return attest.Claims{Type: attest.SGX, SGX: &q.SGX.SGXClaims, ReportData: q.ReportData()}, nil
}

func (believing) Appraise(attest.Claims, time.Time) appraisal.Appraisal {
	return appraisal.Appraisal{Accepted: true}
}
