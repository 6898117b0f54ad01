package broker_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// exporterLabel is that of docs/protocol.md.
const exporterLabel = "EXPORTER-sesame-session-v1"

// rawSession is a client of the session protocol that says what a test wants, as docs/protocol.md has the messages.
type rawSession struct {
	t       *testing.T
	stream  grpc.BidiStreamingClient[sessionpb.ClientMessage, sessionpb.BrokerMessage]
	binding session.Binding
}

func openRaw(t *testing.T, address string, certificate *tls.Certificate, change ...func(*tls.Config)) *rawSession {
	t.Helper()
	c := session.ClientTLS(certificate, "127.0.0.1")
	for _, change := range change {
		change(c)
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(c)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	r := &rawSession{t: t}
	if r.stream, err = sessionpb.NewKeyBrokerClient(conn).Release(ctx); err != nil {
		t.Fatal(err)
	}
	r.binding.ClientNonce = [32]byte{7}
	r.binding.ClientKey = sha256.Sum256(certificate.Leaf.RawSubjectPublicKeyInfo)
	return r
}

func newKeyPair(t *testing.T) *tls.Certificate {
	t.Helper()
	c, err := session.NewKey(brokertest.Now)
	if err != nil {
		t.Fatal(err)
	}
	return &c
}

// send does not care whether the broker has left: what it says is the answer.
func (r *rawSession) send(m *sessionpb.ClientMessage) { _ = r.stream.Send(m) }

func hello(nonce []byte) *sessionpb.ClientMessage {
	return &sessionpb.ClientMessage{Message: &sessionpb.ClientMessage_Hello{Hello: &sessionpb.Hello{Nonce: nonce}}}
}

// greet sends the first message and takes the second.
func (r *rawSession) greet() {
	r.t.Helper()
	r.send(hello(r.binding.ClientNonce[:]))
	m, err := r.stream.Recv()
	if err != nil {
		r.t.Fatal(err)
	}
	copy(r.binding.BrokerNonce[:], m.GetEvidence().GetNonce())
	p, ok := peer.FromContext(r.stream.Context())
	if !ok {
		r.t.Fatal("there is no connection")
	}
	cs := p.AuthInfo.(credentials.TLSInfo).State
	exported, err := cs.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		r.t.Fatal(err)
	}
	copy(r.binding.Exporter[:], exported)
	r.binding.BrokerKey = sha256.Sum256(cs.PeerCertificates[0].RawSubjectPublicKeyInfo)
}

// ask sends evidence over report data, with a place in a tree.
func (r *rawSession) ask(f *fixture, data attest.ReportData, size, index uint32, path ...[]byte) *sessionpb.Request {
	r.t.Helper()
	e, err := f.platform.Attester(brokertest.Workload()).Evidence(r.t.Context(), data)
	if err != nil {
		r.t.Fatal(err)
	}
	return &sessionpb.Request{Names: []string{"image_key"},
		Evidence: &sessionpb.Evidence{Type: "sgx", Raw: e.Raw, Size: size, Index: index, Path: path}}
}

// alone is the request of a quote that covers one session.
func (r *rawSession) alone(f *fixture) *sessionpb.Request {
	return r.ask(f, session.ReportData(session.Client, 1, r.binding.Leaf(session.Client)), 1, 0)
}

func (r *rawSession) finish(q *sessionpb.Request) (*sessionpb.Result, error) {
	r.send(&sessionpb.ClientMessage{Message: &sessionpb.ClientMessage_Request{Request: q}})
	m, err := r.stream.Recv()
	return m.GetResult(), err
}

