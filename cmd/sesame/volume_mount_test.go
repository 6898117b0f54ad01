package main

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/testenv"
)

// mounting is a running "sesame volume mount" of a volume with one file, name.
type mounting struct {
	*exec.Cmd
	image, mountpoint string
	stderr            bytes.Buffer
}

func startMount(t *testing.T) *mounting {
	t.Helper()
	testenv.FUSE(t)
	dir := t.TempDir()
	m := &mounting{image: filepath.Join(dir, "image"), mountpoint: filepath.Join(dir, "mountpoint")}
	key := sefs.Key([]byte("\x01 key of a test\n"))
	mac, err := sefs.Create(t.Context(), m.image, fstest.MapFS{"name": {Data: []byte("content")}},
		sefs.CreateOptions{Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(dir, "key")
	if err := errors.Join(os.WriteFile(keyFile, key[:], 0o600), os.Mkdir(m.mountpoint, 0o755)); err != nil {
		t.Fatal(err)
	}
	m.Cmd = exec.Command("sesame", "volume", "mount", "--key-file", keyFile, "--mac", mac.String(), "--owner", "7:8",
		m.image, m.mountpoint)
	m.Stderr = &m.stderr
	stdout, err := m.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Process.Kill() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if want := "mounted " + m.image + " on " + m.mountpoint + "\n"; err != nil || line != want {
		t.Fatalf("printed %q, not %q; %v %s", line, want, err, m.stderr.String())
	}
	return m
}

// ends waits for the end of the command and checks that it succeeded and took the mount away.
func (m *mounting) ends(t *testing.T) {
	t.Helper()
	if err := m.Wait(); err != nil {
		t.Errorf("%v: %s", err, m.stderr.String())
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || bytes.Contains(mounts, []byte(m.mountpoint)) {
		t.Errorf("still mounted (%v)", err)
	}
}

func TestVolumeMountServesUntilASignal(t *testing.T) {
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			m := startMount(t)
			file := filepath.Join(m.mountpoint, "name")
			if b, err := os.ReadFile(file); err != nil || string(b) != "content" {
				t.Errorf("read %q, %v", b, err)
			}
			var st unix.Stat_t
			if err := unix.Stat(file, &st); err != nil || st.Uid != 7 || st.Gid != 8 {
				t.Errorf("owner %d:%d, %v", st.Uid, st.Gid, err)
			}
			if err := m.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			m.ends(t)
			if m.stderr.Len() > 0 {
				t.Errorf("stderr: %s", m.stderr.String())
			}
		})
	}
}

func TestVolumeMountEndsWhenSomebodyUnmounts(t *testing.T) {
	m := startMount(t)
	unmount := exec.Command("fusermount3", "-u", m.mountpoint)
	if os.Geteuid() == 0 {
		unmount = exec.Command("umount", m.mountpoint)
	}
	if out, err := unmount.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m.ends(t)
}

func TestVolumeMountSaysOnceWhatIsTamperedWith(t *testing.T) {
	m := startMount(t)
	if err := os.Truncate(filepath.Join(m.image, "03000000000000000000000000000000"), 100); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if b, err := os.ReadFile(filepath.Join(m.mountpoint, "name")); !errors.Is(err, unix.EIO) {
			t.Errorf("read %q, %v", b, err)
		}
	}
	if err := m.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	m.ends(t)
	if log := m.stderr.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "/name") {
		t.Errorf("stderr: %s", log)
	}
}
