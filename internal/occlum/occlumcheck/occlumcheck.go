// Package occlumcheck finds, before an enclave runs, what would make it fail or leave it unsafe: in a program that
// is to run inside Occlum ([Program]), and in an instance directory of Occlum or of the simulator ([Instance]).
//
// A [Finding] names the setting and what to write there. An error is something that fails, or that gives the host
// or anyone else what the enclave keeps from them; a warning is a choice that should have been made on purpose.
//
// # Limits
//
// No finding does not mean safe: the checks know Occlum's rules and Sesame's, not the application. A C library is
// told to be a stock one by the machine code that starts its threads, which is what fails in the LibOS; a library
// that starts none, such as glibc's loader, by words in it. That a file is the very one that Occlum ships can be told
// only with Occlum's own files or their hashes ([Options.OcclumLibc]); none are built in, for none were to be had.
// Only the built enclave file says who signed it, so before "occlum build" the default
// signing key goes unnoticed.
//
// The rules about programs are those of the LibOS's loader and memory in Occlum 0.31.
package occlumcheck

import (
	"slices"
	"strings"
)

// Severity says how bad a finding is.
type Severity string

// The severities.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
)

// A Finding is one thing that is wrong.
type Finding struct {
	Severity Severity `json:"severity"`
	Field    string   `json:"field"`   // the setting, as "Occlum.json: metadata.debuggable", or the file
	Problem  string   `json:"problem"` // what is wrong with it and what follows
	Write    string   `json:"write"`   // what to write or do instead
}

func (f Finding) String() string {
	return string(f.Severity) + ": " + f.Field + ": " + f.Problem + "; " + f.Write
}

// Findings are in the order in which the checks are made.
type Findings []Finding

// Failed reports whether an error is among fs.
func (fs Findings) Failed() bool {
	return slices.ContainsFunc(fs, func(f Finding) bool { return f.Severity == Error })
}

// quoted is a list of names for a sentence.
func quoted(names []string) string {
	q := make([]string, len(names))
	for i, n := range names {
		q[i] = `"` + n + `"`
	}
	return strings.Join(q, ", ")
}
