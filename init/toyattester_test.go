//go:build toy

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/attesters"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/trust"
	"github.com/sesame-init/sesame/init/testdata/toyattester"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
	"github.com/sesame-init/sesame/lab/brokertest"
)

// The tests of this file run in a tree with one attester more: TestAnAttesterIsAPackageAndALineInEachList starts them.

// TestBootWithAToyAttester boots init with the attester, against a broker whose policy wants its evidence.
func TestBootWithAToyAttester(t *testing.T) {
	seed := [32]byte{1, 2, 3}
	file := filepath.Join(t.TempDir(), "seed")
	if err := os.WriteFile(file, seed[:], 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(toyattester.SeedVariable, file)
	key := toyattester.New(seed).Key()

	b := newLinuxBoot(t, "see", "/run/secrets/token")
	b.config["attester"] = "toy"
	delete(b.config, "tpm")
	b.write()
	want := func(key []byte) {
		t.Helper()
		b.version++
		text := brokertest.PolicyText(b.version, fmt.Sprintf(`workloads:
  app:
    versions:
      - toy: [{key: %x}]
secrets:
  volume_key: {workloads: [app]}
  token: {workloads: [app]}
`, key))
		if err := b.policies.Replace(t.Context(), []byte(text), "test"); err != nil {
			t.Fatal(err)
		}
	}

	want(bytes.Repeat([]byte{0xff}, 32))
	r := b.startOnly()
	if got := r.status(); got != exitCodes[attest.CodeDenied] ||
		!strings.Contains(r.out.String(), fmt.Sprintf("the policy has no workload that is a toy with key %x", key)) {
		t.Errorf("with another key wanted: exit status %d:\n%s", got, r.out)
	}
	want(key)
	r = b.startOnly()
	if s := r.sight(); s.Files["/run/secrets/token"] != secretCanary {
		t.Errorf("files are %q\n%s", s.Files, r.out)
	}
	if !strings.Contains(b.log.String(), fmt.Sprintf("toy_key=%x", key)) {
		t.Errorf("the broker's log does not name the key:\n%s", b.log)
	}
}

// TestToyAttesterIsKnownToPoliciesAndLogs: the entry is read from YAML, and what refuses and records knows the claims.
func TestToyAttesterIsKnownToPoliciesAndLogs(t *testing.T) {
	verifies, err := trust.New(trust.Config{Kinds: attesters.All()})
	if err != nil {
		t.Fatal(err)
	}
	toy := toyattester.New([32]byte{7})
	evidence, err := toy.Evidence(t.Context(), attest.ReportData{9})
	if err != nil {
		t.Fatal(err)
	}
	claims, err := verifies.Verifier().Verify(t.Context(), evidence, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for text, accepted := range map[string]bool{
		fmt.Sprintf("toy: [{key: %x}]", toy.Key()): true, fmt.Sprintf("toy: [{key: %x}]", make([]byte, 32)): false,
		"toy: [{key: abcd}]": false,
	} {
		var p policy.Policy
		if err := yaml.UnmarshalWithOptions([]byte(text), &p, yaml.Strict()); err != nil {
			t.Fatal(err)
		}
		if a := p.Appraise(claims, time.Now()); a.Accepted != accepted {
			t.Errorf("%s: %+v", text, a)
		}
	}
	var p policy.Policy
	if err := yaml.UnmarshalWithOptions([]byte("toy: [{colour: red}]"), &p, yaml.Strict()); err == nil {
		t.Error("a member that the entry does not have is taken")
	}
	text, err := releaselog.Entry{Kind: releaselog.Release, Claims: releaselog.ClaimsOf(claims)}.Encode()
	if err != nil || !strings.Contains(string(text), fmt.Sprintf(`"claims":{"type":"toy","toy_key":"%x"}`, toy.Key())) {
		t.Errorf("the entry is %s, %v", text, err)
	}
}
