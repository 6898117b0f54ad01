package fault_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/fault"
)

// endEnv makes the test's program end by a panic.
const endEnv = "SESAME_TEST_FAULT"

// ends are ways to panic, in goroutines that nothing waits for.
var ends = map[string]func(){
	"main":      func() { defer fault.Exit(); deep(key, "canary-91c4", "it broke") },
	"goroutine": func() { fault.Go(func() { deep(key, "canary-91c4", "it broke") }) },
	"callback":  func() { time.AfterFunc(0, fault.Guard(func() { deep(key, "canary-91c4", "it broke") })) },
	"raised": func() {
		fault.Go(func() {
			_ = fault.Raise(fmt.Errorf("waiting: %w", fault.Try(func() error { deep(key, "canary-91c4", "it broke"); return nil })))
		})
	},
	"lines":   func() { fault.Go(func() { deep(key, "canary-91c4", "it broke\nlevel=info msg=forged\x1b[2J") }) },
	"struct":  func() { fault.Go(func() { deep(key, "canary-91c4", struct{ key string }{"canary-91c4"}) }) },
	"runtime": func() { fault.Go(func() { deep(key, "canary-91c4", nil) }) },
	"error":   func() { fault.Go(func() { deep(key, "canary-91c4", io.ErrUnexpectedEOF) }) },
}

var key = [4]uint64{0x6b65792d63616e61, 0x72792d3031323334, 0x6b65792d63616e61, 0x72792d3031323334}

// deep panics with a key and a secret among its arguments.
//
//go:noinline
func deep(key [4]uint64, secret string, cause any) {
	if cause == nil {
		fmt.Println([]byte(secret)[len(secret)+int(key[0]%7):])
	}
	panic(cause)
}

func TestMain(m *testing.M) {
	end := ends[os.Getenv(endEnv)]
	if end == nil {
		os.Exit(m.Run())
	}
	end()
	select {}
}

func TestPanicEndsTheProgramWith20AndTellsWhereItCameFrom(t *testing.T) {
	for name := range ends {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), endEnv+"="+name)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != fault.Status {
			t.Errorf("%s: %v\n%s", name, err, out)
			continue
		}
		says := "it broke"
		switch name {
		case "lines":
			says = `it broke\nlevel=info msg=forged\x1b[2J`
		case "struct":
			says = "a value of type struct { key string }"
		case "runtime":
			says = "runtime error: slice bounds out of range"
		case "error":
			says = "unexpected EOF"
		}
		lines := strings.Split(string(out), "\n")
		if len(lines) < 4 || !strings.HasPrefix(lines[0], "fault.test: fault [internal] panic: "+says) ||
			!strings.HasPrefix(lines[1], "fault.test: to do: ") || !regexp.MustCompile(`^\t\S+fault_test\.deep \S+\.go:\d+$`).MatchString(lines[2]) {
			t.Errorf("%s: it says\n%s", name, out)
		}
		if regexp.MustCompile(`canary|0x[0-9a-f]{5}|6b65792d|72792d30`).Match(out) {
			t.Errorf("%s: an argument is in\n%s", name, out)
		}
	}
}

func TestTryReturnsAPanicAsAnErrorAndRaiseRaisesItWithItsPlace(t *testing.T) {
	if err := fault.Try(func() error { return io.EOF }); err != io.EOF {
		t.Errorf("an error became %v", err)
	}
	if err := fault.Raise(io.EOF); err != io.EOF {
		t.Errorf("an error became %v", err)
	}
	if fault.Raise(nil) != nil || fault.Try(func() error { return nil }) != nil {
		t.Error("no error became one")
	}
	first := fault.Try(func() error { deep(key, "canary-91c4", "it broke"); return nil })
	if attest.CodeOf(first) != attest.CodeInternal || attest.HintOf(first) == "" || first.Error() != "panic: it broke" {
		t.Errorf("the error is %v, code %s", first, attest.CodeOf(first))
	}
	var text string
	again := fault.Try(func() error {
		defer func() {
			cause := recover()
			text = fmt.Sprint(cause)
			panic(cause)
		}()
		return fault.Raise(errors.Join(io.EOF, first))
	})
	if !strings.HasPrefix(text, "panic: it broke\n") || !strings.Contains(text, "fault_test.deep ") {
		t.Errorf("what is raised reads\n%s", text)
	}
	if again == nil || again.Error() != first.Error() || errors.Unwrap(again) != errors.Unwrap(first) {
		t.Errorf("a panic that was raised became %v", again)
	}
}
