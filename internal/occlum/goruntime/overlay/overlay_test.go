package overlay

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/internal/testenv"
)

// goroot is the toolchain that runs the tests.
func goroot(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// subset copies what Write reads of a toolchain.
func subset(t *testing.T) string {
	t.Helper()
	from, to := goroot(t), t.TempDir()
	files := []string{"VERSION"}
	for _, h := range Hunks() {
		files = append(files, "src/"+h.File)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(from, f))
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(to, f), string(b))
	}
	return to
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestOverlayNamesFilesOfTheGivenToolchain(t *testing.T) {
	root, dir := subset(t), t.TempDir()
	path, err := Write(dir, root, Hunks())
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range Hunks() {
		if !bytes.Contains(b, []byte(`"`+filepath.Join(root, "src", h.File)+`"`)) {
			t.Errorf("%s does not replace %s:\n%s", path, h.File, b)
		}
		patched, err := os.ReadFile(filepath.Join(dir, strings.ReplaceAll(h.File, "/", "_")))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(patched), h.New) {
			t.Errorf("hunk %q is not in the patched %s", h.Name, h.File)
		}
	}
}

func TestToolchainInTheModuleCacheGetsAnotherName(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "overlay")
	cached := filepath.Join(t.TempDir(), "toolchain@v0.0.1-go1.26.1.linux-amd64")
	write(t, filepath.Join(cached, "VERSION"), "go1.26.1\n")
	link, err := Root(dir, cached)
	if err != nil || link != filepath.Join(dir, "goroot") {
		t.Fatalf("root is %q, %v", link, err)
	}
	if version, err := readVersion(link); err != nil || version != "go1.26.1" {
		t.Errorf("version is %q, %v", version, err)
	}
	if root, err := Root(dir, "/usr/local/go"); err != nil || root != "/usr/local/go" {
		t.Errorf("root is %q, %v", root, err)
	}
	if _, err := os.Lstat(link); err == nil {
		t.Error("the link of another toolchain stayed")
	}
}

