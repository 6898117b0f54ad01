package rootfs

import (
	"os"
	"path/filepath"
	"testing"
)

func TestLinksStayInsideTheRoot(t *testing.T) {
	base := t.TempDir()
	if err := os.MkdirAll(filepath.Join(base, "usr/lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(base, "usr/lib/libc.so.6")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{
		"lib": "/usr/lib", "usr/lib64": "lib", "out": "../../../../usr/lib", "loop": "loop", "usr/lib/libc.so": "libc.so.6",
		"host": "/etc",
	} {
		if err := os.Symlink(target, filepath.Join(base, link)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"/lib/libc.so.6": file, "/usr/lib64/libc.so": file, "/out/libc.so.6": file, "lib/../lib/libc.so.6": file,
		"/loop": "", "/host/passwd": "", "/none": "", "": "",
	} {
		if got := Resolve(base, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}
