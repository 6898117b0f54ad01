package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/internal/occlum/goruntime/overlay"
	"github.com/sesame-init/sesame/internal/occlum/occlumcheck"
	"github.com/sesame-init/sesame/internal/testenv"
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

const loader = "/lib/ld-musl-x86_64.so.1"

// buildInit builds init as it runs in Occlum, with files of the tree replaced, and returns the binary's path.
func buildInit(t *testing.T, replaced map[string]string) string {
	t.Helper()
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	name, err := overlay.Write(dir, string(bytes.TrimSpace(goroot)), overlay.Hunks())
	if err != nil {
		t.Fatal(err)
	}
	if len(replaced) > 0 {
		var all struct{ Replace map[string]string }
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &all); err != nil {
			t.Fatal(err)
		}
		maps.Copy(all.Replace, replaced)
		if text, err = json.Marshal(all); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	binary := filepath.Join(dir, "init")
	cmd := exec.Command("go", "build", "-trimpath", "-overlay", name, "-buildmode=pie",
		"-ldflags", "-s -w -I "+loader, "-o", binary, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building init: %v\n%s", err, out)
	}
	return binary
}

func sizeOf(t *testing.T, file string) int64 {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func TestBinaryIsWhatOcclumRuns(t *testing.T) {
	binary := buildInit(t, nil)
	found, err := occlumcheck.Program(binary, occlumcheck.ProgramOptions{
		Interpreter: loader, MaxSize: occlumcheck.InitBudget, Forbidden: occlumcheck.Development(),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		t.Error(f)
	}
	t.Logf("init has %d bytes of %d", sizeOf(t, binary), occlumcheck.InitBudget)
}

// TestBackendsKeepToTheirSize compares init with an init without a backend: what the backend adds, with all that only it
// needs, the LibOS holds in its heap even if another one is chosen.
func TestBackendsKeepToTheirSize(t *testing.T) {
	testenv.Long(t, "links init three times")
	whole := sizeOf(t, buildInit(t, nil))
	for backend, budget := range map[string]int64{"maa": 2_000_000, "aecs": 1_000_000} { // bytes
		added := whole - sizeOf(t, buildInit(t, listed(t, func(line string) bool {
			return !strings.Contains(line, "/"+backend+`"`) && !strings.Contains(line, "\t"+backend+".")
		})))
		t.Logf("%s adds %d bytes of %d", backend, added, budget)
		if added <= 0 || added > budget {
			t.Errorf("%s adds %d bytes, at most %d are to be", backend, added, budget)
		}
	}
}

// listed replaces the list of backends by its lines for which keep holds, and further ones: a line begins with the text of the
// line after which it comes.
func listed(t *testing.T, keep func(line string) bool, further ...[2]string) map[string]string {
	t.Helper()
	return listedIn(t, "../internal/config/backends.go", keep, further...)
}

// listedIn is [listed] for another list.
func listedIn(t *testing.T, list string, keep func(line string) bool, further ...[2]string) map[string]string {
	t.Helper()
	list, err := filepath.Abs(list)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	changes := 0
	for line := range strings.Lines(string(text)) {
		if !keep(line) {
			changes++
			continue
		}
		out.WriteString(line)
		for _, f := range further {
			if strings.HasPrefix(line, f[0]) {
				out.WriteString(f[1] + "\n")
				changes++
			}
		}
	}
	if changes == 0 {
		t.Fatalf("%s is not changed", list)
	}
	file := filepath.Join(t.TempDir(), filepath.Base(list))
	if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return map[string]string{list: file}
}
