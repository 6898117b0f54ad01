package broker_test

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/lab/attack/starve"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// oneSession runs one session over a connection whose handshake was made with key.
func oneSession(ctx context.Context, conn *grpc.ClientConn, key *tls.Certificate, a attest.Attester, secret string) (string, error) {
	var p peer.Peer
	if _, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.Peer(&p)); err != nil {
		return "", err
	}
	client := session.ClientConfig{Attester: a, Verifier: starve.AnyBroker{}, Policy: starve.AnyBroker{}, Now: brokertest.Clock}
	got, err := client.Fetch(ctx, conn, p.AuthInfo.(credentials.TLSInfo).State, key, []string{secret})
	if err != nil {
		return "", err
	}
	return string(got.Secrets[secret].Expose()), nil
}

// TestTheConnectionOfAReplicaEndsWithItsEvidenceAndAfterAnHour, although each hand-over has evidence of its own.
func TestTheConnectionOfAReplicaEndsWithItsEvidenceAndAfterAnHour(t *testing.T) {
	for name, c := range map[string]struct{ validity, lasts time.Duration }{
		"an hour": {30 * 24 * time.Hour, time.Hour}, "its evidence": {40 * time.Minute, 40 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			var past atomic.Int64
			f := start(t, func(f *fixture, b *broker.Config) {
				f.platform = brokertest.Platform(t, softsgx.Options{Now: brokertest.Now, Validity: c.validity})
				b.Quoter = brokertest.Quoter(f.platform, brokertest.Broker())
				b.Keeper = brokertest.Secrets(t, nil)
				decide(t, f, b, brokertest.TrustWith(t, f.platform, currently{f.platform}), `
workloads: {replica: {broker: true, versions: [{sgx: [{mr_enclave: `+strings.Repeat("cc", 32)+`}]}]}}
secrets: {other: {workloads: [replica]}}`)
				b.Now = func() time.Time { return brokertest.Now.Add(time.Duration(past.Load())) }
			})
			key := newKeyPair(t)
			conn := f.dial(t, key, func(c *tls.Config) { *c = *session.ClientTLS(key, "127.0.0.1") })
			replica := f.platform.Attester(brokertest.Broker())
			handOver := func(code codes.Code) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				got, err := oneSession(ctx, conn, key, replica, broker.RootKey)
				if status.Code(err) != code || (len(got) > 0) != (code == codes.OK) {
					t.Errorf("after %v: %q, %v", time.Duration(past.Load()), got, err)
				}
			}
			handOver(codes.OK)
			past.Store(int64(c.lasts - time.Second))
			handOver(codes.OK)
			if err := f.platform.Renew(brokertest.Now.Add(c.lasts - time.Second)); err != nil { // new evidence would do
				t.Fatal(err)
			}
			past.Store(int64(c.lasts))
			handOver(codes.Unavailable)
			ended(t, conn.GetState, conn.WaitForStateChange)
			handOver(codes.OK) // on a new connection
		})
	}
}

// patient is a machine whose evidence takes long.
type patient struct {
	attest.Attester
	takes time.Duration
}

func (p patient) Evidence(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	time.Sleep(p.takes) // of the bubble's time
	return p.Attester.Evidence(ctx, data)
}

// TestAPeerThatNeeds30SecondsForItsEvidenceIsServed by a broker with its default limits, which has not the patience for
// one that takes longer than a session may wait. The time is that of a bubble.
func TestAPeerThatNeeds30SecondsForItsEvidenceIsServed(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{})
	most := time.Duration(policy.DefaultLimits().Session)
	for _, c := range []struct {
		takes time.Duration
		code  codes.Code
	}{{30 * time.Second, codes.OK}, {most - time.Second, codes.OK}, {most + time.Second, codes.PermissionDenied}} {
		t.Run(c.takes.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				config := brokertest.Config(t, platform, map[string][]byte{"image_key": []byte(canary)}, &log{})
				began := time.Now()
				config.Now = func() time.Time { return brokertest.Now.Add(time.Since(began)) }
				server, err := broker.New(config)
				if err != nil {
					t.Fatal(err)
				}
				l := bufconn.Listen(64 << 10)
				ctx, stop := context.WithCancel(t.Context())
				served := make(chan error, 1)
				go func() { served <- server.Serve(ctx, l) }()

				key := newKeyPair(t)
				conn, err := grpc.NewClient("passthrough:///broker",
					grpc.WithTransportCredentials(credentials.NewTLS(session.ClientTLS(key, "127.0.0.1"))),
					grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
				if err != nil {
					t.Fatal(err)
				}
				slow := patient{platform.Attester(brokertest.Workload()), c.takes}
				got, err := oneSession(ctx, conn, key, slow, "image_key")
				if status.Code(err) != c.code || (got == canary) != (c.code == codes.OK) {
					t.Errorf("%q, %v", got, err)
				}
				if took := time.Since(began); took < min(c.takes, most) {
					t.Errorf("it took %v", took)
				}
				_ = conn.Close()
				stop()
				if err := <-served; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
