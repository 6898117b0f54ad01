package attest

import (
	"errors"
	"fmt"
	"strings"
)

// Code is the class of a refusal. It decides exit codes, gRPC statuses and what a caller may retry.
type Code string

// The classes of refusal.
const (
	CodeConfig      Code = "config"      // the configuration is wrong or verifies less than the minimum
	CodeAttester    Code = "attester"    // own evidence could not be made
	CodeUnreachable Code = "unreachable" // a peer or service could not be reached; worth a retry
	CodeDenied      Code = "denied"      // the peer refused to release
	CodeEvidence    Code = "evidence"    // the peer's evidence is not genuine
	CodePolicy      Code = "policy"      // the peer's evidence is genuine, but not what the policy wants
	CodeCollateral  Code = "collateral"  // collateral is missing, expired, too old or not genuine
	// CodeMissing is collateral that the service answers not to have: no fault of the peer, and unlikely to pass soon.
	CodeMissing  Code = "collateral-missing"
	CodeSecret   Code = "secret"   // a secret is missing, malformed or cannot be stored safely
	CodeMount    Code = "mount"    // a file system could not be mounted
	CodeLaunch   Code = "launch"   // the application could not be started, or not with these arguments
	CodeStopped  Code = "stopped"  // a signal ended it
	CodeUsage    Code = "usage"    // a command line is wrong
	CodeInternal Code = "internal" // a fault of this program
)

// Error is a refusal: which step refused, what, why and what to do about it. It wraps its cause, so errors.Is
// and errors.As see through it. Its text never holds secret bytes.
type Error struct {
	Code Code
	// Step is what was being done, a gerund: "verifying broker", "mounting root".
	Step string
	// Err is what went wrong, with the thing that it went wrong for.
	Err error
	// Hint is the likely cause and what to do, one sentence each. It is shown on a line of its own.
	Hint string
}

// Errorf makes an Error whose cause is formatted like [fmt.Errorf].
func Errorf(code Code, step, hint, format string, args ...any) *Error {
	return &Error{Code: code, Step: step, Hint: hint, Err: fmt.Errorf(format, args...)}
}

// Error reads outward-in: "fetching secrets: verifying broker: ...".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Step)
	if e.Err != nil {
		if b.Len() > 0 {
			b.WriteString(": ")
		}
		b.WriteString(e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// CodeOf is the code of the innermost [Error] in the chain of err, [CodeInternal] where there is none. The
// innermost one knows the reason; those around it only say on the way to what.
func CodeOf(err error) Code {
	if e := innermost(err); e != nil {
		return e.Code
	}
	return CodeInternal
}

// HintOf is the hint of the innermost [Error] that has one, "" where none has.
func HintOf(err error) string {
	hint := ""
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			break
		}
		if e.Hint != "" {
			hint = e.Hint
		}
		err = e.Err
	}
	return hint
}

func innermost(err error) *Error {
	var last *Error
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			break
		}
		last = e
		err = e.Err
	}
	return last
}
