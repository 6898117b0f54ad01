package broker_test

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/edgelesssys/ego/attestation/tcbstatus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/backend/grpcratls/wire"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/lab/attack"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// canary is what no refused peer may see.
const canary = "canary-4f1c-image-key"

// log is a log that several goroutines write to.
type log struct {
	mu      sync.Mutex
	b       bytes.Buffer
	changed chan struct{} // closed by the next write
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
	return l.b.Write(p)
}

func (l *log) String() string {
	text, _ := l.now()
	return text
}

func (l *log) now() (string, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.b.String(), l.changed
}

// wait waits until the log says text: a peer may learn of a refusal before it is logged.
func (l *log) wait(t testing.TB, text string) {
	t.Helper()
	late := time.After(30 * time.Second)
	for {
		said, changed := l.now()
		if strings.Contains(said, text) {
			return
		}
		select {
		case <-changed:
		case <-late:
			t.Errorf("the log does not say %q:\n%s", text, said)
			return
		}
	}
}

// fixture is a running broker.
type fixture struct {
	platform *softsgx.Platform
	address  string
	log      *log
}

func start(t *testing.T, change func(*fixture, *broker.Config)) *fixture {
	t.Helper()
	f := &fixture{platform: brokertest.Platform(t, softsgx.Options{}), log: &log{}}
	c := brokertest.Config(t, f.platform, map[string][]byte{
		"image_key": []byte(canary), "Key": []byte("1"), "kEY": []byte("2"), "empty": nil,
	}, f.log)
	if change != nil {
		change(f, &c)
	}
	f.address = brokertest.Listen(t, c)
	return f
}

// decide puts a policy in the place of a broker's, and trust, if it is not nil, in the place of what it trusts.
func decide(t *testing.T, f *fixture, c *broker.Config, trust *broker.Trust, text string) {
	t.Helper()
	if trust == nil {
		trust = brokertest.Trust(t, f.platform)
	}
	p := brokertest.Everything(t)
	if text != "" {
		p = brokertest.Policy(t, text)
	}
	c.Policies = brokertest.Policies(t, trust, p, c.Keeper, c.Logger)
}

// accept is a client that takes any broker: here the broker is tested.
func accept(tls.ConnectionState) error { return nil }

