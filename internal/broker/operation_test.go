package broker_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// away is a keeper whose store does not answer.
type away struct{ broker.Keeper }

func (away) Ready(context.Context) error { return errors.New("connection refused") }

// TestGRPCHealthSaysWhetherTheBrokerIsReady as /readyz does.
func TestGRPCHealthSaysWhetherTheBrokerIsReady(t *testing.T) {
	for _, want := range []grpc_health_v1.HealthCheckResponse_ServingStatus{
		grpc_health_v1.HealthCheckResponse_SERVING, grpc_health_v1.HealthCheckResponse_NOT_SERVING,
	} {
		f := start(t, func(f *fixture, c *broker.Config) {
			if want == grpc_health_v1.HealthCheckResponse_NOT_SERVING {
				c.Keeper = away{c.Keeper}
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		watch, err := grpc_health_v1.NewHealthClient(f.dial(t, f.workload(t))).Watch(ctx,
			&grpc_health_v1.HealthCheckRequest{Service: sessionpb.KeyBroker_ServiceDesc.ServiceName})
		if err != nil {
			t.Fatal(err)
		}
		got := grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN // until the broker has looked
		for got == grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN {
			update, err := watch.Recv()
			if err != nil {
				t.Fatal(err)
			}
			got = update.GetStatus()
		}
		if got != want {
			t.Errorf("it is %s, want %s", got, want)
		}
		if want == grpc_health_v1.HealthCheckResponse_NOT_SERVING {
			f.log.wait(t, "not ready: keeper: connection refused")
		}
	}
}

// crowded is a verifier that counts how many it verifies at once. It gives a third one some time to come.
type crowded struct {
	attest.Verifier
	now, most atomic.Int64
}

func (c *crowded) Verify(ctx context.Context, e attest.Evidence, at time.Time) (attest.Claims, error) {
	n := c.now.Add(1)
	defer c.now.Add(-1)
	for most := c.most.Load(); n > most && !c.most.CompareAndSwap(most, n); most = c.most.Load() {
	}
	if n < 3 {
		<-time.After(20 * time.Millisecond)
	}
	return c.Verifier.Verify(ctx, e, at)
}

func TestNoMorePeersAreVerifiedAtOnceThanThePolicySays(t *testing.T) {
	v := &crowded{}
	f := start(t, func(f *fixture, c *broker.Config) {
		trust := brokertest.Trust(t, f.platform)
		v.Verifier, trust.Verifier = trust.Verifier, v
		decide(t, f, c, trust, twoWorkloads+"broker: {limits: {handshakes: 2}}")
	})
	results := make(chan error, 24)
	for range cap(results) {
		conn := f.dial(t, f.workload(t))
		go func() {
			_, err := get(t, conn, "image_key")
			results <- err
		}()
	}
	for range cap(results) {
		if err := <-results; err != nil { // the others wait
			t.Error(err)
		}
	}
	if most := v.most.Load(); most < 1 || most > 2 {
		t.Errorf("%d were verified at once", most)
	}
}

func TestAConnectionWithoutCallsIsClosed(t *testing.T) {
	f := start(t, func(f *fixture, c *broker.Config) {
		decide(t, f, c, nil, twoWorkloads+"broker: {limits: {idle: 100ms}}")
	})
	conn := f.dial(t, f.workload(t))
	if _, err := get(t, conn, "image_key"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for state := conn.GetState(); state == connectivity.Ready; state = conn.GetState() {
		if !conn.WaitForStateChange(ctx, state) {
			t.Fatal("it stays open")
		}
	}
}

func TestWhatIsNotDrainedInTimeIsCutOff(t *testing.T) {
	slow := &blocking{asked: make(chan struct{}, 10), release: make(chan struct{})}
	f := &fixture{platform: brokertest.Platform(t, softsgx.Options{}), log: &log{}}
	c := brokertest.Config(t, f.platform, map[string][]byte{"image_key": []byte(canary)}, f.log)
	k := &counted{Keeper: c.Keeper}
	c.Keeper = k
	trust := brokertest.Trust(t, f.platform)
	slow.Verifier, trust.Verifier = trust.Verifier, slow
	decide(t, f, &c, trust, twoWorkloads+"broker: {limits: {drain: 50ms}}")
	address, stop, ended := brokertest.Serve(t, c)
	defer stop()
	f.address = address
	r := openRaw(t, f.address, newKeyPair(t))
	r.greet()
	r.send(&sessionpb.ClientMessage{Message: &sessionpb.ClientMessage_Request{Request: r.alone(f)}})
	<-slow.asked // and never released
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if m, err := r.stream.Recv(); m != nil || status.Code(err) == codes.OK {
		t.Errorf("%v, %v", m, err)
	}
	f.log.wait(t, "the time to drain is over")
	if k.released.Load() != 0 {
		t.Error("something was released")
	}
}
