package linux_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/fs"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/init/internal/linux"
	"github.com/sesame-init/sesame/internal/testenv"
)

// TestMain is the process behind a volume, too, as init is. What becomes of one that serves is tested with init, which is
// built without cgo.
func TestMain(m *testing.M) {
	if os.Args[0] == linux.ServerName {
		log := logrus.New()
		log.SetOutput(io.Discard)
		os.Exit(linux.Serve(os.Args[1:], log))
	}
	os.Exit(m.Run())
}

// inNamespace runs f on a thread with a mount namespace of its own, which ends with it.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	testenv.Root(t)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := linux.Unshare()
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// mounts are the lines of the calling thread's mountinfo about a directory.
func mounts(t *testing.T, dir string) (lines []string) {
	t.Helper()
	text, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, " "+dir+" ") {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestMountsStayInTheirNamespaceAndSecretsInMemory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run", "secrets")
	inNamespace(t, func() {
		m := linux.NewMounter(linux.Options{})
		if err := m.MountMemory(dir); err != nil { // makes the directory, too
			t.Error(err)
			return
		}
		here := mounts(t, dir)
		if len(here) != 1 || !strings.Contains(here[0], "nosuid,nodev") ||
			!strings.Contains(here[0], " - tmpfs ") && !strings.Contains(here[0], " - ramfs ") {
			t.Errorf("it is mounted as %q", here)
		}
		if err := os.WriteFile(filepath.Join(dir, "token"), []byte("canary"), 0o400); err != nil {
			t.Error(err)
		}
		outside := make(chan []string)
		go func() { outside <- mounts(t, dir) }() // another goroutine is never on a locked thread
		if there := <-outside; len(there) != 0 {
			t.Errorf("it is mounted outside: %q", there)
		}
		if err := m.Unmount(dir); err != nil {
			t.Error(err)
		}
		if here := mounts(t, dir); len(here) != 0 {
			t.Errorf("it is still mounted: %q", here)
		}
		if err := m.Unmount(dir); attest.CodeOf(err) != attest.CodeMount {
			t.Errorf("unmounting what is not mounted: %v", err)
		}
	})
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("it has left %v: %v", left, err)
	}
}

func TestWithoutARootFromAVolumeTheRootStays(t *testing.T) {
	inNamespace(t, func() {
		before, err := os.Readlink("/proc/thread-self/root")
		m := linux.NewMounter(linux.Options{})
		if err := m.MountRoot(t.Context(), fs.Root{}); err != nil || m.Root() != "" {
			t.Errorf("root is %q: %v", m.Root(), err)
		}
		if err := m.Enter(); err != nil {
			t.Error(err)
		}
		if after, afterErr := os.Readlink("/proc/thread-self/root"); err != nil || afterErr != nil || after != before {
			t.Errorf("the root was %q (%v) and is %q (%v)", before, err, after, afterErr)
		}
	})
}

// TestAVolumeThatCannotBeServedLeavesNothing: neither a process nor a mount, and the error is what the process said.
func TestAVolumeThatCannotBeServedLeavesNothing(t *testing.T) {
	key := sefs.Key([]byte("0123456789abcdef"))
	dir := t.TempDir()
	volume := filepath.Join(dir, "volume")
	mac, err := sefs.Create(t.Context(), volume, fstest.MapFS{"a": {Data: []byte("content")}},
		sefs.CreateOptions{Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	another := sefs.Key([]byte("fedcba9876543210"))
	target := filepath.Join(dir, "mnt")
	sound := fs.Volume{Source: volume, Target: target, Key: &key, MAC: mac}
	for name, c := range map[string]struct {
		self   string
		change func(*fs.Volume)
		code   attest.Code
		says   string
	}{
		"no such source":   {"", func(v *fs.Volume) { v.Source = filepath.Join(dir, "none") }, attest.CodeMount, "none: no such file"},
		"another key":      {"", func(v *fs.Volume) { v.Key = &another }, attest.CodeMount, ""},
		"another MAC":      {"", func(v *fs.Volume) { v.MAC[0] ^= 1 }, attest.CodeMount, "MAC"},
		"no MAC":           {"", func(v *fs.Volume) { v.MAC = sefs.MAC{} }, attest.CodeConfig, ""},
		"no key":           {"", func(v *fs.Volume) { v.Key = nil }, attest.CodeConfig, ""},
		"another program":  {"/bin/false", func(*fs.Volume) {}, attest.CodeMount, "it ended without a word: exit status 1"},
		"no such program":  {"/nonexistent", func(*fs.Volume) {}, attest.CodeMount, "no such file"},
		"no place for it":  {"", func(v *fs.Volume) { v.Target = filepath.Join(volume, "metadata", "x") }, attest.CodeMount, ""},
		"a target in proc": {"", func(v *fs.Volume) { v.Target = "/proc/none" }, attest.CodeMount, ""},
	} {
		inNamespace(t, func() {
			v := sound
			c.change(&v)
			self := c.self
			if self == "" {
				self = "/proc/self/exe"
			}
			m := linux.NewMounter(linux.Options{Self: self})
			err := m.MountVolume(t.Context(), v)
			if attest.CodeOf(err) != c.code || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("%s: code %s: %v", name, attest.CodeOf(err), err)
			}
			for _, secret := range []string{"0123456789abcdef", "fedcba9876543210"} {
				if strings.Contains(fmt.Sprintf("%v %+v", err, err), secret) {
					t.Errorf("%s: the error has the key: %v", name, err)
				}
			}
			if here := mounts(t, target); len(m.Servers()) != 0 || len(here) != 0 {
				t.Errorf("%s: %v serve, and there is %q", name, m.Servers(), here)
			}
		})
	}
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("a process is left: %d, %v", pid, err)
	}
}
