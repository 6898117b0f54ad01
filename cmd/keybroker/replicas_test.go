package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/internal/broker/admin"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/admintest"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/postgrestest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// replicas are two brokers in enclaves on two processors: two processes with one policy and one database.
type replicas struct {
	t        *testing.T
	platform *softsgx.Platform
	dir      string // of the administrator, beside those of the two
	sesame   string // program
	alice    tls.Certificate
	logKey   string        // of the release log, once it is known
	log      note.Verifier // made of it
	all      [2]*replica
}

// replica is one of them.
type replica struct {
	*process
	of      *replicas
	context string // file for the administrator's program

	released chan string // evidence of a release
	failed   atomic.Int64
}

// door is an address that stays the same, for connections to a broker, once it is known, whose own changes with every
// start.
func door(t *testing.T) (address string, broker *atomic.Pointer[process]) {
	t.Helper()
	broker = &atomic.Pointer[process]{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var through sync.WaitGroup
	through.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", broker.Load().lifetime.Load().session)
			if err != nil {
				_ = in.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
				through.Go(func() {
					_, _ = io.Copy(way[0], way[1])
					_ = way[0].Close()
					_ = way[1].Close()
				})
			}
		}
	})
	t.Cleanup(func() { // the brokers have ended
		_ = l.Close()
		through.Wait()
	})
	return l.Addr().String(), broker
}

func newReplicas(t *testing.T, database string) *replicas {
	r := &replicas{t: t, platform: brokertest.Platform(t, softsgx.Options{Now: time.Now()}), dir: t.TempDir(),
		alice: admintest.Administrator(t, "alice")}
	r.sesame = r.path("sesame")
	if out, err := exec.Command("go", "build", "-o", r.sesame, "../sesame").CombinedOutput(); err != nil {
		t.Fatalf("building sesame: %v\n%s", err, out)
	}
	if err := r.platform.Save(r.path("platform")); err != nil {
		t.Fatal(err)
	}
	if err := pccs.WriteDir(r.path("collateral"), r.platform.Collateral()); err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(r.alice.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"alice.crt": {Type: "CERTIFICATE", Bytes: r.alice.Certificate[0]}, "alice.key": {Type: "PRIVATE KEY", Bytes: key},
		"root_ca.pem": {Type: "CERTIFICATE", Bytes: r.platform.RootCA().Raw},
	} {
		write(t, r.path(name), string(pem.EncodeToMemory(block)))
	}
	b := brokertest.Broker()
	write(t, r.path("broker.yaml"), fmt.Sprintf("sgx: [{mr_enclave: %x}]\n", b.MREnclave))
	first, behind := door(t)
	policy := r.policy(1, bb, database, first)
	for i := range r.all {
		dir := r.path(fmt.Sprintf("replica%d", i))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, policyName), policy)
		r.all[i] = &replica{of: r, process: newProcess(t, dir, fmt.Sprintf("%d %s", i+1, r.path("platform"))),
			context: r.path(fmt.Sprintf("context%d.yaml", i)), released: make(chan string)}
	}
	behind.Store(r.all[0].process)
	for version := 2; version <= 4; version++ {
		write(t, r.path(fmt.Sprintf("pushed%d.yaml", version)), r.policy(version, aa, database, first))
	}
	return r
}

func (r *replicas) path(name string) string { return filepath.Join(r.dir, name) }

// policy is the brokers' own, for a workload of a measurement.
func (r *replicas) policy(version int, measurement, database, first string) string {
	b := brokertest.Broker()
	text := policyFor(r.platform, r.dir, version, measurement, fmt.Sprintf(
		"broker:\n  store: {postgres: %q}\n  root_key: {sealed: true, replicas: [%q]}\n%s", database, first, administeredBy(r.alice)))
	return strings.Replace(text, "secrets:\n",
		fmt.Sprintf("  replica: {broker: true, versions: [{sgx: [{mr_enclave: %x}]}]}\nsecrets:\n", b.MREnclave), 1)
}

