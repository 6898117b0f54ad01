package reportdata_test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/reportdata"
)

// sample is an input of a producer's form, of n bytes if the form leaves that open.
func sample(p reportdata.Producer, n int) []byte {
	if p.Size() > 0 {
		n = p.Size()
	}
	return append([]byte(p.Begins()), bytes.Repeat([]byte{7}, max(0, n-len(p.Begins())))...)
}

func make64(p reportdata.Producer, raw [32]byte, input []byte) (d attest.ReportData, err error) {
	switch p.Layout() {
	case reportdata.RawThenHash:
		return p.DataAfter(raw, input)
	case reportdata.ExtraData:
		extra, err := p.Extra(input)
		copy(d[:], extra[:])
		return d, err
	}
	return p.Data(input)
}

// Report data of two producers is equal only for equal inputs of one layout. Layouts differ in the second half: it is
// zero, a SHA-256, or part of a SHA-512, so that equality between them needs a hash of a chosen value. Within a layout
// the beginnings tell the inputs apart, whatever follows.
func TestNoTwoProducersMakeTheSame(t *testing.T) {
	all := reportdata.All()
	for i, a := range all {
		if a.Begins() == "" || a.String() == "" || a.Outside() == "" {
			t.Errorf("%s: the table says too little", a)
		}
		for _, b := range all[:i] {
			if a.Layout() != b.Layout() {
				continue
			}
			if n := min(len(a.Begins()), len(b.Begins())); a.Begins()[:n] == b.Begins()[:n] {
				t.Errorf("inputs of %s and %s can be equal", a, b)
			}
		}
	}
}

// Every producer's inputs are refused by every other one, and the 64 bytes differ even if the raw bytes of one are
// what the other hashes to.
func TestAProducerTakesItsOwnInputsOnly(t *testing.T) {
	for _, a := range reportdata.All() {
		input := sample(a, 200)
		own, err := make64(a, [32]byte{}, input)
		if err != nil {
			t.Fatalf("%s: %v", a, err)
		}
		for _, b := range reportdata.All() {
			if a == b {
				continue
			}
			if _, err := make64(b, [32]byte{}, input); err == nil {
				t.Errorf("%s takes an input of %s", b, a)
			}
			other, err := make64(b, [32]byte(own[:32]), sample(b, 200))
			if err != nil || other == own {
				t.Errorf("%s gives what %s gives, %v", b, a, err)
			}
		}
		if second := own[32:]; (a.Layout() == reportdata.HashThenZeros || a.Layout() == reportdata.ExtraData) != bytes.Equal(second, make([]byte, 32)) {
			t.Errorf("%s: the second half is %x", a, second)
		}
		if a.Size() > 0 {
			if _, err := make64(a, [32]byte{}, append(input, 7)); err == nil {
				t.Errorf("%s takes an input that is too long", a)
			}
		}
	}
	if _, err := reportdata.AECS.Data(sample(reportdata.AECS, 200)); err == nil {
		t.Error("report data of AECS without user data")
	}
	if _, err := reportdata.RATLS.DataAfter([32]byte{}, sample(reportdata.RATLS, 91)); err == nil {
		t.Error("report data of RA-TLS with raw bytes")
	}
}

// What others may choose has a label of ours in front.
func TestWhatOthersChooseIsLabelled(t *testing.T) {
	for _, p := range reportdata.All() {
		if !strings.HasPrefix(p.Outside(), "nothing") && !strings.HasPrefix(p.Begins(), "sesame-") {
			t.Errorf("%s hashes %s behind %q", p, p.Outside(), p.Begins())
		}
	}
}

func TestTheManualListsEveryProducer(t *testing.T) {
	text, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range reportdata.All() {
		size := "any"
		if p.Size() > 0 {
			size = fmt.Sprint(p.Size())
		}
		layout := map[reportdata.Layout]string{
			reportdata.HashThenZeros: "SHA-256(input) ‖ 0³²", reportdata.LongHash: "SHA-512(input)",
			reportdata.RawThenHash: "32 raw bytes ‖ SHA-256(input)", reportdata.ExtraData: "none; extraData = SHA-256(input)",
		}[p.Layout()]
		row := fmt.Sprintf("| %s | `%s` | %s | %s | %s |", p, printed(p.Begins()), size, layout, p.Outside())
		if !strings.Contains(string(text), row) {
			t.Errorf("docs/protocol.md has no row %s", row)
		}
	}
}

// printed is a beginning as the manual shows it: text with \xNN in place of what is not printable, or, if it begins
// with no text, hexadecimal digits.
func printed(s string) string {
	if !strings.ContainsAny(s[:1], "{-s") {
		return fmt.Sprintf("%x", s)
	}
	var b strings.Builder
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			fmt.Fprintf(&b, `\x%02x`, c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
