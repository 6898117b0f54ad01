package attest_test

import (
	"errors"
	"io"
	"strings"
	"testing"
	"unicode"

	"github.com/sesame-init/sesame/attest"
)

func TestWhatAPeerSaysIsOneLineOfPrintableCharactersAndCut(t *testing.T) {
	for _, said := range []string{"", "gone", "a\nb", "\x1b[2Jlevel=info msg=forged", "\u202egnp.exe", "\xff\xfe", strings.Repeat("long ", 1e5), "\r\x00\u2028"} {
		foreign, line := attest.Foreign(errors.New(said)), attest.OneLine(errors.New(said))
		for _, printed := range []string{attest.Quote(said), foreign.Error(), line.Error()} {
			bad := strings.IndexFunc(printed, func(r rune) bool { return !unicode.IsPrint(r) })
			if bad >= 0 || len(printed) > 3<<10 {
				t.Errorf("%.40q prints as %.400q", said, printed)
			}
		}
		if printed := foreign.Error(); printed[0] != '"' {
			t.Errorf("%q is not quoted", printed)
		}
	}
	inner := attest.Errorf(attest.CodePolicy, "judging", "Do it.", "it is %w", io.EOF)
	for _, err := range []error{attest.Foreign(inner), attest.OneLine(inner)} {
		if attest.CodeOf(err) != attest.CodePolicy || attest.HintOf(err) != "Do it." || !errors.Is(err, io.EOF) {
			t.Errorf("%v has lost its code, hint or cause", err)
		}
	}
	if attest.Foreign(nil) != nil || attest.OneLine(nil) != nil {
		t.Error("no error became one")
	}
}
