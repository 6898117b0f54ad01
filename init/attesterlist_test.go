package main

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/init/testdata/toyattester"
	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/attesttest"
)

func TestToyIsAnAttester(t *testing.T) {
	attesttest.Run(t, attesttest.Case{
		Type: toyattester.Type, Attester: toyattester.New([32]byte{1}), Verifier: toyattester.Verifier{}, At: time.Now(), Stride: 1,
	})
}

// TestAnAttesterIsAPackageAndALineInEachList builds init and a broker with one attester more, by a line in each of the two lists,
// and boots with it: see toyattester_test.go.
func TestAnAttesterIsAPackageAndALineInEachList(t *testing.T) {
	testenv.Long(t, "builds init and its tests once more")
	buildLinux(t) // what it needs, the tests below need
	all := func(string) bool { return true }
	imported := [2]string{"import (", `	"github.com/sesame-init/sesame/init/testdata/toyattester"`}
	replaced := listedIn(t, "../attest/policy/policy.go", all, imported, [2]string{"	TPM Entries[",
		"	Toy Entries[toyattester.Entry, *toyattester.Entry] `json:\"toy,omitempty\" yaml:\"toy,omitempty\"`"})
	maps.Copy(replaced, listedIn(t, "../attest/attesters/attesters.go", all, imported,
		[2]string{"		tpm.Kind(),", "		toyattester.Kind(),"}))
	text, err := json.Marshal(map[string]any{"Replace": replaced})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(t.TempDir(), "overlay.json")
	if err := os.WriteFile(overlay, text, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-tags", "toy", "-run", "ToyAttester", "-v", ".")
	cmd.Env = append(os.Environ(), "GOFLAGS=-trimpath -overlay="+overlay) // for the builds that the tests make, too
	said, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	for _, name := range []string{"TestBootWithAToyAttester", "TestToyAttesterIsKnownToPoliciesAndLogs"} {
		if !strings.Contains(string(said), "--- PASS: "+name) {
			t.Errorf("%s has not run:\n%s", name, said)
		}
	}
}
