package broker_test

import (
	"context"
	"crypto/tls"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/broker"
	"github.com/sesame-init/sesame/broker/policy"
	"github.com/sesame-init/sesame/lab/brokertest"
)

// TestAConnectionThatBeginsNoSessionIsClosed, and asking for the broker's health is no session.
func TestAConnectionThatBeginsNoSessionIsClosed(t *testing.T) {
	f := start(t, func(f *fixture, c *broker.Config) {
		decide(t, f, c, nil, twoWorkloads+"broker: {limits: {begin: 300ms, idle: 1h, drain: 10ms}}")
	})
	for _, begins := range []bool{false, true} {
		conn := f.dial(t, newKeyPair(t), func(c *tls.Config) { *c = *session.ClientTLS(newKeyPair(t), "127.0.0.1") })
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if begins { // the stream of one, without its greeting
			stream := openRaw(t, f.address, newKeyPair(t)).stream
			if m, err := stream.Recv(); err == nil {
				t.Errorf("a session without a greeting: %v", m)
			}
			continue
		}
		watch, err := grpc_health_v1.NewHealthClient(conn).Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
		for err == nil {
			_, err = watch.Recv()
		}
		if ctx.Err() != nil {
			t.Error("a watch keeps the connection")
		}
	}
	// A legacy peer has proved itself, and is bound by idle alone.
	conn := f.dial(t, f.workload(t))
	if _, err := get(t, conn, "image_key"); err != nil {
		t.Error(err)
	}
}

// delayed is an attester that takes its time.
type delayed struct {
	attest.Attester
	wait time.Duration
}

func (d delayed) Evidence(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	select {
	case <-time.After(d.wait):
	case <-ctx.Done():
		return attest.Evidence{}, ctx.Err()
	}
	return d.Attester.Evidence(ctx, data)
}

// TestTheBrokersOwnTimeIsNotThePeers: each takes less than a session may take, both together take more.
func TestTheBrokersOwnTimeIsNotThePeers(t *testing.T) {
	const each = 1200 * time.Millisecond
	f := start(t, func(f *fixture, c *broker.Config) {
		c.Quoter = session.NewQuoter(session.QuoterOptions{
			Attester: delayed{f.platform.Attester(brokertest.Broker()), each}})
		decide(t, f, c, nil, twoWorkloads+"broker: {limits: {session: 2s}}")
	})
	client := f.client(t, delayed{f.platform.Attester(brokertest.Workload()), each})
	if _, err := ask(t, client, "image_key"); err != nil {
		t.Error(err)
	}
	f.log.wait(t, "secret released")
	if time.Duration(policy.DefaultLimits().Session) <= 30*time.Second {
		t.Error("a hardware TPM takes 30 s")
	}
}

// TestAnOpenLegacyConnectionEndsWithWhatItRestsOn: an hour, its certificate, its collateral.
func TestAnOpenLegacyConnectionEndsWithWhatItRestsOn(t *testing.T) {
	var past atomic.Int64
	f := start(t, func(_ *fixture, c *broker.Config) {
		c.Now = func() time.Time { return brokertest.Now.Add(time.Duration(past.Load())) }
	})
	conn := f.dial(t, f.workload(t))
	if _, err := get(t, conn, "image_key"); err != nil {
		t.Fatal(err)
	}
	past.Store(int64(59 * time.Minute))
	if _, err := get(t, conn, "image_key"); err != nil {
		t.Errorf("within the hour: %v", err)
	}

	// After the hour the connection ends. gRPC makes another one, whose evidence is judged anew.
	past.Store(int64(time.Hour))
	if _, err := get(t, conn, "image_key"); status.Code(err) != codes.Unavailable {
		t.Errorf("after an hour: %v", err)
	}
	ended(t, conn.GetState, conn.WaitForStateChange)
	if _, err := get(t, conn, "image_key"); err != nil {
		t.Errorf("on a new connection: %v", err)
	}

	// After ten years nothing is left of it.
	past.Store(int64(10 * 365 * 24 * time.Hour))
	if got, err := get(t, conn, "image_key"); err == nil {
		t.Errorf("after ten years it has got %q", got)
	}
	ended(t, conn.GetState, conn.WaitForStateChange)
	if got, err := get(t, conn, "image_key"); err == nil {
		t.Errorf("after ten years, on a new connection, it has got %q", got)
	}
}

func ended(t *testing.T, state func() connectivity.State, change func(context.Context, connectivity.State) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for s := state(); s == connectivity.Ready; s = state() {
		if !change(ctx, s) {
			t.Fatal("the connection stays open")
		}
	}
}

// turning is a verifier that learns something.
type turning struct {
	attest.Verifier
	bad atomic.Bool
}

func (v *turning) Verify(ctx context.Context, e attest.Evidence, at time.Time) (attest.Claims, error) {
	if v.bad.Load() {
		return attest.Claims{}, attest.Errorf(attest.CodeEvidence, "verifying", "", "the platform is revoked")
	}
	return v.Verifier.Verify(ctx, e, at)
}

// TestEachLegacyCallIsJudgedByTheCollateralOfItsMoment: what the verifier has learned since the handshake counts.
func TestEachLegacyCallIsJudgedByTheCollateralOfItsMoment(t *testing.T) {
	v := &turning{}
	f := start(t, func(f *fixture, c *broker.Config) {
		trust := brokertest.Trust(t, f.platform)
		v.Verifier, trust.Verifier = trust.Verifier, v
		decide(t, f, c, trust, "")
	})
	conn := f.dial(t, f.workload(t))
	if _, err := get(t, conn, "image_key"); err != nil {
		t.Fatal(err)
	}
	v.bad.Store(true)
	if got, err := get(t, conn, "image_key"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("%q, %v", got, err)
	}
	f.log.wait(t, "the platform is revoked")
	ended(t, conn.GetState, conn.WaitForStateChange)
}

// TestAStrangersConnectionHasOneStream: a second session waits in the client until the first has ended.
func TestAStrangersConnectionHasOneStream(t *testing.T) {
	f := start(t, nil)
	conn := f.dial(t, newKeyPair(t), func(c *tls.Config) { *c = *session.ClientTLS(newKeyPair(t), "127.0.0.1") })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	health := grpc_health_v1.NewHealthClient(conn)
	watch, err := health.Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err == nil {
		_, err = watch.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(ctx, 300*time.Millisecond)
	defer stop()
	if _, err := health.Check(short, &grpc_health_v1.HealthCheckRequest{}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a second stream: %v", err)
	}
}
