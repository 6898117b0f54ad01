package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"os/exec"
	"path"
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
	for _, c := range []struct {
		backend  string
		packages []string
		budget   int64 // bytes
	}{
		{"maa", []string{"maa"}, 2_000_000},
		{"aecs", []string{"aecs", "aecs/uar"}, 1_000_000},
	} {
		replaced := map[string]string{}
		absolute := func(file string) string {
			abs, err := filepath.Abs(file)
			if err != nil {
				t.Fatal(err)
			}
			return abs
		}
		for _, p := range c.packages {
			sources, err := filepath.Glob("../attest/backend/" + p + "/*.go")
			if err != nil || len(sources) == 0 {
				t.Fatal(p, err)
			}
			for _, file := range sources {
				replaced[absolute(file)] = "" // not there
			}
			file := path.Base(p) + ".go"
			replaced[absolute("../attest/backend/"+p+"/"+file)] = absolute("testdata/without/" + file)
		}
		replaced[absolute(c.backend+".go")] = absolute("testdata/without/init_" + c.backend + ".go")
		added := whole - sizeOf(t, buildInit(t, replaced))
		t.Logf("%s adds %d bytes of %d", c.backend, added, c.budget)
		if added <= 0 || added > c.budget {
			t.Errorf("%s adds %d bytes, at most %d are to be", c.backend, added, c.budget)
		}
	}
}
