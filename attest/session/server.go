package session

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
)

// Stream is the broker's end of the stream of messages.
type Stream = grpc.BidiStreamingServer[sessionpb.ClientMessage, sessionpb.BrokerMessage]

// A Peer is what a session has established about the client.
type Peer struct {
	Claims attest.Claims
	// Binder names the session: the client's leaf. It is fresh and unique.
	Binder [32]byte
}

// BrokerConfig says how the broker proves itself and verifies clients. All fields are needed.
type BrokerConfig struct {
	Quoter   *Quoter
	Verifier attest.Verifier
	Now      func() time.Time
}

// Accept runs the broker's half of a session up to the client's request, on a connection whose handshake was made
// with the certificate own. The client's evidence is genuine and of this session; whether it is wanted is for the
// caller to say, who answers with [Release] or [Deny]. An error is not for the client to know.
func (c BrokerConfig) Accept(stream Stream, cs tls.ConnectionState, own *x509.Certificate) (Peer, []string, error) {
	const step = "verifying client"
	ctx := stream.Context()
	fail := func(err error) (Peer, []string, error) {
		return Peer{}, nil, &attest.Error{Code: attest.CodeEvidence, Step: step, Err: err}
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
		return Peer{}, nil, err
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
	claims, err := genuine(ctx, c.Verifier, evidence, bound, c.Now())
	if err != nil {
		return Peer{}, nil, &attest.Error{Code: attest.CodeOf(err), Step: step, Err: err}
	}
	if err := checkNames(request.GetNames()); err != nil {
		return fail(err)
	}
	return Peer{Claims: claims, Binder: leaf}, request.GetNames(), nil
}

func checkNames(names []string) error {
	if len(names) > MaxNames {
		return fmt.Errorf("%d names, at most %d can be asked for", len(names), MaxNames)
	}
	seen := map[string]bool{}
	for _, n := range names {
		if n == "" || len(n) > MaxName || seen[n] {
			return errors.New("a name is empty, too long or stands there twice")
		}
		seen[n] = true
	}
	return nil
}

// show sends the broker's evidence for this session.
func (c BrokerConfig) show(ctx context.Context, stream Stream, b *Binding) error {
	const step = "showing own evidence"
	if _, err := io.ReadFull(rand.Reader, b.BrokerNonce[:]); err != nil {
		return attest.Errorf(attest.CodeInternal, step, "", "making a nonce: %w", err)
	}
	made, err := c.Quoter.quote(ctx, b.Leaf(Broker))
	if err != nil {
		return &attest.Error{Code: attest.CodeAttester, Step: step, Err: err}
	}
	err = stream.Send(&sessionpb.BrokerMessage{Message: &sessionpb.BrokerMessage_Evidence{
		Evidence: &sessionpb.BrokerEvidence{
			Nonce: b.BrokerNonce[:], Evidence: encodeEvidence(made.evidence, made.proof),
			Collateral: encodeCollateral(made.collateral),
		}}})
	if err != nil {
		return attest.Errorf(attest.CodeUnreachable, step, "", "%w", err)
	}
	return nil
}

// Release sends secrets in the order in which they were asked for.
func Release(stream Stream, names []string, secrets []attest.Secret) error {
	result := &sessionpb.Result{}
	for i, name := range names {
		result.Secrets = append(result.Secrets, &sessionpb.Secret{Name: name, Value: secrets[i].Expose()})
	}
	return stream.Send(&sessionpb.BrokerMessage{Message: &sessionpb.BrokerMessage_Result{Result: result}})
}

// Deny tells a client whose evidence is genuine why it gets nothing.
func Deny(stream Stream, reason error) error {
	d := &sessionpb.Denial{
		Code: string(attest.CodeOf(reason)), Reason: clean(reason.Error()), Hint: clean(attest.HintOf(reason)),
	}
	return stream.Send(&sessionpb.BrokerMessage{Message: &sessionpb.BrokerMessage_Result{
		Result: &sessionpb.Result{Denial: d}}})
}
