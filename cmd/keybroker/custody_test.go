package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/internal/broker/admin"
	"github.com/sesame-init/sesame/internal/broker/admin/adminpb"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/admintest"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

const canary = "canary-77e0-custody"

// custody is a broker outside an enclave that runs as a process of its own, with a store, administrators, and a workload.
type custody struct {
	*process
	platform *softsgx.Platform
	alice    tls.Certificate
	pin      []byte
}

// newCustody makes the broker's folder. rootKey is how it finds the root key: lines of the policy.
func newCustody(t *testing.T, rootKey string) *custody { return custodyOf(t, rootKey, true) }

func custodyOf(t *testing.T, rootKey string, witnessed bool) *custody {
	platform := brokertest.Platform(t, softsgx.Options{Now: time.Now()})
	dir := folder(t, platform)
	c := &custody{process: newProcess(t, dir, "bare"), platform: platform, alice: admintest.Administrator(t, "alice")}
	settings := fmt.Sprintf("broker:\n  store: {sqlite: %q}\n%s", filepath.Join(dir, "broker.db"), rootKey)
	if witnessed {
		settings += fmt.Sprintf("  witnesses: {at: [%q]}\n", filepath.Join(dir, "witness"))
	}
	settings += administeredBy(c.alice)
	if err := os.Mkdir(filepath.Join(dir, "witness"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, policyName), policyFor(platform, dir, 1, aa, settings))
	c.pin = pin(t, dir)
	return c
}

// keyFile is the policy line for a root key in the working folder.
const keyFile = "  root_key: {file: root.key}\n"

// administeredBy is the block admin of a policy.
func administeredBy(who tls.Certificate) string {
	root := strings.ReplaceAll(strings.TrimSpace(string(pem.EncodeToMemory(
		&pem.Block{Type: "CERTIFICATE", Bytes: who.Certificate[0]}))), "\n", "\n        ")
	return "  admin:\n    listen: 127.0.0.1:0\n    roots:\n      - |\n        " + root + "\n"
}

func (c *custody) dial(ctx context.Context) (*admin.Client, error) {
	return c.alive(ctx).dial(ctx, c.alice, session.ClientConfig{BrokerKey: c.pin})
}

func (c *custody) put(ctx context.Context, name string) error {
	client, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	return put(ctx, client, name)
}

// noting remembers the digest of the evidence that it has made last. It is of one client.
type noting struct {
	attest.Attester
	last string
}

// Evidence implements [attest.Attester].
func (n *noting) Evidence(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	e, err := n.Attester.Evidence(ctx, data)
	sum := sha256.Sum256(e.Raw)
	n.last = hex.EncodeToString(sum[:])
	return e, err
}

// fetch runs one session and returns the digest of the evidence that it was for.
func (c *custody) fetch(ctx context.Context) (string, error) {
	evidence := &noting{Attester: c.platform.Attester(brokertest.Workload())}
	now := c.alive(ctx)
	err := fetchKey(ctx, now, grpcratls.Config{Pause: 10 * time.Millisecond, Attester: evidence, BrokerKey: c.pin})
	return evidence.last, err
}

// fetchKey fetches the image key in one session with a process while that lives, and compares it. c says who asks and
// what the broker must be.
func fetchKey(ctx context.Context, from *lifetime, c grpcratls.Config) error {
	c.Servers, c.Protocol, c.Pause = []string{from.session}, grpcratls.SessionV1, 5*time.Millisecond
	client, err := grpcratls.New(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	defer context.AfterFunc(from, cancel)()
	got, err := client.Fetch(ctx, []string{"image_key"})
	if err == nil && string(got["image_key"].Expose()) != canary {
		err = fmt.Errorf("another value")
	}
	return err
}

// entries reads the log.
func entries(t *testing.T, client *admin.Client) (all []*releaselog.Entry) {
	t.Helper()
	for {
		page, err := client.ReadLog(t.Context(), &adminpb.ReadLogRequest{From: int64(len(all)), Limit: 256})
		if err != nil {
			t.Fatal(err)
		}
		if len(page.GetEntries()) == 0 {
			return all
		}
		for _, text := range page.GetEntries() {
			e, err := releaselog.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, e)
		}
	}
}