// TestAClientThatLeavesTheProtocolGetsNothing: every bound of docs/protocol.md, from both sides. A peer that is refused
// by one learns nothing, not even which.
func TestAClientThatLeavesTheProtocolGetsNothing(t *testing.T) {
	f, keeper := startCounted(t, twoWorkloads, nil)
	released := int64(0)
	begin := func() *rawSession { return openRaw(t, f.address, newKeyPair(t)) }
	given := func(name string, q *sessionpb.Request, r *rawSession) {
		t.Helper()
		result, err := r.finish(q)
		if err != nil || len(result.GetSecrets()) != 1 || string(result.GetSecrets()[0].GetValue()) != canary {
			t.Errorf("%s: %v, %v", name, result.GetDenial(), err)
		}
		released++
	}
	refused := func(name string, result *sessionpb.Result, err error) {
		t.Helper()
		if s := status.Convert(err); result != nil || s.Code() != codes.PermissionDenied || s.Message() != "" {
			t.Errorf("%s: %v, %v", name, result, err)
		}
	}

	// The first message.
	for name, m := range map[string]*sessionpb.ClientMessage{
		"a nonce of 31 bytes": hello(make([]byte, 31)), "a nonce of 33 bytes": hello(make([]byte, 33)), "no nonce": hello(nil),
		"nothing": {}, "the request at once": {Message: &sessionpb.ClientMessage_Request{Request: &sessionpb.Request{}}},
	} {
		r := begin()
		r.send(m)
		answer, err := r.stream.Recv()
		refused(name, answer.GetResult(), err)
		if answer.GetEvidence() != nil {
			t.Errorf("%s: the broker has made evidence", name)
		}
	}

	// The evidence and its place in a tree.
	h := sha256.Sum256([]byte("another session"))
	for name, request := range map[string]func(*rawSession, tlog.Hash) *sessionpb.Request{
		"another's nonce": func(r *rawSession, _ tlog.Hash) *sessionpb.Request {
			b := r.binding
			b.BrokerNonce[0] ^= 1
			return r.ask(f, session.ReportData(session.Client, 1, b.Leaf(session.Client)), 1, 0)
		},
		"another's connection": func(r *rawSession, _ tlog.Hash) *sessionpb.Request {
			b := r.binding
			b.Exporter[0] ^= 1
			return r.ask(f, session.ReportData(session.Client, 1, b.Leaf(session.Client)), 1, 0)
		},
		"the broker's leaf": func(r *rawSession, _ tlog.Hash) *sessionpb.Request {
			return r.ask(f, session.ReportData(session.Client, 1, r.binding.Leaf(session.Broker)), 1, 0)
		},
		"the broker's role": func(r *rawSession, leaf tlog.Hash) *sessionpb.Request {
			return r.ask(f, session.ReportData(session.Broker, 1, leaf), 1, 0)
		},
		"size 0": func(r *rawSession, leaf tlog.Hash) *sessionpb.Request {
			return r.ask(f, session.ReportData(session.Client, 0, leaf), 0, 0)
		},
		"another size": func(r *rawSession, leaf tlog.Hash) *sessionpb.Request {
			return r.ask(f, session.ReportData(session.Client, 1, tlog.NodeHash(leaf, h)), 2, 0, h[:])
		},
		"size 1025": func(r *rawSession, leaf tlog.Hash) *sessionpb.Request { // whose last leaf is alone
			return r.ask(f, session.ReportData(session.Client, 1025, tlog.NodeHash(h, leaf)), 1025, 1024, h[:])
		},
		"an index beyond the size": func(r *rawSession, leaf tlog.Hash) *sessionpb.Request {
			return r.ask(f, session.ReportData(session.Client, 1, leaf), 1, 1)
		},
		"a path that is too long": func(r *rawSession, leaf tlog.Hash) *sessionpb.Request {
			return r.ask(f, session.ReportData(session.Client, 1, tlog.NodeHash(leaf, h)), 1, 0, h[:])
		},
		"a path that is too short": func(r *rawSession, leaf tlog.Hash) *sessionpb.Request {
			return r.ask(f, session.ReportData(session.Client, 4, tlog.NodeHash(leaf, h)), 4, 0, h[:])
		},
		"a hash of 31 bytes": func(r *rawSession, leaf tlog.Hash) *sessionpb.Request {
			return r.ask(f, session.ReportData(session.Client, 2, tlog.NodeHash(leaf, h)), 2, 0, h[:31])
		},
		"no evidence": func(r *rawSession, _ tlog.Hash) *sessionpb.Request {
			return &sessionpb.Request{Names: []string{"image_key"}}
		},
		"evidence of more than 64 KiB": func(r *rawSession, leaf tlog.Hash) *sessionpb.Request {
			q := r.alone(f)
			q.Evidence.Raw = append(q.Evidence.Raw, make([]byte, 64<<10)...)
			return q
		},
		"evidence of type none": func(r *rawSession, leaf tlog.Hash) *sessionpb.Request {
			q := r.alone(f)
			q.Evidence.Type = "none"
			return q
		},
		"65 names": func(r *rawSession, leaf tlog.Hash) *sessionpb.Request {
			q := r.alone(f)
			for i := range 64 {
				q.Names = append(q.Names, fmt.Sprint(i))
			}
			return q
		},
		"an empty name":         func(r *rawSession, _ tlog.Hash) *sessionpb.Request { return r.names(f, "image_key", "") },
		"a name twice":          func(r *rawSession, _ tlog.Hash) *sessionpb.Request { return r.names(f, "image_key", "image_key") },
		"a name of 256 bytes":   func(r *rawSession, _ tlog.Hash) *sessionpb.Request { return r.names(f, strings.Repeat("n", 256)) },
		"nothing but a message": func(*rawSession, tlog.Hash) *sessionpb.Request { return nil },
	} {
		r := begin()
		r.greet()
		result, err := r.finish(request(r, r.binding.Leaf(session.Client)))
		refused(name, result, err)
	}

	// What is just within the bounds.
	r := begin()
	r.greet()
	given("one session", r.alone(f), r)
	r = begin()
	r.greet()
	root, path := tlog.Hash(r.binding.Leaf(session.Client)), [][]byte(nil)
	for range 10 {
		root, path = tlog.NodeHash(h, root), append(path, h[:])
	}
	given("the last of 1024", r.ask(f, session.ReportData(session.Client, 1024, root), 1024, 1023, path...), r)
	r = begin()
	r.greet()
	if result, err := r.finish(r.names(f, strings.Repeat("n", 255))); err != nil || result.GetDenial().GetCode() != string(attest.CodeSecret) {
		t.Errorf("a name of 255 bytes: %v, %v", result, err)
	}
	if n := keeper.released.Load(); n != released {
		t.Errorf("%d releases, want %d", n, released)
	}
}

