package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// mount is a file system served by another process.
type mount struct {
	cmd   *exec.Cmd
	stdin io.Closer
	out   *bufio.Reader
}

// startMount runs a child of this program that mounts on dir, says so, and unmounts when its input ends.
func startMount(args ...string) (*mount, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	m := &mount{cmd: exec.Command(self, args...)}
	m.cmd.Stderr = os.Stderr
	if m.stdin, err = m.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	m.out = bufio.NewReader(stdout)
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	if line, err := m.out.ReadString('\n'); line != "mounted\n" {
		return nil, errors.Join(fmt.Errorf("%s did not mount: %q", args[0], line), err, m.cmd.Wait())
	}
	return m, nil
}

// stop unmounts and returns the most memory that the process ever held, in bytes.
func (m *mount) stop() (int64, error) {
	_ = m.stdin.Close()
	peak, readErr := readPeak(m.out)
	return peak, errors.Join(readErr, m.cmd.Wait())
}

// readPeak reads what printPeak prints.
func readPeak(r *bufio.Reader) (int64, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimPrefix(strings.TrimSpace(line), "peak "), 10, 64)
}

// printPeak prints the peak of this process's resident memory. It is not taken from wait4(2), whose figure starts
// with the memory of the parent at the fork.
func printPeak(w io.Writer) error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(w, "peak", kib<<10)
			return err
		}
	}
	return errors.New("no VmHWM in /proc/self/status")
}

const gocryptfsPassword = "echo benchmark"

// initGocryptfs makes an empty gocryptfs in dir. The cheap password hash has no part in what is measured.
func initGocryptfs(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return run(exec.Command("gocryptfs", "-q", "-init", "-scryptn", "10", "-extpass", gocryptfsPassword, dir))
}

// mountGocryptfs mounts it; gocryptfs goes into the background once the mount is there.
func mountGocryptfs(dir, mountpoint string, flags ...string) error {
	args := append([]string{"-q", "-extpass", gocryptfsPassword}, flags...)
	return run(exec.Command("gocryptfs", append(args, dir, mountpoint)...))
}

func unmount(mountpoint string) error { return run(exec.Command("fusermount3", "-u", mountpoint)) }

func run(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, out)
	}
	return nil
}
