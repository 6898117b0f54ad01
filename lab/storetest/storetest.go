// Package storetest is the suite that every store passes, and a store whose failures a test chooses.
package storetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/sesame-init/sesame/internal/broker/store"
)

// A Kind is an implementation of [store.Store].
type Kind struct {
	// Open opens the store, the same one at each call of one test. The suite closes what it opens.
	Open func(t testing.TB) store.Store
	// Volatile stores forget when they are closed.
	Volatile bool
	// Shared stores are open several times at once. Others answer a second Open with an error: Second tries.
	Shared bool
	Second func(t testing.TB) error
}

const space store.Space = "suite"

// Run runs the suite. Make gives each test a store of its own.
func Run(t *testing.T, fresh func(t testing.TB) Kind) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Kind)
	}{
		{"values are what was put, and empty is not missing", testValues},
		{"scans are ordered by bytes and bounded", testScans},
		{"a failed change leaves nothing", testRollback},
		{"a change sees itself", testOwnChanges},
		{"rows out of bounds are refused, even where the error is dropped", testBounds},
		{"changes run one after the other", testSerial},
		{"a reader sees no half of a change", testIsolation},
		{"a context that has ended changes nothing", testContext},
		{"what is committed is there after opening anew", testDurable},
		{"a store for one process is opened once", testExclusive},
		{"replicas see and notice each other's commits", testReplicas},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, fresh(t)) })
	}
}

func open(t testing.TB, k Kind) store.Store {
	t.Helper()
	s := k.Open(t)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return s
}

func row(key, value string) store.Row { return store.Row{Key: []byte(key), Value: []byte(value)} }

func put(t testing.TB, s store.Store, rows ...store.Row) {
	t.Helper()
	if err := s.Update(t.Context(), func(w store.Writer) error { return w.Put(space, rows...) }); err != nil {
		t.Fatal(err)
	}
}

