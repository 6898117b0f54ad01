package session

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/mod/sumdb/note"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
	"github.com/sesame-init/sesame/internal/pki"
)

// NewKey makes a key and a self-signed certificate that carries nothing but the key. It is valid for a day.
func NewKey(now time.Time) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	return pki.BareKey(key, now.Add(-time.Hour), now.Add(24*time.Hour))
}

// ClientTLS is the TLS configuration of the client: TLS 1.3, a certificate of [NewKey], no resumption. The broker's
// certificate is not judged, since the session binds its key.
func ClientTLS(key *tls.Certificate, serverName string) *tls.Config {
	c := ratls.ClientConfig(key, serverName, func(cs tls.ConnectionState) error {
		if cs.Version != tls.VersionTLS13 {
			return errors.New("the broker does not speak TLS 1.3")
		}
		return nil
	})
	c.MinVersion = tls.VersionTLS13
	c.CurvePreferences = nil // Go's defaults, hybrid key exchanges included
	return c
}

// ClientConfig says how a client proves itself and what it wants of the broker. Attester, Now, and either Verifier
// and Policy or BrokerKey are needed.
type ClientConfig struct {
	Attester attest.Attester
	Verifier attest.Verifier
	// Staple makes a verifier that takes the collateral that the broker sends. If it is nil, or the broker sends
	// none, Verifier counts.
	Staple func(*dcap.Collateral) attest.Verifier
	Policy ratls.Appraiser
	// BrokerKey pins a broker that runs outside an enclave and has no evidence: the SHA-256 of its certificate's
	// SubjectPublicKeyInfo. With it Verifier and Policy are not used.
	BrokerKey []byte
	// Log is the key of the broker's release log. With it a release without a receipt that holds is refused.
	Log note.Verifier
	Now func() time.Time
	// Verified, if not nil, is called once the broker is verified. Before that nothing that it says is to be believed.
	Verified func()
	// Own, if not nil, runs what takes time of the client's own: the work of its attester.
	Own func(do func())
}

// Released is what a session ends with.
type Released struct {
	Secrets map[string]attest.Secret
	Receipt *Receipt // nil where the broker sends none; verified where ClientConfig.Log is known
}

// An Unwrapper opens secrets that were encrypted to its hardware. An attester that is one gets what the broker wraps.
type Unwrapper interface {
	attest.Attester
	// Unwrap returns the secret. The error's code is [attest.CodeSecret].
	Unwrap(ctx context.Context, wrapped []byte) (attest.Secret, error)
}

// A BusyError is the broker's word that it has too much to do. It is worth a retry.
type BusyError struct {
	After time.Duration // to wait
}

// Error implements error.
func (e *BusyError) Error() string { return "the broker has too many sessions at once" }

const stepVerify = "verifying broker"

