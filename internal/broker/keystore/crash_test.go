package keystore_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store/sqlite"
	"github.com/sesame-init/sesame/internal/privatefile"
	"github.com/sesame-init/sesame/internal/testenv"
)

// victimEnv makes the test's program the one that is killed: it names the store's folder.
const victimEnv = "SESAME_TEST_KEYSTORE_VICTIM"

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimEnv); dir != "" {
		fmt.Fprintln(os.Stderr, victim(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func openFile(ctx context.Context, dir string) (*keystore.Keystore, io.Closer, error) {
	s, err := sqlite.Open(ctx, filepath.Join(dir, "broker.db"), privatefile.Rule{})
	if err != nil {
		return nil, nil, err
	}
	k, err := keystore.Open(ctx, keystore.Options{Store: s, Root: rootkey.File{Path: filepath.Join(dir, "root.key")}})
	if err == nil {
		err = k.Ready(ctx)
	}
	if err != nil {
		return nil, nil, err
	}
	return k, s, nil
}

// victim releases and accepts secrets until it is killed, and says so after each: who reads a line knows that it left
// the broker.
func victim(dir string) error {
	ctx := context.Background()
	k, _, err := openFile(ctx, dir)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	failed := make(chan error, 10)
	for worker := range 6 {
		go func() {
			for {
				var d broker.Decision
				_, _ = rand.Read(d.Binder[:])
				d.At, d.Workload = time.Now(), "victim"
				d.Grants = []broker.Grant{{Secret: "known"}}
				if worker == 0 {
					name := "put-" + rand.Text()
					if _, err := k.Put(ctx, "victim", name, keystore.Value, attest.NewSecret([]byte(name))); err != nil {
						failed <- err
						return
					}
					say("put %s", name)
					if err := k.Delete(ctx, "victim", name); err != nil { // the catalog stays small
						failed <- err
						return
					}
					continue
				}
				secrets, r, err := k.Release(ctx, d)
				if err != nil || len(secrets) != 1 {
					failed <- fmt.Errorf("releasing: %w", err)
					return
				}
				say("released %x %d", d.Binder, r.Index)
			}
		}()
	}
	return <-failed
}

// TestBrokerKilledAHundredTimes kills it in the middle of its work, mostly in the middle of a commit.
func TestBrokerKilledAHundredTimes(t *testing.T) {
	kills := testenv.Effort(100, 5)
	dir := t.TempDir()
	ctx := t.Context()
	k, s, err := openFile(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	put(t, k, "known", "value")
	k.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	released := map[string]string{} // binder: index
	puts := map[string]bool{}
	for i := range kills {
		lines := killed(t, dir, 5+i%23)
		for _, line := range lines {
			var binder, index, name string
			if n, _ := fmt.Sscanf(line, "released %s %s", &binder, &index); n == 2 {
				released[binder] = index
			} else if n, _ := fmt.Sscanf(line, "put %s", &name); n == 1 {
				puts[name] = true
			}
		}
	}
	if k, s, err = openFile(ctx, dir); err != nil {
		t.Fatalf("the store does not open after it: %v", err)
	}
	defer s.Close()
	defer k.Close()
	all := entries(t, k) // and they are what is signed
	recorded, counted := 0, uint64(0)
	for i, e := range all {
		switch {
		case e.Kind == releaselog.Release:
			counted++
			if index, ok := released[e.Binder]; ok && index == fmt.Sprint(i) {
				recorded++
			}
		case e.Admin != nil && e.Admin.Action == "secret.put":
			name, _, _ := strings.Cut(strings.TrimPrefix(e.Admin.Detail, "secret "), ",")
			delete(puts, name)
		}
	}
	if recorded != len(released) {
		t.Errorf("of %d secrets that were released %d have their entry", len(released), recorded)
	}
	if len(puts) != 0 {
		t.Errorf("%d accepted secrets are lost", len(puts))
	}
	if n := count(t, k, "known"); n != counted {
		t.Errorf("%d releases counted, %d recorded", n, counted)
	}
	t.Logf("%d kills, %d entries, %d releases seen", kills, len(all), len(released))
	if len(released) < kills {
		t.Error("too few releases for the test to mean anything")
	}
	var d broker.Decision // one that was recorded is still answered
	for binder, index := range released {
		raw, _ := hex.DecodeString(binder)
		copy(d.Binder[:], raw)
		d.Grants = []broker.Grant{{Secret: "known"}}
		if values, r := release(t, k, d); values[0] != "value" || fmt.Sprint(r.Index) != index {
			t.Errorf("entry %s became %d", index, r.Index)
		}
		break
	}
}

// killed runs the victim until it has said so many lines, kills it, and returns all that it said.
func killed(t *testing.T, dir string, lines int) (said []string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	scan := bufio.NewScanner(out)
	for scan.Scan() {
		said = append(said, scan.Text())
		if len(said) == lines {
			_ = cmd.Process.Kill()
		}
	}
	_ = cmd.Wait()
	if len(said) < lines {
		t.Fatalf("the broker ended by itself after %d lines", len(said))
	}
	return said
}
