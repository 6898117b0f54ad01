package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/internal/fault"
	"github.com/sesame-init/sesame/internal/testenv"
)

// breakDown panics with a key and a secret among its arguments.
const breakDown = `
//go:noinline
func breakDown(key [4]uint64, secret string) { panic("it broke" + secret[:len(key)-4]) }

func broken() {
	breakDown([4]uint64{0x63616e6172792d31, 0x63616e6172792d32, 0x63616e6172792d33, 0x63616e6172792d34}, "canary-55aa")
}
`

// buildBroken builds init with faults: lines of files of the tree, by what stands there, are replaced, and broken can be
// called in each of them.
func buildBroken(t *testing.T, tags string, lines map[string][2]string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil { // a volume has a user of its own
		t.Fatal(err)
	}
	replaced, packages := map[string]string{}, map[string]bool{}
	for name, line := range lines {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(string(text), line[0]) != 1 {
			t.Fatalf("%s does not have %q once", name, line[0])
		}
		whole, err := filepath.Abs(name)
		if err != nil {
			t.Fatal(err)
		}
		replaced[whole] = filepath.Join(dir, fmt.Sprintf("%d.go", len(replaced)))
		changed := strings.Replace(string(text), line[0], line[1], 1)
		if !packages[filepath.Dir(name)] {
			changed += breakDown
		}
		packages[filepath.Dir(name)] = true
		if err := os.WriteFile(replaced[whole], []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text, err := json.Marshal(map[string]any{"Replace": replaced})
	overlay, binary := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "broken")
	if err := errors.Join(err, os.WriteFile(overlay, text, 0o600)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-trimpath", "-overlay", overlay, "-tags", tags, "-ldflags", "-s -w", "-o", binary, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	return binary
}

// wantFault checks what a program that has panicked says.
func wantFault(t *testing.T, said, runs string) {
	t.Helper()
	for _, want := range []string{"init: fault [internal] panic: it broke\ninit: to do: ", ".breakDown github.com/sesame-init/sesame/", runs} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in\n%s", want, said)
		}
	}
	if regexp.MustCompile(`canary|63616e6172792d|\(0x|\{0x|goroutine \d`).MatchString(said) {
		t.Errorf("arguments are in\n%s", said)
	}
}

func TestAPanicEndsInitAndLauncherWith20(t *testing.T) {
	boot := map[string][2]string{
		"main.go": {"	err := boot(ctx)\n", `	if os.Getenv("BREAK") == "main" {
		broken()
	} else {
		own, _ := os.FindProcess(os.Getpid())
		_ = own.Signal(os.Interrupt) // the watch breaks
		select {}
	}
	err := boot(ctx)
`},
		"internal/stop/stop.go": {"			cancel(By(s))\n", "			broken()\n			cancel(By(s))\n"},
	}
	occlum := maps.Clone(boot)
	occlum["launcher.go"] = [2]string{"	found := false\n", "	found := false\n	broken()\n"}
	binary := buildBroken(t, "", occlum)
	for _, c := range []struct{ name, where, runs string }{
		{"init", "main", "main.boundBySignals "}, {"init", "watch", "stop.Watch.func"}, {"server", "", "main.launch "},
	} {
		cmd := exec.Command(binary)
		cmd.Args, cmd.Env = []string{c.name, "canary-55aa"}, append(os.Environ(), "BREAK="+c.where)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != fault.Status {
			t.Errorf("%s, %s: %v", c.name, c.where, err)
		}
		wantFault(t, string(out), c.runs)
	}
}

// TestAPanicBehindAVolumeEndsItsProcessWith20 and, as any loss of a volume does, the application.
func TestAPanicBehindAVolumeEndsItsProcessWith20(t *testing.T) {
	testenv.Long(t, "builds another init for Linux")
	b := newLinuxBoot(t, "wait")
	b.program = buildBroken(t, "plainlinux", map[string][2]string{
		"../fs/fuse/filesystem.go": {"		size := file.Inode().Size\n", "		size := file.Inode().Size\n		broken()\n"},
	})
	b.config["linux"].(map[string]any)["mode"] = "supervise"
	r := b.start()
	r.waitFor("waiting")
	if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/root%s/hello", r.server(), filepath.Join(b.dir, "mnt"))); err == nil {
		t.Error("the volume could be read")
	}
	if got := r.status(); got != 18 {
		t.Errorf("exit status %d", got)
	}
	wantFault(t, r.out.String(), "fuse.(*fileSystem).Read ")
	if want := "the process behind it has ended (exit status 20)"; !strings.Contains(r.out.String(), want) {
		t.Errorf("no %q in\n%s", want, r.out)
	}
}
