package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sesame-init/sesame/internal/memory"
	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// sound is a folder with a policy, secrets and collateral, and the options that name them.
func sound(t *testing.T, settings string) (dir string, args []string) {
	t.Helper()
	platform := brokertest.Platform(t, softsgx.Options{Now: time.Now()})
	dir = folder(t, platform)
	write(t, filepath.Join(dir, "p.yaml"), policyFor(platform, dir, 1, aa, settings))
	write(t, filepath.Join(dir, "s.json"), `{"image_key":"Y2FuYXJ5"}`)
	return dir, []string{"--policy", filepath.Join(dir, "p.yaml"), "--secrets", filepath.Join(dir, "s.json")}
}

func TestMemoryOfABareBrokerIsLockedAndNotDumped(t *testing.T) {
	testenv.Root(t)
	dir, args := sound(t, "")
	said := &buffer{}
	cmd := exec.Command(os.Args[0], append(args, "127.0.0.1:0")...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), programEnv+"=bare")
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = said, said, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	said.find(t, servingSessions)
	for name, want := range map[string]string{
		"status": `VmLck:\s+[1-9]`,
		"limits": `Max core file size +1 +1 `,
	} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", cmd.Process.Pid, name))
		if err != nil || !regexp.MustCompile(want).Match(text) {
			t.Errorf("no %s in %s, %v:\n%s", want, name, err, text)
		}
	}
}

func TestBareBrokerThatMayBeSwappedOutSaysSo(t *testing.T) {
	for _, c := range []struct {
		swapped error
		place   place
		says    bool
	}{
		{nil, place{name: "bare"}, false},
		{fmt.Errorf("%w: no right", memory.ErrSwapped), place{name: "bare"}, true},
		{fmt.Errorf("%w: no right", memory.ErrSwapped), place{name: "occlum", enclave: true}, false},
	} {
		said := &buffer{}
		command := command{swapped: c.swapped, place: c.place, stderr: said, logLevel: "info", logFormat: "text"}
		log, err := command.logger()
		if err != nil {
			t.Fatal(err)
		}
		command.warnOfSwap(log)
		if got := strings.Contains(said.String(), "may be written to swap space: memory may be swapped out: no right") &&
			strings.Contains(said.String(), "LimitMEMLOCK=infinity"); got != c.says {
			t.Errorf("%v, %s: it says %q", c.swapped, c.place.name, said)
		}
	}
}

// TestDatabaseThatOthersOnTheWayCanReadIsSaid: before it is reached, and then the broker ends, since there is none.
func TestDatabaseThatOthersOnTheWayCanReadIsSaid(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for host, says := range map[string]bool{address: false, address + ",database.invalid": true} {
		_, args := sound(t, fmt.Sprintf("broker: {store: {postgres: \"postgres://u@%s/x?sslmode=disable&connect_timeout=1\"}, root_key: {file: /nonexistent}}\n", host))
		var said buffer
		c := command{folder: t.TempDir(), place: place{name: "bare"}, stdout: &said, stderr: &said}
		if code := c.run(t.Context(), append(args, "127.0.0.1:0"), ""); code != 1 {
			t.Errorf("%s: exit code %d", host, code)
		}
		if got := strings.Contains(said.String(), "the database is reached over the network without TLS"); got != says {
			t.Errorf("%s: it says\n%s", host, &said)
		}
	}
}
