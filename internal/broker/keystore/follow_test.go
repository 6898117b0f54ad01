package keystore_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store"
	"github.com/sesame-init/sesame/internal/broker/store/memory"
)

// follow runs Follow until the test ends.
func follow(t testing.TB, k *keystore.Keystore, take func(context.Context, []byte) error) {
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { k.Follow(ctx, take) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
}

// following are the policies that a keystore is given to take over.
func following(t testing.TB, k *keystore.Keystore) <-chan string {
	taken := make(chan string, 10)
	follow(t, k, func(_ context.Context, text []byte) error {
		taken <- string(text)
		return nil
	})
	return taken
}

// flaky is a replica's view of a shared store that can be away, for reading, writing or notifications.
type flaky struct {
	store.Store
	unread, unwritten, deaf atomic.Bool
	reached                 chan struct{} // a call that failed
}

func (f *flaky) fail(away *atomic.Bool) error {
	if !away.Load() {
		return nil
	}
	select {
	case f.reached <- struct{}{}:
	default:
	}
	return fmt.Errorf("%w: injected", store.ErrTemporary)
}

func (f *flaky) View(ctx context.Context, read func(store.Reader) error) error {
	if err := f.fail(&f.unread); err != nil {
		return err
	}
	return f.Store.View(ctx, read)
}

func (f *flaky) Update(ctx context.Context, change func(store.Writer) error) error {
	if err := f.fail(&f.unwritten); err != nil {
		return err
	}
	return f.Store.Update(ctx, change)
}

func (f *flaky) Watch(ctx context.Context, changed func()) error {
	return f.Store.Watch(ctx, func() {
		if !f.deaf.Load() {
			changed()
		}
	})
}

// TestReplicaTakesAPolicyOverHoweverLongItsStoreIsAway: a replica is told of a policy once. Whatever fails then, and for
// longer than it has patience, it takes the policy over when the store is back, without another word; until then it
// says that it is behind.
func TestReplicaTakesAPolicyOverHoweverLongItsStoreIsAway(t *testing.T) {
	for name, away := range map[string]func(*flaky) []*atomic.Bool{
		"for reading":            func(f *flaky) []*atomic.Bool { return []*atomic.Bool{&f.unread} },
		"for writing":            func(f *flaky) []*atomic.Bool { return []*atomic.Bool{&f.unwritten} },
		"altogether":             func(f *flaky) []*atomic.Bool { return []*atomic.Bool{&f.unread, &f.unwritten} },
		"and does not notify":    func(f *flaky) []*atomic.Bool { return []*atomic.Bool{&f.unread, &f.unwritten, &f.deaf} },
		"for notifications only": func(f *flaky) []*atomic.Bool { return []*atomic.Bool{&f.deaf} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				shared := memory.New()
				f := &flaky{Store: shared.Replica(), reached: make(chan struct{}, 1)}
				way := &rootkey.Process{}
				same := func(o *keystore.Options) { o.Root = way }
				a, b := open(t, shared, same), open(t, f, same)
				var inForce atomic.Pointer[string]
				follow(t, b, func(_ context.Context, text []byte) error {
					now := string(text)
					if err := adopt(t, b, uint64(now[len(now)-1]-'0'), now); err != nil { // as the broker does
						return err
					}
					inForce.Store(&now)
					return nil
				})
				push := func(version uint64) {
					t.Helper()
					if err := adopt(t, a, version, fmt.Sprintf("version: %d", version)); err != nil {
						t.Fatal(err)
					}
				}
				push(1)
				synctest.Wait()
				if v := inForce.Load(); v == nil || *v != "version: 1" || b.Ready(t.Context()) != nil {
					t.Fatalf("at first: %v, ready: %v", v, b.Ready(t.Context()))
				}
				all := away(f)
				for _, what := range all {
					what.Store(true)
				}
				push(2)
				if !f.deaf.Load() {
					<-f.reached // while it takes over
				}
				time.Sleep(time.Minute)
				if f.unread.Load() || f.unwritten.Load() {
					if *inForce.Load() != "version: 1" {
						t.Fatal("it was taken over without the store")
					}
					f.unread.Store(false) // it answers, and what has failed is not forgotten
					if err := b.Ready(t.Context()); err == nil {
						t.Error("it says nothing of being behind")
					}
				}
				for _, what := range all {
					if what != &f.deaf {
						what.Store(false)
					}
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if v := *inForce.Load(); v != "version: 2" {
					t.Errorf("%s is in force after the store is back", v)
				}
				if err := b.Ready(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestPolicyThatAReplicaCannotTakeIsRefusedOnce: no repetition makes it better, and the replica goes on by its own.
func TestPolicyThatAReplicaCannotTakeIsRefusedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := open(t, memory.New())
		var asked atomic.Int64
		follow(t, k, func(context.Context, []byte) error {
			asked.Add(1)
			return attest.Errorf(attest.CodeConfig, "reading policy", "", "it makes no sense")
		})
		if err := adopt(t, k, 1, "version: 1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if n := asked.Load(); n != 1 {
			t.Errorf("it was tried %d times", n)
		}
		if err := k.Ready(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