// get is the value as text, "-" if there is none.
func get(t testing.TB, s store.Store, key string) (value string) {
	t.Helper()
	err := s.View(t.Context(), func(r store.Reader) error {
		values, err := r.Get(space, []byte(key))
		if err != nil {
			return err
		}
		if value = string(values[0]); values[0] == nil {
			value = "-"
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func keys(rows []store.Row) string {
	var out []string
	for _, r := range rows {
		out = append(out, string(r.Key))
	}
	return strings.Join(out, " ")
}

func testValues(t *testing.T, k Kind) {
	s := open(t, k)
	big := bytes.Repeat([]byte{0, 0xff, '\''}, 300_000)
	binaryKey := "\x00\xff\x00"
	put(t, s, row("a", "1"), row("b", ""), row("c", string(big)), row(binaryKey, "\x00"))
	put(t, s, row("a", "2"))
	for key, want := range map[string]string{"a": "2", "b": "", "c": string(big), binaryKey: "\x00", "d": "-"} {
		if got := get(t, s, key); got != want {
			t.Errorf("%q: %.20q, want %.20q", key, got, want)
		}
	}
	err := s.View(t.Context(), func(r store.Reader) error {
		values, err := r.Get(space, []byte("d"), []byte("a"), []byte("d"), []byte("b"))
		if err != nil {
			return err
		}
		if len(values) != 4 || values[0] != nil || string(values[1]) != "2" || values[2] != nil || values[3] == nil {
			t.Errorf("several keys: %q", values)
		}
		if values, err = r.Get("other", []byte("a")); err == nil && values[0] != nil {
			t.Error("another space has the row, too")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func testScans(t *testing.T, k Kind) {
	s := open(t, k)
	put(t, s, row("b", "2"), row("\xff", "5"), row("ab", "1"), row("B", "0"), row("c", "3"))
	for _, c := range []struct {
		from, to string
		limit    int
		want     string
	}{
		{"", "", 10, "B ab b c \xff"}, {"", "", 2, "B ab"}, {"ab", "c", 10, "ab b"}, {"bb", "", 10, "c \xff"},
		{"", "ab", 10, "B"}, {"x", "x", 10, ""},
	} {
		var from, to []byte
		if c.from != "" {
			from = []byte(c.from)
		}
		if c.to != "" {
			to = []byte(c.to)
		}
		err := s.View(t.Context(), func(r store.Reader) error {
			rows, err := r.Scan(space, from, to, c.limit)
			if got := keys(rows); err == nil && got != c.want {
				t.Errorf("from %q to %q, %d: %q, want %q", c.from, c.to, c.limit, got, c.want)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func testRollback(t *testing.T, k Kind) {
	s := open(t, k)
	put(t, s, row("a", "1"), row("b", "1"))
	refused := errors.New("refused")
	err := s.Update(t.Context(), func(w store.Writer) error {
		if err := errors.Join(w.Put(space, row("a", "2"), row("c", "2")), w.Delete(space, []byte("b"))); err != nil {
			t.Error(err)
		}
		return refused
	})
	if !errors.Is(err, refused) {
		t.Fatalf("the change's own error became %v", err)
	}
	if got := get(t, s, "a") + get(t, s, "b") + get(t, s, "c"); got != "11-" {
		t.Errorf("after a failed change: %s", got)
	}
	put(t, s, row("c", "3")) // and the store goes on
}

func testOwnChanges(t *testing.T, k Kind) {
	s := open(t, k)
	put(t, s, row("a", "1"), row("b", "1"))
	err := s.Update(t.Context(), func(w store.Writer) error {
		if err := errors.Join(w.Put(space, row("c", "2")), w.Delete(space, []byte("a"), []byte("z"))); err != nil {
			return err
		}
		rows, err := w.Scan(space, nil, nil, 10)
		if got := keys(rows); err == nil && got != "b c" {
			t.Errorf("inside the change: %q", got)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func testBounds(t *testing.T, k Kind) {
	s := open(t, k)
	for name, r := range map[string]store.Row{
		"no key": row("", "1"), "long key": row(strings.Repeat("k", store.MaxKey+1), "1"),
		"long value": {Key: []byte("k"), Value: make([]byte, store.MaxValue+1)},
	} {
		err := s.Update(t.Context(), func(w store.Writer) error {
			if err := w.Put(space, row("good", "1")); err != nil {
				return err
			}
			_ = w.Put(space, r)
			return nil
		})
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if get(t, s, "good") != "-" {
		t.Error("half of a refused change is there")
	}
	put(t, s, row(strings.Repeat("k", store.MaxKey), "1"))
}

// testSerial increments one number from many goroutines. A lost update shows in the sum.
func testSerial(t *testing.T, k Kind) {
	stores := []store.Store{open(t, k)}
	if k.Shared {
		stores = append(stores, open(t, k))
	}
	const writers, rounds = 4, 10
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for range rounds {
				if err := stores[i%len(stores)].Update(t.Context(), increment); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := binary.BigEndian.Uint64([]byte(get(t, stores[0], "n"))); got != writers*rounds {
		t.Errorf("%d increments count %d", writers*rounds, got)
	}
}

func increment(w store.Writer) error {
	values, err := w.Get(space, []byte("n"))
	if err != nil {
		return err
	}
	var n uint64
	if values[0] != nil {
		n = binary.BigEndian.Uint64(values[0])
	}
	return w.Put(space, store.Row{Key: []byte("n"), Value: binary.BigEndian.AppendUint64(nil, n+1)})
}

func testIsolation(t *testing.T, k Kind) {
	s := open(t, k)
	put(t, s, row("x", "0"), row("y", "0"))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		defer cancel()
		for i := range 20 {
			value := fmt.Sprint(i)
			put(t, s, row("x", value), row("y", value))
		}
	})
	for ctx.Err() == nil {
		err := s.View(t.Context(), func(r store.Reader) error {
			x, err := r.Get(space, []byte("x"))
			if err != nil {
				return err
			}
			y, err := r.Get(space, []byte("y"))
			if err == nil && !bytes.Equal(x[0], y[0]) {
				t.Errorf("x is %s and y is %s", x[0], y[0])
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
}

func testContext(t *testing.T, k Kind) {
	s := open(t, k)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Update(ctx, func(w store.Writer) error { return w.Put(space, row("a", "1")) }); err == nil {
		t.Error("an update succeeded")
	}
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	err := s.Update(ctx, func(w store.Writer) error {
		err := w.Put(space, row("a", "1"))
		cancel()
		return err
	})
	if err == nil {
		t.Error("an update succeeded whose context ended in it")
	}
	if get(t, s, "a") != "-" {
		t.Error("it is there")
	}
}

func testDurable(t *testing.T, k Kind) {
	if k.Volatile {
		t.Skip("it promises nothing of the kind")
	}
	for i := range 3 {
		s := k.Open(t)
		if i > 0 && get(t, s, fmt.Sprint(i-1)) != "v" {
			t.Errorf("row %d is lost", i-1)
		}
		put(t, s, row(fmt.Sprint(i), "v"))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func testExclusive(t *testing.T, k Kind) {
	if k.Shared || k.Second == nil {
		t.Skip("it is open to several")
	}
	open(t, k)
	if err := k.Second(t); !errors.Is(err, store.ErrInUse) {
		t.Errorf("the second one is told: %v", err)
	}
}

func testReplicas(t *testing.T, k Kind) {
	if !k.Shared {
		t.Skip("it has no replicas")
	}
	a, b := open(t, k), open(t, k)
	ctx, cancel := context.WithCancel(t.Context())
	seen := make(chan string, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- b.Watch(ctx, func() { seen <- get(t, b, "a") })
	}()
	put(t, a, row("a", "1"))
	for <-seen != "1" { // Watch may begin after the commit: then it says that it may have missed one
	}
	put(t, a, row("a", "2"))
	for <-seen != "2" {
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("watching ended with %v", err)
	}
}
