package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/pem"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// enclave is the broker's enclave on a software platform.
type enclave struct{ attest.Attester }

func (enclave) Close() error { return nil }

// inEnclave is a place whose evidence open makes.
func inEnclave(open func() (deviceAttester, error)) place {
	return place{name: "occlum", enclave: true, open: open}
}

// folder is a complete one for a platform; its collateral is in the folder collateral.
func folder(t *testing.T, platform *softsgx.Platform) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string][]byte{
		broker.PeersFile: []byte(`{"verify_mr_enclave":"on","verify_mr_signer":"off","verify_isv_prod_id":"off",
			"verify_isv_svn":"off","verify_config_svn":"off","verify_enclave_debuggable":"on","sgx_mrs":[{"mr_enclave":"` +
			strings.Repeat("aa", 32) + `","mr_signer":"","isv_prod_id":0,"isv_svn":0,"config_svn":0,"debuggable":false}]}`),
		broker.SecretsFile: []byte(`{"image_key":"Y2FuYXJ5LTRmMWMtaW1hZ2Uta2V5"}`),
		broker.RootCAFile:  pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: platform.RootCA().Raw}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := pccs.WriteDir(filepath.Join(dir, "collateral"), platform.Collateral()); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestItServesAndEndsLikeOcclumsServer(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{Now: time.Now()})
	dir := folder(t, platform)

	out, stdout := io.Pipe()
	var stderr bytes.Buffer
	c := command{
		folder: dir, stdout: stdout, stderr: &stderr,
		place: inEnclave(func() (deviceAttester, error) { return enclave{platform.Attester(brokertest.Broker())}, nil }),
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan int, 1)
	go func() {
		ended <- c.run(ctx, []string{"127.0.0.1:0"}, filepath.Join(dir, "collateral"))
		_ = stdout.Close()
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	m := servingSessions.FindStringSubmatch(line)
	if err != nil || m == nil {
		cancel()
		<-ended
		t.Fatalf("standard output is %q, %v\n%s", line, err, &stderr)
	}
	client, err := grpcratls.New(grpcratls.Config{
		Pause: 10 * time.Millisecond, Protocol: grpcratls.Legacy,
		Servers: []string{m[1]}, Attester: platform.Attester(brokertest.Workload()),
		Verifier: brokertest.Verifier(platform), Policy: brokertest.BrokerPolicy(),
	})
	if err != nil {
		t.Fatal(err)
	}
	fetch, done := context.WithTimeout(ctx, 30*time.Second)
	defer done()
	got, err := client.Fetch(fetch, []string{"image_key"})
	if err != nil || string(got["image_key"].Expose()) != "canary-4f1c-image-key" {
		t.Errorf("fetching: %v", err)
	}
	cancel()
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{"not Intel's", "own evidence is genuine", "secret released", "proves no freshness",
		"the host can read them"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, &stderr)
		}
	}
	if strings.Contains(stderr.String(), "canary") {
		t.Errorf("the log holds a secret:\n%s", &stderr)
	}
}

func TestItRefusesToStart(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{Now: time.Now()})
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	sound := func() (deviceAttester, error) { return enclave{platform.Attester(brokertest.Broker())}, nil }
	for name, test := range map[string]struct {
		args   []string
		folder func(dir string) string
		open   func() (deviceAttester, error)
		code   int
		says   string
	}{
		"no address":      {nil, nil, sound, 64, "hint: "},
		"two addresses":   {[]string{"a:1", "b:1"}, nil, sound, 64, "hint: "},
		"unknown option":  {[]string{"--root-ca=x", "a:1"}, nil, sound, 64, "root-ca"},
		"bad log level":   {[]string{"--log-level=loud", "a:1"}, nil, sound, 64, "loud"},
		"busy port":       {[]string{busy.Addr().String()}, nil, sound, 1, "listening on"},
		"no such address": {[]string{"256.0.0.1:1"}, nil, sound, 1, "listening on"},
		"no collateral":   {[]string{"--collateral=", "a:1"}, nil, sound, 1, "hint: Set PCCS_URL"},
		"bad collateral":  {[]string{"--collateral=ftp://x", "a:1"}, nil, sound, 1, "ftp"},
		"no folder":       {[]string{"a:1"}, func(d string) string { return d + "/none" }, sound, 1, broker.PeersFile},
		"policy option":   {[]string{"--policy=x", "a:1"}, nil, sound, 64, "policy"}, // the host must not choose it
		"no device":       {[]string{"a:1"}, nil, openNothing, 1, "hint: "},
	} {
		t.Run(name, func(t *testing.T) {
			dir := folder(t, platform)
			collateral := filepath.Join(dir, "collateral")
			if test.folder != nil {
				dir = test.folder(dir)
			}
			var stdout, stderr bytes.Buffer
			c := command{folder: dir, place: inEnclave(test.open), stdout: &stdout, stderr: &stderr}
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			if code := c.run(ctx, test.args, collateral); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			if !strings.Contains(stderr.String(), test.says) || stdout.Len() != 0 {
				t.Errorf("it printed %q and %q", stdout.String(), stderr.String())
			}
		})
	}
}

func openNothing() (deviceAttester, error) { return openDevice("/nonexistent/sgx") }
