package backend_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
)

func TestRoundsAskInOrderUntilOneAnswers(t *testing.T) {
	missed := attest.Errorf(attest.CodeUnreachable, "dialling", "", "gone")
	denied := attest.Errorf(attest.CodeDenied, "asking", "", "no")
	for _, test := range []struct {
		name    string
		answers []error // of the tries in their order; nil is an answer
		asked   string
		code    attest.Code
	}{
		{"the first answers", []error{nil}, "a", ""},
		{"the second answers", []error{missed, nil}, "ab", ""},
		{"in the second round", []error{missed, missed, nil}, "aba", ""},
		{"a refusal is not repeated where no other server is missed", []error{denied, denied}, "ab", attest.CodeDenied},
		{"a refusal beside a missed server is", []error{denied, missed, denied, nil}, "abab", ""},
	} {
		asked := ""
		quiet := logrus.New()
		quiet.SetLevel(logrus.PanicLevel)
		_, err := backend.Rounds{Servers: []string{"a", "b"}, Kind: "server", Pause: time.Microsecond, Logger: quiet}.
			Fetch(t.Context(), func(_ context.Context, server string) (map[string]attest.Secret, error) {
				asked += server
				return nil, test.answers[len(asked)-1]
			})
		if asked != test.asked || (err == nil) != (test.code == "") || err != nil && attest.CodeOf(err) != test.code {
			t.Errorf("%s: asked %s, error %v", test.name, asked, err)
		}
	}
}

func TestWaitEndsBeforeADeadlineThatIsTooNear(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := backend.Wait(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
	if err := backend.Wait(ctx, 0); err != nil {
		t.Error(err)
	}
	cancel()
	for range 100 { // the end of the context counts, however short the pause is
		if err := backend.Wait(ctx, 0); !errors.Is(err, context.Canceled) {
			t.Fatalf("after the end of the context: %v", err)
		}
	}
}
