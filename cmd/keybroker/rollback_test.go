package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
)

// TestAnAdministratorAcceptsARollback of a running broker, with sesame. Until then it releases nothing, and its metric and
// its log say why.
func TestAnAdministratorAcceptsARollback(t *testing.T) {
	c := custodyOf(t, keyFile, false)
	c.start()
	if err := c.put(t.Context(), "image_key"); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(c.dir, "broker.db")
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	metric := func(want int) {
		t.Helper()
		answer, err := http.Get("http://" + c.lifetime.Load().http + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil || !strings.Contains(string(text), fmt.Sprintf("\nsesame_broker_log_rolled_back %d\n", want)) {
			t.Errorf("the metric is not %d: %v", want, err)
		}
	}
	metric(0)

	if err := os.WriteFile(file, old, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.put(t.Context(), "other"); err == nil || !strings.Contains(err.Error(), "an older state was put back") {
		t.Errorf("an administrator: %v", err)
	}
	metric(1)
	ask, cancel := context.WithTimeout(t.Context(), 3*time.Second) // it is asked again and again
	defer cancel()
	if _, err := c.fetch(ask); err == nil {
		t.Error("a secret was released from the older state")
	}
	state := regexp.MustCompile(`accept-rollback ([0-9]+:[A-Za-z0-9+/]+=*)`).FindStringSubmatch(c.out.String())
	if state == nil || !strings.Contains(c.out.String(), "ROLLED BACK") {
		t.Fatalf("the broker's log does not say what to do\n%s", c.out)
	}

	sesame := filepath.Join(c.dir, "sesame")
	if out, err := exec.Command("go", "build", "-o", sesame, "../sesame").CombinedOutput(); err != nil {
		t.Fatalf("building sesame: %v\n%s", err, out)
	}
	key, err := x509.MarshalPKCS8PrivateKey(c.alice.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"alice.crt": {Type: "CERTIFICATE", Bytes: c.alice.Certificate[0]}, "alice.key": {Type: "PRIVATE KEY", Bytes: key},
	} {
		write(t, filepath.Join(c.dir, name), string(pem.EncodeToMemory(block)))
	}
	write(t, filepath.Join(c.dir, "context.yaml"), fmt.Sprintf("broker: %s\nbroker_key: %s\ncert: alice.crt\nkey: alice.key\n",
		c.lifetime.Load().admin, hex.EncodeToString(c.pin)))
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), sesame, args...)
		cmd.Dir, cmd.Env = c.dir, append(os.Environ(), "SESAME_CONTEXT="+filepath.Join(c.dir, "context.yaml"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run("log", "accept-rollback", "0:AAAA"); err == nil || !strings.Contains(out, "neither the state of the store nor a checkpoint") {
		t.Errorf("anything is accepted: %v\n%s", err, out)
	}
	metric(1)
	if out, err := run("log", "accept-rollback", state[1]); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	metric(0)
	if _, err := c.fetch(t.Context()); err != nil {
		t.Errorf("after the acceptance: [%s] %v", attest.CodeOf(err), err)
	}
	client, err := c.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	found := false
	for _, e := range entries(t, client) {
		found = found || e.Admin != nil && e.Admin.Action == "log.accept-rollback" && strings.Contains(e.Admin.By, "alice")
	}
	if !found {
		t.Error("the log does not say who has accepted it")
	}
	if out, err := run("log", "accept-rollback", state[1]); err == nil || !strings.Contains(out, "not rolled back") {
		t.Errorf("accepted twice: %v\n%s", err, out)
	}
}
