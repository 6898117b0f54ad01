package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/lab/admintest"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// faultEnv makes the test's program a broker whose attester panics: "N DIR", when it is asked for evidence the N-th time,
// at 0 when it is opened. It runs on the software platform in DIR.
const faultEnv = "SESAME_TEST_KEYBROKER_FAULT"

// broken is the broker with such an attester, and main from its first line on.
func broken(as string) {
	var at int32
	var dir string
	if _, err := fmt.Sscan(as, &at, &dir); err != nil {
		panic(err)
	}
	platform, err := softsgx.Load(dir)
	if err != nil {
		panic(err)
	}
	where = "ego"
	openEGo = func() (deviceAttester, error) {
		if at == 0 {
			breakDown(canaryWords, canary)
		}
		return &breaking{sealing: sealing{enclave{platform.Attester(brokertest.Broker())}, 1}, left: at}, nil
	}
	main()
}

type breaking struct {
	sealing
	left int32
}

// Evidence implements [attest.Attester].
func (b *breaking) Evidence(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	if atomic.AddInt32(&b.left, -1) == 0 {
		breakDown(canaryWords, canary)
	}
	return b.sealing.Evidence(ctx, data)
}

// canaryWords are a key that is passed by value.
var canaryWords = [4]uint64{0x63616e6172792d31, 0x63616e6172792d32, 0x63616e6172792d33, 0x63616e6172792d34}

//go:noinline
func breakDown(key [4]uint64, secret string) {
	panic(fmt.Sprintf("it broke with %d words and %d bytes", len(key), len(secret)))
}

// TestAPanicEndsTheBrokerWith20 wherever it comes: in the main goroutine, in that of a renewal which the main goroutine
// waits for, and behind handlers of both ports, which a session's quote is made for.
func TestAPanicEndsTheBrokerWith20(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{Now: time.Now()})
	alice := admintest.Administrator(t, "alice")
	trusted := session.ClientConfig{Verifier: brokertest.Verifier(platform), Policy: brokertest.BrokerPolicy()}
	for _, c := range []struct {
		name string
		at   int
		port *regexp.Regexp
		ask  func(ctx context.Context, address string) error // that fails
		runs string                                          // a function that the stack must name
	}{
		{"main", 0, nil, nil, "main.main"},
		{"renewal", 1, nil, nil, "ratls.(*Identity).renew"},
		{"handler", 2, servingSessions, func(ctx context.Context, address string) error {
			client, err := grpcratls.New(grpcratls.Config{
				Protocol: grpcratls.SessionV1, Pause: 10 * time.Millisecond, Servers: []string{address},
				Attester: platform.Attester(brokertest.Workload()), Verifier: trusted.Verifier, Policy: trusted.Policy,
			})
			if err != nil {
				t.Fatal(err)
			}
			_, err = client.Fetch(ctx, []string{"image_key"})
			return err
		}, "session.(*Quoter).make"},
		{"administrators", 2, servingAdmins, func(ctx context.Context, address string) error {
			client, err := (&lifetime{admin: address}).dial(ctx, alice, trusted)
			if err == nil {
				client.Close()
			}
			return err
		}, "session.(*Quoter).make"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := folder(t, platform)
			if err := platform.Save(filepath.Join(dir, "platform")); err != nil {
				t.Fatal(err)
			}
			if c.port == servingAdmins {
				settings := fmt.Sprintf("broker:\n  store: {sqlite: %q}\n  root_key: {sealed: true}\n%s", filepath.Join(dir, "broker.db"), administeredBy(alice))
				write(t, filepath.Join(dir, policyName), policyFor(platform, dir, 1, aa, settings))
			}
			out := &buffer{}
			cmd := exec.Command(os.Args[0], "--collateral", filepath.Join(dir, "collateral"), "127.0.0.1:0")
			cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s", faultEnv, c.at, filepath.Join(dir, "platform")))
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			ended := make(chan error, 1)
			go func() {
				ended <- cmd.Wait()
				cancel() // the client would try again
			}()
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			if c.ask != nil {
				if c.ask(ctx, out.find(t, c.port)) == nil {
					t.Error("a broker that broke has answered")
				}
			}
			err := <-ended
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 20 {
				t.Errorf("%v", err)
			}
			said := out.String()
			for _, want := range []string{": fault [internal] panic: it broke with 4 words and ", ": to do: ", "\t", c.runs} {
				if !strings.Contains(said, want) {
					t.Errorf("no %q in\n%s", want, said)
				}
			}
			if strings.Contains(said, canary) || regexp.MustCompile(`63616e6172792d|\(0x|\{0x|goroutine \d`).MatchString(said) {
				t.Errorf("arguments are in\n%s", said)
			}
		})
	}
}

func TestSIGQUITEndsTheBrokerWithoutATraceback(t *testing.T) {
	dir, args := sound(t, "")
	said := &buffer{}
	cmd := exec.Command(os.Args[0], append(args, "127.0.0.1:0")...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), programEnv+"=bare")
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = said, said, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	said.find(t, servingSessions)
	if err := errors.Join(cmd.Process.Signal(syscall.SIGQUIT), cmd.Wait()); err != nil || strings.Contains(said.String(), "goroutine ") {
		t.Errorf("%v\n%s", err, said)
	}
}
