package keystore_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store"
	"github.com/sesame-init/sesame/internal/broker/store/memory"
	"github.com/sesame-init/sesame/internal/broker/store/sqlite"
	"github.com/sesame-init/sesame/internal/privatefile"
	"github.com/sesame-init/sesame/lab/postgrestest"
)

// restorable is a store that a test puts back.
type restorable struct {
	save    func()
	restore func()
}

// alarms are what a keystore has said of rollbacks.
type alarms struct{ said []string }

func (a *alarms) option(o *keystore.Options) {
	o.RolledBack = func(err error) {
		if err == nil {
			a.said = append(a.said, "again")
			return
		}
		a.said = append(a.said, err.Error())
	}
}

func sqliteRestored(t *testing.T, way string) (*keystore.Keystore, *alarms, restorable) {
	dir := t.TempDir()
	file := filepath.Join(dir, "broker.db")
	s, err := sqlite.Open(t.Context(), file, privatefile.Rule{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	a := &alarms{}
	k := open(t, s, a.option, func(o *keystore.Options) { o.Root = rootkey.File{Path: filepath.Join(dir, "root.key")} })
	var saved []byte
	return k, a, restorable{
		save: func() {
			if saved, err = os.ReadFile(file); err != nil {
				t.Fatal(err)
			}
		},
		restore: func() {
			to := file
			if way == "renamed" {
				to += ".restored"
			}
			if err := os.WriteFile(to, saved, 0o600); err != nil {
				t.Fatal(err)
			}
			if to != file {
				if err := os.Rename(to, file); err != nil {
					t.Fatal(err)
				}
			}
		},
	}
}

func postgresRestored(t *testing.T) (*keystore.Keystore, *alarms, restorable) {
	server := postgrestest.Start(t)
	a := &alarms{}
	s := replicaStore(t, server)
	k := open(t, s, a.option, func(o *keystore.Options) {
		o.Root = rootkey.File{Path: filepath.Join(t.TempDir(), "root.key")}
	})
	return k, a, restorable{
		save:    func() { server.Query("CREATE TABLE saved AS SELECT * FROM sesame_rows") },
		restore: func() { server.Query("DELETE FROM sesame_rows; INSERT INTO sesame_rows SELECT * FROM saved") },
	}
}

// TestStorePutBackUnderARunningBroker: nothing is released twice, and no two trees of one size are signed.
func TestStorePutBackUnderARunningBroker(t *testing.T) {
	for name, start := range map[string]func(*testing.T) (*keystore.Keystore, *alarms, restorable){
		"SQLite, written over": func(t *testing.T) (*keystore.Keystore, *alarms, restorable) { return sqliteRestored(t, "written") },
		"SQLite, renamed":      func(t *testing.T) (*keystore.Keystore, *alarms, restorable) { return sqliteRestored(t, "renamed") },
		"PostgreSQL":           postgresRestored,
	} {
		t.Run(name, func(t *testing.T) {
			k, alarms, store := start(t)
			put(t, k, "once", "value")
			store.save()
			release(t, k, decision(1, "once"))
			release(t, k, decision(2, "once"))
			newest, err := k.Checkpoint(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			store.restore()
			refused := func(what string, err error) {
				t.Helper()
				if err == nil || !strings.Contains(err.Error(), "an older state was put back") {
					t.Errorf("%s: %v", what, err)
				}
			}
			secrets, _, err := k.Release(t.Context(), decision(3, "once"))
			refused("releasing", err)
			if secrets != nil {
				t.Error("a secret was released")
			}
			hint := attest.HintOf(err)
			_, err = k.Checkpoint(t.Context())
			refused("signing", err)
			_, err = k.Refuse(t.Context(), broker.Decision{At: now, Workload: "w", Binder: [32]byte{4}, Code: attest.CodeDenied, Reason: "no"})
			refused("refusing", err)
			_, err = k.Put(t.Context(), "admin", "other", keystore.Value, secret("x"))
			refused("administering", err)
			refused("readiness", k.Ready(t.Context()))
			if len(alarms.said) != 1 {
				t.Errorf("said: %q", alarms.said)
			}

			if err := k.AcceptRollback(t.Context(), "admin", string(newest)); err == nil {
				t.Error("the checkpoint of the lost log is taken for the restored one's")
			}
			if err := k.AcceptRollback(t.Context(), "admin", "0:AAAA"); err == nil {
				t.Error("anything is accepted")
			}
			_, accepted, _ := strings.Cut(hint, "accept-rollback ")
			if err := k.AcceptRollback(t.Context(), "admin", accepted); err != nil {
				t.Fatal(err)
			}
			if err := k.AcceptRollback(t.Context(), "admin", accepted); err == nil {
				t.Error("accepted without a rollback")
			}
			all := entries(t, k)
			if last := all[len(all)-1]; last.Kind != releaselog.Admin || last.Admin.Action != "log.accept-rollback" || len(all) != 2 {
				t.Errorf("%d entries, the last is %+v", len(all), last.Admin)
			}
			release(t, k, decision(5, "once"))
			if err := k.Ready(t.Context()); err != nil {
				t.Error(err)
			}
			if len(alarms.said) != 2 || alarms.said[1] != "again" {
				t.Errorf("said: %q", alarms.said)
			}
			store.restore() // once more, and the acceptance was of the other time
			_, _, err = k.Release(t.Context(), decision(6, "once"))
			refused("releasing after the second time", err)
		})
	}
}

// TestEveryReplicaGoesOnAfterAnAcceptance: also the one that was not told, and both stop at the next rollback.
func TestEveryReplicaGoesOnAfterAnAcceptance(t *testing.T) {
	server := postgrestest.Start(t)
	way := rootkey.File{Path: filepath.Join(t.TempDir(), "root.key")}
	var all []*keystore.Keystore
	var said []*alarms
	for range 2 {
		a := &alarms{}
		said = append(said, a)
		all = append(all, open(t, replicaStore(t, server), a.option, func(o *keystore.Options) { o.Root = way }))
	}
	a, b := all[0], all[1]
	put(t, a, "once", "value")
	server.Query("CREATE TABLE saved AS SELECT * FROM sesame_rows")
	release(t, a, decision(1, "once"))
	release(t, b, decision(2, "once"))
	if err := a.Ready(t.Context()); err != nil { // it sees the other's release, too
		t.Fatal(err)
	}
	restore := func() { server.Query("DELETE FROM sesame_rows; INSERT INTO sesame_rows SELECT * FROM saved") }
	var hint string
	stopped := func(when string) {
		t.Helper()
		for i, k := range all {
			secrets, _, err := k.Release(t.Context(), decision(uint64(10+i), "once"))
			if err == nil || secrets != nil || !strings.Contains(err.Error(), "an older state was put back") {
				t.Errorf("%s, replica %d: %v", when, i, err)
			}
			hint = attest.HintOf(err)
		}
	}
	restore()
	stopped("put back")
	_, accepted, _ := strings.Cut(hint, "accept-rollback ")
	if err := a.AcceptRollback(t.Context(), "admin", accepted); err != nil {
		t.Fatal(err)
	}
	if err := b.AcceptRollback(t.Context(), "admin", accepted); err == nil {
		t.Error("accepted twice")
	}
	release(t, b, decision(3, "once"))
	release(t, a, decision(4, "once"))
	if of, other := entries(t, a), entries(t, b); len(of) != 4 || len(other) != 4 || of[1].Admin == nil {
		t.Errorf("%d and %d entries", len(of), len(other))
	}
	for i, a := range said {
		if len(a.said) != 2 || a.said[1] != "again" {
			t.Errorf("replica %d said %q", i, a.said)
		}
	}
	restore()
	stopped("put back again")
}

// TestTwoReleasesOfOneGroup: they are judged one after the other, and one that fails does not undo the others.
func TestTwoReleasesOfOneGroup(t *testing.T) {
	s := &held{Store: memory.New()}
	k := open(t, s)
	put(t, k, "once", "value")
	put(t, k, "often", "value")
	hold := make(chan struct{})
	s.hold.Store(&hold)
	var done sync.WaitGroup
	var released, refused atomic.Int64
	once := uint64(1)
	ask := func(n uint64, limit *uint64, name string) {
		done.Go(func() {
			d := decision(n, name)
			d.Grants[0].Limit = limit
			secrets, r, err := k.Release(t.Context(), d)
			switch {
			case err == nil && len(secrets) == 1 && r.Checkpoint != nil:
				released.Add(1)
			case secrets == nil && attest.CodeOf(err) != "":
				refused.Add(1)
			default:
				t.Errorf("%v, %v", secrets, err)
			}
		})
	}
	for n := range uint64(8) {
		ask(2*n+1, &once, "once")
		ask(2*n+2, nil, "often")
	}
	ask(100, nil, "missing")
	s.hold.Store(nil)
	close(hold)
	done.Wait()
	if released.Load() != 9 || refused.Load() != 8 || count(t, k, "once") != 1 || count(t, k, "often") != 8 {
		t.Errorf("%d released, %d refused", released.Load(), refused.Load())
	}
}

// TestRestartedBrokerAsksItsWitness: the store was put back while the broker was down.
func TestRestartedBrokerAsksItsWitness(t *testing.T) {
	shared := memory.New()
	way := &rootkey.Process{}
	same := func(o *keystore.Options) { o.Root = way }
	folder := t.TempDir()
	k := open(t, shared, same)
	key, err := k.LogKey()
	if err != nil {
		t.Fatal(err)
	}
	witness := func() releaselog.Witness {
		w, err := releaselog.NewWitness(folder, key, nil)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	put(t, k, "once", "value")
	old := copied(t, shared)
	release(t, k, decision(1, "once"))
	if err := releaselog.Push(t.Context(), k.Prover(), witness()); err != nil {
		t.Fatal(err)
	}
	k.Close()

	restarted := open(t, old, same)
	restarted.Expect("folder")
	if _, _, err := restarted.Release(t.Context(), decision(2, "once")); err == nil {
		t.Error("released before the witness was asked")
	}
	restarted.Witnessed("folder", errors.New("it cannot be reached"))
	if restarted.Ready(t.Context()) == nil {
		t.Error("ready without the witness")
	}
	restarted.Witnessed("folder", releaselog.Push(t.Context(), restarted.Prover(), witness()))
	if err := restarted.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "an older state of the store was put back") {
		t.Errorf("%v", err)
	}
	if secrets, _, err := restarted.Release(t.Context(), decision(2, "once")); err == nil || secrets != nil {
		t.Error("released from an older state")
	}
	if err := os.Rename(filepath.Join(folder, "latest"), filepath.Join(folder, "latest.before")); err != nil {
		t.Fatal(err)
	}
	restarted.Witnessed("folder", releaselog.Push(t.Context(), restarted.Prover(), witness()))
	release(t, restarted, decision(2, "once"))
}

// copied is another memory with what a store has.
func copied(t *testing.T, s store.Store) store.Store {
	t.Helper()
	to := memory.New()
	for _, space := range []store.Space{"meta", "state", "value", "binder", "entry", "hash", "slot", "rootkey"} {
		var rows []store.Row
		err := s.View(t.Context(), func(r store.Reader) (err error) {
			rows, err = r.Scan(space, nil, nil, 1000)
			return err
		})
		if err == nil {
			err = to.Update(t.Context(), func(w store.Writer) error { return w.Put(space, rows...) })
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return to
}
