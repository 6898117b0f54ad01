package broker_test

import (
	"bytes"
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
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
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

// counting is a verifier that counts what it has to verify.
type counting struct {
	attest.Verifier
	n atomic.Int64
}

func (v *counting) Verify(ctx context.Context, e attest.Evidence, at time.Time) (attest.Claims, error) {
	v.n.Add(1)
	return v.Verifier.Verify(ctx, e, at)
}

// currently is a source that has a platform's collateral of the moment, a new copy at each request.
type currently struct{ platform *softsgx.Platform }

func (c currently) Collateral(context.Context, dcap.Request) (*dcap.Collateral, error) {
	copied := *c.platform.Collateral()
	copied.TCBInfo = bytes.Clone(copied.TCBInfo)
	return &copied, nil
}

// TestEachLegacyCallIsJudgedByWhatHoldsAtItsMoment, and evidence is verified again only if that is not what it was.
func TestEachLegacyCallIsJudgedByWhatHoldsAtItsMoment(t *testing.T) {
	var past atomic.Int64
	v := &counting{}
	var policies *broker.Policies
	f := start(t, func(f *fixture, c *broker.Config) {
		f.platform = brokertest.Platform(t, softsgx.Options{Now: brokertest.Now, Validity: 30 * time.Minute})
		c.Identity, c.Quoter = brokertest.Identity(t, f.platform, brokertest.Broker()), brokertest.Quoter(f.platform, brokertest.Broker())
		trust := brokertest.TrustWith(t, f.platform, currently{f.platform})
		v.Verifier, trust.Verifier = trust.Verifier, v
		decide(t, f, c, trust, twoWorkloads)
		c.Now = func() time.Time { return brokertest.Now.Add(time.Duration(past.Load())) }
		policies = c.Policies
	})
	conn := f.dial(t, f.workload(t))
	calls := func(after string, verifications int64, code codes.Code) {
		t.Helper()
		for range 3 {
			if got, err := get(t, conn, "image_key"); status.Code(err) != code || code != codes.OK && got != "" {
				t.Errorf("%s: %q, %v", after, got, err)
			}
			if code != codes.OK {
				break // the connection is closed, and gRPC would make another one
			}
		}
		if n := v.n.Load(); n != verifications {
			t.Errorf("%s: %d verifications, want %d", after, n, verifications)
		}
	}
	replace := func(version int, text string) {
		t.Helper()
		if err := policies.Replace(t.Context(), []byte(brokertest.PolicyText(version, text)), "test"); err != nil {
			t.Fatal(err)
		}
	}
	reissue := func(at time.Duration, tcb softsgx.TCB) {
		t.Helper()
		past.Store(int64(at))
		if err := f.platform.Reissue(brokertest.Now.Add(at), tcb); err != nil {
			t.Fatal(err)
		}
	}
	calls("the handshake", 1, codes.OK)
	past.Store(int64(10 * time.Minute))
	calls("ten minutes", 1, codes.OK)
	replace(2, twoWorkloads)
	calls("a new policy", 2, codes.OK)
	reissue(11*time.Minute, softsgx.TCB{})
	calls("new collateral", 3, codes.OK)
	past.Store(int64(5 * time.Minute))
	calls("a clock that was set back", 4, codes.OK)
	reissue(12*time.Minute, softsgx.TCB{RevokedPCK: true})
	calls("the platform is revoked", 5, codes.PermissionDenied)
	f.log.wait(t, "the PCK certificate is revoked")
	ended(t, conn.GetState, conn.WaitForStateChange)

	reissue(13*time.Minute, softsgx.TCB{})
	conn = f.dial(t, f.workload(t))
	calls("another connection", 6, codes.OK)
	past.Store(int64(43 * time.Minute))
	calls("the collateral has expired", 6, codes.Unavailable)
	ended(t, conn.GetState, conn.WaitForStateChange)
	if got, err := get(t, conn, "image_key"); err == nil {
		t.Errorf("on a new connection, by expired collateral, it has got %q", got)
	}
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
