package broker_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/lab/attack"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// service is the PCCS of a platform, which can be made to fail, and counts what it is asked.
type service struct {
	*httptest.Server
	fail  atomic.Pointer[http.HandlerFunc]
	asked atomic.Int64
	tried chan struct{} // gets a token for each failure
}

func (s *service) heal() { s.fail.Store(new(http.HandlerFunc)) }

// startOn starts a broker on a platform whose collateral comes from a PCCS, which fails if fail is not nil.
func startOn(t *testing.T, platform *softsgx.Platform, fail http.HandlerFunc) (*fixture, *counted, *service) {
	t.Helper()
	s, healthy := &service{tried: make(chan struct{}, 1)}, platform.PCCS()
	s.fail.Store(&fail)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		if fail := *s.fail.Load(); fail != nil {
			select {
			case s.tried <- struct{}{}:
			default:
			}
			fail(w, r)
			return
		}
		healthy.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	var looks atomic.Int64 // at the clock, so that no failure is remembered
	source, err := pccs.New(pccs.Config{
		URL: s.URL, AllowHTTP: true, Roots: []*x509.Certificate{platform.RootCA()}, Attempts: 1, NegativeAge: time.Nanosecond,
		Now: func() time.Time { return brokertest.Now.Add(time.Duration(looks.Add(1)) * time.Microsecond) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(source.Close)
	k := &counted{}
	f := start(t, func(f *fixture, c *broker.Config) {
		f.platform = platform
		c.Identity, c.Quoter = brokertest.Identity(t, platform, brokertest.Broker()), brokertest.Quoter(platform, brokertest.Broker())
		k.Keeper, c.Keeper = c.Keeper, k
		trust := brokertest.TrustWith(t, platform, source)
		decide(t, f, c, trust, "")
	})
	return f, k, s
}

func answers(status int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte("<html>Please log in</html>"))
	}
}

func leaves(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// on makes a client speak a protocol.
func on(p grpcratls.Protocol) func(*grpcratls.Config) {
	return func(c *grpcratls.Config) { c.Protocol = p }
}

// bothWires are the protocols of clients.
func bothWires() []grpcratls.Protocol {
	return []grpcratls.Protocol{grpcratls.SessionV1, grpcratls.Legacy}
}

func TestAPeerOutwaitsAFaultOfTheCollateralService(t *testing.T) {
	for name, fail := range map[string]http.HandlerFunc{
		"away": leaves, "429": answers(429, "Retry-After", "3600"), "503": answers(503), "a web page": answers(200, "Content-Type", "text/html"),
	} {
		for _, protocol := range bothWires() {
			t.Run(fmt.Sprintf("%s, %s", name, protocol), func(t *testing.T) {
				f, k, s := startOn(t, brokertest.Platform(t, softsgx.Options{}), fail)
				said := &log{}
				client := f.client(t, f.platform.Attester(brokertest.Workload()), on(protocol), saysTo(said))
				ended := make(chan error, 1)
				go func() {
					secrets, err := ask(t, client, "image_key")
					if err == nil && string(secrets["image_key"].Expose()) != canary {
						t.Error("it is another secret")
					}
					ended <- err
				}()
				said.wait(t, "the broker cannot decide now: something that it needs cannot be reached")
				s.heal()
				if err := <-ended; err != nil {
					t.Errorf("after the fault: %v", err)
				}
				if released, refused := k.released.Load(), k.refused.Load(); released != 1 || refused != 0 {
					t.Errorf("%d released, %d refused", released, refused)
				}
			})
		}
	}
}

func TestABrokerWithoutThePlatformsCollateralRestsAndTellsItsOperatorOnce(t *testing.T) {
	for _, protocol := range bothWires() {
		t.Run(string(protocol), func(t *testing.T) {
			platform := brokertest.Platform(t, softsgx.Options{})
			lacking, k, _ := startOn(t, platform, answers(404))
			second, _, s := startOn(t, platform, answers(503))
			said := &log{}
			client := lacking.client(t, platform.Attester(brokertest.Workload()), on(protocol), saysTo(said), func(c *grpcratls.Config) {
				c.Servers = append(c.Servers, second.address)
			})
			ended := make(chan error, 1)
			go func() {
				_, err := ask(t, client, "image_key")
				ended <- err
			}()
			for range 3 { // rounds at the second one
				select {
				case <-s.tried:
				case err := <-ended:
					t.Fatal(err)
				}
			}
			s.heal()
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(said.String(), "its collateral service does not have this platform") {
				t.Errorf("init has heard: %s", said)
			}
			judged := func() int { return strings.Count(lacking.log.String(), "peer not judged") }
			if n := judged(); n != 1 {
				t.Errorf("the broker that lacks collateral was asked %d times", n)
			}
			if _, err := ask(t, client, "image_key"); err != nil {
				t.Fatal(err)
			}
			if text := lacking.log.String(); judged() != 2 || strings.Count(text, "level=error") != 1 ||
				!strings.Contains(text, "code=collateral-missing") {
				t.Errorf("its operator is not told once: %s", text)
			}
			if n := k.refused.Load(); n != 0 {
				t.Errorf("%d refusals", n)
			}
		})
	}
}

func TestAStrangerCannotMakeTheBrokerAskForCollateral(t *testing.T) {
	f, _, s := startOn(t, brokertest.Platform(t, softsgx.Options{}), nil)
	forged := attack.BadPeers(t, f.platform)
	for _, kind := range []string{"no evidence", "root", "reading evidence", "signature", "peer refused"} {
		if got, err := get(t, f.dial(t, forged[kind]), "image_key"); err == nil || session.Fault(err) != nil {
			t.Errorf("%s: %q, %v", kind, got, err)
		}
	}
	stranger := brokertest.Platform(t, softsgx.Options{FMSPC: [6]byte{1, 2, 3, 4, 5, 6}})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := f.client(t, stranger.Attester(brokertest.Workload())).Fetch(ctx, []string{"image_key"}); attest.CodeOf(err) != attest.CodeDenied {
		t.Errorf("a session: %v", err)
	}
	if n := s.asked.Load(); n != 0 {
		t.Errorf("the collateral service was asked %d times", n)
	}
	if _, err := get(t, f.dial(t, f.workload(t)), "image_key"); err != nil || s.asked.Load() == 0 {
		t.Errorf("a genuine peer: %v after %d questions", err, s.asked.Load())
	}
}
