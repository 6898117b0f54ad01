package keystore_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store"
	"github.com/sesame-init/sesame/internal/broker/store/postgres"
	"github.com/sesame-init/sesame/lab/postgrestest"
)

// replica opens a keystore on a server.
func replica(t *testing.T, server *postgrestest.Server, root rootkey.Way) *keystore.Keystore {
	t.Helper()
	return open(t, replicaStore(t, server), func(o *keystore.Options) { o.Root = root })
}

func replicaStore(t *testing.T, server *postgrestest.Server) store.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// TestDatabaseRestartedUnderLoad: three replicas release one secret through five restarts, crashes among them. Nothing
// is released without its entry, nothing accepted is lost, and a release whose answer was lost counts once.
func TestDatabaseRestartedUnderLoad(t *testing.T) {
	server := postgrestest.Start(t)
	way := rootkey.File{Path: filepath.Join(t.TempDir(), "root.key")}
	replicas := []*keystore.Keystore{replica(t, server, way), replica(t, server, way), replica(t, server, way)}
	put(t, replicas[0], "known", "value")
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	released := map[string]uint64{}
	accepted := []string{"known"}
	var failures, since atomic.Int64
	progress := make(chan struct{}, 1)
	var wg sync.WaitGroup
	for worker := range 9 {
		k := replicas[worker%len(replicas)]
		wg.Go(func() {
			for ctx.Err() == nil {
				if worker == 0 {
					name := "put-" + rand.Text()
					if _, err := k.Put(ctx, "test", name, keystore.Value, attest.NewSecret([]byte("v"))); err == nil {
						mu.Lock()
						accepted = append(accepted, name)
						mu.Unlock()
					}
					continue
				}
				d := broker.Decision{At: now, Workload: "w", Grants: []broker.Grant{{Secret: "known"}}}
				_, _ = rand.Read(d.Binder[:])
				secrets, r, err := k.Release(ctx, d)
				if err != nil {
					failures.Add(1)
					if secrets != nil {
						t.Error("a secret beside an error")
					}
					continue
				}
				mu.Lock()
				released[fmt.Sprintf("%x", d.Binder)] = r.Index
				mu.Unlock()
				if since.Add(1)%40 == 0 {
					select {
					case progress <- struct{}{}:
					default:
					}
				}
			}
		})
	}
	for i := range 5 {
		<-progress
		server.Stop([]syscall.Signal{syscall.SIGINT, syscall.SIGQUIT}[i%2])
		server.Run()
	}
	<-progress
	<-progress
	cancel()
	wg.Wait()
	// What callers have given up is committed all the same; a replica takes no other decision before that has ended.
	for i, k := range replicas {
		release(t, k, decision(uint64(i), "known"))
	}
	all := entries(t, replicas[1])
	counted := uint64(0)
	for i, e := range all {
		if e.Kind != releaselog.Release {
			continue
		}
		counted++
		if index, ok := released[e.Binder]; ok {
			if index != uint64(i) {
				t.Errorf("entry %d was said to be %d", i, index)
			}
			delete(released, e.Binder)
		}
	}
	if len(released) != 0 {
		t.Errorf("%d releases have no entry", len(released))
	}
	if n := count(t, replicas[2], "known"); n != counted {
		t.Errorf("%d counted, %d recorded", n, counted)
	}
	list, err := replicas[2].List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, l := range list {
		there[l.Name] = true
	}
	for _, name := range accepted {
		if !there[name] {
			t.Errorf("accepted secret %s is lost", name)
		}
	}
	t.Logf("%d entries, %d accepted, %d calls failed", len(all), len(accepted), failures.Load())
}

// TestReplicasOfADatabaseAgree: what one replica takes the other gives, and it hears of a policy.
func TestReplicasOfADatabaseAgree(t *testing.T) {
	server := postgrestest.Start(t)
	way := rootkey.File{Path: filepath.Join(t.TempDir(), "root.key")}
	a := replica(t, server, way)
	b := replica(t, server, nil)
	if b.Ready(t.Context()) == nil {
		t.Fatal("a replica without a way to the root key is open")
	}
	if err := b.UnlockWith(t.Context(), rootOf(t, a)); err != nil { // as it is handed over in a session
		t.Fatal(err)
	}
	taken := following(t, b)
	put(t, a, "a", "value")
	if values, _ := release(t, b, decision(1, "a")); values[0] != "value" {
		t.Errorf("%q", values)
	}
	if err := adopt(t, a, 1, "version: 1"); err != nil {
		t.Fatal(err)
	}
	if text := <-taken; text != "version: 1" {
		t.Errorf("%q", text)
	}
	wrong, err := rootkey.New()
	if err != nil {
		t.Fatal(err)
	}
	c := replica(t, server, nil)
	if c.UnlockWith(t.Context(), wrong) == nil {
		t.Error("another root key opens it")
	}
}
