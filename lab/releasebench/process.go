package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sesame-init/sesame/attest"
)

// server is a measured process.
type server struct{ cmd *exec.Cmd }

// startServer starts a process of a role and returns its address.
func startServer(ctx context.Context, dir, role string, options ...string) (*server, string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	cmd := exec.CommandContext(ctx, self, append([]string{"-role", role, "-dir", dir}, options...)...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	if err := cmd.Start(); err != nil {
		return nil, "", err
	}
	s := &server{cmd}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		s.stop()
		return nil, "", fmt.Errorf("starting %s: %w", role, err)
	}
	return s, strings.TrimSpace(line), nil
}

func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.cmd.Wait()
}

// cpu is the time that the process has used, of user and kernel (proc(5), stat, fields 14 and 15).
func (s *server) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 13 {
		return 0, errors.New("no times in stat")
	}
	const ticks = 100 // USER_HZ
	var sum int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return time.Duration(sum) * time.Second / ticks, nil
}

// peak is the largest resident memory that the process has had, in bytes.
func (s *server) peak() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0, errors.New("no VmHWM in status")
	}
	kib, err := strconv.ParseInt(fields[0], 10, 64)
	return kib << 10, err
}

// quotes makes an enclave's quotes for other processes.
type quotes struct {
	listener net.Listener
	made     atomic.Int64
}

func serveQuotes(path string, a attest.Attester) (*quotes, error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	q := &quotes{listener: l}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go q.serve(conn, a)
		}
	}()
	return q, nil
}

// serve answers 64 bytes of report data with a quote and its length.
func (q *quotes) serve(conn net.Conn, a attest.Attester) {
	defer conn.Close()
	for {
		var data attest.ReportData
		if _, err := io.ReadFull(conn, data[:]); err != nil {
			return
		}
		e, err := a.Evidence(context.Background(), data)
		if err != nil {
			return
		}
		q.made.Add(1)
		if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(e.Raw))), e.Raw...)); err != nil {
			return
		}
	}
}

func (q *quotes) close() { _ = q.listener.Close() }

// remote is an attester whose quotes another process makes. Calls wait for each other.
type remote struct {
	place chan struct{}
	conn  net.Conn
}

func dialQuotes(dir string) (*remote, error) {
	conn, err := net.Dial("unix", filepath.Join(dir, "quotes"))
	return &remote{place: make(chan struct{}, 1), conn: conn}, err
}

// Type implements [attest.Attester].
func (*remote) Type() attest.EvidenceType { return attest.SGX }

// Evidence implements [attest.Attester].
func (r *remote) Evidence(_ context.Context, data attest.ReportData) (attest.Evidence, error) {
	r.place <- struct{}{}
	defer func() { <-r.place }()
	if _, err := r.conn.Write(data[:]); err != nil {
		return attest.Evidence{}, err
	}
	var size [4]byte
	if _, err := io.ReadFull(r.conn, size[:]); err != nil {
		return attest.Evidence{}, err
	}
	raw := make([]byte, binary.BigEndian.Uint32(size[:]))
	_, err := io.ReadFull(r.conn, raw)
	return attest.Evidence{Type: attest.SGX, Raw: raw}, err
}
