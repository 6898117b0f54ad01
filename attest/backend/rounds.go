package backend

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
)

// Rounds ask several servers in order, again and again with growing pauses, until one answers, the context ends, or no
// server can be expected to change its mind.
type Rounds struct {
	Servers []string // addresses
	Kind    string   // what they are, for errors: "broker"
	// Pause before the second round, doubled every round up to 16 times, each time shortened at random by up to half.
	Pause time.Duration
	// Final says whether another try cannot change an error of a round, counted from 1. Nil: all errors are final but
	// those of codes [attest.CodeUnreachable] and [attest.CodeCollateral].
	Final func(err error, round int) bool
	// After is how long a server has asked to wait; nil or 0: as the pause says.
	After  func(err error) time.Duration
	Logger logrus.FieldLogger
}

// Passing says whether an error is of a kind that may pass: the server cannot be reached or lacks collateral.
func Passing(err error) bool {
	code := attest.CodeOf(err)
	return code == attest.CodeUnreachable || code == attest.CodeCollateral
}

// Fetch calls try for the servers until it returns secrets.
func (r Rounds) Fetch(ctx context.Context, try func(ctx context.Context, server string) (map[string]attest.Secret, error)) (
	map[string]attest.Secret, error) {
	const step = "fetching secrets"
	pause := r.Pause
	for round := 1; ; round++ {
		secrets, again, err := r.round(ctx, round, try)
		if err == nil {
			return secrets, nil
		}
		if !again {
			return nil, &attest.Error{Step: step, Code: attest.CodeOf(err), Err: err}
		}
		shortened := pause/2 + rand.N(pause/2+1)
		if r.After != nil {
			if after := r.After(err); after > 0 {
				shortened = max(shortened, after/2+rand.N(after+1))
			}
		}
		r.Logger.WithError(err).Warnf("no %s has answered, next try in %s", r.Kind, shortened.Round(time.Millisecond))
		if ended := Wait(ctx, shortened); ended != nil {
			return nil, &attest.Error{Step: step, Code: attest.CodeOf(err),
				Err: fmt.Errorf("%w after %d rounds of tries; the last: %w", ended, round, err)}
		}
		pause = min(2*pause, 16*r.Pause)
	}
}

// round tries every server once. It returns the first error that no other try can change, if all servers gave one,
// else says that another round may help, and returns the error to report if there is none.
func (r Rounds) round(ctx context.Context, round int, try func(context.Context, string) (map[string]attest.Secret, error)) (
	secrets map[string]attest.Secret, again bool, err error) {
	final := r.Final
	if final == nil {
		final = func(err error, _ int) bool { return !Passing(err) }
	}
	var refused, missed error
	for _, server := range r.Servers {
		secrets, err := try(ctx, server)
		if err == nil {
			return secrets, false, nil
		}
		err = &attest.Error{Step: "asking " + r.Kind + " " + server, Code: attest.CodeOf(err), Err: err}
		if final(err, round) {
			refused = first(refused, err)
		} else {
			missed = first(missed, err)
		}
		if ctx.Err() != nil {
			break
		}
		if len(r.Servers) > 1 {
			r.Logger.Warn(err)
		}
	}
	if missed != nil && ctx.Err() == nil {
		return nil, true, missed
	}
	return nil, false, first(first(refused, missed), errors.New("no servers"))
}

func first(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// Wait returns the context's error if it ends, or is certain to end, before the pause is over.
func Wait(ctx context.Context, pause time.Duration) error {
	if ctx.Err() != nil { // before a timer that may be as quick
		return ctx.Err()
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < pause {
		return context.DeadlineExceeded
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
