// Package sqlite is the embedded store: one file, opened by one process at a time.
//
// It is SQLite, translated to Go (modernc.org/sqlite), with a rollback journal. Write-ahead logging and memory maps are
// off: Occlum's LibOS gives a process a copy of a file instead of a shared mapping. Every commit is on the disk, with
// its journal's end, before Update returns (synchronous=FULL, journal_mode=TRUNCATE). After the end of a process in the
// middle of a commit the next Open rolls back what was not committed.
//
// The connection keeps pages in memory. So each transaction looks first whether another program has changed or replaced
// the file since the last one, as a restore does, and then begins with a new connection and what is in the file.
//
// The file is private (package privatefile), and so is the journal beside it; those that Open makes have mode 0600. What
// is in them is as public as their file system.
package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"modernc.org/sqlite" // registers the driver, too
	lib "modernc.org/sqlite/lib"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/store"
	"github.com/sesame-init/sesame/internal/privatefile"
)

const version = 1 // of the tables, PRAGMA user_version

// Store is an open file. Make it with [Open].
type Store struct {
	db            *sql.DB
	path          string
	rule          privatefile.Rule
	get, put, del *sql.Stmt
	left          os.FileInfo // the file as the last transaction has left it; the connection's owner has it
}

// Check judges the files of the store at path by a rule for private files, as far as they exist: the last two are of other
// programs that have opened it.
func Check(path string, rule privatefile.Rule) error {
	err := rule.Check(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return checkBeside(path, rule)
}

func checkBeside(path string, rule privatefile.Rule) error {
	for _, added := range []string{"-journal", "-wal", "-shm"} {
		if err := rule.Check(path + added); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Open opens the file at path, or makes it. The error's code is [attest.CodeConfig] if another process has it open,
// a newer program has made it, or it is not private enough for the rule, and [attest.CodeInternal] otherwise.
func Open(ctx context.Context, path string, rule privatefile.Rule) (*Store, error) {
	const step = "opening store"
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, attest.Errorf(attest.CodeInternal, step, "", "%w", err)
	}
	f, err := os.OpenFile(absolute, os.O_CREATE|os.O_RDWR, 0o600) // SQLite would ask for 0644
	if err != nil {
		return nil, attest.Errorf(attest.CodeConfig, step, "Name a file in a folder that the broker can write to.", "%w", err)
	}
	judged, err := f.Stat()
	if err = errors.Join(err, f.Close(), syncDir(filepath.Dir(absolute))); err != nil {
		return nil, attest.Errorf(attest.CodeInternal, step, "", "%w", err)
	}
	if err = rule.Judge(absolute, judged); err == nil {
		err = checkBeside(absolute, rule)
	}
	if err != nil {
		return nil, &attest.Error{Code: attest.CodeConfig, Step: step, Err: err}
	}
	options := url.Values{"_txlock": {"immediate"}, "_pragma": {
		"locking_mode(EXCLUSIVE)", "journal_mode(TRUNCATE)", "synchronous(FULL)", "mmap_size(0)", "temp_store(MEMORY)",
		"trusted_schema(OFF)", "cell_size_check(ON)", "secure_delete(ON)",
	}}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: absolute, RawQuery: options.Encode()}).String())
	if err != nil {
		return nil, attest.Errorf(attest.CodeInternal, step, "", "%w", err)
	}
	db.SetMaxOpenConns(1)                                                                  // the file's lock belongs to a connection
	s := &Store{db: db, path: absolute, rule: privatefile.Rule{Unchecked: rule.Unchecked}} // a remark is for the start
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if opened, err := os.Stat(absolute); err != nil || !os.SameFile(opened, judged) { // SQLite has opened it by its name
		return nil, errors.Join(attest.Errorf(attest.CodeInternal, step, "Let no other program replace it while the broker starts.",
			"%s is another file than a moment ago", absolute), db.Close())
	}
	return s, nil
}

