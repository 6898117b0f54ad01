package attack

import (
	"bufio"
	"context"
	"crypto/rand"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	modernc "modernc.org/sqlite"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store"
	"github.com/sesame-init/sesame/internal/broker/store/postgres"
	"github.com/sesame-init/sesame/internal/broker/store/sqlite"
	"github.com/sesame-init/sesame/internal/privatefile"
	"github.com/sesame-init/sesame/lab/powercut"
)

// A Fault is what is seeded into a broker, so that the judge has something to find.
type Fault string

// The faults.
const (
	None      Fault = ""
	Early     Fault = "early"     // a secret leaves before its commit
	NoSync    Fault = "no-sync"   // SQLite with synchronous=OFF
	Silent    Fault = "silent"    // a secret leaves without an entry
	Forgetful Fault = "forgetful" // the broker does not know what it has signed
	Foreign   Fault = "foreign"   // the policy gives the secret to an enclave that must not have it
	Greedy    Fault = "greedy"    // places are of one pool, and never given back
	Believing Fault = "believing" // an init that takes any broker
)

// A Place is where a victim's store is. One of SQLite and Postgres is set.
type Place struct {
	SQLite   string // file
	Postgres string // URL
	RootKey  string // file
}

// Open opens the keystore of a place. Close both, the keystore first.
func (p Place) Open(ctx context.Context) (*keystore.Keystore, io.Closer, error) {
	var s store.Store
	var err error
	if p.Postgres != "" {
		s, err = postgres.Open(ctx, p.Postgres)
	} else {
		s, err = sqlite.Open(ctx, p.SQLite, privatefile.Rule{})
	}
	if err != nil {
		return nil, nil, err
	}
	k, err := keystore.Open(ctx, keystore.Options{Store: s, Root: rootkey.File{Path: p.RootKey}})
	if err == nil {
		if err = k.Ready(ctx); err == nil {
			return k, s, nil
		}
		k.Close()
	}
	return nil, nil, errors.Join(err, s.Close())
}

const (
	sqliteEnv   = "SESAME_ATTACK_SQLITE"
	postgresEnv = "SESAME_ATTACK_POSTGRES"
	rootKeyEnv  = "SESAME_ATTACK_ROOT_KEY"
	faultEnv    = "SESAME_ATTACK_FAULT"

	secretName  = "known"
	secretValue = "attack-canary"
)

