package session

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
)

const stepAsk = "asking for secrets"

// Unavailable is the status with which a broker answers when it cannot decide through a fault of its own side: UNAVAILABLE,
// with class, reason and hint as a detail, on both wires. It says nothing about the peer.
func Unavailable(code attest.Code, reason, hint string) error {
	s, err := status.New(codes.Unavailable, reason).WithDetails(&sessionpb.Denial{Code: string(code), Reason: reason, Hint: hint})
	if err != nil {
		return status.Error(codes.Unavailable, reason)
	}
	return s.Err()
}

// Fault is what [Unavailable] of a verified broker means to its peer, nil for any other error. Its code is one of those
// that may pass.
func Fault(err error) error {
	s := status.Convert(err)
	if s.Code() != codes.Unavailable {
		return nil
	}
	for _, detail := range s.Details() {
		d, ok := detail.(*sessionpb.Denial)
		if !ok {
			continue
		}
		code := attest.Code(d.GetCode())
		if code != attest.CodeCollateral && code != attest.CodeMissing {
			code = attest.CodeUnreachable
		}
		return attest.Errorf(code, stepAsk, Printable(d.GetHint()), "the broker cannot decide now: %s", Printable(d.GetReason()))
	}
	return nil
}
