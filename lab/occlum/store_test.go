package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/internal/occlum/goruntime/overlay"
	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/occlumsim"
)

// TestBrokersStoreKeepsItsPromisesUnderTheLibOS runs the suites of the embedded store and of the keystore on it as an
// application under --strict-app: with the LibOS's system calls, and with mappings of files that are copies.
func TestBrokersStoreKeepsItsPromisesUnderTheLibOS(t *testing.T) {
	testenv.Long(t, "builds two test programs with the Go runtime for Occlum")
	dir := instance(t, "root - 0")
	config := filepath.Join(dir, "Occlum.json")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, bytes.Replace(text, []byte(`"max_num_of_threads": 32`), []byte(`"max_num_of_threads": 64`), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	full, err := overlay.Write(filepath.Join(t.TempDir(), "overlay"), strings.TrimSpace(string(goroot)), overlay.Hunks())
	if err != nil {
		t.Fatal(err)
	}
	suites := []struct{ name, pkg, run string }{
		{"sqlite", "../../internal/broker/store/sqlite", "."},
		{"keystore", "../../internal/broker/keystore", "Faults|Release|Limit|Versions|Swapped"},
	}
	for _, suite := range suites {
		build := exec.Command("go", "test", "-c", "-trimpath", "-buildmode=pie", "-overlay", full,
			"-ldflags", "-s -w -I "+occlumsim.MuslLoader+" -X runtime.godebugDefault=madvdontneed=0,asyncpreemptoff=1",
			"-o", filepath.Join(dir, "image", "bin", suite.name), suite.pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("building the suite: %v\n%s", err, out)
		}
	}
	if out, err := occlum(t, dir, "build", "-f").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for _, suite := range suites {
		out, err := occlum(t, dir, "run", "--strict-app", "/bin/"+suite.name, "-test.v", "-test.run", suite.run).CombinedOutput()
		if err != nil || strings.Count(string(out), "--- PASS") < 3 {
			t.Errorf("%s: %v\n%s", suite.name, err, out)
		}
	}
}
