package starve_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/tpm"
	"github.com/sesame-init/sesame/lab/attack/starve"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// asTarget in the environment makes the test's program the broker that is attacked.
const asTarget = "STARVE_TARGET"

func TestMain(m *testing.M) {
	if os.Getenv(asTarget) != "" {
		if err := starve.ServeTarget(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// most is the memory that the broker may ever have, in bytes.
const most = 192 << 20

// target is a broker in a process of its own, and the platform whose enclaves it takes.
type target struct {
	address  string
	platform *softsgx.Platform
	pid      int
}

func start(t *testing.T) *target {
	t.Helper()
	platform := brokertest.Platform(t, softsgx.Options{})
	text := brokertest.PolicyText(1, `
workloads:
  demo: {versions: [{sgx: [{mr_enclave: `+strings.Repeat("aa", 32)+`}]}]}
  machine: {versions: [{tpm: [{ak: `+strings.Repeat("bb", 32)+`, pcrs: {0: `+strings.Repeat("cc", 32)+`}}]}]}
secrets: {image_key: {workloads: [demo, machine]}}
`)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asTarget+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the broker ended with: %v", err)
		}
	})
	if err := json.NewEncoder(in).Encode(starve.Target{
		Policy: text, Root: platform.RootCA().Raw, Collateral: platform.Collateral(),
		Secrets: map[string][]byte{"image_key": []byte("the key")},
	}); err != nil {
		t.Fatal(err)
	}
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return &target{address: strings.TrimSpace(address), platform: platform, pid: cmd.Process.Pid}
}

// fetch asks for the secret as an honest init does.
func (g *target) fetch(t *testing.T, deadline time.Duration) time.Duration {
	t.Helper()
	client, err := grpcratls.New(grpcratls.Config{
		Servers: []string{g.address}, Protocol: grpcratls.SessionV1, Attester: g.platform.Attester(brokertest.Workload()),
		Verifier: starve.AnyBroker{}, Policy: starve.AnyBroker{}, Now: brokertest.Clock, Pause: 50 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	begin := time.Now()
	got, err := client.Fetch(ctx, []string{"image_key"})
	if err != nil || string(got["image_key"].Expose()) != "the key" {
		t.Errorf("the honest peer: %v", err)
	}
	return time.Since(begin)
}

// peak is the most memory that the broker has had, in bytes.
func (g *target) peak(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "VmHWM:")
	var kib int
	if _, err := fmt.Sscan(after, &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// crowd is one of every class.
func crowd(t *testing.T, g *target, each int) []starve.Group {
	t.Helper()
	made, err := starve.NewSelfMade()
	if err != nil {
		t.Fatal(err)
	}
	unknown := g.platform.Attester(brokertest.Enclave(0x77, 1, 2))
	return []starve.Group{
		{Class: starve.Silent, Number: each}, {Class: starve.Shaken, Number: each}, {Class: starve.Watching, Number: each},
		{Class: starve.Greeting, Number: each}, {Class: starve.Asking(made, "image_key"), Number: each},
		{Class: starve.Asking(unknown, "image_key"), Number: each},
	}
}

// attack lets a crowd loose on a broker, and returns once each of it has had a connection.
func attack(t *testing.T, a starve.Attack) *starve.Figures {
	t.Helper()
	f := &starve.Figures{}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		a.Run(ctx, f)
		close(ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		if n := f.Secrets.Load(); n != 0 {
			t.Errorf("the attackers have got %d secrets", n)
		}
	})
	want := int64(0)
	for _, group := range a.Crowd {
		want += int64(group.Number)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(2 * time.Minute)
	for f.Opened.Load() < want {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%d of %d connections were opened", f.Opened.Load(), want)
		}
	}
	return f
}

// TestACrowdFromTwoAddressesStarvesNobody: 2,000 connections of every hostile class.
func TestACrowdFromTwoAddressesStarvesNobody(t *testing.T) {
	g := start(t)
	f := attack(t, starve.Attack{Address: g.address, Crowd: crowd(t, g, 334), Pause: 2 * time.Second,
		From: []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")}})
	took := g.fetch(t, 30*time.Second)
	again := g.fetch(t, 30*time.Second)
	peak := g.peak(t)
	t.Logf("served in %v and %v; %d hostile connections, %d at once; the broker had %d MiB at most", took, again,
		f.Opened.Load(), f.Most.Load(), peak>>20)
	if peak > most {
		t.Errorf("the broker had %d MiB", peak>>20)
	}
}

// TestACrowdBehindTheSameAddressOnlySlowsDown: the honest peer has the attackers' address, and comes through by retries.
func TestACrowdBehindTheSameAddressOnlySlowsDown(t *testing.T) {
	g := start(t)
	f := attack(t, starve.Attack{Address: g.address, Crowd: crowd(t, g, 334), Pause: 2 * time.Second,
		From: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	took := g.fetch(t, 60*time.Second)
	peak := g.peak(t)
	t.Logf("served in %v; %d hostile connections, %d at once; the broker had %d MiB at most", took, f.Opened.Load(),
		f.Most.Load(), peak>>20)
	if peak > most {
		t.Errorf("the broker had %d MiB", peak>>20)
	}
}

// TestSelfMadeEvidenceIsWellFormed: else the attack with it would be a weaker one.
func TestSelfMadeEvidenceIsWellFormed(t *testing.T) {
	made, err := starve.NewSelfMade()
	if err != nil {
		t.Fatal(err)
	}
	data := attest.ReportData{1, 2, 3}
	e, err := made.Evidence(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := new(tpm.Verifier).Verify(t.Context(), e, time.Now())
	if err != nil || claims.ReportData != data {
		t.Errorf("%v, %v", claims, err)
	}
}
