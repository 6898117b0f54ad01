package life

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/internal/broker/store/sqlite"
	"github.com/sesame-init/sesame/internal/clock"
	"github.com/sesame-init/sesame/internal/loopback"
	"github.com/sesame-init/sesame/internal/pki"
	"github.com/sesame-init/sesame/internal/privatefile"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// world is what a broker outside an enclave starts with, and what it has told the service manager.
type world struct {
	Settings
	platform *softsgx.Platform
	dir      string

	mu    sync.Mutex
	tells []string
}

func newWorld(t *testing.T, block string) *world {
	t.Helper()
	w := &world{platform: brokertest.Platform(t, softsgx.Options{}), dir: t.TempDir()}
	collateral := filepath.Join(w.dir, "collateral")
	if err := pccs.WriteDir(collateral, w.platform.Collateral()); err != nil {
		t.Fatal(err)
	}
	root := strings.ReplaceAll(strings.TrimSpace(string(pki.EncodeCertificate(w.platform.RootCA().Raw))), "\n", "\n      ")
	var err error
	if w.Policy, err = policy.Parse([]byte(fmt.Sprintf(`version: 1
trust:
  roots:
    - |
      %s
  collateral: {directory: %q}
workloads: {demo: {versions: [{sgx: [{mr_enclave: %s}]}]}}
secrets: {image_key: {workloads: [demo]}}
%s`, root, collateral, strings.Repeat("aa", 32), strings.ReplaceAll(block, "DIR", w.dir)))); err != nil {
		t.Fatal(err)
	}
	if w.Identity, err = broker.OpenBareIdentity(filepath.Join(w.dir, "broker.key"), privatefile.Rule{}); err != nil {
		t.Fatal(err)
	}
	w.Place, w.From, w.Clock, w.Log = "bare", "a test", clock.New(brokertest.Clock, time.Time{}), logrus.New()
	w.Log.SetOutput(io.Discard)
	w.Getenv = func(string) string { return "" }
	w.Secrets = map[string]attest.Secret{"image_key": attest.NewSecret([]byte("canary"))}
	w.HTTP = reserve(t)
	w.Listening = func(address string) { w.tell("listening") }
	w.Notify = func(state string) {
		name, _, _ := strings.Cut(state, "\n")
		if name == daemon.SdNotifyStopping {
			time.Sleep(50 * time.Millisecond) // a slow service manager must have it before the broker ends, too
		}
		w.tell(name)
	}
	return w
}

func (w *world) tell(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tells = append(w.tells, what)
}

func (w *world) told() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.tells, " ")
}

// health is the answer to a look at the broker's state: "alive ready", with what does not hold left out, or "" if
// nothing answers.
func (w *world) health(t *testing.T) string {
	t.Helper()
	var holds []string
	for path, what := range map[string]string{"/healthz": "alive", "/readyz": "ready"} {
		r, err := http.Get("http://" + w.HTTP + path)
		if err != nil {
			return ""
		}
		_ = r.Body.Close()
		if r.StatusCode == http.StatusOK {
			holds = append(holds, what)
		}
	}
	if len(holds) == 2 {
		return "alive ready"
	}
	return strings.Join(holds, " ")
}

// reserve is an address that only this test has.
func reserve(t *testing.T) string {
	t.Helper()
	port, release, err := loopback.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return "127.0.0.1:" + port
}

// free reports whether an address can be listened on.
func free(t *testing.T, address string) bool {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		return false
	}
	return l.Close() == nil
}