// start starts one replica, and writes its address for administrators.
func (r *replica) start() {
	r.t.Helper()
	r.process.start()
	write(r.t, r.context, fmt.Sprintf("broker: %s\npolicy: broker.yaml\nroot_ca: root_ca.pem\ncert: alice.crt\nkey: alice.key\n",
		r.lifetime.Load().admin))
}

// run runs the administrator's program on one replica and returns what it prints.
func (r *replica) run(stdin string, args ...string) string {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), r.of.sesame, args...)
	cmd.Dir, cmd.Env, cmd.Stdin = r.of.dir, append(os.Environ(), "SESAME_CONTEXT="+r.context), strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("sesame %s: %v\n%s\n%s", args, err, out, r.out)
	}
	return string(out)
}

// fetch runs one session of a workload, checks its receipt and returns the digest of the evidence that it was for.
func (r *replica) fetch(ctx context.Context) (string, error) {
	now := r.alive(ctx)
	evidence := &noting{Attester: r.of.platform.Attester(brokertest.Workload())}
	err := fetchKey(ctx, now, grpcratls.Config{Pause: 10 * time.Millisecond, Attester: evidence, Verifier: brokertest.Verifier(r.of.platform),
		Policy: brokertest.BrokerPolicy(), Log: r.of.log})
	return evidence.last, err
}

func (r *replica) dial(ctx context.Context) (*admin.Client, error) {
	return r.alive(ctx).dial(ctx, r.of.alice,
		session.ClientConfig{Verifier: brokertest.Verifier(r.of.platform), Policy: brokertest.BrokerPolicy()})
}

// accepts puts a secret, and says whether the broker has confirmed it.
func (r *replica) accepts(ctx context.Context, name string) bool {
	client, err := r.dial(ctx)
	if err != nil {
		return false
	}
	defer client.Close()
	return put(ctx, client, name) == nil
}

// load fetches from one replica until ctx ends.
func (r *replica) load(ctx context.Context) {
	for ctx.Err() == nil {
		evidence, err := r.fetch(ctx)
		if err != nil {
			if ctx.Err() == nil {
				r.failed.Add(1)
			}
			continue
		}
		r.released <- evidence
	}
}

// verified is how many entries sesame log verify says it has verified, -1 if it does not say so.
func verified(said string) int {
	found := regexp.MustCompile(`all (\d+) entries`).FindStringSubmatch(said)
	if found == nil {
		return -1
	}
	n, err := strconv.Atoi(found[1])
	if err != nil {
		return -1
	}
	return n
}