// TestKilledAHundredTimesItReleasesNothingWithoutItsEntry kills the broker while workloads fetch and an administrator
// puts secrets. lab/attack runs it, too: with a number of kills of its own, and with a store that was put back while the
// broker was down and a broker without a witness, which the test must find.
func TestKilledAHundredTimesItReleasesNothingWithoutItsEntry(t *testing.T) {
	kills := testenv.Effort(100, 3)
	wanted := os.Getenv("SESAME_ATTACK_KILLS")
	if wanted != "" {
		var err error
		if kills, err = strconv.Atoi(wanted); err != nil {
			t.Fatal(err)
		}
	}
	forgetful := os.Getenv("SESAME_ATTACK_FAULT") == "forgetful"
	c := custodyOf(t, keyFile, !forgetful)
	c.start()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := c.put(ctx, "image_key"); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var released, accepted []string
	progress := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for ctx.Err() == nil {
				evidence, err := c.fetch(ctx)
				if err != nil {
					continue // it was killed meanwhile
				}
				mu.Lock()
				released = append(released, evidence)
				mu.Unlock()
				select {
				case progress <- struct{}{}:
				case <-ctx.Done():
				}
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			name := "put-" + rand.Text()
			if err := c.put(ctx, name); err == nil {
				mu.Lock()
				accepted = append(accepted, name)
				mu.Unlock()
			}
		}
	})
	file := filepath.Join(c.dir, "broker.db")
	first, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := range kills {
		for range 1 + i%3 {
			<-progress
		}
		c.stop(syscall.SIGKILL)
		if forgetful {
			_ = os.Remove(file + "-journal")
			if err := os.WriteFile(file, first, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c.start()
	}
	cancel()
	wg.Wait()
	client, err := c.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	recorded := map[string]bool{}
	for _, e := range entries(t, client) {
		if e.Kind == releaselog.Release {
			recorded[e.Evidence] = true
		}
	}
	unlogged := 0
	for _, evidence := range released {
		if !recorded[evidence] {
			unlogged++
		}
	}
	if unlogged > 0 {
		t.Errorf("%d secrets were released without their entries", unlogged)
	}
	if wanted != "" {
		fmt.Printf("attack: killed %d served %d unlogged %d\n", kills, len(released), unlogged)
	}
	list, err := client.ListSecrets(t.Context(), &adminpb.ListSecretsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, s := range list.GetSecrets() {
		there[s.GetName()] = true
	}
	for _, name := range accepted {
		if !there[name] {
			t.Errorf("accepted secret %s is lost", name)
		}
	}
	t.Logf("%d kills, %d releases seen of %d recorded, %d secrets accepted", kills, len(released), len(recorded), len(accepted))
	if len(released) < kills || len(accepted) == 0 {
		t.Error("too little happened for the test to mean anything")
	}
}

// letDumpCore lets processes that this test starts dump core if nothing else keeps them from it.
func letDumpCore(t *testing.T) {
	t.Helper()
	t.Setenv("GOTRACEBACK", "crash") // else Go ends without a signal
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &before); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{Cur: before.Max, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Setrlimit(syscall.RLIMIT_CORE, &before) })
}