// TestALifeFromItsStartToItsEnd goes through all states and looks at what each shows.
func TestALifeFromItsStartToItsEnd(t *testing.T) {
	w := newWorld(t, "")
	ctx, end := context.WithCancel(t.Context())
	defer end()
	locked, err := Start(ctx, w.Settings)
	if err != nil {
		t.Fatal(err)
	}
	defer locked.Close()
	if got := w.health(t); got != "alive" {
		t.Errorf("started, it is %q", got)
	}
	open, err := locked.Unlock(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got := w.health(t); got != "alive" {
		t.Errorf("open, and without a port for workloads, it is %q", got)
	}
	address := reserve(t)
	serving, err := open.Listen(ctx, address)
	if err != nil {
		t.Fatal(err)
	}
	if got := w.told(); got != "" {
		t.Errorf("before it serves it has told %q", got)
	}
	var served sync.WaitGroup
	served.Go(func() { err = serving.Serve(ctx) })
	for w.health(t) != "alive ready" || w.told() != "listening READY=1" {
		if t.Context().Err() != nil {
			t.Fatalf("serving, it is %q and has told %q", w.health(t), w.told())
		}
	}
	end()
	served.Wait()
	if err != nil {
		t.Error(err)
	}
	locked.Close()
	if got := w.health(t); got != "" || !free(t, address) || !free(t, w.HTTP) {
		t.Errorf("at its end it is %q", got)
	}
	if got := w.told(); got != "listening READY=1 STOPPING=1" {
		t.Errorf("it has told %q", got)
	}
	locked.Close() // nothing is left for a second call
}

// TestALockedBrokerThatIsStopped has a store whose root key no one brings.
func TestALockedBrokerThatIsStopped(t *testing.T) {
	w := newWorld(t, "broker: {store: {sqlite: DIR/broker.db}}\n")
	ctx, end := context.WithCancel(t.Context())
	locked, err := Start(ctx, w.Settings)
	if err != nil {
		t.Fatal(err)
	}
	defer locked.Close()
	if got := w.health(t); got != "alive" {
		t.Errorf("locked, it is %q", got)
	}
	end()
	if open, err := locked.Unlock(ctx); open != nil || !errors.Is(err, ErrStopped) {
		t.Errorf("%v, %v", open, err)
	}
	locked.Close()
	if !free(t, w.HTTP) {
		t.Error("the port for health is not free again")
	}
	s, err := sqlite.Open(t.Context(), filepath.Join(w.dir, "broker.db"), privatefile.Rule{})
	if err != nil {
		t.Fatalf("the store is not closed: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestAStartThatFailsLeavesNothingOpen fails at each port in turn.
func TestAStartThatFailsLeavesNothingOpen(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for name, c := range map[string]struct {
		block string
		spoil func(*world)
	}{
		"no secrets": {"", func(w *world) { w.Secrets = nil }},
		"health":     {"", func(w *world) { w.HTTP = busy.Addr().String() }},
		"store":      {"broker: {store: {sqlite: DIR/none/broker.db}}\n", func(*world) {}},
		"administrators": {"", func(w *world) {
			w.Policy.Broker.Admin.Listen = busy.Addr().String()
			w.Policy.Broker.Admin.Roots = []string{string(pki.EncodeCertificate(w.platform.RootCA().Raw))}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, c.block)
			port := w.HTTP
			c.spoil(w)
			locked, err := Start(t.Context(), w.Settings)
			if locked != nil || attest.CodeOf(err) != attest.CodeConfig {
				t.Fatalf("%v, %v", locked, err)
			}
			if !free(t, port) {
				t.Error("the port for health is not free again")
			}
		})
	}
}

// TestABusyAddressEndsAnOpenBroker: what has begun before ends with Close.
func TestABusyAddressEndsAnOpenBroker(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	w := newWorld(t, "")
	locked, err := Start(t.Context(), w.Settings)
	if err != nil {
		t.Fatal(err)
	}
	defer locked.Close()
	open, err := locked.Unlock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if serving, err := open.Listen(t.Context(), busy.Addr().String()); serving != nil || attest.CodeOf(err) != attest.CodeConfig {
		t.Errorf("%v, %v", serving, err)
	}
	open.Close()
	if !free(t, w.HTTP) {
		t.Error("the port for health is not free again")
	}
}

// TestItSaysTheAddressItWasGiven is what scripts around Occlum's server look for.
func TestItSaysTheAddressItWasGiven(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for given, said := range map[string]string{
		"localhost:5000": "localhost:5000", ":5000": ":5000", "0.0.0.0:0": "0.0.0.0:" + port, "[::1]:0": "[::1]:" + port,
	} {
		if got := reached(given, l); got != said {
			t.Errorf("%s: it says %s, want %s", given, got, said)
		}
	}
}

// TestNothingBelowAConfiguredRootMovesTheClock has all dates of a software platform in 2100: certificates, revocation lists,
// TCB info and identity.
func TestNothingBelowAConfiguredRootMovesTheClock(t *testing.T) {
	year2100 := time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
	platform := brokertest.Platform(t, softsgx.Options{Now: year2100})
	dir := filepath.Join(t.TempDir(), "collateral")
	if err := pccs.WriteDir(dir, platform.Collateral()); err != nil {
		t.Fatal(err)
	}
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	keeper := &timekeeper{Bounded: clock.New(func() time.Time { return now }, time.Time{})}
	log := logrus.New()
	log.SetOutput(io.Discard)
	l := &Life{clock: keeper}
	trust, err := l.trust(policy.Trust{Roots: []string{string(pki.EncodeCertificate(platform.RootCA().Raw))},
		Collateral: policy.CollateralAt(dir)}, log)
	if err != nil {
		t.Fatal(err)
	}
	defer trust.Close()
	attester := platform.Attester(brokertest.Workload())
	evidence, err := attester.Evidence(t.Context(), attest.ReportData{})
	if err != nil {
		t.Fatal(err)
	}
	claims, err := trust.Verifier.Verify(t.Context(), evidence, keeper.Now())
	if err != nil {
		t.Fatal(err)
	}
	if claims.TCB.VerifiedAt.Before(year2100) {
		t.Errorf("verified at %s: the platform is not of 2100", claims.TCB.VerifiedAt)
	}
	if got := keeper.Now(); !got.Equal(now) {
		t.Errorf("the clock is at %s after evidence under a configured root, want %s", got, now)
	}
}