// Fetch runs one session over a connection whose handshake was made with this key, and returns the named secrets, all
// or none. The errors are of the classes of [backend.Backend].
func (c ClientConfig) Fetch(ctx context.Context, rpc grpc.ClientConnInterface, cs tls.ConnectionState,
	key *tls.Certificate, names []string) (*Released, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := c.check(); err != nil {
		return nil, err
	}
	if err := checkNames(names); err != nil {
		return nil, attest.Errorf(attest.CodeSecret, "asking for secrets", "Correct the names in the config.", "%w", err)
	}
	b, err := binding(cs, key.Leaf, Client)
	if err != nil {
		return nil, attest.Errorf(attest.CodeEvidence, stepVerify, "", "%w", err)
	}
	if _, err := io.ReadFull(rand.Reader, b.ClientNonce[:]); err != nil {
		return nil, attest.Errorf(attest.CodeInternal, stepVerify, "", "making a nonce: %w", err)
	}
	stream, err := sessionpb.NewKeyBrokerClient(rpc).Release(ctx, grpc.MaxCallRecvMsgSize(maxMessage))
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&sessionpb.ClientMessage{Message: &sessionpb.ClientMessage_Hello{
		Hello: &sessionpb.Hello{Nonce: b.ClientNonce[:]}}}); err != nil {
		return nil, received(stream, err)
	}
	shown, err := stream.Recv()
	if err != nil {
		return nil, busy(stream, err)
	}
	if err := c.verifyBroker(ctx, &b, Broker, shown.GetEvidence()); err != nil {
		return nil, err
	}
	if c.Verified != nil {
		c.Verified()
	}
	request, err := c.request(ctx, &b, names)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&sessionpb.ClientMessage{Message: &sessionpb.ClientMessage_Request{Request: request}}); err != nil {
		return nil, received(stream, err)
	}
	quoted := attest.Evidence{Type: c.Attester.Type(), Raw: request.GetEvidence().GetRaw()}
	for answers := 0; ; answers++ {
		message, err := stream.Recv()
		if err != nil {
			return nil, busy(stream, err)
		}
		asked := message.GetChallenge()
		if asked == nil {
			return c.take(ctx, message.GetResult(), names, b.Leaf(Client))
		}
		if answers == maxAnswers {
			return nil, attest.Errorf(attest.CodeEvidence, "asking for secrets", "Look at the broker's log.",
				"the broker challenges more than %d times", maxAnswers)
		}
		if err := c.answerChallenge(ctx, stream, quoted, b.Leaf(Client), asked); err != nil {
			return nil, err
		}
	}
}

// take checks what the broker has sent. Nothing of it is used before its receipt was checked.
func (c ClientConfig) take(ctx context.Context, r *sessionpb.Result, names []string, binder [32]byte) (*Released, error) {
	got, err := secrets(r, names)
	if err != nil {
		return nil, err
	}
	receipt, err := decodeReceipt(r.GetReceipt())
	if err == nil && c.Log != nil {
		err = receipt.Check(c.Log, binder)
	}
	code := attest.CodeEvidence
	if err == nil && r.GetWrapped() != "" {
		code = attest.CodeSecret
		c.own(func() { err = c.unwrap(ctx, attest.EvidenceType(r.GetWrapped()), got) })
	}
	if err != nil {
		for _, s := range got {
			s.Wipe()
		}
		return nil, &attest.Error{Code: code, Step: "reading secrets", Err: err}
	}
	return &Released{Secrets: got, Receipt: receipt}, nil
}

// unwrap opens all secrets with the attester's hardware, in place.
func (c ClientConfig) unwrap(ctx context.Context, kind attest.EvidenceType, secrets map[string]attest.Secret) error {
	unwrapper, ok := c.Attester.(Unwrapper)
	if !ok || unwrapper.Type() != kind {
		return fmt.Errorf("the broker has encrypted them to hardware of type %.16q, which this environment has not", kind)
	}
	for name, wrapped := range secrets {
		secret, err := unwrapper.Unwrap(ctx, wrapped.Expose())
		if err != nil {
			return fmt.Errorf("secret %s: %w", name, err)
		}
		wrapped.Wipe()
		secrets[name] = secret
	}
	return nil
}

type clientStream = grpc.BidiStreamingClient[sessionpb.ClientMessage, sessionpb.BrokerMessage]

// received is why a stream does not take messages any more: the status that the broker has ended it with.
func received(stream clientStream, err error) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	_, err = stream.Recv()
	return busy(stream, err)
}

// maxPushback bounds for how long a broker can send a client away.
const maxPushback = time.Minute

// busy recognises the broker's word to come later. err ended the stream. A word that is too long, or no number, counts as
// the longest.
func busy(stream clientStream, err error) error {
	after := stream.Trailer().Get(pushback)
	if status.Code(err) != codes.ResourceExhausted || len(after) != 1 {
		return err
	}
	wait := maxPushback
	if ms, parsed := strconv.ParseUint(after[0], 10, 64); parsed == nil && ms < uint64(maxPushback.Milliseconds()) {
		wait = time.Duration(ms) * time.Millisecond
	}
	return attest.Errorf(attest.CodeUnreachable, "asking for secrets", "It is tried again; start more brokers if it lasts.",
		"%w", &BusyError{After: wait})
}

