// Package postgres is the store that several replicas of a broker share: a PostgreSQL database (pgx), version 12 or
// newer.
//
// Transactions that write hold one advisory lock of the database until they end, so that they run one after the other
// over all replicas; those that read see one snapshot. A commit is acknowledged after it is on the server's disk
// (synchronous_commit is on, whatever the server's default; what a standby has of it is the server's setting). Every
// commit notifies the other replicas over LISTEN and NOTIFY.
//
// The tables are made, and brought up to date, by [Open], under the same lock. The database user needs to own them or
// to be able to make them. What is in the database is as public as the database.
package postgres

import (
	"context"
	"crypto/rand"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/store"
)

//go:embed migrations/*.sql
var migrations embed.FS

const (
	// lock is the advisory lock of writers: "sesame" as a number.
	lock = 0x736573616d65
	// channel is the channel on which commits are announced. The payload is the process id of the connection's server, so that a
	// replica knows its own.
	channel = "sesame_commit"

	maxConnections = 8
)

// Store is a database. Make it with [Open].
type Store struct {
	pool *pgxpool.Pool
	self string // names this store to its watcher
}

// Open connects to the database of a URL or keyword string (https://www.postgresql.org/docs/current/libpq-connect.html)
// and brings its tables up to date. The error's code is [attest.CodeConfig].
func Open(ctx context.Context, url string) (*Store, error) {
	const step = "opening database"
	config, err := pgxpool.ParseConfig(url)
	if err != nil { // its text has no password
		return nil, attest.Errorf(attest.CodeConfig, step, "Write postgres://USER@HOST/DATABASE?sslmode=verify-full.", "%w", err)
	}
	config.MaxConns = maxConnections
	config.ConnConfig.RuntimeParams["synchronous_commit"] = "on"
	config.ConnConfig.RuntimeParams["application_name"] = "sesame-broker"
	if config.ConnConfig.ConnectTimeout == 0 {
		config.ConnConfig.ConnectTimeout = 10 * time.Second
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, attest.Errorf(attest.CodeConfig, step, "", "%w", err)
	}
	s := &Store{pool: pool, self: rand.Text()}
	if err := s.durable(ctx); err != nil {
		pool.Close()
		return nil, err
	}
	if err := s.migrate(ctx); err != nil {
		pool.Close()
		return nil, attest.Errorf(attest.CodeConfig, step,
			"Check that the database runs, and that its user may make tables in it.", "%w", explain(err))
	}
	return s, nil
}

// durable makes sure that the server keeps what it has acknowledged, and that a session has the setting it asks for.
func (s *Store) durable(ctx context.Context) error {
	const step = "opening database"
	for _, setting := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
		var value string
		if err := s.pool.QueryRow(ctx, "SELECT current_setting($1)", setting).Scan(&value); err != nil {
			return attest.Errorf(attest.CodeConfig, step,
				"Check that the database runs, and that its user may make tables in it.", "%w", explain(err))
		}
		if value != "on" {
			return attest.Errorf(attest.CodeConfig, step, "Set "+setting+" = on in postgresql.conf, and nothing else in the URL.",
				"the database has %s = %.20s: it may forget releases that it has acknowledged", setting, value)
		}
	}
	return nil
}

// migrate runs the migrations that the database has not seen. A database that a newer program has changed is refused.
func (s *Store) migrate(ctx context.Context) error {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(lock)); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `CREATE TABLE IF NOT EXISTS sesame_migrations (
			number integer PRIMARY KEY, name text NOT NULL, applied timestamptz NOT NULL DEFAULT now())`)
		if err != nil {
			return err
		}
		var done int
		if err := tx.QueryRow(ctx, "SELECT coalesce(max(number), 0) FROM sesame_migrations").Scan(&done); err != nil {
			return err
		}
		if done > len(names) {
			return fmt.Errorf("its tables have version %d, this program knows %d: start the newer program", done, len(names))
		}
		for i, name := range names[done:] { // embedded files are sorted
			text, err := migrations.ReadFile(name)
			if err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, string(text)); err != nil {
				return fmt.Errorf("migration %s: %w", name, err)
			}
			if _, err := tx.Exec(ctx, "INSERT INTO sesame_migrations (number, name) VALUES ($1, $2)", done+i+1, name); err != nil {
				return err
			}
		}
		return nil
	})
}

// explain marks what may pass by itself: a server that is away, restarts or has no connection left, and transactions
// that it has ended for another one.
func explain(err error) error {
	if err == nil || errors.Is(err, store.ErrTemporary) {
		return err
	}
	var server *pgconn.PgError
	var network net.Error
	var connecting *pgconn.ConnectError
	switch {
	case errors.As(err, &server):
		class := server.Code[:min(len(server.Code), 2)]
		if class != "08" && class != "40" && class != "57" && class != "55" && class != "53" || server.Code == "53100" {
			return err // 53100: the disk is full
		}
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &connecting), errors.As(err, &network), pgconn.SafeToRetry(err),
		strings.Contains(err.Error(), "conn closed"), strings.Contains(err.Error(), "unexpected EOF"):
	default:
		return err
	}
	return fmt.Errorf("%w (%w)", store.ErrTemporary, err)
}

