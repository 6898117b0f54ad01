package ratls_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/reportdata"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

var (
	oidDICE     = asn1.ObjectIdentifier{2, 23, 133, 5, 4, 9}
	oidOcclum   = asn1.ObjectIdentifier{1, 2, 840, 113741, 1}
	oidGramine  = asn1.ObjectIdentifier{1, 2, 840, 113741, 1337, 6}
	oidMbedTLS  = asn1.ObjectIdentifier{0, 6, 9, 42, 840, 113741, 1337, 6}
	oidIntelSDK = asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}
)

// peer makes certificates of one key.
type peer struct {
	t        testing.TB
	platform *softsgx.Platform
	key      crypto.Signer
	spki     []byte
}

func newPeer(t testing.TB) *peer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return (&peer{t: t, platform: brokertest.Platform(t, softsgx.Options{})}).with(key)
}

func (p *peer) with(key crypto.Signer) *peer {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		p.t.Fatal(err)
	}
	return &peer{p.t, p.platform, key, spki}
}

func (p *peer) quote(data []byte) []byte {
	body := brokertest.Workload()
	copy(body.ReportData[:], data)
	q, err := p.platform.Quote(body)
	if err != nil {
		p.t.Fatal(err)
	}
	return q
}

func (p *peer) certificate(extensions ...pkix.Extension) []byte {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: brokertest.Now, NotAfter: brokertest.Now.Add(time.Hour),
		ExtraExtensions: extensions,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, p.key.Public(), p.key)
	if err != nil {
		p.t.Fatal(err)
	}
	return der
}

func sum(b []byte) []byte { h := sha256.Sum256(b); return h[:] }

