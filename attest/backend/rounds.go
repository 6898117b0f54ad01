package backend

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/retry"
	"github.com/sesame-init/sesame/internal/silent"
)

const (
	// turnTime is the longest time of a turn.
	turnTime = 30 * time.Second
	// missingRest is how long a server rests that lacks collateral which will not come soon.
	missingRest = time.Minute
	// verdictRounds is in how many rounds a server must be found wrong before that is the last word.
	verdictRounds = 3
)

// errTurnOver ends a turn.
var errTurnOver = errors.New("the server's time is over, it is the next one's turn")

// Rounds ask several servers in order, again and again with growing pauses, until one answers, the context ends, or no
// server can be expected to change its mind. Each server has a turn of its own, so that one that is silent or slow
// cannot use up the time of the others.
type Rounds struct {
	Servers []string // addresses
	Kind    string   // what they are, for errors: "broker"
	// Pause before the second round, doubled every round up to 16 times, each time shortened at random by up to half.
	Pause time.Duration
	// Final says whether another try cannot change an error of a round, counted from 1. Nil: all errors are final but
	// those that are [Passing]. The verdict on a server that did not prove what it is must be the same in three rounds.
	Final func(err error, round int) bool
	// After is how long a server has asked to wait; nil or 0: as the pause says. It is cut to a quarter of the time
	// that is left.
	After  func(err error) time.Duration
	Logger logrus.FieldLogger // default: nothing is logged
}

// A Turn is one try at one server. It takes at most 30 seconds, and at most its share of the time that is left. An
// error of a turn whose server was not verified prints as one line and cut.
type Turn struct {
	Server   string
	verified bool
	share    time.Duration
	timer    *time.Timer
}

// Verified says that the server has proved what it is: from here on its words count, and its time begins anew.
func (t *Turn) Verified() {
	t.verified = true
	t.timer.Reset(t.share)
}

// Own does what takes time of our own, not of the server.
func (t *Turn) Own(do func()) {
	t.timer.Stop()
	defer t.timer.Reset(t.share)
	do()
}

// A Try is the exchange with one server. The context ends with the turn.
type Try func(ctx context.Context, turn *Turn) (map[string]attest.Secret, error)

// Passing says whether an error is of a kind that may pass: the server cannot be reached, or one of both sides lacks
// collateral. It says nothing about anyone's evidence.
func Passing(err error) bool {
	switch attest.CodeOf(err) {
	case attest.CodeUnreachable, attest.CodeCollateral, attest.CodeMissing:
		return true
	}
	return false
}

// server is one of the servers, over all rounds.
type server struct {
	address string
	rest    time.Time // until when it is not asked
	missed  error     // why it rests
}

// Fetch calls try for the servers until it returns secrets.
func (r Rounds) Fetch(ctx context.Context, try Try) (map[string]attest.Secret, error) {
	const step = "fetching secrets"
	r.Logger = silent.Or(r.Logger)
	servers := make([]*server, len(r.Servers))
	for i, address := range r.Servers {
		servers[i] = &server{address: address}
	}
	pauses := retry.Pauses{First: r.Pause, Longest: 16 * r.Pause}
	for round := 1; ; round++ {
		secrets, again, err := r.round(ctx, round, servers, try)
		if err == nil {
			return secrets, nil
		}
		if !again {
			return nil, &attest.Error{Step: step, Code: attest.CodeOf(err), Err: err}
		}
		shortened := max(pauses.Next(), r.pushback(ctx, err), resting(servers))
		r.Logger.WithError(err).Warnf("no %s has answered, next try in %s", r.Kind, shortened.Round(time.Millisecond))
		if ended := retry.Wait(ctx, shortened); ended != nil {
			return nil, &attest.Error{Step: step, Code: attest.CodeOf(err),
				Err: fmt.Errorf("%w after %d rounds of tries; the last: %w", ended, round, err)}
		}
	}
}

// pushback is for how long the servers have sent us away, as far as they are heeded.
func (r Rounds) pushback(ctx context.Context, err error) time.Duration {
	if r.After == nil {
		return 0
	}
	after := min(retry.Heed(ctx, r.After(err)), time.Hour)
	if after <= 0 {
		return 0
	}
	return retry.Heed(ctx, after/2+rand.N(after+1))
}

// resting is how long it takes until the first server may be asked.
func resting(servers []*server) time.Duration {
	first := time.Until(servers[0].rest)
	for _, s := range servers[1:] {
		first = min(first, time.Until(s.rest))
	}
	return max(0, first)
}

// round tries every server once. It returns the first error that no other try can change, if all servers gave one,
// else says that another round may help, and returns the error to report if there is none.
func (r Rounds) round(ctx context.Context, round int, servers []*server, try Try) (
	secrets map[string]attest.Secret, again bool, err error) {
	var refused, missed error
	for i, s := range servers {
		if time.Until(s.rest) > 0 {
			missed = first(missed, s.missed)
			continue
		}
		secrets, final, err := r.turn(ctx, round, s, len(servers)-i, try)
		if err == nil {
			return secrets, false, nil
		}
		if final {
			refused = first(refused, err)
		} else {
			missed = first(missed, err)
		}
		if ctx.Err() != nil {
			break
		}
		if len(servers) > 1 {
			r.Logger.Warn(err)
		}
		if attest.CodeOf(err) == attest.CodeMissing {
			s.rest, s.missed = time.Now().Add(missingRest), err
		}
	}
	if missed != nil && ctx.Err() == nil {
		return nil, true, missed
	}
	return nil, false, first(first(refused, missed), errors.New("no servers"))
}

// turn tries one server, left of which are to be tried in this round.
func (r Rounds) turn(ctx context.Context, round int, s *server, left int, try Try) (map[string]attest.Secret, bool, error) {
	share := turnTime
	if deadline, ok := ctx.Deadline(); ok {
		share = max(0, min(share, time.Until(deadline)/time.Duration(left)))
	}
	bounded, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t := &Turn{Server: s.address, share: share, timer: time.AfterFunc(share, func() { cancel(errTurnOver) })}
	defer t.timer.Stop()
	secrets, err := try(bounded, t)
	if err == nil {
		return secrets, false, nil
	}
	final := !Passing(err)
	if r.Final != nil {
		final = r.Final(err, round)
	}
	if !t.verified {
		err = attest.OneLine(err)
		final = final && (round >= verdictRounds || !verdict(err))
	}
	return nil, final, &attest.Error{Step: "asking " + r.Kind + " " + s.address, Code: attest.CodeOf(err), Err: err}
}

// verdict reports whether an error is our own judgement of a server.
func verdict(err error) bool {
	code := attest.CodeOf(err)
	return code == attest.CodeEvidence || code == attest.CodePolicy
}

func first(a, b error) error {
	if a != nil {
		return a
	}
	return b
}