// View implements [store.Store].
func (s *Store) View(ctx context.Context, read func(store.Reader) error) error {
	options := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	return s.transaction(ctx, options, func(t *transaction) error { return read(t) })
}

// Update implements [store.Store].
func (s *Store) Update(ctx context.Context, change func(store.Writer) error) error {
	return s.transaction(ctx, pgx.TxOptions{}, func(t *transaction) error {
		// Per transaction, too: a pooler between here and the server may drop what the connection asked for.
		if _, err := t.tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1), set_config('synchronous_commit', 'on', true)", int64(lock)); err != nil {
			return t.fail("waiting for the lock of writers", err)
		}
		if err := change(t); err != nil {
			return err
		}
		if _, err := t.tx.Exec(ctx, "SELECT pg_notify($1, $2)", channel, s.self); err != nil {
			return t.fail("notifying", err)
		}
		return nil
	})
}

func (s *Store) transaction(ctx context.Context, options pgx.TxOptions, f func(*transaction) error) error {
	tx, err := s.pool.BeginTx(ctx, options)
	if err != nil {
		return fmt.Errorf("beginning transaction: %w", explain(err))
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // does nothing after a commit
	t := &transaction{ctx: ctx, tx: tx}
	if err := f(t); err != nil {
		return err
	}
	if t.failed != nil { // even where f has not minded
		return t.failed
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("committing: %w", explain(err))
	}
	return nil
}

// Watch implements [store.Store].
func (s *Store) Watch(ctx context.Context, changed func()) error {
	err := s.listen(ctx, changed)
	if ctx.Err() != nil {
		return nil
	}
	return explain(err)
}

func (s *Store) listen(ctx context.Context, changed func()) error {
	pooled, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	conn := pooled.Hijack() // it never goes back: it listens
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
		return err
	}
	changed() // what was committed before is missed
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		if n.Payload != s.self {
			changed()
		}
	}
}

// Close implements [store.Store].
func (s *Store) Close() error {
	s.pool.Close()
	return nil
}

type transaction struct {
	ctx    context.Context
	tx     pgx.Tx
	failed error
}

func (t *transaction) fail(doing string, err error) error {
	t.failed = fmt.Errorf("%s: %w", doing, explain(err))
	return t.failed
}

// Get implements [store.Reader].
func (t *transaction) Get(space store.Space, keys ...[]byte) ([][]byte, error) {
	rows, err := t.query("SELECT key, value FROM sesame_rows WHERE space = $1 AND key = ANY($2)", string(space), keys)
	if err != nil {
		return nil, err
	}
	found := make(map[string][]byte, len(rows))
	for _, r := range rows {
		found[string(r.Key)] = r.Value
	}
	values := make([][]byte, len(keys))
	for i, key := range keys {
		values[i] = found[string(key)]
	}
	return values, nil
}

// Scan implements [store.Reader].
func (t *transaction) Scan(space store.Space, from, to []byte, limit int) ([]store.Row, error) {
	query := "SELECT key, value FROM sesame_rows WHERE space = $1"
	args := []any{string(space)}
	if from != nil {
		args = append(args, from)
		query += " AND key >= $" + strconv.Itoa(len(args))
	}
	if to != nil {
		args = append(args, to)
		query += " AND key < $" + strconv.Itoa(len(args))
	}
	args = append(args, limit)
	return t.query(query+" ORDER BY key LIMIT $"+strconv.Itoa(len(args)), args...)
}

func (t *transaction) query(query string, args ...any) ([]store.Row, error) {
	found, err := t.tx.Query(t.ctx, query, args...)
	if err != nil {
		return nil, t.fail("reading", err)
	}
	rows, err := pgx.CollectRows(found, func(r pgx.CollectableRow) (row store.Row, err error) {
		err = r.Scan(&row.Key, &row.Value)
		if row.Value == nil {
			row.Value = []byte{}
		}
		return row, err
	})
	if err != nil {
		return nil, t.fail("reading", err)
	}
	return rows, nil
}

// Put implements [store.Writer]. All rows go in one round trip.
func (t *transaction) Put(space store.Space, rows ...store.Row) error {
	if err := store.Check(space, rows...); err != nil {
		return t.fail("writing", err)
	}
	if len(rows) == 0 {
		return nil
	}
	batch := &pgx.Batch{}
	for _, r := range rows {
		value := r.Value
		if value == nil {
			value = []byte{}
		}
		batch.Queue("INSERT INTO sesame_rows (space, key, value) VALUES ($1, $2, $3) "+
			"ON CONFLICT (space, key) DO UPDATE SET value = excluded.value", string(space), r.Key, value)
	}
	if err := t.tx.SendBatch(t.ctx, batch).Close(); err != nil {
		return t.fail("writing", err)
	}
	return nil
}

// Delete implements [store.Writer].
func (t *transaction) Delete(space store.Space, keys ...[]byte) error {
	if _, err := t.tx.Exec(t.ctx, "DELETE FROM sesame_rows WHERE space = $1 AND key = ANY($2)", string(space), keys); err != nil {
		return t.fail("deleting", err)
	}
	return nil
}
