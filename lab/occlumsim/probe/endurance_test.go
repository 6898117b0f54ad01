package probe

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/internal/occlum/goruntime/overlay"
	"github.com/sesame-init/sesame/internal/occlum/occlumconf"
	"github.com/sesame-init/sesame/internal/testenv"
)

var boots = flag.Int("boots", 0, "how many times the tests named EveryTime boot; 4 if 0, or 2 with -short")

// bootsWanted is the flag or what it means if it is not given.
func bootsWanted() int {
	if *boots > 0 {
		return *boots
	}
	return testenv.Effort(4, 2)
}

// goProgram builds the program that uses threads, TLS, DNS, timers, signals and the heap, with some of the hunks.
func goProgram(t *testing.T, hunks ...overlay.Hunk) string {
	t.Helper()
	return goProgramOf(t, goroot(t), hunks...)
}

// goroot is the toolchain that runs the tests.
func goroot(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// goProgramOf builds it with another toolchain.
func goProgramOf(t *testing.T, goroot string, hunks ...overlay.Hunk) string {
	t.Helper()
	dir := t.TempDir()
	goroot, err := overlay.Root(dir, goroot)
	if err != nil {
		t.Fatal(err)
	}
	replaced, err := overlay.Write(filepath.Join(dir, "overlay"), goroot, hunks)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "program")
	cmd := exec.Command(filepath.Join(goroot, "bin", "go"), "build", "-trimpath", "-overlay", replaced, "-buildmode=pie",
		"-ldflags", "-s -w -I /lib/ld-musl-x86_64.so.1", "-o", program, "../../../internal/occlum/goruntime/overlay/testdata/program")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOTOOLCHAIN=local", "GOROOT="+goroot)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the program: %v\n%s", err, out)
	}
	return program
}

// threadsForAll is enough for 64 goroutines on threads of their own, and the runtime's.
const threadsForAll = 80

// goInstance is an instance whose init is the program, and which has the probe as an application in its initfs.
func goInstance(t *testing.T, program string) *instance {
	t.Helper()
	in := newInstance(t, program)
	in.install(t, compile(t, "-fPIE", "-pie"), "initfs/bin/app")
	in.limits(t, func(l *occlumconf.ResourceLimits) { l.MaxThreads = threadsForAll })
	in.build(t, "")
	return in
}

func TestGoProgramBootsEveryTime(t *testing.T) {
	in := goInstance(t, goProgram(t, overlay.Hunks()...))
	count := bootsWanted()
	for n := range count {
		status, stdout, stderr := in.run(t, in.dir, "run", "/bin/app")
		if status != 0 || !strings.HasPrefix(stdout, "done\napp\t") {
			t.Fatalf("boot %d of %d: exit status %d\n%s\n%s", n+1, count, status, stdout, stderr)
		}
	}
}

func TestProgramsOfOtherReleasesBoot(t *testing.T) {
	testenv.Long(t, "builds the runtimes of other releases")
	for _, series := range overlay.Minors() {
		goroots := testenv.Toolchains(t, series)
		goroot := goroots[len(goroots)-1]
		t.Run(filepath.Base(goroot), func(t *testing.T) {
			in := goInstance(t, goProgramOf(t, goroot, overlay.Hunks()...))
			for range 3 {
				if status, stdout, stderr := in.run(t, in.dir, "run", "/bin/app"); status != 0 ||
					!strings.HasPrefix(stdout, "done\napp\t") {
					t.Errorf("exit status %d\n%s\n%s", status, stdout, stderr)
				}
			}
			stock := goInstance(t, goProgramOf(t, goroot))
			if status, _, stderr := stock.run(t, stock.dir, "run", "/bin/app"); status != 1 ||
				!strings.Contains(stderr, "overlay") {
				t.Errorf("without the overlay: exit status %d\n%s", status, stderr)
			}
		})
	}
}

func TestStockRuntimeDiesAtOnceAndIsToldWhy(t *testing.T) {
	testenv.Long(t, "builds a Go program once more")
	in := goInstance(t, goProgram(t))
	status, stdout, stderr := in.run(t, in.dir, "run", "/bin/app")
	if status != 1 || !strings.Contains(stderr, "starts a thread as Linux does") ||
		!strings.Contains(stderr, "overlay") || stdout != "" {
		t.Errorf("exit status %d\n%s\n%s", status, stdout, stderr)
	}
}

// TestHeapCheckFailsWithTheCloneFixAlone proves that the simulator's madvise catches a runtime that relies on zeros:
// the program's own check, or the runtime's, must fail.
func TestHeapCheckFailsWithTheCloneFixAlone(t *testing.T) {
	testenv.Long(t, "builds a Go runtime of its own")
	in := goInstance(t, goProgram(t, overlay.CloneHunks()...))
	status, stdout, stderr := in.run(t, in.dir, "run", "/bin/app")
	if status == 0 || strings.Contains(stdout, "done") {
		t.Fatalf("exit status %d\n%s\n%s", status, stdout, stderr)
	}
	if !strings.Contains(stdout, "fresh memory") && !strings.Contains(stderr, "fatal error") &&
		!strings.Contains(stderr, "panic") {
		t.Errorf("it failed by something else than its heap: exit status %d\n%s\n%s", status, stdout, stderr)
	}
}
