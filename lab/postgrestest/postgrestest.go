// Package postgrestest starts PostgreSQL servers for tests, from Debian's package. A server is reached over a unix
// socket only.
package postgrestest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/sesame-init/sesame/internal/testenv"
)

// Server is one PostgreSQL server.
type Server struct {
	t    testing.TB
	bin  string
	dir  string
	who  *syscall.Credential
	cmd  *exec.Cmd
	logs *bytes.Buffer
}

// Start makes a cluster in a temporary directory and starts its server; the test's end stops it. If PostgreSQL is
// not installed the test is skipped, as package testenv says.
func Start(t testing.TB) *Server {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		testenv.Missing(t, "postgres", "no /usr/lib/postgresql/*/bin/initdb (Debian package postgresql)")
	}
	slices.Sort(found)
	dir, err := os.MkdirTemp("/tmp", "sesame-pg-") // a socket's path is short, and its user is another one
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, bin: filepath.Dir(found[len(found)-1]), dir: dir}
	t.Cleanup(func() {
		s.Stop(syscall.SIGQUIT)
		_ = os.RemoveAll(dir)
	})
	if os.Geteuid() == 0 { // it does not run as root
		who, err := user.Lookup("postgres")
		if err != nil {
			if who, err = user.Lookup("nobody"); err != nil {
				testenv.Missing(t, "postgres", "neither a user postgres nor nobody")
			}
		}
		uid, _ := strconv.Atoi(who.Uid)
		gid, _ := strconv.Atoi(who.Gid)
		s.who = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	cmd := s.command("initdb", "-D", s.data(), "-U", "sesame", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	s.Run()
	return s
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.who, Pdeathsig: syscall.SIGQUIT}
	return cmd
}

// URL names the server's database.
func (s *Server) URL() string {
	return "host=" + s.dir + " user=sesame dbname=postgres sslmode=disable"
}

// Run starts the server, and returns when it takes connections. Further settings are NAME=VALUE.
func (s *Server) Run(settings ...string) {
	s.t.Helper()
	args := []string{"-D", s.data(), "-k", s.dir, "-c", "listen_addresses=", "-c", "unix_socket_permissions=0777", "-c", "max_connections=60"}
	for _, setting := range settings {
		args = append(args, "-c", setting)
	}
	s.logs = &bytes.Buffer{}
	s.cmd = s.command("postgres", args...)
	s.cmd.Stdout, s.cmd.Stderr = s.logs, s.logs
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	deadline := time.Now().Add(60 * time.Second)
	for {
		out, err := s.command("pg_isready", "-h", s.dir, "-q").CombinedOutput()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("PostgreSQL does not start: %v %s\n%s", err, out, s.logs)
		}
		time.Sleep(20 * time.Millisecond) // nothing tells when it is ready
	}
}

// Stop ends the server: SIGTERM waits for its clients, SIGINT ends them, SIGQUIT leaves no time to write anything.
func (s *Server) Stop(signal syscall.Signal) {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(signal)
	_ = s.cmd.Wait()
	s.cmd = nil
}

// Query runs statements on the server's first database.
func (s *Server) Query(statements string) {
	s.t.Helper()
	out, err := s.command("psql", "-h", s.dir, "-U", "sesame", "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-1", "-c", statements).CombinedOutput()
	if err != nil {
		s.t.Fatalf("psql: %v\n%s", err, out)
	}
}

// Database creates another database on the server and returns its URL.
func (s *Server) Database(name string) string {
	s.t.Helper()
	if out, err := s.command("createdb", "-h", s.dir, "-U", "sesame", name).CombinedOutput(); err != nil {
		s.t.Fatalf("createdb: %v\n%s", err, out)
	}
	return fmt.Sprintf("host=%s user=sesame dbname=%s sslmode=disable", s.dir, name)
}
