package keystore

import (
	"bytes"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store"
	"github.com/sesame-init/sesame/internal/broker/store/memory"
)

// TestTheBoundThatOlderVersionsKeptCountsNoMore and goes with the first new entry.
func TestTheBoundThatOlderVersionsKeptCountsNoMore(t *testing.T) {
	kept, root := memory.New(), &rootkey.Process{}
	reopen := func() *Keystore {
		t.Helper()
		k, err := Open(t.Context(), Options{Store: kept, Root: root})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(k.Close)
		return k
	}
	first := reopen()
	ring, err := first.ring()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.update(t.Context(), func(w store.Writer) error {
		s, err := first.load(w, ring)
		if err != nil {
			return err
		}
		_, err = ring.put(w, headKey, struct {
			head
			Last time.Time `json:"last"`
		}{s.head, time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	first.Close()
	has := func(k *Keystore) (old bool) {
		t.Helper()
		if err := k.view(t.Context(), func(r store.Reader) error {
			rows, err := r.Get(stateSpace, headKey)
			old = err == nil && bytes.Contains(rows[0], []byte(`"last":"2100-01-01T00:00:00Z"`))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return old
	}
	k := reopen()
	if at, err := k.Vouched(t.Context()); err != nil || !at.IsZero() || !has(k) {
		t.Fatalf("the bound of an old store is %s, %v", at, err)
	}
	if _, err := k.Put(t.Context(), "alice", "image_key", Value, attest.NewSecret([]byte("v"))); err != nil {
		t.Fatal(err)
	}
	if has(k) {
		t.Error("the old bound is there after a new entry")
	}
}