// Victim is the broker's process that is attacked, if this process was started as one; it does not return then. One that
// is killed releases until it ends and says so after each release: what it says has left the broker.
func Victim() {
	if places, err := strconv.Atoi(os.Getenv(targetEnv)); err == nil {
		if err := target(os.Stdin, os.Stdout, places); err != nil {
			fmt.Fprintln(os.Stderr, "target:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	at := Place{SQLite: os.Getenv(sqliteEnv), Postgres: os.Getenv(postgresEnv), RootKey: os.Getenv(rootKeyEnv)}
	if at.RootKey == "" {
		return
	}
	fmt.Fprintln(os.Stderr, "victim:", victim(at, Fault(os.Getenv(faultEnv))))
	os.Exit(1)
}

func victim(at Place, fault Fault) error {
	ctx := context.Background()
	if fault == NoSync {
		modernc.RegisterConnectionHook(func(c modernc.ExecQuerierContext, _ string) error {
			_, err := c.ExecContext(ctx, "PRAGMA synchronous=OFF", []driver.NamedValue{})
			return err
		})
	}
	k, _, err := at.Open(ctx)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	say := func(binder [32]byte, index int64) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf("released %x %d\n", binder, index)
	}
	failed := make(chan error, 8)
	for range 6 {
		go func() {
			for {
				var d broker.Decision
				_, _ = rand.Read(d.Binder[:])
				d.At, d.Workload = time.Now(), "victim"
				d.Grants = []broker.Grant{{Secret: secretName}}
				if fault == Early {
					say(d.Binder, -1)
				}
				secrets, r, err := k.Release(ctx, d)
				if err != nil || len(secrets) != 1 {
					failed <- fmt.Errorf("releasing: %w", err)
					return
				}
				if fault != Early {
					say(d.Binder, int64(r.Index))
				}
			}
		}()
	}
	return <-failed
}

// Prepare makes a place's keystore with the secret that victims release.
func (p Place) Prepare(ctx context.Context) error {
	k, s, err := p.Open(ctx)
	if err != nil {
		return err
	}
	_, err = k.Put(ctx, "attack", secretName, keystore.Value, attest.NewSecret([]byte(secretValue)))
	k.Close()
	return errors.Join(err, s.Close())
}

// run starts this program as a victim, calls enough once it has released so often, and returns, by binder, the index of
// all that it has said.
func (p Place) run(fault Fault, releases int, enough func(*os.Process)) (held map[string]int64, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), sqliteEnv+"="+p.SQLite, postgresEnv+"="+p.Postgres, rootKeyEnv+"="+p.RootKey, faultEnv+"="+string(fault))
	said := &limited{}
	cmd.Stderr = said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	held = map[string]int64{}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var binder string
		var index int64
		if n, _ := fmt.Sscanf(lines.Text(), "released %s %d", &binder, &index); n != 2 {
			continue // a line that the kill has cut off
		}
		held[binder] = index
		if len(held) == releases {
			enough(cmd.Process)
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	if len(held) < releases {
		return held, fmt.Errorf("the victim ended by itself after %d releases: %s", len(held), said.text)
	}
	return held, nil
}

// limited keeps the beginning of what is written.
type limited struct{ text []byte }

func (l *limited) Write(b []byte) (int, error) {
	l.text = append(l.text, b[:min(len(b), 2000-len(l.text))]...)
	return len(b), nil
}

// judge counts what clients hold and the log does not have, or not where the receipt says.
func (p Place) judge(ctx context.Context, held map[string]int64) (unlogged int, err error) {
	k, s, err := p.Open(ctx)
	if err != nil {
		return len(held), err
	}
	defer s.Close()
	defer k.Close()
	all, err := Entries(ctx, k)
	if err != nil {
		return len(held), err
	}
	indexes := map[string]int64{}
	for i, e := range all {
		if e.Kind == releaselog.Release {
			indexes[e.Binder] = int64(i)
		}
	}
	for binder, index := range held {
		if raw, err := hex.DecodeString(binder); err != nil || len(raw) != 32 {
			return unlogged, fmt.Errorf("the victim has said %q", binder)
		}
		if found, ok := indexes[binder]; !ok || index >= 0 && found != index {
			unlogged++
		}
	}
	return unlogged, nil
}

// Kill kills the keeper's process under load, again and again. The place is prepared.
func Kill(ctx context.Context, p Place, kills int, fault Fault) (f Figures, err error) {
	return p.storm(ctx, kills, fault, func(process *os.Process) { _ = process.Kill() })
}

// Restart restarts the database under load, again and again. The place is prepared.
func Restart(ctx context.Context, p Place, times int, fault Fault, restart func()) (f Figures, err error) {
	return p.storm(ctx, times, fault, func(process *os.Process) {
		restart()
		_ = process.Kill()
	})
}

// storm lets blow end a victim that is under load, again and again.
func (p Place) storm(ctx context.Context, blows int, fault Fault, blow func(*os.Process)) (f Figures, err error) {
	held := map[string]int64{}
	for i := range blows {
		if ctx.Err() != nil {
			return f, ctx.Err()
		}
		got, err := p.run(fault, 5+i%23, blow)
		for binder, index := range got {
			held[binder] = index
		}
		if err != nil {
			return f, err
		}
		f.Tried++
	}
	f.Served = len(held)
	f.Unlogged, err = p.judge(ctx, held)
	f.Refused = f.Tried
	return f, err
}

// Cut cuts the power under load, again and again. The disk is mounted in an empty folder; the root key is in keys. With
// [NoSync] a store that does not open any more is what was looked for, and ends it.
func Cut(ctx context.Context, mountpoint, keys string, cuts int, fault Fault, seed uint64) (f Figures, err error) {
	disk := powercut.New()
	chance := mathrand.New(mathrand.NewPCG(seed, 1))
	p := Place{SQLite: filepath.Join(mountpoint, "broker.db"), RootKey: filepath.Join(keys, "root.key")}
	powered := func(run func() error) error {
		unmount, err := disk.Mount(mountpoint)
		if err != nil {
			return err
		}
		err = run()
		return errors.Join(err, unmount())
	}
	if err := powered(func() error { return p.Prepare(ctx) }); err != nil {
		return f, err
	}
	held := map[string]int64{}
	for i := range cuts {
		if ctx.Err() != nil {
			return f, ctx.Err()
		}
		err := powered(func() error {
			got, err := p.run(fault, 5+i%23, func(*os.Process) { disk.Cut(chance, []float64{0, 0.5, 0.9}[i%3]) })
			for binder, index := range got {
				held[binder] = index
			}
			return err
		})
		if err != nil && fault == NoSync {
			break
		}
		if err != nil {
			return f, fmt.Errorf("cut %d: %w", i, err)
		}
		f.Tried++
	}
	f.Served, f.Refused = len(held), f.Tried
	err = powered(func() (err error) {
		f.Unlogged, err = p.judge(ctx, held)
		return err
	})
	if fault == NoSync && f.Unlogged > 0 {
		err = nil // a broken store has lost all
	}
	return f, err
}