func raw(oid asn1.ObjectIdentifier, quote []byte) pkix.Extension {
	return pkix.Extension{Id: oid, Value: quote}
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	b, err := cbor.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (p *peer) claims(algorithm uint64, hash []byte) []byte {
	return encode(p.t, map[string][]byte{"pubkey-hash": encode(p.t, []any{algorithm, hash})})
}

func (p *peer) dice(claims []byte) pkix.Extension {
	return p.diceOf(60000, []any{p.quote(sum(claims)), claims})
}

func (p *peer) diceOf(tag uint64, content any) pkix.Extension {
	return pkix.Extension{Id: oidDICE, Value: encode(p.t, cbor.Tag{Number: tag, Content: content})}
}

func TestTheV1CertificateOfOcclumIsRead(t *testing.T) {
	text, err := os.ReadFile("testdata/occlum_v1_cert.pem")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	parsed, err := x509.ParseCertificate(block.Bytes)
	if err != nil || parsed.Version != 1 || len(parsed.Extensions) != 0 {
		t.Fatalf("the vector is not what it is for: %v", err)
	}
	quote, bound, shown, err := ratls.ReadBound(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	want := sum(parsed.RawSubjectPublicKeyInfo)
	if shown.Binding != attest.BindingLegacy || !shown.NotBefore.Equal(parsed.NotBefore) || !shown.NotAfter.Equal(parsed.NotAfter) {
		t.Errorf("read %+v", shown)
	}
	if len(quote) != 4734 || !slices.Equal(bound[:32], want) || bound != attest.ReportData(quote[368:432]) {
		t.Errorf("quote of %d bytes, bound to %x", len(quote), bound)
	}
	body, err := sgx.ParseReportBody(quote[48:432])
	if err != nil || body.MREnclave[0] != 0xaa || body.MRSigner[31] != 0xbb || body.ProductID != 1 || body.SVN != 2 {
		t.Errorf("report body %+v, %v", body, err)
	}
}

func TestEveryFormatIsReadAndItsKeyBound(t *testing.T) {
	p := newPeer(t)
	spki512, spki384 := sha512.Sum512(p.spki), sha512.Sum384(p.spki)
	more := encode(t, map[string][]byte{
		"pubkey-hash": encode(t, []any{1, sum(p.spki)}), "nonce": {1, 2}, "key_0": []byte("value_0\x00"),
	})
	wrapped := p.dice(p.claims(1, sum(p.spki)))
	wrapped.Value, _ = asn1.Marshal(wrapped.Value)
	own := p.quote(sum(p.spki))
	for name, extensions := range map[string][]pkix.Extension{
		"Occlum":                     {raw(oidOcclum, own)},
		"Gramine":                    {raw(oidGramine, own)},
		"Gramine as on the wire":     {raw(oidMbedTLS, own)},
		"DICE":                       {p.dice(p.claims(1, sum(p.spki)))},
		"DICE with SHA-384":          {p.dice(p.claims(7, spki384[:]))},
		"DICE with SHA-512":          {p.dice(p.claims(8, spki512[:]))},
		"DICE with more claims":      {p.dice(more)},
		"DICE wrapped twice":         {wrapped},
		"DICE beside Occlum":         {raw(oidOcclum, own), p.dice(p.claims(1, sum(p.spki)))},
		"DICE beside the Intel SDK":  {raw(oidIntelSDK, own), p.dice(p.claims(1, sum(p.spki)))},
		"Occlum beside unknown ones": {raw(asn1.ObjectIdentifier{1, 2, 3, 4}, []byte{1}), raw(oidOcclum, own)},
	} {
		evidence, err := ratls.Evidence(p.certificate(extensions...))
		if err != nil || evidence.Type != attest.SGX {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAKeyThatIsNotBoundIsRefused(t *testing.T) {
	p := newPeer(t)
	other := p.with(newPeer(t).key)
	own := p.quote(sum(p.spki))
	good := p.claims(1, sum(p.spki))
	padded := p.quote(append(sum(p.spki), 1))
	claimsOf := func(v any) pkix.Extension { return p.dice(encode(t, v)) }
	hash := encode(t, []any{1, sum(p.spki)})
	key := append([]byte{0x6b}, "pubkey-hash"...)
	twice := slices.Concat([]byte{0xa2}, key, []byte{0x58, 0x24}, hash, key, []byte{0x58, 0x24}, hash)
	indefinite := slices.Concat([]byte{0xbf}, key, []byte{0x58, 0x24}, hash, []byte{0xff})
	trailing := p.dice(good)
	trailing.Value = append(slices.Clone(trailing.Value), 0)
	for name, der := range map[string][]byte{
		"no evidence":             p.certificate(),
		"only the Intel SDK's":    p.certificate(raw(oidIntelSDK, own)),
		"another key":             other.certificate(raw(oidOcclum, own)),
		"second half not zero":    p.certificate(raw(oidOcclum, padded)),
		"no quote":                p.certificate(raw(oidOcclum, []byte("quote"))),
		"empty":                   p.certificate(raw(oidOcclum, nil)),
		"the extension twice":     p.certificate(raw(oidOcclum, own), raw(oidOcclum, own)),
		"DICE, another key":       other.certificate(p.dice(good)),
		"DICE, no pubkey-hash":    p.certificate(claimsOf(map[string][]byte{"nonce": {1}})),
		"DICE, empty claims":      p.certificate(claimsOf(map[string][]byte{})),
		"DICE, pubkey-hash twice": p.certificate(p.dice(twice)),
		"DICE, indefinite length": p.certificate(p.dice(indefinite)),
		"DICE, unknown hash":      p.certificate(p.dice(p.claims(2, sum(p.spki)))),
		"DICE, short hash":        p.certificate(p.dice(p.claims(1, sum(p.spki)[:31]))),
		"DICE, claims not bound":  p.certificate(p.diceOf(60000, []any{own, good})),
		"DICE, a TEE report":      p.certificate(p.diceOf(60001, []any{p.quote(sum(good)), good})),
		"DICE, three elements":    p.certificate(p.diceOf(60000, []any{p.quote(sum(good)), good, good})),
		"DICE, bytes after it":    p.certificate(trailing),
		// What is wrong in the first format is not made good by the second.
		"wrong DICE, right Occlum":    p.certificate(p.dice(p.claims(1, sum([]byte("x")))), raw(oidOcclum, own)),
		"wrong Occlum, right Gramine": p.certificate(raw(oidOcclum, p.quote(nil)), raw(oidGramine, own)),
		"too large":                   p.certificate(raw(oidOcclum, append(slices.Clone(own), make([]byte, 64<<10)...))),
		"cut short":                   p.certificate(raw(oidOcclum, own))[:100],
		"bytes after it":              append(p.certificate(raw(oidOcclum, own)), 0),
	} {
		if _, err := ratls.Evidence(der); attest.CodeOf(err) != attest.CodeEvidence || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCertificatesSuitTheDeployedPeers(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{})
	c := brokertest.Certificate(t, platform, brokertest.Workload())
	leaf := c.Leaf
	if leaf.Version != 3 || leaf.SignatureAlgorithm != x509.ECDSAWithSHA256 || leaf.IsCA {
		t.Errorf("version %d, %s", leaf.Version, leaf.SignatureAlgorithm)
	}
	if key, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		t.Errorf("key %T", leaf.PublicKey)
	}
	if err := leaf.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature); err != nil {
		t.Error(err)
	}
	if !leaf.NotBefore.Equal(brokertest.Now) || !leaf.NotAfter.Equal(brokertest.Now.Add(ratls.DefaultValidity)) {
		t.Errorf("valid from %s to %s", leaf.NotBefore, leaf.NotAfter)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})
	if len(text) >= 16000 {
		t.Errorf("PEM has %d characters", len(text))
	}
	evidence, err := ratls.Evidence(leaf.Raw)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(leaf.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidOcclum) })
	if i < 0 || leaf.Extensions[i].Critical || !slices.Equal(leaf.Extensions[i].Value, evidence.Raw) {
		t.Error("the extension does not hold the raw quote")
	}
}

// sized is an attester whose evidence has any size.
type sized int

func (sized) Type() attest.EvidenceType { return attest.SGX }
func (s sized) Evidence(context.Context, attest.ReportData) (attest.Evidence, error) {
	return attest.Evidence{Type: attest.SGX, Raw: make([]byte, s)}, nil
}

func TestACertificateThatWouldCrashPeersIsNotMade(t *testing.T) {
	ctx := context.Background()
	for size, ok := range map[sized]bool{0: false, 255: false, 256: true, 4734: true, 11300: true, 11800: false, 70000: false} {
		c, err := ratls.NewCertificate(ctx, size, ratls.Options{})
		if (err == nil) != ok || !ok && attest.CodeOf(err) != attest.CodeAttester {
			t.Errorf("quote of %d bytes: %v", size, err)
		}
		if ok && len(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Leaf.Raw})) >= 16000 {
			t.Errorf("quote of %d bytes: PEM is too long", size)
		}
	}
	if _, err := ratls.NewCertificate(ctx, sized(4734), ratls.Options{Validity: 365 * 24 * time.Hour}); err == nil {
		t.Error("a validity of a year was taken")
	}
}

