package pipeline

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/internal/occlum/occlumcheck"
	"github.com/sesame-init/sesame/internal/testenv"
)

// system is a file system with a program that needs a library of its own and a C library, which stand in three places
// that only the rules of ld.so find: $ORIGIN, a file included from ld.so.conf, and behind a link.
func system(t *testing.T) (base, loader string) {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		testenv.Missing(t, "cc", err.Error())
	}
	base = t.TempDir()
	for _, dir := range []string{"opt/app/lib", "opt/extra", "usr/lib", "etc/ld.so.conf.d", "usr/share/app"} {
		if err := os.MkdirAll(filepath.Join(base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(base, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	compile := func(args ...string) {
		cmd := exec.Command(gcc, args...)
		cmd.Dir = base
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("gcc: %v\n%s", err, out)
		}
	}
	write("extra.c", "int extra(void) { return 1; }")
	write("own.c", "int extra(void); int own(void) { return extra(); }")
	write("main.c", "int own(void); int main(void) { return own(); }")
	compile("-shared", "-fPIC", "-o", "opt/extra/libextra.so.1", "-Wl,-soname,libextra.so.1", "extra.c")
	compile("-shared", "-fPIC", "-o", "opt/app/lib/libown.so", "-Wl,-soname,libown.so", "own.c", "opt/extra/libextra.so.1")
	compile("-o", "opt/app/main", "main.c", "opt/app/lib/libown.so", "-Wl,-rpath,$ORIGIN/lib",
		"-Wl,--allow-shlib-undefined")
	write("etc/ld.so.conf", "# comment\ninclude ld.so.conf.d/*.conf\n")
	write("etc/ld.so.conf.d/extra.conf", "/opt/extra\n")
	write("usr/share/app/data", "data")
	write("usr/share/app/unused.c", "")
	f, err := elf.Open(filepath.Join(base, "opt/app/main"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	loader = occlumcheck.Interpreter(f)
	for _, file := range []string{loader, "/lib/x86_64-linux-gnu/libc.so.6"} {
		text, err := os.ReadFile(file)
		if err != nil {
			testenv.Missing(t, "cc", err.Error())
		}
		to := filepath.Join(base, "usr/lib", filepath.Base(file))
		if err := os.WriteFile(to, text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"lib64": "usr/lib", "lib": "/usr/lib"} {
		if err := os.Symlink(target, filepath.Join(base, link)); err != nil {
			t.Fatal(err)
		}
	}
	return base, loader
}

func paths(taken []takenFile) []string {
	var all []string
	for _, t := range taken {
		all = append(all, t.Path)
	}
	return all
}

func TestTheRootHasWhatAProgramNamesAndNothingElse(t *testing.T) {
	base, loader := system(t)
	dst := filepath.Join(t.TempDir(), "root")
	taken, err := extract(base, dst, selection{Programs: []string{"/opt/app/main"}, Files: []string{"/usr/share/app/data"}})
	if err != nil {
		t.Fatal(err)
	}
	got := paths(taken)
	for _, want := range []string{"/opt/app/main", "/opt/extra/libextra.so.1", loader, "/usr/share/app/data"} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is missing in %v", want, got)
		}
	}
	if len(got) != 6 { // and libown.so and libc.so.6, wherever they were found
		t.Errorf("took %v", got)
	}
	for _, f := range taken {
		info, err := os.Lstat(filepath.Join(dst, f.Path))
		if err != nil || !info.Mode().IsRegular() || info.Size() != f.Size {
			t.Errorf("%s: %v, %v", f.Path, info, err)
		}
	}
}

func TestOcclumsLibraryTakesThePlaceOfADistributions(t *testing.T) {
	base, loader := system(t)
	libc := t.TempDir()
	for _, name := range []string{filepath.Base(loader), "libc.so.6"} {
		if err := os.WriteFile(filepath.Join(libc, name), []byte("occlum's "+name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dst := filepath.Join(t.TempDir(), "root")
	taken, err := extract(base, dst, selection{Programs: []string{"/opt/app/main"}, Libc: libc})
	if err != nil {
		t.Fatal(err)
	}
	replaced := 0
	for _, f := range taken {
		if !f.Replaced {
			continue
		}
		replaced++
		if text, err := os.ReadFile(filepath.Join(dst, f.Path)); err != nil || !strings.HasPrefix(string(text), "occlum's ") {
			t.Errorf("%s is not Occlum's: %v", f.Path, err)
		}
	}
	if replaced != 2 {
		t.Errorf("%d files replaced in %v", replaced, paths(taken))
	}
	if err := os.Remove(filepath.Join(libc, "libc.so.6")); err != nil {
		t.Fatal(err)
	}
	_, err = extract(base, filepath.Join(t.TempDir(), "root"), selection{Programs: []string{"/opt/app/main"}, Libc: libc})
	if err == nil || !strings.Contains(err.Error(), "libc.so.6") {
		t.Errorf("without Occlum's libc: %v", err)
	}
}

func TestWhatAnImageLacksIsNamed(t *testing.T) {
	base, _ := system(t)
	if err := os.Remove(filepath.Join(base, "opt/extra/libextra.so.1")); err != nil {
		t.Fatal(err)
	}
	for _, o := range []struct{ program, file, want string }{
		{"/opt/app/main", "", "libextra.so.1"}, {"/opt/none", "", "/opt/none"}, {"relative", "", "relative"},
		{"", "/none", "/none"},
	} {
		what := selection{}
		if o.program != "" {
			what.Programs = []string{o.program}
		}
		if o.file != "" {
			what.Files = []string{o.file}
		}
		_, err := extract(base, filepath.Join(t.TempDir(), "root"), what)
		if err == nil || !strings.Contains(err.Error(), o.want) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
