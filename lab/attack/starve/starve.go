// Package starve attacks a broker by holding its places: connections that prove nothing, as many as one can pay for,
// each opened again when the broker closes it. It must not be imported by programs that are shipped.
package starve

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-tpm/legacy/tpm2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"

	"github.com/sesame-init/sesame/attest"
	appraisal "github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
	"github.com/sesame-init/sesame/attest/sgx"
)

// A Class is what a hostile connection does. It calls acted when it has come to what the class is about, and returns the
// number of secrets that it has got when the broker has closed the connection, or ctx has ended.
type Class func(ctx context.Context, dial Dial, acted func()) (secrets int)

// Dial opens a TCP connection to the broker.
type Dial func(ctx context.Context) (net.Conn, error)

// Attack says how a crowd attacks a broker.
type Attack struct {
	Address string
	// From are the attackers' addresses, of which each connection takes the next one.
	From  []netip.Addr
	Pause time.Duration // before a connection that was closed is opened again
}

// Group is a number of peers of one class, each with one connection at a time.
type Group struct {
	Name   string
	Acted  string // what its connections have done, for the report
	Class  Class
	Number int
}

// Figures are what an attack has done so far. Make them with [NewFigures].
type Figures struct {
	Opened, Open, Most atomic.Int64 // connections: in all, now, and at once
	Secrets            atomic.Int64 // that the broker has given away
	Rows               []*Row       // of each group
}

// Row are the figures of one group: its connections, and those that have come to what the class is about.
type Row struct {
	Group
	Opened, Done *Reached
}

// NewFigures are those of an attack that begins now.
func NewFigures(crowd []Group) *Figures {
	f := &Figures{}
	begin := time.Now()
	for _, g := range crowd {
		goal := int64(g.Number)
		f.Rows = append(f.Rows, &Row{g, &Reached{begin: begin, goal: goal}, &Reached{begin: begin, goal: goal}})
	}
	return f
}

// Come reports whether as many connections were opened in each group as it has peers.
func (f *Figures) Come() bool {
	return !slices.ContainsFunc(f.Rows, func(r *Row) bool { return r.Opened.After() == 0 })
}

// Idle are the groups of which no connection has done what its class is about.
func (f *Figures) Idle() (names []string) {
	for _, r := range f.Rows {
		if r.Done.Count() == 0 {
			names = append(names, r.Name)
		}
	}
	return names
}

// Full reports whether in each group as many connections have done what the class is about as it has peers.
func (f *Figures) Full() bool {
	return !slices.ContainsFunc(f.Rows, func(r *Row) bool { return r.Done.After() == 0 })
}

// Reached counts, and knows when the count has come to the number of a group's peers.
type Reached struct {
	begin time.Time
	goal  int64
	n     atomic.Int64
	after atomic.Int64
}

func (r *Reached) add() {
	if r.n.Add(1) == r.goal {
		r.after.Store(int64(time.Since(r.begin)))
	}
}

// Count is the count.
func (r *Reached) Count() int64 { return r.n.Load() }

// After is how long it took until the count was as large as the group; 0 if it is not.
func (r *Reached) After() time.Duration { return time.Duration(r.after.Load()) }

// String says when the count was as large as the group.
func (r *Reached) String() string {
	if r.After() == 0 {
		return "not yet"
	}
	return fmt.Sprintf("after %.1f s", r.After().Seconds())
}

// Run attacks with the crowd that figures were made for until ctx ends. Then all connections are closed.
func (a Attack) Run(ctx context.Context, f *Figures) {
	var all sync.WaitGroup
	n := 0
	for _, row := range f.Rows {
		group := row.Group
		for range group.Number {
			from := a.From[n%len(a.From)]
			n++
			all.Go(func() {
				for ctx.Err() == nil {
					a.once(ctx, row, from, f)
					select {
					case <-ctx.Done():
					case <-time.After(a.Pause):
					}
				}
			})
		}
	}
	all.Wait()
}

