// Package fault says how a panic ends.
//
// A panic that no goroutine recovers ends a Go program with status 2 and a traceback, in which the words of arguments can
// be parts of keys. The programs init, launcher and keybroker end with [Status] instead, and print the panic and where it
// came from, but no arguments: their goroutines begin with [Go], callbacks that others run are wrapped by [Guard], and main
// functions, handlers and interceptors begin with a deferred [Exit]. Status 2 is then a fault of the Go runtime itself, such
// as a lack of memory, or of a library in a goroutine of its own. The runtime's traceback is not for this package to change:
// GOTRACEBACK=none in the environment leaves it out.
//
// A library must not end the program that uses it. Its goroutines run what they run by [Try], and what waits for them
// panics in turn by [Raise], in the goroutine of the library's caller, or returns the error of Try.
//
// A test in package layers finds the goroutines and callbacks that do neither.
package fault

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/sesame-init/sesame/attest"
)

// Status is the exit status of a program that ends by a panic.
const Status = 20

const hint = "This is a fault of the program. Report it with these lines, which name places in its source."

// Exit ends the program if the function that defers it panics.
func Exit() {
	if cause := recover(); cause != nil {
		_, _ = os.Stderr.Write(notice(program(), catch(cause)))
		os.Exit(Status)
	}
}

// Go runs f in a goroutine of its own. If f panics, the program ends, after what f defers: if others wait for f's end and
// would end the program themselves, f tells them last, and does not defer it.
func Go(f func()) { go Guard(f)() }

// Guard returns f as a function that ends the program if f panics.
func Guard(f func()) func() {
	return func() {
		defer Exit()
		f()
	}
}

// Try runs f and returns its error. If f panics, the error's code is [attest.CodeInternal].
func Try(f func() error) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = &attest.Error{Code: attest.CodeInternal, Err: catch(cause), Hint: hint}
		}
	}()
	return f()
}

// Raise panics if err, or one that it wraps, is from an f that has panicked in [Try], and else returns err. Of the panic that
// it raises, the program tells the place of the first one.
func Raise(err error) error {
	var caught *panicked
	if errors.As(err, &caught) {
		panic(raised{caught})
	}
	return err
}

// panicked is a panic that was caught.
type panicked struct {
	text  string // one line
	stack string // a line for each call, the innermost first
}

func (p *panicked) Error() string { return "panic: " + p.text }

// raised is what [Raise] panics with. If nothing recovers it, the Go runtime prints it.
type raised struct{ *panicked }

func (r raised) Error() string { return r.panicked.Error() + "\n" + r.stack }

// catch is for functions that are deferred, and have recovered cause.
func catch(cause any) *panicked {
	if again, ok := cause.(raised); ok {
		return again.panicked
	}
	return &panicked{text: attest.OneLine(errors.New(describe(cause))).Error(), stack: stack()}
}

// describe is a cause in words. Of values that are not made to be read it names the type only, since they may hold anything.
func describe(cause any) string {
	switch cause.(type) {
	case error, fmt.Stringer, string, bool, int, uint, int64, uint64, int32, uint32, uintptr:
		return fmt.Sprint(cause)
	}
	return fmt.Sprintf("a value of type %T", cause)
}

// maxCalls bounds the stack, of which the innermost calls matter.
const maxCalls = 64

// own is what functions of this package are called.
const own = "github.com/sesame-init/sesame/internal/fault."

// stack names the calls that led to a panic, by function, file and line.
func stack() string {
	calls := make([]uintptr, maxCalls)
	frames := runtime.CallersFrames(calls[:runtime.Callers(0, calls)])
	var b strings.Builder
	for more := true; more; {
		var f runtime.Frame
		f, more = frames.Next()
		ours := strings.HasPrefix(f.Function, own) || strings.HasPrefix(f.Function, "runtime.")
		if f.Function != "" && (!ours || b.Len() > 0) {
			fmt.Fprintf(&b, "\t%s %s:%d\n", f.Function, f.File, f.Line)
		}
	}
	return b.String()
}

func notice(program string, p *panicked) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s: fault [%s] %v\n%[1]s: to do: %[4]s\n", program, attest.CodeInternal, p, hint)
	_, _ = io.WriteString(&b, p.stack)
	return b.Bytes()
}

// program is the name of the program by its source: its arguments are others' words.
func program() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Path != "" {
		return path.Base(info.Path)
	}
	return "program"
}