// syncDir makes the name of a new file survive a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// prepare takes the lock and makes the table.
func (s *Store) prepare(ctx context.Context) error {
	const step = "opening store"
	var found int
	err := s.db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&found)
	if err == nil && found > version {
		return attest.Errorf(attest.CodeConfig, step, "Start the newer program.",
			"the file has version %d, this program knows %d", found, version)
	}
	if err == nil { // a write takes the lock for good, with SQLite's exclusive locking
		_, err = s.db.ExecContext(ctx, fmt.Sprintf(`BEGIN IMMEDIATE;
			CREATE TABLE IF NOT EXISTS rows (space TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,
				PRIMARY KEY (space, key)) WITHOUT ROWID, STRICT;
			PRAGMA user_version = %d;
			COMMIT`, version))
	}
	for _, statement := range []struct {
		to   **sql.Stmt
		text string
	}{
		{&s.get, "SELECT value FROM rows WHERE space = ? AND key = ?"},
		{&s.put, "INSERT INTO rows (space, key, value) VALUES (?, ?, ?) ON CONFLICT (space, key) DO UPDATE SET value = excluded.value"},
		{&s.del, "DELETE FROM rows WHERE space = ? AND key = ?"},
	} {
		if err == nil {
			*statement.to, err = s.db.PrepareContext(ctx, statement.text)
		}
	}
	if err == nil {
		return nil
	}
	err = explain(err)
	if errors.Is(err, store.ErrInUse) {
		return attest.Errorf(attest.CodeConfig, step,
			"End the other broker. Several brokers share a store with PostgreSQL.", "%w", err)
	}
	return attest.Errorf(attest.CodeInternal, step, "If the file is no store of a broker, name another one.", "%w", err)
}

// explain gives errors of SQLite the store's names.
func explain(err error) error {
	var ours *sqlite.Error
	if !errors.As(err, &ours) {
		return err
	}
	switch ours.Code() & 0xff {
	case lib.SQLITE_BUSY, lib.SQLITE_LOCKED:
		return fmt.Errorf("%w (%w)", store.ErrInUse, err)
	case lib.SQLITE_FULL:
		return fmt.Errorf("the disk is full (%w)", err)
	}
	return err
}

// View implements [store.Store].
func (s *Store) View(ctx context.Context, read func(store.Reader) error) error {
	return s.transaction(ctx, &sql.TxOptions{ReadOnly: true}, func(t *transaction) error { return read(t) })
}

// Update implements [store.Store].
func (s *Store) Update(ctx context.Context, change func(store.Writer) error) error {
	return s.transaction(ctx, nil, func(t *transaction) error { return change(t) })
}

// connect waits for its turn and gives the connection, a new one if the file is not as the last transaction has left it.
func (s *Store) connect(ctx context.Context) (*sql.Conn, error) {
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return nil, explain(err)
	}
	found, err := os.Stat(s.path)
	switch {
	case err != nil:
		return nil, errors.Join(fmt.Errorf("the store's file is gone: %w", err), conn.Close())
	case s.left != nil && same(found, s.left):
		return conn, nil
	}
	if err := Check(s.path, s.rule); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if s.left == nil {
		return conn, nil
	}
	s.left = nil
	_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // closes it
	if conn, err = s.db.Conn(ctx); err != nil {
		return nil, explain(err)
	}
	return conn, nil
}

// same reports whether a file was not changed between two looks.
func same(a, b os.FileInfo) bool {
	x, ok1 := a.Sys().(*syscall.Stat_t)
	y, ok2 := b.Sys().(*syscall.Stat_t)
	return ok1 && ok2 && x.Dev == y.Dev && x.Ino == y.Ino && x.Size == y.Size && x.Mtim == y.Mtim && x.Ctim == y.Ctim
}

