package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/privatefile"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// buffer is a log that several goroutines write to, and that tells when it says something.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
	on chan struct{}
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.on != nil {
		close(b.on)
		b.on = nil
	}
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) wait(t *testing.T, text string) {
	t.Helper()
	b.find(t, regexp.MustCompile(regexp.QuoteMeta(text)))
}

// find waits for a match and returns its last group.
func (b *buffer) find(t *testing.T, pattern *regexp.Regexp) string {
	t.Helper()
	late := time.After(30 * time.Second)
	for {
		b.mu.Lock()
		if b.on == nil {
			b.on = make(chan struct{})
		}
		on, said := b.on, b.b.String()
		b.mu.Unlock()
		if m := pattern.FindStringSubmatch(said); m != nil {
			return m[len(m)-1]
		}
		select {
		case <-on:
		case <-late:
			t.Fatalf("the log does not say %q:\n%s", pattern, said)
		}
	}
}

// running is a broker that runs in this process.
type running struct {
	address, http string
	log           *buffer
	hangup        chan os.Signal
	ticks         chan time.Time
	pin           []byte
}

func run(t *testing.T, here place, dir string, args ...string) *running {
	t.Helper()
	r := &running{log: &buffer{}, hangup: make(chan os.Signal), ticks: make(chan time.Time)}
	out, stdout := io.Pipe()
	c := command{folder: dir, place: here, hangup: r.hangup, ticks: r.ticks, stdout: stdout, stderr: r.log}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	go func() {
		ended <- c.run(ctx, append(args, "--http", "127.0.0.1:0", "127.0.0.1:0"), "")
		_ = stdout.Close()
	}()
	t.Cleanup(func() {
		cancel()
		if code := <-ended; code != 0 {
			t.Errorf("exit code %d\n%s", code, r.log)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	m := servingSessions.FindStringSubmatch(line)
	if err != nil || m == nil {
		t.Fatalf("standard output is %q, %v\n%s", line, err, r.log)
	}
	r.address, r.http = m[1], r.log.find(t, servingHTTP)
	if m := regexp.MustCompile(`broker_key[\\" :]+([0-9a-f]{64})`).FindStringSubmatch(r.log.String()); m != nil {
		r.pin, _ = hex.DecodeString(m[1])
	}
	return r
}

const (
	aa       = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	bb       = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	imageKey = "canary-4f1c-image-key"
)

// policyFor is a policy that trusts a platform, whose collateral is in dir.
func policyFor(platform *softsgx.Platform, dir string, version int, measurement, settings string) string {
	root := strings.ReplaceAll(strings.TrimSpace(string(pem.EncodeToMemory(
		&pem.Block{Type: "CERTIFICATE", Bytes: platform.RootCA().Raw}))), "\n", "\n      ")
	return fmt.Sprintf(`version: %d
trust:
  roots:
    - |
      %s
  collateral: {directory: %q}
workloads:
  demo: {versions: [{sgx: [{mr_enclave: %s}]}]}
secrets:
  image_key: {workloads: [demo]}
%s`, version, root, filepath.Join(dir, "collateral"), measurement, settings)
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func fetch(t *testing.T, c grpcratls.Config) (string, error) {
	t.Helper()
	c.Protocol, c.Pause = grpcratls.SessionV1, time.Millisecond
	client, err := grpcratls.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	got, err := client.Fetch(ctx, []string{"image_key"})
	if err != nil {
		return "", err
	}
	return string(got["image_key"].Expose()), nil
}

func TestOutsideAnEnclaveItIsKnownByItsKeyAndFollowsItsPolicyFile(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{Now: time.Now()})
	dir := folder(t, platform)
	file := filepath.Join(dir, "rules.yaml")
	write(t, file, policyFor(platform, dir, 1, aa, ""))
	args := []string{"--policy", file, "--secrets", filepath.Join(dir, broker.SecretsFile)}
	r := run(t, place{name: "bare"}, dir, args...)
	if len(r.pin) != 32 {
		t.Fatalf("it does not print its key:\n%s", r.log)
	}
	client := grpcratls.Config{
		Pause:   10 * time.Millisecond,
		Servers: []string{r.address}, Attester: platform.Attester(brokertest.Workload()), BrokerKey: r.pin,
	}
	if got, err := fetch(t, client); got != imageKey {
		t.Errorf("pinned: %v\n%s", err, r.log)
	}
	wrong := client
	wrong.BrokerKey = bytes.Repeat([]byte{1}, 32)
	if _, err := fetch(t, wrong); attest.CodeOf(err) != attest.CodePolicy || !strings.Contains(err.Error(), "its key is") {
		t.Errorf("another pin: %v", err)
	}
	unpinned := grpcratls.Config{
		Pause:   10 * time.Millisecond,
		Servers: client.Servers, Attester: client.Attester, Verifier: brokertest.Verifier(platform), Policy: brokertest.BrokerPolicy(),
	}
	if _, err := fetch(t, unpinned); attest.CodeOf(err) != attest.CodePolicy || !strings.Contains(err.Error(), "outside an enclave") {
		t.Errorf("no pin: %v", err)
	}

	// A broken file changes nothing; a sound one decides at once, also after an ordinary change of the file.
	write(t, file, "version: 2\n")
	r.hangup <- syscall.SIGHUP
	r.log.wait(t, "the policy stays as it is, version 1")
	if got, err := fetch(t, client); got != imageKey {
		t.Errorf("after a broken file: %v", err)
	}
	write(t, file, policyFor(platform, dir, 2, bb, ""))
	r.ticks <- time.Time{}
	r.ticks <- time.Time{}
	r.log.wait(t, "new policy in force: workloads.demo changed")
	if _, err := fetch(t, client); attest.CodeOf(err) != attest.CodeDenied || !strings.Contains(err.Error(), "mr_enclave") {
		t.Errorf("after the measurement was taken out: %v", err)
	}
	write(t, file, policyFor(platform, dir, 3, aa, "broker: {limits: {sessions: 3}}"))
	r.hangup <- syscall.SIGHUP
	r.log.wait(t, "the block broker differs")

	// The key stays the same over restarts.
	write(t, file, policyFor(platform, dir, 3, aa, ""))
	if again := run(t, place{name: "bare"}, dir, args...); !bytes.Equal(again.pin, r.pin) {
		t.Error("another key after a restart")
	}
	if strings.Contains(r.log.String(), "canary") {
		t.Errorf("the log holds a secret:\n%s", r.log)
	}
}

func TestOperatorsSeeStateAndFiguresButNoSecret(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{Now: time.Now()})
	dir := folder(t, platform)
	write(t, filepath.Join(dir, policyName), policyFor(platform, dir, 7, aa, ""))
	r := run(t, place{name: "bare"}, dir, "--secrets", filepath.Join(dir, broker.SecretsFile), "--log-format", "json")
	client := grpcratls.Config{Pause: 10 * time.Millisecond, Servers: []string{r.address}, Attester: platform.Attester(brokertest.Workload()), BrokerKey: pin(t, dir)}
	if got, err := fetch(t, client); got != imageKey {
		t.Fatal(err)
	}
	client.Attester = platform.Attester(brokertest.Enclave(0xab, 1, 2))
	if _, err := fetch(t, client); err == nil {
		t.Fatal("another enclave has the secret")
	}
	for _, page := range []struct {
		path string
		want []string
	}{
		{"/healthz", []string{"ok"}},
		{"/readyz", []string{`"collateral":"ok"`, `"keeper":"ok"`, `"policy":"ok"`}},
		{"/metrics", []string{ // of readiness as it was last looked at
			`sesame_broker_releases_total{wire="session",workload="demo"} 1`, `sesame_broker_refusals_total{code="policy",wire="session"} 1`,
			`sesame_broker_policy_version 7`, `sesame_broker_ready{condition="collateral"} 1`, "sesame_broker_collateral_expiry_timestamp_seconds 1",
			"sesame_broker_session_seconds_count", "go_goroutines", "process_resident_memory_bytes",
		}},
	} {
		path := page.path
		answer, err := http.Get("http://" + r.http + path)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		for _, want := range page.want {
			if answer.StatusCode != 200 || !strings.Contains(string(text), want) {
				t.Errorf("%s: %d, without %q:\n%s", path, answer.StatusCode, want, text)
			}
		}
		if strings.Contains(string(text), "canary") || strings.Contains(string(text), "image_key") {
			t.Errorf("%s tells a secret or its name", path)
		}
	}
	// Collateral that is gone makes the broker unready, and its return ready again.
	if err := os.Rename(filepath.Join(dir, "collateral"), filepath.Join(dir, "gone")); err != nil {
		t.Fatal(err)
	}
	answer, err := http.Get("http://" + r.http + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("ready without collateral: %d", answer.StatusCode)
	}
	if !strings.Contains(r.log.String(), `"request":"`) || !strings.Contains(r.log.String(), `"mr_enclave":"aaaa`) {
		t.Errorf("the log is\n%s", r.log)
	}
}

func pin(t *testing.T, dir string) []byte {
	t.Helper()
	i, err := broker.OpenBareIdentity(filepath.Join(dir, "broker.key"), privatefile.Rule{})
	if err != nil {
		t.Fatal(err)
	}
	p := i.Pin()
	return p[:]
}

func TestInAnEnclaveOnlyThePinnedKeyChangesThePolicyAndVersionsRise(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{Now: time.Now()})
	dir := folder(t, platform)
	private, public, err := note.GenerateKey(rand.Reader, "policy.example")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	strangerKey, _, err := note.GenerateKey(rand.Reader, "policy.example")
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := note.NewSigner(strangerKey)
	if err != nil {
		t.Fatal(err)
	}
	settings := "broker: {policy_key: " + public + "}\n"
	write(t, filepath.Join(dir, policyName), policyFor(platform, dir, 5, bb, settings))
	signed := filepath.Join(t.TempDir(), "signed")
	put := func(s note.Signer, version int, measurement string) {
		text, err := note.Sign(&note.Note{Text: policyFor(platform, dir, version, measurement, settings)}, s)
		if err != nil {
			t.Fatal(err)
		}
		write(t, signed, string(text))
	}
	put(signer, 6, bb)
	here := inEnclave(func() (deviceAttester, error) { return enclave{platform.Attester(brokertest.Broker())}, nil })
	r := run(t, here, dir, "--signed-policy", signed)
	client := grpcratls.Config{
		Pause:   10 * time.Millisecond,
		Servers: []string{r.address}, Attester: platform.Attester(brokertest.Workload()),
		Verifier: brokertest.Verifier(platform), Policy: brokertest.BrokerPolicy(),
	}
	denied := func(when string) {
		t.Helper()
		if _, err := fetch(t, client); attest.CodeOf(err) != attest.CodeDenied {
			t.Errorf("%s: %v\n%s", when, err, r.log)
		}
	}
	r.log.wait(t, "policy=6") // the signed one, not the measured one of version 5
	denied("at first")
	// The host edits the measured file's copy: nothing happens, whatever it asks for.
	write(t, filepath.Join(dir, policyName), policyFor(platform, dir, 9, aa, settings))
	r.hangup <- syscall.SIGHUP
	denied("after the host has edited the file")
	put(stranger, 7, aa)
	r.hangup <- syscall.SIGHUP
	r.log.wait(t, "reading signed policy")
	denied("after a stranger has signed")
	put(signer, 5, aa)
	r.hangup <- syscall.SIGHUP
	r.log.wait(t, "the policy has version 5, and version 6 was in force already")
	denied("after an older version")
	put(signer, 7, aa)
	r.hangup <- syscall.SIGHUP
	r.log.wait(t, "version=7")
	if got, err := fetch(t, client); got != imageKey {
		t.Errorf("after version 7: %v\n%s", err, r.log)
	}
}

func TestSystemdIsToldOfReadinessReloadsAndTheEnd(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{Now: time.Now()})
	dir := folder(t, platform)
	write(t, filepath.Join(dir, policyName), policyFor(platform, dir, 1, aa, ""))
	address := &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"}
	socket, err := net.ListenUnixgram("unixgram", address)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", address.Name)
	told := func(want string) {
		t.Helper()
		_ = socket.SetReadDeadline(time.Now().Add(30 * time.Second))
		b := make([]byte, 1000)
		n, err := socket.Read(b)
		if err != nil || !strings.HasPrefix(string(b[:n]), want) {
			t.Errorf("told %q, %v, want %q", b[:n], err, want)
		}
	}
	t.Run("", func(t *testing.T) {
		r := run(t, place{name: "bare"}, dir, "--secrets", filepath.Join(dir, broker.SecretsFile))
		told("READY=1")
		r.hangup <- syscall.SIGHUP
		told("RELOADING=1\nMONOTONIC_USEC=")
		told("READY=1")
	})
	told("STOPPING=1")
}

