package backend_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
)

func rounds(servers ...string) backend.Rounds {
	quiet := logrus.New()
	quiet.SetLevel(logrus.PanicLevel)
	return backend.Rounds{Servers: servers, Kind: "server", Pause: time.Microsecond, Logger: quiet}
}

func TestRoundsAskInOrderUntilOneAnswers(t *testing.T) {
	missed := attest.Errorf(attest.CodeUnreachable, "dialling", "", "gone")
	denied := attest.Errorf(attest.CodeDenied, "asking", "", "no")
	foreign := attest.Errorf(attest.CodePolicy, "judging", "", "another enclave")
	for _, test := range []struct {
		name     string
		verified bool
		answers  []error // of the tries in their order; nil is an answer
		asked    string
		code     attest.Code
	}{
		{"the first answers", false, []error{nil}, "a", ""},
		{"the second answers", false, []error{missed, nil}, "ab", ""},
		{"in the second round", false, []error{missed, missed, nil}, "aba", ""},
		{"a refusal is not repeated where no other server is missed", true, []error{denied, denied}, "ab", attest.CodeDenied},
		{"a refusal beside a missed server is", true, []error{denied, missed, denied, nil}, "abab", ""},
		{"a server that is once found wrong may be right later", false, []error{foreign, foreign, foreign, nil}, "abab", ""},
		{"servers that stay wrong", false, []error{foreign, foreign, foreign, foreign, foreign, foreign}, "ababab", attest.CodePolicy},
	} {
		asked := ""
		_, err := rounds("a", "b").Fetch(t.Context(), func(_ context.Context, turn *backend.Turn) (map[string]attest.Secret, error) {
			asked += turn.Server
			if test.verified {
				turn.Verified()
			}
			return nil, test.answers[len(asked)-1]
		})
		if asked != test.asked || (err == nil) != (test.code == "") || err != nil && attest.CodeOf(err) != test.code {
			t.Errorf("%s: asked %s, error %v", test.name, asked, err)
		}
	}
}

func TestAServerThatUsesUpItsTurnLeavesTimeForTheOthers(t *testing.T) {
	for _, test := range []struct {
		timeout time.Duration
		turns   []time.Duration // of the silent servers before the honest one
	}{
		{time.Minute, []time.Duration{12 * time.Second, 12 * time.Second, 12 * time.Second, 12 * time.Second}},
		{time.Hour, []time.Duration{30 * time.Second, 30 * time.Second, 30 * time.Second, 30 * time.Second}},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), test.timeout)
			defer cancel()
			var turns []time.Duration
			_, err := rounds("a", "b", "c", "d", "honest").Fetch(ctx, func(ctx context.Context, turn *backend.Turn) (map[string]attest.Secret, error) {
				if turn.Server == "honest" {
					return nil, nil
				}
				began := time.Now()
				<-ctx.Done()
				turns = append(turns, time.Since(began))
				return nil, attest.Errorf(attest.CodeUnreachable, "waiting", "", "%w", context.Cause(ctx))
			})
			if err != nil || len(turns) != len(test.turns) {
				t.Fatalf("%v, %v", turns, err)
			}
			for i, want := range test.turns {
				if turns[i] != want {
					t.Errorf("within %s: %v, want %v", test.timeout, turns, test.turns)
					break
				}
			}
		})
	}
}

func TestTimeOfOurOwnIsNotTheServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		_, err := rounds("slow machine's broker").Fetch(ctx, func(ctx context.Context, turn *backend.Turn) (map[string]attest.Secret, error) {
			time.Sleep(29 * time.Second)
			turn.Verified()
			turn.Own(func() { time.Sleep(time.Minute) }) // as a hardware TPM takes
			time.Sleep(29 * time.Second)
			return nil, ctx.Err()
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestAPushbackIsCutToAQuarterOfTheTimeThatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r := rounds("a")
		r.After = func(error) time.Duration { return 1<<63 - 1 }
		began, asked := time.Now(), []time.Duration{}
		_, err := r.Fetch(ctx, func(_ context.Context, turn *backend.Turn) (map[string]attest.Secret, error) {
			turn.Verified()
			asked = append(asked, time.Since(began))
			if len(asked) == 3 {
				return nil, nil
			}
			return nil, attest.Errorf(attest.CodeUnreachable, "asking", "", "later")
		})
		if err != nil || asked[1] < 7*time.Second || asked[1] > 15*time.Second || asked[2]-asked[1] > (time.Minute-asked[1])/4 {
			t.Errorf("asked at %v: %v", asked, err)
		}
	})
}

func TestAServerThatLacksCollateralRestsWhileOthersAreAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		r := rounds("lacking", "down")
		r.Pause = time.Second
		began, lacking, down := time.Now(), []time.Duration{}, 0
		_, err := r.Fetch(ctx, func(_ context.Context, turn *backend.Turn) (map[string]attest.Secret, error) {
			if turn.Server == "down" {
				down++
				return nil, attest.Errorf(attest.CodeUnreachable, "dialling", "", "refused")
			}
			turn.Verified()
			lacking = append(lacking, time.Since(began))
			return nil, attest.Errorf(attest.CodeMissing, "asking", "", "no TCB info of this platform")
		})
		if attest.CodeOf(err) != attest.CodeMissing || down < 10 || len(lacking) < 4 {
			t.Errorf("asked the lacking one at %v, the other %d times: %v", lacking, down, err)
		}
		for i := range lacking[1:] {
			if lacking[i+1]-lacking[i] < time.Minute {
				t.Errorf("asked again after %s", lacking[i+1]-lacking[i])
			}
		}
	})
}

func TestTheWordsOfAServerThatIsNotVerifiedStayOnOneLine(t *testing.T) {
	var log strings.Builder
	r := rounds("a", "b")
	r.Logger = &logrus.Logger{Out: &log, Formatter: &logrus.TextFormatter{DisableColors: true}, Level: logrus.DebugLevel}
	_, err := r.Fetch(t.Context(), func(_ context.Context, turn *backend.Turn) (map[string]attest.Secret, error) {
		return nil, attest.Errorf(attest.CodePolicy, "judging", "", "subject %s", "\x1b[31m\nlevel=info msg=\"secret released\""+strings.Repeat("x", 1<<20))
	})
	if text := err.Error() + strings.ReplaceAll(log.String(), "\nlevel=warning", ""); strings.ContainsAny(text[:len(text)-1], "\x1b") ||
		strings.Contains(log.String(), "\nlevel=info") || len(err.Error()) > 4<<10 {
		t.Errorf("%.600q", text)
	}
	if strings.ContainsAny(err.Error(), "\n\x1b") {
		t.Errorf("%.600q", err)
	}
}
