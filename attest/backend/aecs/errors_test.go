package aecs

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sesame-init/sesame/attest"
)

func TestEveryKnownCodeIsToldInWordsWithAdvice(t *testing.T) {
	for code, m := range meanings {
		err := explainCode(fmt.Sprintf("Fail to call TA remote function | Error code: 0x%04X0000", code))
		if err == nil || attest.CodeOf(err) != m.code || !strings.Contains(err.Error(), m.text) ||
			!strings.Contains(err.Error(), fmt.Sprintf("0x%04X0000", code)) || attest.HintOf(err) == "" {
			t.Errorf("%04X: [%s] %v; %s", code, attest.CodeOf(err), err, attest.HintOf(err))
		}
	}
	// Those that servers of either generation are known to give to a client that wants a secret.
	for _, code := range []uint16{0xA005, 0xA302, 0xA411, 0xA416, 0xA424, 0xA441, 0xA442, 0xA443, 0xA444, 0xA446, 0xA456, 0xAA21, 0xAA28,
		0x1119, 0x111A, 0x111B, 0x111C, 0x111D, 0x111E, 0x111F, 0x1120, 0x1121, 0x1122, 0x1146, 0x114C, 0x11A5, 0x11A6, 0x11A7,
		0x0206, 0x01A4, 0x01C6, 0x0177, 0x0178, 0x0179, 0x01E2, 0x01E6, 0x0E03, 0x0007} {
		if _, ok := meanings[code]; !ok {
			t.Errorf("%04X has no meaning", code)
		}
	}
	for message, c := range map[string]struct {
		code attest.Code // "": no code in it
		says string
	}{
		"x | Error code: 0x11A50001":                      {attest.CodeDenied, "SGX status 0x0001"},
		"x | Error code: 0xAA280000":                      {attest.CodeSecret, "no such secret"},
		"x | Error code: 0xA0050000":                      {attest.CodeUnreachable, "not provisioned"},
		"x | Error code: 0x0BAD0000":                      {attest.CodeDenied, "unknown error 0x0BAD0000"},
		"Error code: 0xAA280000 | Error code: 0x111A0000": {attest.CodeDenied, "MRENCLAVE"},
		"x | Error code: 0xAA280000 and then":             {},
		"x | Error code: 0x1AA280000":                     {},
		"x | Error code: 0x":                              {},
		"connection reset":                                {},
	} {
		err := explainCode(message)
		if c.code == "" && err != nil || c.code != "" && (err == nil || attest.CodeOf(err) != c.code ||
			!strings.Contains(err.Error(), c.says)) {
			t.Errorf("%q: [%s] %v", message, attest.CodeOf(err), err)
		}
	}
}

func TestAForeignTextIsShownWithoutControlCharacters(t *testing.T) {
	if got := clean("a\x1b[2J\xffb\n" + strings.Repeat("x", 500)); strings.ContainsAny(got, "\x1b\n") || !utf8.ValidString(got) ||
		len(got) > 200 {
		t.Errorf("%q", got)
	}
}