func (a Attack) once(ctx context.Context, row *Row, from netip.Addr, f *Figures) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dial := func(dialing context.Context) (net.Conn, error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
		conn, err := d.DialContext(dialing, "tcp", a.Address)
		if err != nil {
			return nil, err
		}
		f.Opened.Add(1)
		row.Opened.add()
		now := f.Open.Add(1)
		for most := f.Most.Load(); now > most && !f.Most.CompareAndSwap(most, now); most = f.Most.Load() {
		}
		c := &counted{Conn: conn, closed: func() { f.Open.Add(-1) }}
		context.AfterFunc(ctx, func() { _ = c.Close() }) // gRPC cancels dialing as soon as it is connected
		return c, nil
	}
	f.Secrets.Add(int64(row.Class(ctx, dial, row.Done.add)))
}

type counted struct {
	net.Conn
	once   sync.Once
	closed func()
}

func (c *counted) Close() error {
	c.once.Do(c.closed)
	return c.Conn.Close()
}

// Silent says nothing at all.
func Silent(ctx context.Context, dial Dial, acted func()) int {
	if conn, err := dial(ctx); err == nil {
		acted()
		_, _ = conn.Read(make([]byte, 1))
		_ = conn.Close()
	}
	return 0
}

// Shaken shakes hands and says nothing then.
func Shaken(ctx context.Context, dial Dial, acted func()) int {
	key, err := session.NewKey(time.Now())
	if err != nil {
		return 0
	}
	raw, err := dial(ctx)
	if err != nil {
		return 0
	}
	defer raw.Close()
	conn := tls.Client(raw, session.ClientTLS(&key, "127.0.0.1"))
	if conn.HandshakeContext(ctx) == nil {
		acted()
		for b := make([]byte, 64); err == nil; {
			_, err = conn.Read(b)
		}
	}
	return 0
}

// Watching asks for the broker's health for ever.
func Watching(ctx context.Context, dial Dial, acted func()) int {
	rpc, _, err := open(dial)
	if err != nil {
		return 0
	}
	defer rpc.Close()
	watch, err := grpc_health_v1.NewHealthClient(rpc).Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err == nil {
		_, err = watch.Recv()
	}
	if err == nil {
		acted()
	}
	for err == nil {
		_, err = watch.Recv()
	}
	return 0
}

// Greeting begins a session and says nothing more.
func Greeting(ctx context.Context, dial Dial, acted func()) int {
	rpc, _, err := open(dial)
	if err != nil {
		return 0
	}
	defer rpc.Close()
	stream, err := sessionpb.NewKeyBrokerClient(rpc).Release(ctx)
	if err != nil {
		return 0
	}
	err = stream.Send(&sessionpb.ClientMessage{Message: &sessionpb.ClientMessage_Hello{
		Hello: &sessionpb.Hello{Nonce: make([]byte, session.NonceSize)}}})
	if err == nil {
		_, err = stream.Recv() // the broker's evidence
	}
	if err == nil {
		acted()
	}
	for err == nil {
		_, err = stream.Recv()
	}
	return 0
}

// Asking asks for a secret with the evidence of an attester that each connection makes for itself.
func Asking(attester func() (attest.Attester, error), secret string) Class {
	return func(ctx context.Context, dial Dial, acted func()) int {
		a, err := attester()
		if err != nil {
			return 0
		}
		rpc, key, err := open(dial)
		if err != nil {
			return 0
		}
		defer rpc.Close()
		cs, err := stateOf(ctx, rpc)
		if err != nil {
			return 0
		}
		client := session.ClientConfig{Attester: a, Verifier: AnyBroker{}, Policy: AnyBroker{}, Now: time.Now}
		got, err := client.Fetch(ctx, rpc, cs, key, []string{secret})
		if err != nil {
			if attest.CodeOf(err) == attest.CodeDenied {
				acted()
			}
			return 0
		}
		return len(got.Secrets)
	}
}

// open makes a gRPC connection with a key of its own.
func open(dial Dial) (*grpc.ClientConn, *tls.Certificate, error) {
	key, err := session.NewKey(time.Now())
	if err != nil {
		return nil, nil, err
	}
	var once atomic.Bool
	rpc, err := grpc.NewClient("passthrough:///broker",
		grpc.WithTransportCredentials(credentials.NewTLS(session.ClientTLS(&key, "127.0.0.1"))),
		grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			if once.Swap(true) {
				return nil, errors.New("the connection is gone")
			}
			return dial(ctx)
		}))
	return rpc, &key, err
}

