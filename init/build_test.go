package main

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/init/goruntime/overlay"
	"github.com/sesame-init/sesame/packaging/occlumcheck"
)

var update = flag.Bool("update", false, "write deps.txt anew")

// TestDependenciesAreTheRecordedOnes keeps the list of packages in init a decision: everything in it runs before
// the first key arrives, and is measured. After a change that is meant: go test ./init -run Dependencies -update.
func TestDependenciesAreTheRecordedOnes(t *testing.T) {
	const record = "deps.txt"
	cmd := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	now := strings.Fields(string(out))
	slices.Sort(now)
	if *update {
		if err := os.WriteFile(record, []byte(strings.Join(now, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	recorded := strings.Fields(string(b))
	for _, p := range now {
		if !slices.Contains(recorded, p) {
			t.Errorf("init now depends on %s; if that is meant: go test ./init -run Dependencies -update", p)
		}
	}
	for _, p := range recorded {
		if !slices.Contains(now, p) {
			t.Errorf("init no longer depends on %s: go test ./init -run Dependencies -update", p)
		}
	}
}

func TestBinaryIsWhatOcclumRuns(t *testing.T) {
	const loader = "/lib/ld-musl-x86_64.so.1"
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	replaced, err := overlay.Write(dir, string(bytes.TrimSpace(goroot)), overlay.Hunks())
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "init")
	cmd := exec.Command("go", "build", "-trimpath", "-overlay", replaced, "-buildmode=pie",
		"-ldflags", "-s -w -I "+loader, "-o", binary, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building init: %v\n%s", err, out)
	}
	found, err := occlumcheck.Program(binary, occlumcheck.ProgramOptions{
		Interpreter: loader, MaxSize: occlumcheck.InitBudget, Forbidden: occlumcheck.Development(),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		t.Error(f)
	}
	info, err := os.Stat(binary)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("init has %d bytes of %d", info.Size(), occlumcheck.InitBudget)
}
