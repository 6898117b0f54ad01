package clock_test

import (
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/sesame-init/sesame/internal/clock"
	"github.com/sesame-init/sesame/internal/version"
)

func TestNeverBeforeTheBound(t *testing.T) {
	host := time.Unix(1_800_000_000, 0)
	c := clock.New(func() time.Time { return host }, time.Unix(1_700_000_000, 0))
	want := func(what string, seconds int64) {
		t.Helper()
		if got := c.Now().Unix(); got != seconds {
			t.Errorf("%s: it is %d, want %d", what, got, seconds)
		}
	}
	want("honest host", 1_800_000_000)
	host = time.Unix(1, 0)
	want("host before the build", 1_700_000_000)
	c.AtLeast(time.Unix(1_750_000_000, 0))
	want("host before something newer", 1_750_000_000)
	c.AtLeast(time.Unix(1_600_000_000, 0))
	want("something older", 1_750_000_000)
	host = time.Unix(1_760_000_000, 0)
	want("host after the bound", 1_760_000_000)
}

func TestTheLatestOfManyBoundsCounts(t *testing.T) {
	c := clock.New(func() time.Time { return time.Time{} }, time.Unix(0, 0))
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			c.AtLeast(time.Unix(int64(i), 0))
			if got := c.Now().Unix(); got < int64(i) {
				t.Errorf("it is %d after a bound of %d", got, i)
			}
		})
	}
	wg.Wait()
	if got := c.Now().Unix(); got != 99 {
		t.Errorf("it is %d, want the latest bound, 99", got)
	}
}

func TestTheDateOfTheSourcesIsABoundThatTheLinkerCanOnlyRaise(t *testing.T) {
	dawn := func() time.Time { return time.Time{} }
	later := version.Date().Add(1000 * time.Hour)
	for linked, want := range map[int64]time.Time{0: version.Date(), 1: version.Date(), later.Unix(): later} {
		c, err := clock.Built(dawn, strconv.FormatInt(linked, 10))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Now(); !got.Equal(want) {
			t.Errorf("linked with %d: it is %v, want %v", linked, got, want)
		}
	}
}

func TestTheTimeOfTheBuildMustBeANumber(t *testing.T) {
	for _, text := range []string{"", "yesterday", "1.5", "99999999999999999999"} {
		if _, err := clock.Built(time.Now, text); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}
