package session

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
)

// ChallengesSince is the version from which an init answers challenges.
const ChallengesSince = "0.2.0"

const (
	answerLabel   = "sesame-ek-answer-v1"
	challengeSize = 32      // bytes of what a credential holds
	maxChallenge  = 1 << 10 // bytes of each part of a challenge
	maxAnswers    = 2       // that a client gives in one session
)

// An Activator answers challenges to the hardware of its evidence. An attester that is one says so to the broker.
type Activator interface {
	attest.Attester
	// Activate returns the 32 bytes that a credential holds, if it was made for the key that has signed quoted, which is
	// evidence of this attester's. blob and seed are what TPM2_ActivateCredential takes, without the sizes. The error's
	// code is [attest.CodeAttester].
	Activate(ctx context.Context, quoted attest.Evidence, blob, seed []byte) (attest.Secret, error)
}

// ErrAnswer is of an answer that does not prove what was asked for.
var ErrAnswer = errors.New("its TPM does not hold both keys that its evidence names")

// answer is what proves to the broker of a session that secret is known. It is never the secret: the same attestation key
// may be challenged by others for purposes of theirs.
func answer(secret attest.Secret, leaf [32]byte) []byte {
	mac := hmac.New(sha256.New, secret.Expose())
	mac.Write([]byte(answerLabel))
	mac.Write([]byte{0})
	mac.Write(leaf[:])
	return mac.Sum(nil)
}

// Challenge sends a client a credential (see [Activator]) and waits for its answer, which must prove that it has found the secret. It wipes
// the secret. The error of a wrong answer is [ErrAnswer]; any other one ends the session.
func Challenge(stream Stream, p Peer, blob, seed []byte, secret attest.Secret) error {
	const step = "challenging client"
	defer secret.Wipe()
	want := answer(secret, p.Binder)
	err := stream.Send(&sessionpb.BrokerMessage{Message: &sessionpb.BrokerMessage_Challenge{
		Challenge: &sessionpb.Challenge{Credential: blob, Secret: seed}}})
	if err != nil {
		return attest.Errorf(attest.CodeUnreachable, step, "", "%w", err)
	}
	message, err := stream.Recv()
	if err != nil {
		return &attest.Error{Code: attest.CodeEvidence, Step: step, Err: fmt.Errorf("waiting for its answer: %w", err)}
	}
	if !hmac.Equal(message.GetAnswer().GetMac(), want) {
		return &attest.Error{Code: attest.CodeEvidence, Step: step, Err: ErrAnswer}
	}
	return nil
}

// answerChallenge sends the answer to a challenge of the verified broker, for the evidence of this session.
func (c ClientConfig) answerChallenge(ctx context.Context, stream clientStream, quoted attest.Evidence, leaf [32]byte,
	asked *sessionpb.Challenge) error {
	const step = "answering the broker's challenge"
	activator, ok := c.Attester.(Activator)
	if !ok {
		return attest.Errorf(attest.CodeEvidence, step, "Look at the broker's version.", "it was not told that there is an answer")
	}
	if len(asked.GetCredential()) > maxChallenge || len(asked.GetSecret()) > maxChallenge {
		return attest.Errorf(attest.CodeEvidence, step, "", "it has %d and %d bytes", len(asked.GetCredential()), len(asked.GetSecret()))
	}
	secret, err := activator.Activate(ctx, quoted, asked.GetCredential(), asked.GetSecret())
	switch {
	case err != nil && ctx.Err() != nil:
		return attest.Errorf(attest.CodeUnreachable, step, "Raise the timeout: it ended meanwhile.", "%w", ctx.Err())
	case err != nil:
		return &attest.Error{Code: attest.CodeAttester, Step: step, Err: err}
	}
	defer secret.Wipe()
	if secret.Len() != challengeSize {
		return attest.Errorf(attest.CodeEvidence, step, "", "its credential holds %d bytes, want %d", secret.Len(), challengeSize)
	}
	err = stream.Send(&sessionpb.ClientMessage{Message: &sessionpb.ClientMessage_Answer{
		Answer: &sessionpb.Answer{Mac: answer(secret, leaf)}}})
	if err != nil {
		return received(stream, err)
	}
	return nil
}