func (r *rawSession) names(f *fixture, names ...string) *sessionpb.Request {
	q := r.alone(f)
	q.Names = names
	return q
}

// TestSessionsAreOfTLS13Only: who is not of the legacy wire does not get past the handshake with TLS 1.2, and who is
// has no session there.
func TestSessionsAreOfTLS13Only(t *testing.T) {
	f, keeper := startCounted(t, twoWorkloads, nil)
	old := func(c *tls.Config) {
		c.MinVersion, c.MaxVersion, c.VerifyConnection = tls.VersionTLS12, tls.VersionTLS12, accept
	}
	for name, c := range map[string]struct {
		certificate *tls.Certificate
		code        codes.Code
	}{
		"no evidence": {newKeyPair(t), codes.Unavailable}, "a legacy peer": {f.workload(t), codes.PermissionDenied},
	} {
		config := session.ClientTLS(c.certificate, "127.0.0.1")
		old(config)
		conn, err := grpc.NewClient("passthrough:///"+f.address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		stream, err := sessionpb.NewKeyBrokerClient(conn).Release(ctx)
		var m *sessionpb.BrokerMessage
		if err == nil {
			_ = stream.Send(hello(make([]byte, 32)))
			m, err = stream.Recv()
		}
		if m != nil || status.Code(err) != c.code {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
	if keeper.released.Load() != 0 {
		t.Error("something was released")
	}
}

// relay is the one in the middle: it has a TLS connection to each side, and passes every message on.
type relay struct {
	sessionpb.UnimplementedKeyBrokerServer
	t  *testing.T
	to *fixture

	mu   sync.Mutex
	seen []*sessionpb.ClientMessage
}

func (r *relay) Release(from session.Stream) error {
	to := openRaw(r.t, r.to.address, newKeyPair(r.t)).stream
	go func() {
		for {
			m, err := from.Recv()
			if err != nil {
				return
			}
			r.mu.Lock()
			r.seen = append(r.seen, m)
			r.mu.Unlock()
			_ = to.Send(m)
		}
	}()
	for {
		m, err := to.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := from.Send(m); err != nil {
			return err
		}
	}
}

// TestARelayedSessionIsRefusedByBothSides: the client sends nothing beyond its greeting, and if it did, the broker would
// take its evidence for another's.
func TestARelayedSessionIsRefusedByBothSides(t *testing.T) {
	f, keeper := startCounted(t, twoWorkloads, nil)
	own := newKeyPair(t)
	config := ratls.ServerConfig(func(context.Context) (*tls.Certificate, error) { return own, nil }, accept)
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	middle := &relay{t: t, to: f}
	sessionpb.RegisterKeyBrokerServer(server, middle)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)

	client := f.client(t, f.platform.Attester(brokertest.Workload()), func(c *grpcratls.Config) { c.Servers = []string{l.Addr().String()} })
	got, err := ask(t, client, "image_key")
	if got != nil || attest.CodeOf(err) != attest.CodeEvidence || !strings.Contains(err.Error(), "not made for this session") {
		t.Errorf("the client: %v", err)
	}
	middle.mu.Lock()
	seen := slices.Clone(middle.seen) // of one try or more
	middle.mu.Unlock()
	if len(seen) == 0 || slices.ContainsFunc(seen, func(m *sessionpb.ClientMessage) bool { return m.GetHello() == nil }) {
		t.Errorf("the client has sent %v", seen)
	}

	r := openRaw(t, l.Addr().String(), newKeyPair(t)) // takes any broker
	r.greet()
	if result, err := r.finish(r.alone(f)); result != nil || status.Code(err) != codes.PermissionDenied {
		t.Errorf("the broker: %v, %v", result, err)
	}
	f.log.wait(t, "the evidence was not made for this session")
	if keeper.released.Load() != 0 {
		t.Error("something was released")
	}
}

// liar is a broker that has genuine evidence of the session and does something else wrong.
type liar struct {
	sessionpb.UnimplementedKeyBrokerServer
	f      *fixture
	own    *tls.Certificate
	shown  func(*sessionpb.BrokerEvidence)
	result *sessionpb.Result
}

func (b *liar) Release(stream session.Stream) error {
	p, _ := peer.FromContext(stream.Context())
	cs := p.AuthInfo.(credentials.TLSInfo).State
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	exported, err := cs.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		return err
	}
	binding := session.Binding{
		Exporter: [32]byte(exported), ClientNonce: [32]byte(first.GetHello().GetNonce()), BrokerNonce: [32]byte{9},
		ClientKey: sha256.Sum256(cs.PeerCertificates[0].RawSubjectPublicKeyInfo), BrokerKey: sha256.Sum256(b.own.Leaf.RawSubjectPublicKeyInfo),
	}
	e, err := b.f.platform.Attester(brokertest.Broker()).Evidence(stream.Context(),
		session.ReportData(session.Broker, 1, binding.Leaf(session.Broker)))
	if err != nil {
		return err
	}
	shown := &sessionpb.BrokerEvidence{Nonce: binding.BrokerNonce[:], Evidence: &sessionpb.Evidence{Type: "sgx", Raw: e.Raw, Size: 1}}
	if b.shown != nil {
		b.shown(shown)
	}
	if err := stream.Send(&sessionpb.BrokerMessage{Message: &sessionpb.BrokerMessage_Evidence{Evidence: shown}}); err != nil {
		return err
	}
	if _, err := stream.Recv(); err != nil {
		return err
	}
	return stream.Send(&sessionpb.BrokerMessage{Message: &sessionpb.BrokerMessage_Result{Result: b.result}})
}

// TestAClientTakesNothingFromABrokerThatLeavesTheProtocol, although its evidence is what the client wants.
func TestAClientTakesNothingFromABrokerThatLeavesTheProtocol(t *testing.T) {
	f := &fixture{platform: brokertest.Platform(t, softsgx.Options{})}
	secret := func(name, value string) *sessionpb.Secret { return &sessionpb.Secret{Name: name, Value: []byte(value)} }
	right := &sessionpb.Result{Secrets: []*sessionpb.Secret{secret("a", "1"), secret("b", "2")}}
	results := func(secrets ...*sessionpb.Secret) *sessionpb.Result { return &sessionpb.Result{Secrets: secrets} }
	for name, c := range map[string]struct {
		shown  func(*sessionpb.BrokerEvidence)
		result *sessionpb.Result
		code   attest.Code
	}{
		"nothing is wrong":       {nil, right, ""},
		"no nonce":               {func(s *sessionpb.BrokerEvidence) { s.Nonce = nil }, right, attest.CodeEvidence},
		"another nonce":          {func(s *sessionpb.BrokerEvidence) { s.Nonce = bytes.Repeat([]byte{1}, 32) }, right, attest.CodeEvidence},
		"no evidence":            {func(s *sessionpb.BrokerEvidence) { s.Evidence = nil }, right, attest.CodeEvidence},
		"size 0":                 {func(s *sessionpb.BrokerEvidence) { s.Evidence.Size = 0 }, right, attest.CodeEvidence},
		"size 1025":              {func(s *sessionpb.BrokerEvidence) { s.Evidence.Size = 1025 }, right, attest.CodeEvidence},
		"an index beyond":        {func(s *sessionpb.BrokerEvidence) { s.Evidence.Index = 1 }, right, attest.CodeEvidence},
		"a path":                 {func(s *sessionpb.BrokerEvidence) { s.Evidence.Path = [][]byte{make([]byte, 32)} }, right, attest.CodeEvidence},
		"as a bare one":          {func(s *sessionpb.BrokerEvidence) { s.Evidence.Type = "none" }, right, attest.CodePolicy},
		"as another type":        {func(s *sessionpb.BrokerEvidence) { s.Evidence.Type = "tdx" }, right, attest.CodeEvidence},
		"more than 64 KiB":       {func(s *sessionpb.BrokerEvidence) { s.Evidence.Raw = make([]byte, 64<<10+1) }, right, attest.CodeEvidence},
		"neither secrets nor no": {nil, &sessionpb.Result{}, attest.CodeSecret},
		"no result":              {nil, nil, attest.CodeSecret},
		"one is missing":         {nil, results(secret("a", "1")), attest.CodeSecret},
		"one more":               {nil, results(secret("a", "1"), secret("b", "2"), secret("c", "3")), attest.CodeSecret},
		"in another order":       {nil, results(secret("b", "2"), secret("a", "1")), attest.CodeSecret},
		"another name":           {nil, results(secret("a", "1"), secret("c", "2")), attest.CodeSecret},
		"more than 1 MiB":        {nil, results(secret("a", "1"), secret("b", strings.Repeat("2", 1<<20+1))), attest.CodeSecret},
		"wrapped to a TPM":       {nil, &sessionpb.Result{Secrets: right.Secrets, Wrapped: "tpm"}, attest.CodeSecret},
		"a large receipt": {nil, &sessionpb.Result{Secrets: right.Secrets, Receipt: &sessionpb.Receipt{Entry: make([]byte, 256<<10+1)}},
			attest.CodeEvidence},
		"a denial": {nil, &sessionpb.Result{Secrets: right.Secrets, Denial: &sessionpb.Denial{Code: "policy", Reason: "no\x1b[2J"}},
			attest.CodeDenied},
	} {
		own := newKeyPair(t)
		config := ratls.ServerConfig(func(context.Context) (*tls.Certificate, error) { return own, nil }, accept)
		server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
		sessionpb.RegisterKeyBrokerServer(server, &liar{f: f, own: own, shown: c.shown, result: c.result})
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = server.Serve(l) }()
		f.address = l.Addr().String()
		got, err := ask(t, f.client(t, f.platform.Attester(brokertest.Workload())), "a", "b")
		server.Stop()
		if c.code == "" && (err != nil || string(got["a"].Expose())+string(got["b"].Expose()) != "12") {
			t.Errorf("%s: %v", name, err)
		}
		if c.code != "" && (got != nil || attest.CodeOf(err) != c.code || strings.Contains(err.Error(), "\x1b")) {
			t.Errorf("%s: code %s: %v", name, attest.CodeOf(err), err)
		}
	}
}