// verifyBroker decides whether the broker may learn who we are and what we want.
func (c ClientConfig) verifyBroker(ctx context.Context, b *Binding, r Role, shown *sessionpb.BrokerEvidence) error {
	fail := func(err error) error { return attest.Errorf(attest.CodeEvidence, stepVerify, "", "%w", err) }
	if shown == nil {
		return fail(errors.New("it has shown no evidence"))
	}
	if err := setNonce(&b.BrokerNonce, shown.GetNonce()); err != nil {
		return fail(err)
	}
	if bare := shown.GetEvidence().GetType() == noEvidence; bare || c.BrokerKey != nil {
		return c.verifyKey(b, bare)
	}
	evidence, bound, err := decodeEvidence(shown.GetEvidence(), Broker, b.Leaf(r))
	if err != nil {
		return fail(err)
	}
	verifier := c.Verifier
	if staple := shown.GetCollateral(); staple != nil && c.Staple != nil {
		verifier = c.Staple(decodeCollateral(staple))
	}
	at := c.Now()
	claims, err := genuine(ctx, verifier, evidence, bound, at)
	if err == nil {
		err = c.Policy.Appraise(claims, at).Err()
	}
	if err != nil {
		return &attest.Error{Code: attest.CodeOf(err), Step: stepVerify, Err: err}
	}
	return nil
}

// check refuses a config that says of no broker that it is the wanted one.
func (c ClientConfig) check() error {
	if c.BrokerKey == nil && (c.Verifier == nil || c.Policy == nil || c.Now == nil) {
		return attest.Errorf(attest.CodeConfig, stepVerify, "Set Verifier, Policy and Now, or BrokerKey.",
			"nothing says which broker is the wanted one")
	}
	return nil
}

// VerifyProof decides whether the broker at the other end of a connection is the wanted one, by what
// [BrokerConfig.Prove] has made for this nonce of the client's, 32 random bytes that are used once. own is the
// certificate that the client has shown. Attester is not used.
func (c ClientConfig) VerifyProof(ctx context.Context, cs tls.ConnectionState, own *x509.Certificate,
	nonce [NonceSize]byte, shown *sessionpb.BrokerEvidence) error {
	if err := c.check(); err != nil {
		return err
	}
	b, err := binding(cs, own, Client)
	if err != nil {
		return attest.Errorf(attest.CodeEvidence, stepVerify, "", "%w", err)
	}
	b.ClientNonce = nonce
	return c.verifyBroker(ctx, &b, Prover, shown)
}

// verifyKey decides by the broker's key alone. The connection has proved that the broker holds it.
func (c ClientConfig) verifyKey(b *Binding, bare bool) error {
	switch {
	case c.BrokerKey == nil:
		return attest.Errorf(attest.CodePolicy, stepVerify,
			"Name a broker that runs in an enclave, or pin this one's key (broker_key) if it runs on your own premises.",
			"it has no evidence: it runs outside an enclave")
	case !bare:
		return attest.Errorf(attest.CodePolicy, stepVerify, "Write broker_policy instead of broker_key.",
			"it runs in an enclave, but a key is pinned")
	case subtle.ConstantTimeCompare(b.BrokerKey[:], c.BrokerKey) != 1:
		return attest.Errorf(attest.CodePolicy, stepVerify, "Compare broker_key with what the broker prints at its start.",
			"its key is %x, want %x", b.BrokerKey, c.BrokerKey)
	}
	return nil
}

