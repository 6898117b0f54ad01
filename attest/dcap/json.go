package dcap

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// maxDocumentSize bounds a TCB info or an enclave identity. Genuine ones have less than 20 KB.
const maxDocumentSize = 1 << 20

// maxDepth bounds the nesting of JSON, as Intel's library does.
const maxDepth = 32

// jsonReader reads the JSON of Intel's documents in one pass over its bytes: several times faster than
// encoding/json, and stricter, since it refuses fields that are missing, doubled, out of range or spelled with
// escapes. Fields that it does not know are skipped. After the first error err is set and stays.
type jsonReader struct {
	s     string
	i     int
	depth int
	err   error
}

func (r *jsonReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("at byte %d: "+format, append([]any{r.i}, args...)...)
	}
}

// peek is the next byte that is not whitespace, 0 at the end and after an error.
func (r *jsonReader) peek() byte {
	if r.err != nil {
		return 0
	}
	for r.i < len(r.s) {
		switch c := r.s[r.i]; c {
		case ' ', '\t', '\r', '\n':
			r.i++
		default:
			return c
		}
	}
	return 0
}

func (r *jsonReader) expect(c byte) bool {
	if r.peek() != c {
		r.fail("want %q", c)
		return false
	}
	r.i++
	return true
}

// end makes sure that nothing but whitespace is left.
func (r *jsonReader) end() error {
	if r.peek() != 0 || r.err == nil && r.i != len(r.s) {
		r.fail("text after the end")
	}
	return r.err
}

// fields is the set of fields of an object that were read, a bit each.
type fields uint32

// once adds a field that must not have been there yet.
func (r *jsonReader) once(seen *fields, f fields, name string) {
	if *seen&f != 0 {
		r.fail("field %q appears twice", name)
	}
	*seen |= f
}

// object calls field with each name; field must read or skip the value.
func (r *jsonReader) object(field func(name string)) {
	r.list('{', '}', func() { name := r.text(); r.expect(':'); field(name) })
}

// array calls element before each element, which it must read or skip.
func (r *jsonReader) array(element func()) { r.list('[', ']', element) }

func (r *jsonReader) list(open, closing byte, element func()) {
	if !r.expect(open) {
		return
	}
	if r.depth++; r.depth > maxDepth {
		r.fail("nested deeper than %d", maxDepth)
		return
	}
	for first := true; r.err == nil; first = false {
		if first && r.peek() == closing {
			break
		}
		element()
		if r.peek() == closing {
			break
		}
		r.expect(',')
	}
	r.depth--
	r.expect(closing)
}

// text reads a string without escapes.
func (r *jsonReader) text() string {
	if !r.expect('"') {
		return ""
	}
	start := r.i
	for ; r.i < len(r.s); r.i++ {
		switch c := r.s[r.i]; {
		case c == '"':
			out := r.s[start:r.i]
			r.i++
			return out
		case c == '\\' || c < 0x20:
			r.fail("escape or control character in a string")
			return ""
		}
	}
	r.fail("string without an end")
	return ""
}

// number reads an unsigned integer.
func (r *jsonReader) number(limit uint64) uint64 {
	r.peek()
	start, n := r.i, uint64(0)
	for r.err == nil && r.i < len(r.s) && r.s[r.i] >= '0' && r.s[r.i] <= '9' && r.i-start < 11 {
		n = n*10 + uint64(r.s[r.i]-'0')
		r.i++
	}
	digits := r.i - start
	if digits == 0 || digits > 10 || digits > 1 && r.s[start] == '0' || n > limit {
		r.fail("want a number from 0 to %d", limit)
		return 0
	}
	return n
}

// hex reads a string of exactly as many bytes as out has, in hexadecimal digits of either case.
func (r *jsonReader) hex(out []byte) {
	s := r.text()
	if r.err != nil {
		return
	}
	if len(s) != 2*len(out) {
		r.fail("%d hexadecimal digits, want %d", len(s), 2*len(out))
		return
	}
	if _, err := hex.Decode(out, []byte(s)); err != nil {
		r.fail("%w", err)
	}
}

// time reads a string of the form YYYY-MM-DDThh:mm:ssZ.
func (r *jsonReader) time() time.Time {
	const layout = "2006-01-02T15:04:05Z"
	s := r.text()
	t, err := time.Parse(layout, s)
	if r.err == nil && (err != nil || len(s) != len(layout)) {
		r.fail("%q is not a time like %s", s, layout)
	}
	return t
}

// skip reads any value and returns its text.
func (r *jsonReader) skip() string {
	c := r.peek()
	start := r.i
	switch c {
	case '{':
		r.object(func(string) { r.skip() })
	case '[':
		r.array(func() { r.skip() })
	case '"':
		r.anyText()
	default:
		for r.i < len(r.s) && !strings.ContainsRune(",:]} \t\r\n", rune(r.s[r.i])) {
			r.i++
		}
		if !json.Valid([]byte(r.s[start:r.i])) {
			r.fail("want a value")
		}
	}
	if r.err != nil {
		return ""
	}
	return r.s[start:r.i]
}

// anyText reads a string that may have escapes.
func (r *jsonReader) anyText() {
	start := r.i
	escaped := false
	for r.i++; r.i < len(r.s) && r.s[r.i] != '"' && r.s[r.i] >= 0x20; r.i++ {
		if r.s[r.i] == '\\' {
			escaped = true
			r.i++
		}
	}
	if r.i++; r.i > len(r.s) || r.s[r.i-1] != '"' || escaped && !json.Valid([]byte(r.s[start:r.i])) {
		r.fail("want a string")
	}
}

// document is a signed JSON document: {"<name>": body, "signature": "hex"}.
type document struct {
	body      string
	signature [64]byte
}

func parseDocument(b []byte, name string) (document, error) {
	var d document
	switch {
	case len(b) == 0:
		return d, errors.New("the document is missing")
	case len(b) > maxDocumentSize:
		return d, fmt.Errorf("document has %d bytes, more than %d", len(b), maxDocumentSize)
	}
	r := &jsonReader{s: string(b)}
	var seen fields
	r.object(func(field string) {
		switch field {
		case name:
			r.once(&seen, 1, field)
			d.body = r.skip()
		case "signature":
			r.once(&seen, 2, field)
			r.hex(d.signature[:])
		default:
			r.skip()
		}
	})
	if err := r.end(); err != nil {
		return d, err
	}
	if seen != 3 {
		return d, fmt.Errorf("not a document of %q and \"signature\"", name)
	}
	return d, nil
}

// verify checks the signature over the body as it is written, and if that fails over the body without the
// whitespace between its tokens: Intel signs compact text, and some tools indent it later.
func (d document) verify(key *issuedCertificate) error {
	body := []byte(d.body)
	if verifyRaw(key.key, body, d.signature[:]) {
		return nil
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, body); err != nil {
		return err
	}
	if compact.Len() == len(body) || !verifyRaw(key.key, compact.Bytes(), d.signature[:]) {
		return fmt.Errorf("signature by %q is not valid", key.cert.Subject.CommonName)
	}
	return nil
}
