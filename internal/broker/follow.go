package broker

import (
	"bytes"
	"context"
	"os"
	"time"

	"github.com/sirupsen/logrus"
)

// A Follower puts the policy of a file in force when the file changes. It looks at the content, not at times or events
// of the file system: editors rename, Kubernetes swaps links, and what counts is what is there. A change counts once
// two looks in a row have seen it, so that a file that is being written is mostly not taken for a broken one; and a
// broken one changes nothing but the log.
type Follower struct {
	Read    func() ([]byte, error)
	Replace func(ctx context.Context, text []byte) error
	Now     <-chan os.Signal // look now, without waiting for a second look
	Ticks   <-chan time.Time
	// Reloading is told before and after a look that Now has asked for.
	Reloading func(begins bool)
	Logger    logrus.FieldLogger
}

// Run follows until ctx ends. begin is what is in force.
func (f *Follower) Run(ctx context.Context, begin []byte) {
	tried, seen := begin, begin
	failing := false
	for {
		asked := false
		select {
		case <-ctx.Done():
			return
		case <-f.Now:
			asked = true
			f.Reloading(true)
		case <-f.Ticks:
		}
		text, err := f.Read()
		switch {
		case err != nil && (asked || !failing):
			f.Logger.Errorf("the policy stays as it is: %v", err)
		case err == nil && asked || err == nil && bytes.Equal(text, seen) && !bytes.Equal(text, tried):
			tried = text
			_ = f.Replace(ctx, text) // which logs
		}
		failing = err != nil
		if err == nil {
			seen = text
		}
		if asked {
			f.Reloading(false)
		}
	}
}
