package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// server is a running program whose output is kept.
type server struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and its output is read
	err  error         // how it ended; valid after done

	mu      sync.Mutex
	output  []string
	changed chan struct{} // closed and replaced at every line
}

const (
	startTimeout = 60 * time.Second
	stopTimeout  = 10 * time.Second
	pollInterval = 20 * time.Millisecond
)

func (d *demo) startServer(dir, program string, args ...string) (*server, error) {
	cmd := exec.Command(filepath.Join(d.bin, program), args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "PCCS_URL="+d.pccs), d.environment...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = w, w
	s := &server{name: program + " " + args[0], cmd: cmd, done: make(chan struct{}), changed: make(chan struct{})}
	err = cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		return nil, err
	}
	go s.follow(r)
	d.servers = append(d.servers, s)
	return s, nil
}

func (s *server) follow(r io.ReadCloser) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		s.mu.Lock()
		s.output = append(s.output, lines.Text())
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
	}
	_, _ = io.Copy(io.Discard, r)
	r.Close()
	s.err = s.cmd.Wait()
	close(s.done)
}

func (s *server) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.output...)
}

func (s *server) says(text string) bool { return strings.Contains(strings.Join(s.lines(), "\n"), text) }

// waitForLine waits until the server has printed text; its end before that is an error with its output.
func (s *server) waitForLine(ctx context.Context, text string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if s.says(text) {
			return nil
		}
		select {
		case <-changed:
		case <-s.done:
			if s.says(text) {
				return nil
			}
			return fmt.Errorf("%s ended (%v) before %q:\n%s", s.name, s.err, text, strings.Join(s.lines(), "\n"))
		case <-ctx.Done():
			return fmt.Errorf("%s did not print %q: %w\n%s", s.name, text, ctx.Err(), strings.Join(s.lines(), "\n"))
		}
	}
}

// waitFor polls a condition that only the file system shows.
func (s *server) waitFor(ctx context.Context, ready func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for !ready() {
		select {
		case <-tick.C:
		case <-s.done:
			return fmt.Errorf("%s ended: %v\n%s", s.name, s.err, strings.Join(s.lines(), "\n"))
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", s.name, ctx.Err())
		}
	}
	return nil
}

// waitEnd waits for the program's own end.
func (s *server) waitEnd(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s is still running: %w\n%s", s.name, ctx.Err(), strings.Join(s.lines(), "\n"))
	}
}

func (s *server) stop() {
	select {
	case <-s.done:
		return
	default:
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(stopTimeout):
		_ = s.cmd.Process.Kill()
		<-s.done
	}
}

// exitCode is the program's exit status, -1 if a signal ended it.
func (s *server) exitCode() int {
	var exit *exec.ExitError
	if errors.As(s.err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// stopAll stops every server, the latest first, and the chosen service, and gives their ports back.
func (d *demo) stopAll() {
	defer d.service.stop()
	for i := len(d.servers) - 1; i >= 0; i-- {
		d.servers[i].stop()
	}
	d.servers = nil
	for _, release := range d.reserved {
		release()
	}
	d.reserved = nil
}
