// Package memory is a store that lasts as long as its process. A broker that only serves the secrets of a file uses
// it; its release log ends with it. Several stores may share one memory, as replicas of a broker share a database:
// [Store.Replica].
package memory

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/sesame-init/sesame/internal/broker/store"
)

// Store is a store in memory.
type Store struct {
	shared *database
	missed chan struct{} // one signal that another replica has committed
}

type database struct {
	mu       sync.RWMutex
	spaces   map[store.Space]map[string][]byte
	replicas []*Store
}

// New makes an empty store.
func New() *Store {
	return (&Store{shared: &database{spaces: map[store.Space]map[string][]byte{}}}).Replica()
}

// Replica is another store on the same memory.
func (s *Store) Replica() *Store {
	r := &Store{shared: s.shared, missed: make(chan struct{}, 1)}
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	s.shared.replicas = append(s.shared.replicas, r)
	return r
}

// View implements [store.Store].
func (s *Store) View(ctx context.Context, read func(store.Reader) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.shared.mu.RLock()
	defer s.shared.mu.RUnlock()
	return read(&transaction{base: s.shared.spaces})
}

// Update implements [store.Store].
func (s *Store) Update(ctx context.Context, change func(store.Writer) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	t := &transaction{base: s.shared.spaces, changed: map[store.Space]map[string][]byte{}}
	if err := errors.Join(change(t), t.failed, ctx.Err()); err != nil {
		return err
	}
	for space, rows := range t.changed {
		if s.shared.spaces[space] == nil {
			s.shared.spaces[space] = map[string][]byte{}
		}
		maps.Copy(s.shared.spaces[space], rows)
		maps.DeleteFunc(s.shared.spaces[space], func(_ string, value []byte) bool { return value == nil })
	}
	for _, r := range s.shared.replicas {
		if r == s {
			continue
		}
		select {
		case r.missed <- struct{}{}:
		default:
		}
	}
	return nil
}

// Watch implements [store.Store].
func (s *Store) Watch(ctx context.Context, changed func()) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.missed:
			changed()
		}
	}
}

// Close implements [store.Store].
func (*Store) Close() error { return nil }

// transaction sees its own changes over what is committed. A nil value is a deletion.
type transaction struct {
	base, changed map[store.Space]map[string][]byte
	failed        error
}

// Get implements [store.Reader].
func (t *transaction) Get(space store.Space, keys ...[]byte) ([][]byte, error) {
	values := make([][]byte, len(keys))
	for i, key := range keys {
		value, ok := t.changed[space][string(key)]
		if !ok {
			value = t.base[space][string(key)]
		}
		values[i] = bytes.Clone(value)
	}
	return values, nil
}

// Scan implements [store.Reader].
func (t *transaction) Scan(space store.Space, from, to []byte, limit int) (rows []store.Row, err error) {
	all := maps.Clone(t.base[space])
	if all == nil {
		all = map[string][]byte{}
	}
	maps.Copy(all, t.changed[space])
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if len(rows) == limit {
			break
		}
		if all[key] == nil || from != nil && key < string(from) || to != nil && key >= string(to) {
			continue
		}
		rows = append(rows, store.Row{Key: []byte(key), Value: bytes.Clone(all[key])})
	}
	return rows, nil
}

// Put implements [store.Writer].
func (t *transaction) Put(space store.Space, rows ...store.Row) error {
	if err := store.Check(space, rows...); err != nil {
		t.failed = err
		return err
	}
	for _, r := range rows {
		t.set(space, r.Key, append([]byte{}, r.Value...))
	}
	return nil
}

// Delete implements [store.Writer].
func (t *transaction) Delete(space store.Space, keys ...[]byte) error {
	for _, key := range keys {
		t.set(space, key, nil)
	}
	return nil
}

func (t *transaction) set(space store.Space, key, value []byte) {
	if t.changed[space] == nil {
		t.changed[space] = map[string][]byte{}
	}
	t.changed[space][string(key)] = value
}
