package session

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
)

// Stream is the broker's end of the stream of messages.
type Stream = grpc.BidiStreamingServer[sessionpb.ClientMessage, sessionpb.BrokerMessage]

// A Peer is a client that has asked for secrets and shown evidence, which nothing has judged yet.
type Peer struct {
	// Binder names the session: the client's leaf. It is fresh and unique.
	Binder [32]byte
	// Digest is the SHA-256 of the raw evidence.
	Digest [32]byte
	// Names are the secrets that it asks for.
	Names []string
	// Answers is set if it says that it answers a challenge.
	Answers bool

	evidence attest.Evidence
	bound    attest.ReportData
}

// Verify makes sure that the evidence is genuine and of this session. It may be called again, for another moment.
func (p *Peer) Verify(ctx context.Context, v attest.Verifier, at time.Time) (attest.Claims, error) {
	claims, err := genuine(ctx, v, p.evidence, p.bound, at)
	if err != nil {
		return attest.Claims{}, &attest.Error{Code: attest.CodeOf(err), Step: stepClient, Err: err}
	}
	return claims, nil
}

const stepClient = "verifying client"

// BrokerConfig says how the broker proves itself. A broker without a Quoter runs outside an enclave, says so, and is known
// by its key.
type BrokerConfig struct {
	Quoter *Quoter
}

// Accept runs the broker's half of a session up to the client's request, on a connection whose handshake was made with the
// certificate own. The caller decides whether the client's evidence is genuine ([Peer.Verify]) and wanted; it may
// [Challenge] the client, and answers with [Release] or [Deny]. The client is not told of an error; the peer that is
// returned beside one has binder and digest if the client has shown evidence.
func (c BrokerConfig) Accept(stream Stream, cs tls.ConnectionState, own *x509.Certificate) (Peer, error) {
	ctx := stream.Context()
	fail := func(err error) (Peer, error) {
		return Peer{}, &attest.Error{Code: attest.CodeEvidence, Step: stepClient, Err: err}
	}
	b, err := binding(cs, own, Broker)
	if err != nil {
		return fail(err)
	}
	first, err := stream.Recv()
	if err != nil {
		return fail(fmt.Errorf("waiting for its greeting: %w", err))
	}
	if err := setNonce(&b.ClientNonce, first.GetHello().GetNonce()); err != nil {
		return fail(err)
	}
	if err := c.show(ctx, stream, &b); err != nil {
		return Peer{}, err
	}
	message, err := stream.Recv()
	if err != nil {
		return fail(fmt.Errorf("waiting for its evidence: %w", err))
	}
	request := message.GetRequest()
	leaf := b.Leaf(Client)
	evidence, bound, err := decodeEvidence(request.GetEvidence(), Client, leaf)
	if err != nil {
		return fail(err)
	}
	peer := Peer{Binder: leaf, Digest: sha256.Sum256(evidence.Raw), Names: request.GetNames(),
		Answers: request.GetAnswersChallenges(), evidence: evidence, bound: bound}
	if err := checkNames(peer.Names); err != nil {
		return peer, &attest.Error{Code: attest.CodeSecret, Step: stepClient, Err: err}
	}
	return peer, nil
}

func checkNames(names []string) error {
	if len(names) > MaxNames {
		return fmt.Errorf("%d names, at most %d can be asked for", len(names), MaxNames)
	}
	seen := map[string]bool{}
	for _, n := range names {
		if n == "" || len(n) > MaxName || seen[n] {
			return errors.New("a name is empty, too long or appears twice")
		}
		seen[n] = true
	}
	return nil
}

// show sends the broker's evidence for this session.
func (c BrokerConfig) show(ctx context.Context, stream Stream, b *Binding) error {
	shown, err := c.evidence(ctx, b, Broker)
	if err != nil {
		return err
	}
	err = stream.Send(&sessionpb.BrokerMessage{Message: &sessionpb.BrokerMessage_Evidence{Evidence: shown}})
	if err != nil {
		return attest.Errorf(attest.CodeUnreachable, stepShow, "", "%w", err)
	}
	return nil
}

const stepShow = "showing own evidence"

// evidence makes a nonce and the broker's evidence for a connection, as the leaf of a role.
func (c BrokerConfig) evidence(ctx context.Context, b *Binding, r Role) (*sessionpb.BrokerEvidence, error) {
	if _, err := io.ReadFull(rand.Reader, b.BrokerNonce[:]); err != nil {
		return nil, attest.Errorf(attest.CodeInternal, stepShow, "", "making a nonce: %w", err)
	}
	shown := &sessionpb.BrokerEvidence{Nonce: b.BrokerNonce[:], Evidence: &sessionpb.Evidence{Type: noEvidence}}
	if c.Quoter != nil {
		made, err := c.Quoter.quote(ctx, b.Leaf(r))
		if err != nil {
			return nil, &attest.Error{Code: attest.CodeAttester, Step: stepShow, Err: err}
		}
		shown.Evidence, shown.Collateral = encodeEvidence(made.evidence, made.proof), encodeCollateral(made.collateral)
	}
	return shown, nil
}

// Prove makes the broker's evidence for a connection that carries another protocol than sessions, on which the broker
// has shown the certificate own and the client another one. nonce is the client's. [ClientConfig.VerifyProof] is the
// other side.
func (c BrokerConfig) Prove(ctx context.Context, cs tls.ConnectionState, own *x509.Certificate, nonce []byte) (
	*sessionpb.BrokerEvidence, error) {
	b, err := binding(cs, own, Broker)
	if err == nil {
		err = setNonce(&b.ClientNonce, nonce)
	}
	if err != nil {
		return nil, attest.Errorf(attest.CodeEvidence, stepShow, "", "%w", err)
	}
	return c.evidence(ctx, &b, Prover)
}

// Release sends secrets in the order in which they were asked for. receipt may be nil. wrapped is the type of the
// attester that alone opens them, "" if they are open.
func Release(stream Stream, names []string, secrets []attest.Secret, receipt *Receipt, wrapped attest.EvidenceType) error {
	result := &sessionpb.Result{Receipt: encodeReceipt(receipt), Wrapped: string(wrapped)}
	for i, name := range names {
		result.Secrets = append(result.Secrets, &sessionpb.Secret{Name: name, Value: secrets[i].Expose()})
	}
	return stream.Send(&sessionpb.BrokerMessage{Message: &sessionpb.BrokerMessage_Result{Result: result}})
}

// Deny tells a client whose evidence is genuine why it gets nothing. receipt may be nil.
func Deny(stream Stream, reason error, receipt *Receipt) error {
	d := &sessionpb.Denial{
		Code: string(attest.CodeOf(reason)), Reason: Printable(reason.Error()), Hint: Printable(attest.HintOf(reason)),
	}
	return stream.Send(&sessionpb.BrokerMessage{Message: &sessionpb.BrokerMessage_Result{
		Result: &sessionpb.Result{Denial: d, Receipt: encodeReceipt(receipt)}}})
}

// Later ends a stream of a broker that has too much to do: RESOURCE_EXHAUSTED, with gRPC's own word for how long to
// wait (grpc-retry-pushback-ms).
func Later(stream Stream, after time.Duration) error {
	stream.SetTrailer(metadata.Pairs(pushback, strconv.FormatInt(after.Milliseconds(), 10)))
	return status.Error(codes.ResourceExhausted, "too many sessions at once")
}
