package postgres_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/store"
	"github.com/sesame-init/sesame/internal/broker/store/postgres"
	"github.com/sesame-init/sesame/lab/postgrestest"
	"github.com/sesame-init/sesame/lab/storetest"
)

func TestPostgresIsAStore(t *testing.T) {
	server := postgrestest.Start(t)
	var n atomic.Int32
	storetest.Run(t, func(t testing.TB) storetest.Kind {
		url := server.Database(fmt.Sprintf("suite%d", n.Add(1)))
		return storetest.Kind{Shared: true, Open: func(t testing.TB) store.Store { return open(t, url) }}
	})
}

func open(t testing.TB, url string) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestServerThatIsAwayIsATemporaryError and comes back, with all that was committed, even after a crash.
func TestServerThatIsAwayIsATemporaryError(t *testing.T) {
	server := postgrestest.Start(t)
	s := open(t, server.URL())
	defer s.Close()
	put := func(key string) error {
		return s.Update(t.Context(), func(w store.Writer) error {
			return w.Put("x", store.Row{Key: []byte(key), Value: []byte("v")})
		})
	}
	if err := put("a"); err != nil {
		t.Fatal(err)
	}
	server.Stop(syscall.SIGQUIT)
	for range 3 { // with a connection that was open, and with a new one
		if err := put("b"); !errors.Is(err, store.ErrTemporary) {
			t.Errorf("while it is away: %v", err)
		}
	}
	server.Run()
	var err error
	for range 10 {
		if err = put("c"); err == nil || !errors.Is(err, store.ErrTemporary) {
			break
		}
	}
	if err != nil {
		t.Fatalf("after its return: %v", err)
	}
	err = s.View(t.Context(), func(r store.Reader) error {
		values, err := r.Get("x", []byte("a"), []byte("b"), []byte("c"))
		if err == nil && (values[0] == nil || values[1] != nil || values[2] == nil) {
			t.Errorf("there is %q", values)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestDatabaseOfANewerProgramIsRefused(t *testing.T) {
	server := postgrestest.Start(t)
	if err := open(t, server.URL()).Close(); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), "INSERT INTO sesame_migrations (number, name) VALUES (1000, 'future')"); err != nil {
		t.Fatal(err)
	}
	if s, err := postgres.Open(t.Context(), server.URL()); err == nil {
		s.Close()
		t.Error("it was opened")
	}
}

// TestDatabaseThatMayForgetIsRefused: it acknowledges what is not on its disk.
func TestDatabaseThatMayForgetIsRefused(t *testing.T) {
	server := postgrestest.Start(t)
	for setting, reach := range map[string]func(*testing.T, string) string{
		"fsync":              func(_ *testing.T, url string) string { return url },
		"full_page_writes":   func(_ *testing.T, url string) string { return url },
		"synchronous_commit": pooled,
	} {
		server.Stop(syscall.SIGINT)
		server.Run(setting + "=off")
		s, err := postgres.Open(t.Context(), reach(t, server.URL()))
		if err == nil {
			s.Close()
		}
		if attest.CodeOf(err) != attest.CodeConfig || !strings.Contains(err.Error(), "the database has "+setting+" = off") {
			t.Errorf("%s: %v", setting, err)
		}
	}
	// A session has what it asks for, whatever the server's default is.
	server.Stop(syscall.SIGINT)
	server.Run("synchronous_commit=off")
	open(t, server.URL()+" synchronous_commit=off").Close()
}

// pooled reaches a database through a pooler that drops what a session asks for.
func pooled(t *testing.T, url string) string {
	t.Helper()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var through sync.WaitGroup
	through.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			through.Go(func() {
				defer in.Close()
				out, err := net.Dial("unix", config.Host+"/.s.PGSQL.5432")
				if err != nil {
					return
				}
				defer out.Close()
				length := make([]byte, 4)
				if _, err := io.ReadFull(in, length); err != nil {
					return
				}
				first := make([]byte, binary.BigEndian.Uint32(length)-4)
				if _, err := io.ReadFull(in, first); err != nil {
					return
				}
				first = bytes.Replace(first, []byte("synchronous_commit\x00on\x00"), nil, 1)
				if _, err := out.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(first)+4)), first...)); err != nil {
					return
				}
				through.Go(func() {
					_, _ = io.Copy(out, in)
					_ = out.Close()
				})
				_, _ = io.Copy(in, out)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		through.Wait()
	})
	return fmt.Sprintf("host=127.0.0.1 port=%d user=sesame dbname=postgres sslmode=disable", l.Addr().(*net.TCPAddr).Port)
}