func TestCheckSaysWhatIsWrongWithItsLine(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{Now: time.Now()})
	dir := folder(t, platform)
	good, bad := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "bad.yaml")
	write(t, good, policyFor(platform, dir, 7, aa, ""))
	write(t, bad, "version: 1\nworkload: {}\ntrust: {}\n")
	for name, c := range map[string]struct {
		args []string
		code int
		says []string
	}{
		"good":     {[]string{"check", good}, 0, []string{"sound: version 7, 1 workloads, 1 secrets"}},
		"Occlum's": {[]string{"check", dir}, 0, []string{"sound: Occlum's files, 1 secrets"}},
		"bad":      {[]string{"check", bad}, 1, []string{"line 2: workload: is not a known key", "keybroker: the policy has 1 faults"}},
		"none":     {[]string{"check", dir + "/none"}, 64, []string{"hint: "}},
		"example":  {[]string{"check", "../../docs/policy.example.yaml"}, 0, []string{"sound: version 7, 4 workloads, 3 secrets"}},
	} {
		var out buffer
		cmd := command{folder: dir, place: place{name: "bare"}, stdout: &out, stderr: &out}
		if code := cmd.run(context.Background(), c.args, ""); code != c.code {
			t.Errorf("%s: exit code %d\n%s", name, code, &out)
		}
		for _, want := range c.says {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: it does not say %q:\n%s", name, want, &out)
			}
		}
	}
}