func TestAnIdentityRenewsItself(t *testing.T) {
	now := brokertest.Now
	platform := brokertest.Platform(t, softsgx.Options{})
	id, err := ratls.NewIdentity(platform.Attester(brokertest.Broker()), ratls.Options{
		Now: func() time.Time { return now }, Validity: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	get := func() *tls.Certificate {
		c, err := id.Certificate(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := get()
	now = now.Add(29 * time.Minute)
	if get() != first {
		t.Error("renewed too early")
	}
	now = now.Add(time.Minute)
	second := get()
	if second == first || second.PrivateKey.(*ecdsa.PrivateKey).Equal(first.PrivateKey) {
		t.Error("not renewed with a new key")
	}
}

// faulty is an attester that fails while told so.
type faulty struct {
	attest.Attester
	err error
}

func (f *faulty) Evidence(ctx context.Context, d attest.ReportData) (attest.Evidence, error) {
	if f.err != nil {
		return attest.Evidence{}, f.err
	}
	return f.Attester.Evidence(ctx, d)
}

func TestACertificateIsUsedUntilItsEndWhileItsRenewalFails(t *testing.T) {
	platform, now, told := brokertest.Platform(t, softsgx.Options{}), brokertest.Now, 0
	a := &faulty{Attester: platform.Attester(brokertest.Broker())}
	id, err := ratls.NewIdentity(a, ratls.Options{
		Now: func() time.Time { return now }, Validity: 6 * time.Hour,
		Failed: func(err error, end time.Time) { told++ },
	})
	if err != nil {
		t.Fatal(err)
	}
	first, err := id.Certificate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a.err = errors.New("the quoting service is away")
	for _, after := range []time.Duration{4 * time.Hour, 4*time.Hour + time.Second, 5 * time.Hour} { // the second does not ask again
		now = brokertest.Now.Add(after)
		if got, err := id.Certificate(t.Context()); err != nil || got != first {
			t.Errorf("after %s: %v", after, err)
		}
	}
	if told != 2 {
		t.Errorf("the fault was told %d times, want 2", told)
	}
	now = brokertest.Now.Add(7 * time.Hour)
	if got, err := id.Certificate(t.Context()); err == nil || got != nil || attest.CodeOf(err) != attest.CodeAttester {
		t.Errorf("after its end: %v", err)
	}
	a.err = nil
	if got, err := id.Certificate(t.Context()); err != nil || got == first {
		t.Errorf("after the fault: %v", err)
	}
}

func TestAPanicInARenewalIsThatOfTheNextCaller(t *testing.T) {
	now := brokertest.Now
	a := &breaking{Attester: brokertest.Platform(t, softsgx.Options{}).Attester(brokertest.Broker())}
	id, err := ratls.NewIdentity(a, ratls.Options{Now: func() time.Time { return now }, Validity: 6 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	first, err := id.Certificate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a.broken = true
	now = now.Add(4 * time.Hour)
	func() { // though it could go on with the certificate that it has
		defer func() {
			if text := fmt.Sprint(recover()); !strings.Contains(text, "it broke") || !strings.Contains(text, "(*breaking).Evidence") {
				t.Errorf("it ended with\n%s", text)
			}
		}()
		_, err := id.Certificate(t.Context())
		t.Errorf("it goes on, %v", err)
	}()
	a.broken = false
	if got, err := id.Certificate(t.Context()); err != nil || got != first {
		t.Errorf("a caller that recovers gets %v", err)
	}
	now = now.Add(time.Hour)
	if got, err := id.Certificate(t.Context()); err != nil || got == first {
		t.Errorf("after the fault: %v", err)
	}
}

// breaking is an attester that panics while it is broken.
type breaking struct {
	attest.Attester
	broken bool
}

func (b *breaking) Evidence(ctx context.Context, d attest.ReportData) (attest.Evidence, error) {
	if b.broken {
		panic("it broke")
	}
	return b.Attester.Evidence(ctx, d)
}

func TestAPeerIsJudgedAsAWhole(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{})
	sound := brokertest.Certificate(t, platform, brokertest.Workload())
	state := func(c tls.Certificate) tls.ConnectionState {
		return tls.ConnectionState{PeerCertificates: []*x509.Certificate{c.Leaf}}
	}
	now := brokertest.Now
	v := ratls.PeerVerifier{
		Verifier: brokertest.Verifier(platform), Policy: brokertest.WorkloadPolicy(), Legacy: true,
		Now: func() time.Time { return now },
	}
	if claims, err := v.Verify(context.Background(), state(sound)); err != nil || claims.SGX.MREnclave[0] != 0xaa {
		t.Fatal(err)
	}
	refused := func(name string, cs tls.ConnectionState, code attest.Code, says string) {
		t.Helper()
		err := v.VerifyConnection(cs)
		if err == nil || attest.CodeOf(err) != code || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %s: %v", name, attest.CodeOf(err), err)
		}
	}
	refused("no certificate", tls.ConnectionState{}, attest.CodeEvidence, "none")
	refused("another measurement", state(brokertest.Certificate(t, platform, brokertest.Enclave(1, 1, 2))),
		attest.CodePolicy, "mr_enclave")
	debug := brokertest.Workload()
	debug.Attributes |= attest.AttributeDebug
	refused("debug", state(brokertest.Certificate(t, platform, debug)), attest.CodePolicy, "debug")
	refused("another root", state(brokertest.Certificate(t, brokertest.Platform(t, softsgx.Options{}), brokertest.Workload())),
		attest.CodeEvidence, "root")
	now = brokertest.Now.Add(ratls.DefaultValidity + time.Second)
	refused("expired", state(sound), attest.CodeEvidence, "valid from")
	now = brokertest.Now.Add(-ratls.Leeway - time.Second)
	refused("of the future", state(sound), attest.CodeEvidence, "valid from")
	now = brokertest.Now
	v.Policy = nil
	refused("no policy", state(sound), attest.CodeConfig, "")
}

func TestHandshakeFitsOldAndNewPeers(t *testing.T) {
	p := newPeer(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	broker := brokertest.Identity(t, p.platform, brokertest.Broker())
	verifier := func(policy ratls.Appraiser) func(tls.ConnectionState) error {
		v := ratls.PeerVerifier{Verifier: brokertest.Verifier(p.platform), Policy: policy, Now: brokertest.Clock, Legacy: true}
		return v.VerifyConnection
	}
	for name, key := range map[string]crypto.Signer{"P-256": p.key, "P-384": p384, "RSA-2048": rsaKey} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			q := p.with(key)
			cert := &tls.Certificate{Certificate: [][]byte{q.certificate(raw(oidOcclum, q.quote(sum(q.spki))))}, PrivateKey: key}
			client := ratls.ClientConfig(cert, "127.0.0.1", verifier(brokertest.BrokerPolicy()))
			client.MaxVersion = version
			server := ratls.ServerConfig(broker.Certificate, verifier(brokertest.WorkloadPolicy()))
			cs, err := handshake(t, client, server)
			if err != nil {
				t.Errorf("%s, %s: %v", name, tls.VersionName(version), err)
			} else if cs.Version != version || cs.NegotiatedProtocol != "h2" || cs.CurveID != tls.CurveP256 || cs.DidResume {
				t.Errorf("%s: %s, %q, %s", name, tls.VersionName(cs.Version), cs.NegotiatedProtocol, cs.CurveID)
			}
		}
	}
	client := ratls.ClientConfig(nil, "", verifier(brokertest.BrokerPolicy()))
	if _, err := handshake(t, client, ratls.ServerConfig(broker.Certificate, verifier(brokertest.WorkloadPolicy()))); err == nil {
		t.Error("a client without a certificate got in")
	}
	cert := brokertest.Certificate(t, p.platform, brokertest.Workload())
	client = ratls.ClientConfig(&cert, "", nil)
	if _, err := handshake(t, client, ratls.ServerConfig(broker.Certificate, verifier(brokertest.WorkloadPolicy()))); err == nil {
		t.Error("a client without verification connected")
	}
}

// handshake returns the client's view and the first error of either side.
func handshake(t *testing.T, client, server *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			err = conn.(*tls.Conn).Handshake()
			_ = conn.Close()
		}
		served <- err
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), client)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	return conn.ConnectionState(), <-served
}