// genuine verifies evidence and that it belongs to this session.
func genuine(ctx context.Context, v attest.Verifier, e attest.Evidence, bound attest.ReportData, at time.Time) (
	attest.Claims, error) {
	claims, err := v.Verify(ctx, e, at)
	if err != nil {
		return attest.Claims{}, err
	}
	if claims.ReportData != bound {
		return attest.Claims{}, attest.Errorf(attest.CodeEvidence, "checking session",
			"Something between the two sides terminates TLS, or the evidence was replayed.",
			"the evidence was not made for this session")
	}
	return claims, nil
}

func (c ClientConfig) own(do func()) {
	if c.Own == nil {
		do()
		return
	}
	c.Own(do)
}

func (c ClientConfig) request(ctx context.Context, b *Binding, names []string) (*sessionpb.Request, error) {
	proof := Proof{Size: 1}
	data, err := proof.ReportData(Client, b.Leaf(Client))
	if err != nil {
		return nil, attest.Errorf(attest.CodeInternal, "making evidence", "", "%w", err)
	}
	var evidence attest.Evidence
	c.own(func() { evidence, err = c.Attester.Evidence(ctx, data) })
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, attest.Errorf(attest.CodeUnreachable, "making evidence", "Raise the timeout: it ended meanwhile.", "%w", ctx.Err())
	case err != nil:
		return nil, &attest.Error{Code: attest.CodeAttester, Step: "making evidence", Err: err}
	}
	_, answers := c.Attester.(Activator)
	return &sessionpb.Request{Evidence: encodeEvidence(evidence, proof), Names: names, AnswersChallenges: answers}, nil
}

// secrets takes over what the broker released, if it is exactly what was asked for.
func secrets(r *sessionpb.Result, names []string) (map[string]attest.Secret, error) {
	const step = "reading secrets"
	if d := r.GetDenial(); d != nil {
		return nil, denied(d)
	}
	got := make(map[string]attest.Secret, len(names))
	fits := len(r.GetSecrets()) == len(names)
	for i, s := range r.GetSecrets() {
		fits = fits && s.GetName() == names[i] && len(s.GetValue()) <= MaxSecret
		got[s.GetName()] = attest.NewSecret(s.GetValue())
	}
	if fits {
		return got, nil
	}
	for _, s := range got {
		s.Wipe()
	}
	return nil, attest.Errorf(attest.CodeSecret, step, "Look at the broker's log, and compare the versions of both sides.",
		"the broker has sent other secrets than were asked for")
}

// denied is the broker's reason, which it gives only to genuine evidence. It is shown to users, so it is bounded and
// printable.
func denied(d *sessionpb.Denial) error {
	code := attest.CodeDenied
	if attest.Code(d.GetCode()) == attest.CodeSecret {
		code = attest.CodeSecret
	}
	hint := Printable(d.GetHint())
	if hint == "" {
		hint = "The broker's log says why."
	}
	return attest.Errorf(code, "asking for secrets", hint, "the broker answers: %s", Printable(d.GetReason()))
}

// Printable is a text of the other side, bounded and without what a terminal would act on.
func Printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	return fmt.Sprintf("%.*s", maxReason, s)
}

func decodeCollateral(c *sessionpb.Collateral) *dcap.Collateral {
	return &dcap.Collateral{
		TCBInfo: c.GetTcbInfo(), TCBInfoChain: c.GetTcbInfoChain(),
		QEIdentity: c.GetQeIdentity(), QEIdentityChain: c.GetQeIdentityChain(),
		PCKCRL: c.GetPckCrl(), PCKCRLChain: c.GetPckCrlChain(), RootCACRL: c.GetRootCaCrl(),
	}
}

func encodeCollateral(c *dcap.Collateral) *sessionpb.Collateral {
	if c == nil {
		return nil
	}
	return &sessionpb.Collateral{
		TcbInfo: c.TCBInfo, TcbInfoChain: c.TCBInfoChain,
		QeIdentity: c.QEIdentity, QeIdentityChain: c.QEIdentityChain,
		PckCrl: c.PCKCRL, PckCrlChain: c.PCKCRLChain, RootCaCrl: c.RootCACRL,
	}
}