// dial is a gRPC connection of a peer with this certificate.
func (f *fixture) dial(t testing.TB, certificate *tls.Certificate, change ...func(*tls.Config)) *grpc.ClientConn {
	t.Helper()
	c := ratls.ClientConfig(certificate, "127.0.0.1", accept)
	for _, change := range change {
		change(c)
	}
	conn, err := grpc.NewClient("passthrough:///"+f.address, grpc.WithTransportCredentials(credentials.NewTLS(c)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func get(t testing.TB, conn *grpc.ClientConn, name string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	reply, err := wire.NewGrSecretClient(conn).GetSecret(ctx, &wire.SecretRequest{Name: name})
	return string(reply.GetSecret()), err
}

func (f *fixture) workload(t testing.TB) *tls.Certificate {
	c := brokertest.Certificate(t, f.platform, brokertest.Workload())
	return &c
}

func TestTheRightPeerGetsItsSecretsAsCppClientsExpectThem(t *testing.T) {
	f := start(t, nil)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384 := attack.NewKey(t, elliptic.P384())
	for name, certificate := range map[string]*tls.Certificate{
		"P-256":    f.workload(t),
		"P-384":    attack.SelfSigned(t, p384, attack.QuoteFor(t, f.platform, p384)),
		"RSA-2048": attack.SelfSigned(t, rsaKey, attack.QuoteFor(t, f.platform, rsaKey)),
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			conn := f.dial(t, certificate, func(c *tls.Config) { c.MaxVersion = version })
			got, err := get(t, conn, "image_key")
			if want := `"Y2FuYXJ5LTRmMWMtaW1hZ2Uta2V5"`; err != nil || got != want {
				t.Errorf("%s, %s: %q, %v", name, tls.VersionName(version), got, err)
			}
		}
	}
	if !strings.Contains(f.log.String(), "secret released") || strings.Contains(f.log.String(), canary) {
		t.Errorf("the log is\n%s", f.log)
	}
}

func TestNamesAreLookedUpAsOcclumDoesButNeverGuessed(t *testing.T) {
	f := start(t, nil)
	conn := f.dial(t, f.workload(t))
	for name, want := range map[string]string{
		"image_key": canary, "IMAGE_KEY": canary, "Key": "1", "kEY": "2", "empty": "",
		"key": "CANCELLED", "": "CANCELLED", "no_such": "CANCELLED", "image_key\x00": "CANCELLED",
	} {
		got, err := get(t, conn, name)
		if want == "CANCELLED" {
			if s := status.Convert(err); s.Code() != codes.Canceled || s.Message() != "" || got != "" {
				t.Errorf("%q: %q, %v", name, got, err)
			}
			continue
		}
		secret, decodeErr := wire.DecodeSecret([]byte(got), 100)
		if err != nil || decodeErr != nil || string(secret.Expose()) != want {
			t.Errorf("%q: %q, %v, %v", name, got, err, decodeErr)
		}
	}
}

// twoWorkloads has demo, which may have both of its secrets, and other, which may have one, on both wires.
const twoWorkloads = `
workloads:
  demo:  {wire: legacy, versions: [{sgx: [{mr_enclave: ` + aa + `}]}]}
  other: {wire: legacy, versions: [{sgx: [{mr_enclave: ` + ones + `}]}]}
secrets:
  image_key: {workloads: [demo]}
  empty:     {workloads: [demo, other]}
`

const (
	aa   = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	ones = "1111111111111111111111111111111111111111111111111111111111111111"
)

func TestAWorkloadGetsOnlyItsOwnSecrets(t *testing.T) {
	other := brokertest.Enclave(0x11, 1, 1)
	f := start(t, func(f *fixture, c *broker.Config) { decide(t, f, c, nil, twoWorkloads) })
	certificate := brokertest.Certificate(t, f.platform, other)
	conn := f.dial(t, &certificate)
	if got, err := get(t, conn, "empty"); err != nil || got != `""` {
		t.Errorf("own secret: %q, %v", got, err)
	}
	for _, name := range []string{"image_key", "Key", "no_such"} { // another's, nobody's, none
		if got, err := get(t, conn, name); status.Code(err) != codes.Canceled || got != "" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestOnlyTheServiceAndHealthAreServed(t *testing.T) {
	f := start(t, nil)
	conn := f.dial(t, f.workload(t))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	reply, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil || reply.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", reply, err)
	}
	err = conn.Invoke(ctx, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
		&wire.SecretRequest{}, &wire.SecretReply{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("reflection: %v", err)
	}
	if _, err := get(t, conn, strings.Repeat("n", 100_000)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a name of 100,000 bytes: %v", err)
	}
}

func TestAnyOtherPeerIsRefusedInTheHandshakeAndTheLogSaysWhy(t *testing.T) {
	f := start(t, nil)
	for says, certificate := range attack.BadPeers(t, f.platform) {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			conn := f.dial(t, certificate, func(c *tls.Config) { c.MaxVersion = version })
			got, err := get(t, conn, "image_key")
			begun := says == "no evidence" && version == tls.VersionTLS13 // it might begin a session
			if got != "" || begun && status.Code(err) != codes.PermissionDenied || !begun && status.Code(err) != codes.Unavailable {
				t.Errorf("%s: %q, %v", says, got, err)
			}
		}
		f.log.wait(t, says)
	}
	if got, err := get(t, f.dial(t, nil), "image_key"); status.Code(err) != codes.Unavailable || got != "" {
		t.Errorf("no certificate: %q, %v", got, err)
	}
	if strings.Contains(f.log.String(), "secret released") || strings.Contains(f.log.String(), "peer accepted") {
		t.Errorf("a peer was accepted:\n%s", f.log)
	}
}

// TestOnlyASignedVerdictIsARefusal: expired collateral says nothing about a peer.
func TestOnlyASignedVerdictIsARefusal(t *testing.T) {
	for name, c := range map[string]struct {
		options softsgx.Options
		says    string
		fault   bool
	}{
		"expired":     {softsgx.Options{Now: brokertest.Now.Add(-60 * 24 * time.Hour)}, "peer not judged", true},
		"out of date": {softsgx.Options{TCB: softsgx.TCB{Status: tcbstatus.OutOfDate}}, "OutOfDate", false},
		"revoked":     {softsgx.Options{TCB: softsgx.TCB{RevokedPCK: true}}, "revoked", false},
	} {
		platform := brokertest.Platform(t, c.options)
		k := &counted{}
		f := start(t, func(f *fixture, config *broker.Config) {
			k.Keeper, config.Keeper = config.Keeper, k
			decide(t, f, config, brokertest.Trust(t, platform), "")
		})
		f.platform = platform
		got, err := get(t, f.dial(t, f.workload(t)), "image_key")
		fault := session.Fault(err)
		if (fault != nil && attest.CodeOf(fault) == attest.CodeCollateral) != c.fault || status.Code(err) != codes.Unavailable || got != "" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		f.log.wait(t, c.says)
		a := platform.Attester(brokertest.Workload())
		byKey := func(c *grpcratls.Config) { c.Verifier, c.Policy = believing{}, believing{} }
		if c.fault {
			err = untilSaid(t, "the broker cannot decide now", f, a, byKey)
		} else if _, err = ask(t, f.client(t, a, byKey), "image_key"); attest.CodeOf(err) != attest.CodeDenied {
			t.Errorf("%s: a session ends with [%s] %v", name, attest.CodeOf(err), err)
		}
		if refused := k.refused.Load(); err == nil || k.released.Load() != 0 || (refused == 0) != c.fault {
			t.Errorf("%s: %d released, %d refused, %v", name, k.released.Load(), refused, err)
		}
	}
}

func TestNoSecretLeavesWhenGoodAndBadPeersComeAtOnce(t *testing.T) {
	f := start(t, nil)
	var bad []*tls.Certificate
	for _, c := range attack.BadPeers(t, f.platform) {
		bad = append(bad, c)
	}
	good := f.workload(t)
	const rounds = 40
	var wg sync.WaitGroup
	var mu sync.Mutex
	var faults []string
	served, refused := 0, 0
	try := func(certificate *tls.Certificate, isGood bool) {
		defer wg.Done()
		conn := f.dial(t, certificate)
		got, err := get(t, conn, "image_key")
		_ = conn.Close()
		mu.Lock()
		defer mu.Unlock()
		switch {
		case isGood && err == nil:
			served++
		case !isGood && err != nil && got == "":
			refused++
		default:
			faults = append(faults, fmt.Sprintf("good %t: %q, %v", isGood, got, err))
		}
	}
	for range rounds {
		for _, c := range bad {
			wg.Add(1)
			go try(c, false)
		}
		wg.Add(1)
		go try(good, true)
		wg.Wait()
	}
	if len(faults) > 0 || served != rounds || refused != rounds*len(bad) {
		t.Errorf("%d of %d good peers served, %d of %d bad ones refused: %v",
			served, rounds, refused, rounds*len(bad), faults)
	}
}

// blocking is a verifier that tells when it is asked and waits.
type blocking struct {
	asked   chan struct{}
	release chan struct{}
	attest.Verifier
}

func (b *blocking) Verify(ctx context.Context, e attest.Evidence, at time.Time) (attest.Claims, error) {
	select {
	case b.asked <- struct{}{}:
	case <-b.release:
	}
	select {
	case <-b.release:
	case <-ctx.Done():
		return attest.Claims{}, ctx.Err()
	}
	return b.Verifier.Verify(ctx, e, at)
}

func TestVerificationOfOnePeerDoesNotHoldUpAnother(t *testing.T) {
	slow := &blocking{asked: make(chan struct{}), release: make(chan struct{})}
	f := start(t, func(f *fixture, c *broker.Config) {
		trust := brokertest.Trust(t, f.platform)
		slow.Verifier, trust.Verifier = trust.Verifier, slow
		decide(t, f, c, trust, "")
	})
	results := make(chan error, 2)
	for range 2 {
		conn, certificate := f, f.workload(t)
		go func() {
			_, err := get(t, conn.dial(t, certificate), "image_key")
			results <- err
		}()
	}
	<-slow.asked
	<-slow.asked // the second is verified while the first still is
	close(slow.release)
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

func TestAHandshakeThatTakesTooLongEnds(t *testing.T) {
	f := start(t, func(f *fixture, c *broker.Config) {
		decide(t, f, c, nil, twoWorkloads+"\nbroker: {limits: {handshake: 50ms}}")
	})
	conn, err := net.Dial("tcp", f.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	var timeout net.Error
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("the connection is still open: %v", err)
	}
}

func TestABrokerThatCannotDecideOrProveItselfIsNotMade(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{})
	good := brokertest.Config(t, platform, nil, &log{})
	if _, err := broker.New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*broker.Config){
		"no policies":                 func(c *broker.Config) { c.Policies = nil },
		"no keeper":                   func(c *broker.Config) { c.Keeper = nil },
		"no identity":                 func(c *broker.Config) { c.Identity = nil },
		"no evidence for legacy wire": func(c *broker.Config) { c.Quoter = nil },
	} {
		c := good
		change(&c)
		if _, err := broker.New(c); attest.CodeOf(err) != attest.CodeConfig {
			t.Errorf("%s: %v", name, err)
		}
	}
}
