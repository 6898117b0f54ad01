// Package store keeps what the key broker must not lose: an ordered map of keys to values in a few
// spaces, read and changed in transactions. It knows nothing of secrets; its caller encrypts them first
// (package keystore). Package storetest is the suite that every implementation passes.
//
// What an implementation promises:
//
//   - transactions that write run one after the other, over all replicas that share the store;
//   - a transaction that reads sees one state, and none that is not committed;
//   - once Update returns nil its changes survive the end of the process and of the machine;
//   - if Update fails, its changes are there altogether or not at all. Mostly not at all; but if the answer to a
//     commit is lost they may be there, so writers are made such that a repetition does no harm.
//
// What none of them can promise is that the machine's owner has not put back an older state of the whole store.
package store

import (
	"context"
	"errors"
	"fmt"
)

// A Space is one ordered map of a store: 1 to [MaxSpace] lower-case letters.
type Space string

// Bounds.
const (
	MaxSpace = 16
	MaxKey   = 512
	MaxValue = 8 << 20
)

// A Row is a key, 1 to [MaxKey] bytes, and its value, at most [MaxValue] bytes.
type Row struct{ Key, Value []byte }

// A Reader reads one state of the store. It is valid only in the function that it was given to. What it returns
// belongs to the caller.
type Reader interface {
	// Get returns the values of keys in their order, nil for a key that is not there. A value that is there and empty
	// is not nil.
	Get(space Space, keys ...[]byte) ([][]byte, error)
	// Scan returns, by ascending keys as bytes compare, at most limit rows whose keys are at least from and less than
	// to. A nil bound is none. Limit is positive.
	Scan(space Space, from, to []byte, limit int) ([]Row, error)
}

// A Writer is a Reader that sees and makes the changes of its own transaction.
type Writer interface {
	Reader
	// Put writes rows, over what was there.
	Put(space Space, rows ...Row) error
	// Delete removes keys; those that are not there are no error.
	Delete(space Space, keys ...[]byte) error
}

// A Store is safe for concurrent use. Its errors wrap their cause; [ErrTemporary] is among them if the same call
// may succeed later without anyone's help.
type Store interface {
	// View calls read with a reader, perhaps more than once.
	View(ctx context.Context, read func(Reader) error) error
	// Update calls change with a writer, perhaps more than once, and commits what it has done if it returns nil.
	// Nothing of a failed change is kept. The error of change itself is returned as it is.
	Update(ctx context.Context, change func(Writer) error) error
	// Watch calls changed after commits of other replicas, and once whenever it may have missed one. It returns when
	// ctx ends (nil) or it can watch no more. If a store has no other replicas it waits for the end of ctx.
	Watch(ctx context.Context, changed func()) error
	// Close waits for transactions that are under way.
	Close() error
}

// ErrTemporary marks errors that may pass: the connection to a database is lost or a transaction has lost against
// another one.
var ErrTemporary = errors.New("the store is unavailable at the moment")

// ErrInUse says that another process has the store open, which takes only one.
var ErrInUse = errors.New("another process has the store open")

// Check reports what is wrong with a space and rows.
func Check(space Space, rows ...Row) error {
	if space == "" || len(space) > MaxSpace {
		return fmt.Errorf("the name of space %q is not 1 to %d letters long", space, MaxSpace)
	}
	for _, r := range rows {
		if len(r.Key) == 0 || len(r.Key) > MaxKey || len(r.Value) > MaxValue {
			return fmt.Errorf("a row of space %s with a key of %d and a value of %d bytes", space, len(r.Key), len(r.Value))
		}
	}
	return nil
}