func (s *Store) transaction(ctx context.Context, options *sql.TxOptions, f func(*transaction) error) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return fmt.Errorf("beginning transaction: %w", err)
	}
	defer conn.Close()
	defer func() { s.left, _ = os.Stat(s.path) }() // after the commit or the end
	// The driver starts a goroutine for every statement that can be cancelled, which takes longer than the statement. So
	// ctx is looked at between the statements.
	running := context.WithoutCancel(ctx)
	tx, err := conn.BeginTx(running, options)
	if err != nil {
		return fmt.Errorf("beginning transaction: %w", explain(err))
	}
	defer func() { _ = tx.Rollback() }() // does nothing after a commit
	t := &transaction{given: ctx, ctx: running, tx: tx,
		get: tx.StmtContext(running, s.get), put: tx.StmtContext(running, s.put), del: tx.StmtContext(running, s.del)}
	if err := f(t); err != nil {
		return err
	}
	if t.failed == nil && ctx.Err() != nil {
		return fmt.Errorf("committing: %w", ctx.Err())
	}
	if t.failed != nil { // even where f has not minded
		return t.failed
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("committing: %w", explain(err))
	}
	return nil
}

// Watch implements [store.Store]. There are no other replicas.
func (*Store) Watch(ctx context.Context, _ func()) error {
	<-ctx.Done()
	return nil
}

// Close implements [store.Store].
func (s *Store) Close() error { return s.db.Close() }

type transaction struct {
	given         context.Context // may end the transaction between two statements
	ctx           context.Context // of a statement; it does not end
	tx            *sql.Tx
	get, put, del *sql.Stmt // the store's, on the transaction's connection
	failed        error
}

func (t *transaction) fail(doing string, err error) error {
	t.failed = fmt.Errorf("%s: %w", doing, explain(err))
	return t.failed
}

// Get implements [store.Reader].
func (t *transaction) Get(space store.Space, keys ...[]byte) ([][]byte, error) {
	values := make([][]byte, len(keys))
	for i, key := range keys {
		if err := t.given.Err(); err != nil {
			return nil, t.fail("reading", err)
		}
		err := t.get.QueryRowContext(t.ctx, string(space), key).Scan(&values[i])
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		if err != nil {
			return nil, t.fail("reading", err)
		}
		if values[i] == nil {
			values[i] = []byte{}
		}
	}
	return values, nil
}

// Scan implements [store.Reader].
func (t *transaction) Scan(space store.Space, from, to []byte, limit int) (rows []store.Row, err error) {
	if err := t.given.Err(); err != nil {
		return nil, t.fail("reading", err)
	}
	query := strings.Builder{}
	query.WriteString("SELECT key, value FROM rows WHERE space = ?")
	args := []any{string(space)}
	if from != nil {
		query.WriteString(" AND key >= ?")
		args = append(args, from)
	}
	if to != nil {
		query.WriteString(" AND key < ?")
		args = append(args, to)
	}
	query.WriteString(" ORDER BY key LIMIT ?")
	found, err := t.tx.QueryContext(t.ctx, query.String(), append(args, limit)...)
	if err != nil {
		return nil, t.fail("reading", err)
	}
	defer found.Close()
	for found.Next() {
		var r store.Row
		if err := found.Scan(&r.Key, &r.Value); err != nil {
			return nil, t.fail("reading", err)
		}
		rows = append(rows, r)
	}
	if err := found.Err(); err != nil {
		return nil, t.fail("reading", err)
	}
	return rows, nil
}

// Put implements [store.Writer].
func (t *transaction) Put(space store.Space, rows ...store.Row) error {
	if err := store.Check(space, rows...); err != nil {
		return t.fail("writing", err)
	}
	for _, r := range rows {
		if err := t.given.Err(); err != nil {
			return t.fail("writing", err)
		}
		value := r.Value
		if value == nil {
			value = []byte{}
		}
		if _, err := t.put.ExecContext(t.ctx, string(space), r.Key, value); err != nil {
			return t.fail("writing", err)
		}
	}
	return nil
}

// Delete implements [store.Writer].
func (t *transaction) Delete(space store.Space, keys ...[]byte) error {
	for _, key := range keys {
		if err := t.given.Err(); err != nil {
			return t.fail("deleting", err)
		}
		if _, err := t.del.ExecContext(t.ctx, string(space), key); err != nil {
			return t.fail("deleting", err)
		}
	}
	return nil
}
