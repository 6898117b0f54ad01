// Package stop ends a boot at a signal, in whichever phase it is.
package stop

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/fault"
)

// signals are those that end a boot.
var signals = []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT}

// At reports whether a boot ends at a signal.
func At(s syscall.Signal) bool { return slices.Contains(signals, os.Signal(s)) }

// By is the refusal of a boot that a signal has ended. Its code is [attest.CodeStopped].
func By(s os.Signal) error {
	return attest.Errorf(attest.CodeStopped, "booting", "Start again if that was not meant.", "ended by signal: %v", s)
}

// Watch ends ctx at the first signal; its cause is [By] that signal. A boot that does not end by that within patience,
// because it is in a call that nothing interrupts, is ended by abort.
//
// done is to be called when the boot is done, and returns the cause if a signal has come. From then on signals are the
// kernel's again.
func Watch(parent context.Context, patience time.Duration, abort func(error)) (ctx context.Context, done func() error) {
	ctx, cancel := context.WithCancelCause(parent)
	came := make(chan os.Signal, 16)
	signal.Notify(came, signals...)
	watched := make(chan struct{})
	fault.Go(func() {
		first := true
		for s := range came {
			cancel(By(s))
			if first {
				time.AfterFunc(patience, fault.Guard(func() { abort(context.Cause(ctx)) }))
			}
			first = false
		}
		close(watched)
	})
	return ctx, func() error {
		signal.Stop(came) // what has come by then is in the channel
		close(came)
		<-watched
		err := context.Cause(ctx)
		cancel(nil)
		return err
	}
}

// Cause is why ctx has ended if a signal has ended it, else nil.
func Cause(ctx context.Context) error {
	if err := context.Cause(ctx); attest.CodeOf(err) == attest.CodeStopped {
		return err
	}
	return nil
}