func TestOtherSourcesAreRefused(t *testing.T) {
	edit := func(file, old, new string) func(*testing.T, string) {
		return func(t *testing.T, root string) {
			path := filepath.Join(root, file)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			text := strings.Replace(string(b), old, new, 1)
			if text == string(b) {
				t.Fatalf("%s has no %q", file, old)
			}
			write(t, path, text)
		}
	}
	version := strings.TrimSpace(runtime.Version())
	for _, c := range []struct {
		name   string
		mutate func(*testing.T, string)
		want   []string
	}{
		{"a changed clone", edit("src/runtime/sys_linux_amd64.s", "MOVL\t$SYS_clone, AX", "MOVL\t$SYS_clone3, AX"),
			[]string{`"clone: parent"`, "runtime/sys_linux_amd64.s", version, "0 times"}},
		{"a changed child", edit("src/runtime/sys_linux_amd64.s", "// In child, on new stack.", "// In child."),
			[]string{`"clone: child"`, "runtime/sys_linux_amd64.s", version}},
		{"another rule for zeroing", edit("src/runtime/mem_linux.go", "debug.madvdontneed == 0", "true"),
			[]string{`"zero"`, "runtime/mem_linux.go", version}},
		{"another search for arenas", edit("src/runtime/malloc.go", "*hintList = hint.next", "*hintList = nil"),
			[]string{`"hints"`, "runtime/malloc.go", version}},
		{"a passage that stands there twice", func(t *testing.T, root string) {
			write(t, filepath.Join(root, "src/runtime/mem_linux.go"), ZeroHunk().Old+ZeroHunk().Old)
		}, []string{`"zero"`, "2 times"}},
		{"a missing file", func(t *testing.T, root string) {
			if err := os.Remove(filepath.Join(root, "src/runtime/malloc.go")); err != nil {
				t.Fatal(err)
			}
		}, []string{`"hints"`, "runtime/malloc.go", "no such file"}},
		{"another minor release", func(t *testing.T, root string) {
			write(t, filepath.Join(root, "VERSION"), "go1.99.1\ntime 2030-01-01T00:00:00Z\n")
		}, []string{"go1.99.1", "go1.25.x and go1.26.x"}},
		{"a release whose number only begins the same", func(t *testing.T, root string) {
			write(t, filepath.Join(root, "VERSION"), Minors()[0]+"0\n")
		}, []string{Minors()[0] + "0"}},
		{"no version", func(t *testing.T, root string) {
			if err := os.Remove(filepath.Join(root, "VERSION")); err != nil {
				t.Fatal(err)
			}
		}, []string{"version of the toolchain"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			root, dir := subset(t), filepath.Join(t.TempDir(), "overlay")
			c.mutate(t, root)
			_, err := Write(dir, root, Hunks())
			if err == nil {
				t.Fatal("the source was patched")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			if _, err := os.Stat(dir); err == nil {
				t.Error("files were written all the same")
			}
		})
	}
}

func TestHunksApplyToTheOtherReleasesOfTheirSeries(t *testing.T) {
	for _, root := range testenv.Toolchains(t, Minors()...) {
		dir := t.TempDir()
		root, err := Root(dir, root)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Write(dir, root, Hunks()); err != nil {
			t.Errorf("%s: %v", root, err)
			continue
		}
		version, err := readVersion(root)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range Hunks() {
			patched, err := os.ReadFile(filepath.Join(dir, strings.ReplaceAll(h.File, "/", "_")))
			wanted := h.Since == "" || !strings.HasPrefix(version, "go1.25.")
			if is := err == nil && strings.Contains(string(patched), h.New); is != wanted {
				t.Errorf("%s: hunk %q applied is %v, want %v", version, h.Name, is, wanted)
			}
		}
	}
}

func TestAllFailuresAreNamedAtOnce(t *testing.T) {
	_, err := Patch("go1.26.3", func(string) (string, error) { return "package runtime\n", nil }, Hunks())
	if err == nil {
		t.Fatal("an empty source was patched")
	}
	for _, h := range Hunks() {
		if !strings.Contains(err.Error(), `"`+h.Name+`"`) {
			t.Errorf("error does not name the hunk %q: %v", h.Name, err)
		}
	}
}

// TestProgramRunsOnPlainLinux builds a program the way programs for Occlum are built and runs it under the musl
// loader of this machine. Two builds, each with an overlay of its own, must give the same bytes: they are measured.
func TestProgramRunsOnPlainLinux(t *testing.T) {
	testenv.Long(t, "builds the Go runtime")
	const loader = "/lib/ld-musl-x86_64.so.1"
	if _, err := os.Stat(loader); err != nil {
		testenv.Missing(t, "musl", err.Error()+" (Debian package musl)")
	}
	var programs [2]string
	for i := range programs {
		dir := t.TempDir()
		path, err := Write(filepath.Join(dir, "overlay"), goroot(t), Hunks())
		if err != nil {
			t.Fatal(err)
		}
		programs[i] = filepath.Join(dir, "program")
		cmd := exec.Command("go", "build", "-trimpath", "-overlay", path, "-buildmode=pie",
			"-ldflags", "-s -w -I "+loader, "-o", programs[i], "./testdata/program")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("building with the overlay: %v\n%s", err, out)
		}
	}
	out, err := exec.Command(programs[0]).CombinedOutput()
	if err != nil || string(out) != "done\n" {
		t.Errorf("the program ended with %v:\n%s", err, out)
	}

	a, err := os.ReadFile(programs[0])
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(programs[1])
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("two builds differ")
	}
	if bytes.Contains(a, []byte(filepath.Dir(programs[0]))) {
		t.Error("the program holds the path of its overlay")
	}
	if !bytes.Contains(a, []byte("runtime.clonechild")) {
		t.Error("the program was not built with the overlay")
	}
}