func FuzzEvidence(f *testing.F) {
	p := newPeer(f)
	f.Add(p.certificate(raw(oidOcclum, p.quote(sum(p.spki)))))
	f.Add(p.certificate(p.dice(p.claims(1, sum(p.spki)))))
	f.Add(p.certificate(p.dice(reportdata.ApplicationClaims(p.spki))))
	f.Add(p.certificate(raw(oidMbedTLS, p.quote(sum(p.spki)))))
	text, err := os.ReadFile("testdata/occlum_v1_cert.pem")
	if err != nil {
		f.Fatal(err)
	}
	block, _ := pem.Decode(text)
	f.Add(block.Bytes)
	f.Fuzz(func(t *testing.T, der []byte) {
		shown, err := ratls.Read(der)
		legacy, legacyErr := ratls.Evidence(der)
		if taken := legacyErr == nil; taken != (err == nil && shown.Binding == attest.BindingLegacy) {
			t.Errorf("taken on the legacy wire: %v; read as %q, %v", taken, shown.Binding, err)
		}
		evidence := shown.Evidence
		if legacyErr == nil && !bytes.Equal(legacy.Raw, evidence.Raw) {
			t.Error("two readers see other evidence")
		}
		if err != nil {
			if attest.CodeOf(err) != attest.CodeEvidence {
				t.Errorf("code %s: %v", attest.CodeOf(err), err)
			}
			return
		}
		if _, err := sgx.ParseQuote(evidence.Raw); err != nil {
			t.Errorf("evidence that is no quote: %v", err)
		}
	})
}

func FuzzDICE(f *testing.F) {
	p := newPeer(f)
	f.Add(p.diceOf(60000, []any{[]byte("quote"), p.claims(1, sum(p.spki))}).Value)
	f.Fuzz(func(t *testing.T, value []byte) {
		_, _, _, err := ratls.ReadDICE(value, p.spki)
		long, short := sha512.Sum512(p.spki), sha512.Sum384(p.spki)
		if err == nil && !bytes.Contains(value, sum(p.spki)) && !bytes.Contains(value, long[:]) &&
			!bytes.Contains(value, short[:]) {
			t.Error("the key's hash is nowhere in it")
		}
	})
}
