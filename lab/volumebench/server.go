package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// server is a process that serves a mount.
type server interface {
	pid() int
	// stop unmounts and waits for the process.
	stop() error
}

// withServer calls f with the process id of a server that runs meanwhile.
func withServer(start func() (server, error), f func(pid int) error) error {
	s, err := start()
	if err != nil {
		return err
	}
	return errors.Join(f(s.pid()), s.stop())
}

// child is a child of this program that mounts, says so, and unmounts when its input ends.
type child struct {
	cmd   *exec.Cmd
	stdin io.Closer
	out   *bufio.Reader
	peak  *int64 // raised to the most memory that it ever held, in bytes
}

func startChild(peak *int64, args ...string) (server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.Command(self, args...), peak: peak}
	c.cmd.Stderr = os.Stderr
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(stdout)
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	if line, err := c.out.ReadString('\n'); line != "mounted\n" {
		return nil, errors.Join(fmt.Errorf("%s did not mount: %q", args[0], line), err, c.cmd.Wait())
	}
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

func (c *child) stop() error {
	_ = c.stdin.Close()
	line, readErr := c.out.ReadString('\n')
	peak, parseErr := strconv.ParseInt(strings.TrimPrefix(strings.TrimSpace(line), "peak "), 10, 64)
	*c.peak = max(*c.peak, peak)
	return errors.Join(readErr, parseErr, c.cmd.Wait())
}

// printPeak prints the peak of this process's resident memory. It is not taken from wait4(2), whose figure begins
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

// gocryptfs is a running gocryptfs.
type gocryptfs struct {
	cmd        *exec.Cmd
	mountpoint string
	ended      chan error
}

const gocryptfsPassword = "echo benchmark"

// initGocryptfs makes an empty gocryptfs in dir. The cheap password hash has no part in what is measured.
func initGocryptfs(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return run(exec.Command("gocryptfs", "-q", "-init", "-scryptn", "10", "-extpass", gocryptfsPassword, dir))
}

// startGocryptfs mounts it. gocryptfs sends SIGUSR1 once the mount is there.
func startGocryptfs(dir, mountpoint string, flags ...string) (server, error) {
	mounted := make(chan os.Signal, 1)
	signal.Notify(mounted, unix.SIGUSR1)
	defer signal.Stop(mounted)
	args := append([]string{"-q", "-fg", "-nosyslog", "-notifypid", strconv.Itoa(os.Getpid()), "-extpass", gocryptfsPassword}, flags...)
	g := &gocryptfs{cmd: exec.Command("gocryptfs", append(args, dir, mountpoint)...), mountpoint: mountpoint,
		ended: make(chan error, 1)}
	g.cmd.Stderr = os.Stderr
	if err := g.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { g.ended <- g.cmd.Wait() }()
	select {
	case <-mounted:
		return g, nil
	case err := <-g.ended:
		return nil, fmt.Errorf("gocryptfs did not mount: %w", err)
	}
}

func (g *gocryptfs) pid() int { return g.cmd.Process.Pid }

func (g *gocryptfs) stop() error {
	if err := run(exec.Command("fusermount3", "-u", g.mountpoint)); err != nil {
		return err
	}
	return <-g.ended
}

func run(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, out)
	}
	return nil
}