// TestTwoReplicasOfADatabaseServeAsOne: what an administrator gives to one of two brokers the other has without a
// restart; one goes on when the other is killed; both come back from a restart of the database, an orderly one and a
// crash; and whatever happened, each release is in the one log, which either of them proves whole.
func TestTwoReplicasOfADatabaseServeAsOne(t *testing.T) {
	testenv.Long(t, "restarts a database twice")
	server := postgrestest.Start(t)
	r := newReplicas(t, server.URL())
	a, b := r.all[0], r.all[1]
	a.start()
	b.start() // on another processor: what is sealed there opens nothing here
	b.out.wait(t, "unlocked by another replica")
	r.logKey = regexp.MustCompile(`log key (\S+)`).FindStringSubmatch(a.run("", "rootkey", "list"))[1]
	var err error
	if r.log, err = note.NewVerifier(r.logKey); err != nil {
		t.Fatal(err)
	}

	a.run(canary, "secret", "put", "image_key", "--stdin")
	if !strings.Contains(b.run("", "secret", "list"), "image_key") {
		t.Error("the other replica does not list the secret")
	}
	for _, one := range r.all {
		if _, err := one.fetch(t.Context()); attest.CodeOf(err) != attest.CodeDenied {
			t.Errorf("before the policy: %v", err)
		}
	}
	a.run("", "policy", "push", "pushed2.yaml")
	for _, one := range r.all {
		one.out.wait(t, "version=2")
		if _, err := one.fetch(t.Context()); err != nil {
			t.Fatalf("with the policy that was pushed: %v\n%s", err, one.out)
		}
	}
	a.run("", "log", "verify", "--save", "before")

	// Load, of which every release that a workload has seen is remembered.
	ctx, cancel := context.WithCancel(t.Context())
	var running, counting sync.WaitGroup
	released := map[string]bool{}
	var accepted []string
	var mu sync.Mutex // of the two
	seen := map[*replica]chan struct{}{}
	for _, one := range r.all {
		seen[one] = make(chan struct{}, 1)
		for range 2 {
			running.Go(func() { one.load(ctx) })
		}
		counting.Go(func() {
			for evidence := range one.released {
				mu.Lock()
				released[evidence] = true
				mu.Unlock()
				select {
				case seen[one] <- struct{}{}:
				default:
				}
			}
		})
		running.Go(func() { // an administrator
			for ctx.Err() == nil {
				if name := "put-" + rand.Text(); one.accepts(ctx, name) {
					mu.Lock()
					accepted = append(accepted, name)
					mu.Unlock()
				}
			}
		})
	}
	// goesOn waits until a replica releases to sessions that have begun since.
	goesOn := func(when string, all ...*replica) {
		t.Helper()
		late := time.After(60 * time.Second)
		for _, one := range all {
			for range 5 { // one may wait in seen, and two are under way
				select {
				case <-seen[one]:
				case <-late:
					t.Fatalf("%s: nothing more is released\n%s", when, one.out)
				}
			}
		}
	}
	goesOn("at first", a, b)
	for _, kill := range []struct{ dead, left *replica }{{a, b}, {b, a}, {a, b}} {
		failed := kill.left.failed.Load()
		kill.dead.stop(syscall.SIGKILL)
		goesOn("while the other is dead", kill.left)
		if n := kill.left.failed.Load() - failed; n != 0 {
			t.Errorf("%d sessions failed because another replica was killed", n)
		}
		kill.dead.start()
		goesOn("after one was killed", kill.dead)
	}
	for i, way := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT} {
		server.Stop(way)
		server.Run()
		goesOn("after the database has ended by "+way.String(), a, b)
		b.run("", "policy", "push", fmt.Sprintf("pushed%d.yaml", 3+i))
		a.out.wait(t, fmt.Sprintf("version=%d", 3+i)) // it is notified again
	}
	cancel()
	running.Wait()
	for _, one := range r.all {
		close(one.released)
	}
	counting.Wait()

	var logs [2][]*releaselog.Entry
	for i, one := range r.all {
		client, err := one.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		logs[i] = entries(t, client)
		client.Close()
	}
	recorded := map[string]bool{}
	for i, e := range logs[0] {
		if i < len(logs[1]) && e.Time != logs[1][i].Time {
			t.Fatalf("entry %d differs between the replicas", i)
		}
		if e.Kind == releaselog.Release {
			recorded[e.Evidence] = true
		}
	}
	for evidence := range released {
		if !recorded[evidence] {
			t.Error("a secret was released without its entry")
		}
	}
	for _, one := range r.all {
		list := one.run("", "secret", "list")
		for _, name := range accepted {
			if !strings.Contains(list, name) {
				t.Errorf("accepted secret %s is lost", name)
			}
		}
		// A session that was given up may still be recorded: the log is at least as long as when it was read.
		whole := one.run("", "log", "verify", "--log-key", r.logKey)
		if n := verified(whole); n < len(logs[0]) || n < len(logs[1]) {
			t.Errorf("log verify says %s, not at least %d and %d entries", whole, len(logs[0]), len(logs[1]))
		}
	}
	if since := b.run("", "log", "verify", "--since", "before", "--log-key", r.logKey); !strings.Contains(since, "continues the one of") {
		t.Errorf("what one has signed and the other continues: %s", since)
	}
	t.Logf("%d releases seen of %d recorded, %d secrets accepted, %d and %d sessions failed meanwhile", len(released), len(recorded),
		len(accepted), a.failed.Load(), b.failed.Load())
	if len(accepted) == 0 {
		t.Error("too little happened for the test to mean anything")
	}
	for _, one := range r.all {
		if strings.Contains(one.out.String(), canary) {
			t.Error("a log holds a secret")
		}
	}
	if n := strings.Count(b.out.String(), "unlocked by another replica"); n != 1 {
		t.Errorf("the second replica was unlocked %d times by the first: it has not sealed the root key for its own processor", n)
	}
}
