package retry_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/sesame-init/sesame/internal/retry"
)

func TestPausesGrowUpToTheLongest(t *testing.T) {
	p := retry.Pauses{First: 100, Longest: 500}
	for range 3 {
		for i, whole := range []time.Duration{100, 200, 400, 500, 500} {
			if pause := p.Next(); pause < whole/2 || pause > whole {
				t.Errorf("pause %d is %d, want %d to %d", i, pause, whole/2, whole)
			}
		}
		p.Reset()
	}
	if pause := (&retry.Pauses{}).Next(); pause != 0 {
		t.Errorf("no pause is %s", pause)
	}
}

func TestPausesDiffer(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 100 {
		p := retry.Pauses{First: time.Second, Longest: time.Minute}
		seen[p.Next()] = true
	}
	if len(seen) < 50 {
		t.Errorf("100 clients come back at %d points in time", len(seen))
	}
}

func TestAServersWishIsHeededUpToAQuarterOfTheTime(t *testing.T) {
	if got := retry.Heed(t.Context(), time.Hour); got != time.Hour {
		t.Errorf("without a deadline: %s", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if got := retry.Heed(ctx, time.Second); got != time.Second {
		t.Errorf("a short one: %s", got)
	}
	if got := retry.Heed(ctx, time.Hour); got > 15*time.Minute || got < 14*time.Minute {
		t.Errorf("a long one: %s", got)
	}
	over, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Hour))
	defer cancel()
	if got := retry.Heed(over, time.Hour); got != 0 {
		t.Errorf("with no time left: %s", got)
	}
}

func TestWaitEndsBeforeADeadlineThatIsTooNear(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := retry.Wait(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
	if err := retry.Wait(ctx, 0); err != nil {
		t.Error(err)
	}
	cancel()
	for range 100 { // the end of the context counts, however short the pause is
		if err := retry.Wait(ctx, 0); !errors.Is(err, context.Canceled) {
			t.Fatalf("after the end of the context: %v", err)
		}
	}
}
