package attest

import (
	"fmt"
	"strconv"
	"strings"
)

// maxForeign bounds in bytes what is shown of one text of a peer.
const maxForeign = 256

// Quote makes a text that a peer has chosen fit to print: in quotes, with escapes for all that is not printable ASCII,
// and cut. It is for everything that comes from a peer which has not proved yet what it is.
func Quote(text string) string {
	if len(text) > maxForeign {
		return strconv.QuoteToASCII(text[:maxForeign]) + fmt.Sprintf(" and %d bytes more", len(text)-maxForeign)
	}
	return strconv.QuoteToASCII(text)
}

// Foreign is an error whose text a peer has chosen, or a part of it. It prints as [Quote] does.
func Foreign(err error) error {
	if err == nil {
		return nil
	}
	return &foreignError{err}
}

type foreignError struct{ err error }

func (e *foreignError) Error() string { return Quote(e.err.Error()) }
func (e *foreignError) Unwrap() error { return e.err }

// maxLine bounds in bytes the text of an error about a peer.
const maxLine = 2 << 10

// OneLine is an error that prints as one line of printable characters, cut: the last fence around the reasons why a
// peer was not accepted, which repeat parts of its certificates and evidence.
func OneLine(err error) error {
	if err == nil {
		return nil
	}
	return &lineError{err}
}

type lineError struct{ err error }

func (e *lineError) Error() string {
	var b strings.Builder
	for _, r := range e.err.Error() {
		if b.Len() >= maxLine {
			return b.String() + "…"
		}
		if strconv.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		escaped := strconv.QuoteRuneToASCII(r)
		b.WriteString(escaped[1 : len(escaped)-1])
	}
	return b.String()
}

func (e *lineError) Unwrap() error { return e.err }