// TestNoSecretLeavesButToWorkloads looks for a secret wherever else one could leave.
func TestNoSecretLeavesButToWorkloads(t *testing.T) {
	letDumpCore(t)
	c := newCustody(t, keyFile)
	c.start()
	if err := c.put(t.Context(), "image_key"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	twice := c.put(t.Context(), "image_key")
	if attest.CodeOf(twice) != attest.CodeConfig {
		t.Errorf("putting it twice: %v", twice)
	}
	stranger := brokertest.Workload()
	stranger.MREnclave[0] ^= 1
	client, err := grpcratls.New(grpcratls.Config{Pause: 10 * time.Millisecond, Servers: []string{c.lifetime.Load().session}, Protocol: grpcratls.SessionV1,
		Attester: c.platform.Attester(stranger), BrokerKey: c.pin})
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.ReadFile(filepath.Join(c.dir, "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.Fetch(t.Context(), []string{"image_key"})
	if attest.CodeOf(err) != attest.CodeDenied {
		t.Errorf("a stranger: %v", err)
	}
	said := fmt.Appendf(nil, "%v %+v %s %v %+v %s", twice, twice, attest.HintOf(twice), err, err, attest.HintOf(err))
	for _, name := range []string{"cmdline", "environ"} {
		files, _ := filepath.Glob("/proc/[0-9]*/" + name)
		for _, file := range files { // the broker's own are among them; others may have ended
			text, err := os.ReadFile(file)
			if err != nil && strings.HasPrefix(file, fmt.Sprintf("/proc/%d/", c.cmd.Process.Pid)) {
				t.Fatal(err)
			}
			said = append(said, text...)
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", c.cmd.Process.Pid))
	if err != nil || !regexp.MustCompile(`Max core file size +1 +1 `).Match(limits) {
		t.Errorf("it may write a core file: %v\n%s", err, limits)
	}
	answer, err := http.Get("http://" + c.lifetime.Load().http + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	metrics, err := io.ReadAll(answer.Body)
	_ = answer.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	cmd := c.cmd
	c.stop(syscall.SIGABRT) // which prints all stacks, and would dump core
	if end := cmd.ProcessState.Sys().(syscall.WaitStatus); end.Signal() != syscall.SIGABRT || end.CoreDump() {
		t.Errorf("it ended by %v, core dumped: %t", end.Signal(), end.CoreDump())
	}
	said = append(append(said, metrics...), c.out.String()...)
	files := 0
	err = filepath.Walk(c.dir, func(name string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() || strings.HasSuffix(name, "root.key") || strings.HasSuffix(name, "broker.key") {
			return err
		}
		if strings.HasPrefix(filepath.Base(name), "core") {
			t.Errorf("there is a core file")
		}
		files++
		text, err := os.ReadFile(name)
		said = append(said, text...)
		return err
	})
	if err != nil || files < 4 || len(said) < 10_000 {
		t.Fatalf("%d files with %d bytes: %v", files, len(said), err)
	}
	for what, value := range map[string][]byte{"the secret": []byte(canary), "the root key": bytes.TrimSpace(root)} {
		if bytes.Contains(said, value) {
			t.Errorf("%s is to be read outside of the broker", what)
		}
	}
	if found, _ := filepath.Glob(filepath.Join(c.dir, "witness", "latest")); len(found) != 1 {
		t.Error("the witness was told nothing")
	}
}

// TestLockedBrokerIsAliveAndSaysThatItIsLocked to an orchestrator that would restart it for not answering.
func TestLockedBrokerIsAliveAndSaysThatItIsLocked(t *testing.T) {
	c := newCustody(t, "") // only an operator has the root key
	l, said := c.launch()
	ask := func(path string) (int, string) {
		t.Helper()
		answer, err := http.Get("http://" + l.http + path)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(text)
	}
	if code, text := ask("/healthz"); code != http.StatusOK {
		t.Errorf("alive: %d %s", code, text)
	}
	if code, text := ask("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(text, `"keeper":"locked: `) {
		t.Errorf("ready: %d %s", code, text)
	}
	if _, text := ask("/metrics"); !strings.Contains(text, `sesame_broker_ready{condition="keeper"} 0`) {
		t.Errorf("metrics:\n%s", text)
	}
	if strings.Contains(c.out.String(), "Server listening") {
		t.Error("it serves workloads, and is locked")
	}
	client, err := l.dial(t.Context(), c.alice, session.ClientConfig{BrokerKey: c.pin})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Unlock(t.Context(), &adminpb.UnlockRequest{
		By: &adminpb.UnlockRequest_Passphrase{Passphrase: []byte("seven random words of an operator")}}); err != nil {
		t.Fatal(err)
	}
	said.find(t, servingSessions)
	if code, text := ask("/readyz"); code != http.StatusOK || strings.Contains(text, "locked") {
		t.Errorf("after it was unlocked: %d %s", code, text)
	}
	if _, text := ask("/metrics"); !strings.Contains(text, `sesame_broker_ready{condition="keeper"} 1`) {
		t.Errorf("metrics after it was unlocked:\n%s", text)
	}
}