// stateOf is the TLS state of a connection.
func stateOf(ctx context.Context, rpc *grpc.ClientConn) (tls.ConnectionState, error) {
	var p peer.Peer
	if _, err := grpc_health_v1.NewHealthClient(rpc).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.Peer(&p)); err != nil {
		return tls.ConnectionState{}, err
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return tls.ConnectionState{}, errors.New("there is no TLS")
	}
	return info.State, nil
}

// AnyBroker is a verifier and a policy that take any broker's evidence.
type AnyBroker struct{}

func (AnyBroker) Verify(_ context.Context, e attest.Evidence, _ time.Time) (attest.Claims, error) {
	q, err := sgx.ParseQuote(e.Raw)
	if err != nil {
		return attest.Claims{}, err
	}
	return attest.Claims{Type: attest.SGX, SGX: &q.SGX.SGXClaims, ReportData: q.ReportData()}, nil
}

func (AnyBroker) Appraise(attest.Claims, time.Time) appraisal.Appraisal {
	return appraisal.Appraisal{Accepted: true}
}

// SelfMade is an attester without a TPM: it makes a key, calls it an attestation key, and signs the registers that it
// would like to have. Its evidence is well formed and proves nothing.
type SelfMade struct{ key *ecdsa.PrivateKey }

// NewSelfMade makes one.
func NewSelfMade() (*SelfMade, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return &SelfMade{key}, err
}

// Type implements [attest.Attester].
func (*SelfMade) Type() attest.EvidenceType { return attest.TPM }

// Evidence implements [attest.Attester], in the form of package tpm.
func (s *SelfMade) Evidence(_ context.Context, data attest.ReportData) (attest.Evidence, error) {
	public := tpm2.Public{
		Type: tpm2.AlgECC, NameAlg: tpm2.AlgSHA256,
		Attributes: tpm2.FlagSign | tpm2.FlagRestricted | tpm2.FlagFixedTPM | tpm2.FlagFixedParent |
			tpm2.FlagSensitiveDataOrigin | tpm2.FlagUserWithAuth | tpm2.FlagNoDA,
		ECCParameters: &tpm2.ECCParams{
			Sign:    &tpm2.SigScheme{Alg: tpm2.AlgECDSA, Hash: tpm2.AlgSHA256},
			CurveID: tpm2.CurveNISTP256,
			Point:   tpm2.ECPoint{XRaw: s.key.X.FillBytes(make([]byte, 32)), YRaw: s.key.Y.FillBytes(make([]byte, 32))},
		},
	}
	ak, err := public.Encode()
	if err != nil {
		return attest.Evidence{}, err
	}
	name := sha256.Sum256(ak)
	qualified := binary.BigEndian.AppendUint32(nil, uint32(tpm2.HandleOwner))
	qualified = binary.BigEndian.AppendUint16(qualified, uint16(tpm2.AlgSHA256))
	signer := sha256.Sum256(append(qualified, name[:]...))
	value := sha256.Sum256([]byte("as it should be"))
	digest := sha256.Sum256(value[:])
	extra := sha256.Sum256(append([]byte("sesame-tpm-v1"), data[:]...))
	var q bytes.Buffer // TPMS_ATTEST
	for _, field := range []any{
		uint32(0xff544347), uint16(tpm2.TagAttestQuote),
		uint16(2 + len(signer)), uint16(tpm2.AlgSHA256), signer,
		uint16(len(extra)), extra,
		[17]byte{},                                             // clockInfo
		uint64(0),                                              // firmwareVersion
		uint32(1), uint16(tpm2.AlgSHA256), byte(3), [3]byte{1}, // register 0
		uint16(len(digest)), digest,
	} {
		if err := binary.Write(&q, binary.BigEndian, field); err != nil {
			return attest.Evidence{}, err
		}
	}
	sum := sha256.Sum256(q.Bytes())
	r, t, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		return attest.Evidence{}, err
	}
	signature, err := (&tpm2.Signature{Alg: tpm2.AlgECDSA, ECC: &tpm2.SignatureECC{HashAlg: tpm2.AlgSHA256, R: r, S: t}}).Encode()
	if err != nil {
		return attest.Evidence{}, err
	}
	raw, err := cbor.Marshal(map[int]any{
		1: uint(1), 2: data[:], 3: ak, 4: q.Bytes(), 5: signature, 6: map[int][]byte{0: value[:]},
	})
	return attest.Evidence{Type: attest.TPM, Raw: raw}, err
}
