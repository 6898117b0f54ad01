package postgres_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sesame-init/sesame/broker/store"
	"github.com/sesame-init/sesame/broker/store/postgres"
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
