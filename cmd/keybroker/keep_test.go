package main

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// logKey is what a broker prints as the key of its release log.
func (r *running) logKey(t *testing.T) note.Verifier {
	t.Helper()
	m := regexp.MustCompile(`log_key[\\]?": [\\]?"([^"\\]+)`).FindStringSubmatch(r.log.String())
	if m == nil {
		t.Fatalf("no key of a release log in\n%s", r.log)
	}
	key, err := note.NewVerifier(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestWithAStoreEveryReleaseHasAReceiptAndTheLogGoesOnAfterARestart(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{Now: time.Now()})
	dir := folder(t, platform)
	settings := fmt.Sprintf("broker:\n  store: {sqlite: %q}\n  root_key: {file: %q}\n", filepath.Join(dir, "broker.db"), filepath.Join(dir, "root.key"))
	write(t, filepath.Join(dir, policyName), policyFor(platform, dir, 1, aa, settings))
	args := []string{"--secrets", filepath.Join(dir, broker.SecretsFile)}
	var keys []string
	for range 2 {
		t.Run("", func(t *testing.T) {
			r := run(t, place{name: "bare"}, dir, args...)
			key := r.logKey(t)
			keys = append(keys, fmt.Sprint(key.Name(), key.KeyHash()))
			client := grpcratls.Config{
				Pause:   10 * time.Millisecond,
				Servers: []string{r.address}, Attester: platform.Attester(brokertest.Workload()), BrokerKey: r.pin, Log: key,
			}
			if got, err := fetch(t, client); got != imageKey {
				t.Errorf("%v\n%s", err, r.log)
			}
			if strings.Contains(r.log.String(), "canary") {
				t.Error("the log holds a secret")
			}
		})
	}
	if keys[0] != keys[1] {
		t.Error("another log after the restart")
	}
}

// sealing is an enclave whose processor derives keys. Two with one number are on one processor.
type sealing struct {
	enclave
	processor byte
}

func (sealing) SelfTarget() (sgx.TargetInfo, error) { return sgx.TargetInfo{}, nil }

func (sealing) CreateReport(sgx.TargetInfo, attest.ReportData) (sgx.Report, error) {
	return sgx.Report{Body: brokertest.Broker()}, nil
}

func (s sealing) Key(r sgx.KeyRequest) (key [sgx.KeySize]byte, err error) {
	data := binary.LittleEndian.AppendUint16([]byte{s.processor}, uint16(r.Name))
	sum := sha256.Sum256(append(data, r.KeyID[:]...))
	return [sgx.KeySize]byte(sum[:]), nil
}

func TestANewReplicaGetsTheRootKeyFromARunningOneThatKnowsIt(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{Now: time.Now()})
	on := func(processor byte) place {
		return inEnclave(func() (deviceAttester, error) {
			return sealing{enclave{platform.Attester(brokertest.Broker())}, processor}, nil
		})
	}
	replica := "  replica: {broker: true, versions: [{sgx: [{mr_enclave: " + strings.Repeat("cc", 32) + "}]}]}\nsecrets:\n"
	start := func(here place, database, rootKey string, version int) (*running, string) {
		dir := folder(t, platform)
		if database != "" {
			text, err := os.ReadFile(database)
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, "broker.db"), string(text))
		}
		text := policyFor(platform, dir, version, aa, fmt.Sprintf("broker:\n  store: {sqlite: %q}\n  root_key: %s\n",
			filepath.Join(dir, "broker.db"), rootKey))
		write(t, filepath.Join(dir, policyName), strings.Replace(text, "secrets:\n", replica, 1))
		return run(t, here, dir), filepath.Join(dir, "broker.db")
	}
	first, database := start(on(1), "", "{sealed: true}", 1)
	moved, _ := start(on(2), database, fmt.Sprintf("{replicas: [%q]}", first.address), 2)
	moved.log.wait(t, "unlocked by another replica")
	if fmt.Sprint(moved.logKey(t)) != fmt.Sprint(first.logKey(t)) {
		t.Error("the replica has another log key")
	}
	client := grpcratls.Config{
		Pause:   10 * time.Millisecond,
		Servers: []string{moved.address}, Attester: platform.Attester(brokertest.Workload()),
		Verifier: brokertest.Verifier(platform), Policy: brokertest.BrokerPolicy(), Log: first.logKey(t),
	}
	if got, err := fetch(t, client); got != imageKey {
		t.Errorf("%v\n%s", err, moved.log)
	}
	// The workload itself may not have the root key.
	client.Servers, client.Log = []string{first.address}, nil
	c, err := grpcratls.New(grpcratls.Config{Pause: 10 * time.Millisecond, Servers: client.Servers, Protocol: grpcratls.SessionV1, Attester: client.Attester,
		Verifier: client.Verifier, Policy: client.Policy})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Fetch(t.Context(), []string{broker.RootKey}); got != nil || attest.CodeOf(err) != attest.CodeSecret {
		t.Errorf("a workload asks for the root key: %v", err)
	}
}
