package copytree

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func write(t *testing.T, file, text string, mode fs.FileMode) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), mode)); err != nil {
		t.Fatal(err)
	}
}

func TestACopyCanBeWrittenAndMadeAgain(t *testing.T) {
	src, dst := t.TempDir(), filepath.Join(t.TempDir(), "new", "copy")
	write(t, filepath.Join(src, "run/metadata"), "volume", 0o444)
	write(t, filepath.Join(src, "program"), "text", 0o755)
	if err := errors.Join(os.Mkdir(filepath.Join(src, "empty"), 0o555),
		os.Symlink("/opt/occlum/build/bin/occlum-run", filepath.Join(src, "link"))); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"new", "again", "after it was written to"} {
		if err := Copy(src, dst); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		for name, mode := range map[string]fs.FileMode{"run/metadata": 0o644, "program": 0o755, "empty": fs.ModeDir | 0o755} {
			if info, err := os.Stat(filepath.Join(dst, name)); err != nil || info.Mode() != mode {
				t.Errorf("%s: %s is %v, %v", when, name, info, err)
			}
		}
		if text, err := os.ReadFile(filepath.Join(dst, "run/metadata")); err != nil || string(text) != "volume" {
			t.Errorf("%s: %q, %v", when, text, err)
		}
		if target, err := os.Readlink(filepath.Join(dst, "link")); err != nil || target != "/opt/occlum/build/bin/occlum-run" {
			t.Errorf("%s: the link leads to %q, %v", when, target, err)
		}
		write(t, filepath.Join(dst, "run/metadata"), "the instance's own", 0o644)
		write(t, filepath.Join(dst, "run/other"), "stays", 0o644)
	}
	if text, err := os.ReadFile(filepath.Join(dst, "run/other")); err != nil || string(text) != "stays" {
		t.Errorf("a file of the copy alone: %q, %v", text, err)
	}
}

func TestALinkInAFilesPlaceLeadsNowhere(t *testing.T) {
	src, dst := filepath.Join(t.TempDir(), "file"), t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	write(t, src, "new", 0o644)
	write(t, outside, "untouched", 0o644)
	to := filepath.Join(dst, "file")
	if err := os.Symlink(outside, to); err != nil {
		t.Fatal(err)
	}
	if err := Copy(src, to); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{outside: "untouched", to: "new"} {
		if text, err := os.ReadFile(file); err != nil || string(text) != want {
			t.Errorf("%s holds %q, %v", file, text, err)
		}
	}
}

func TestOnlyFilesDirectoriesAndLinksAreCopied(t *testing.T) {
	src := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(src, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Copy(src, filepath.Join(t.TempDir(), "copy")); err == nil {
		t.Error("a FIFO was copied")
	}
	if err := Copy(filepath.Join(src, "none"), t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not there: %v", err)
	}
}

func TestAFileIsCopiedThroughALinkAndWithItsMode(t *testing.T) {
	dir := t.TempDir()
	src, link, to := filepath.Join(dir, "src"), filepath.Join(dir, "link"), filepath.Join(dir, "to")
	write(t, src, "new", 0o600)
	write(t, to, "an older and longer one", 0o400)
	if err := os.Symlink("src", link); err != nil {
		t.Fatal(err)
	}
	if err := File(link, to, 0o755); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(to)
	if err != nil || info.Mode() != 0o755 {
		t.Errorf("the copy is %v, %v", info, err)
	}
	if text, err := os.ReadFile(to); err != nil || string(text) != "new" {
		t.Errorf("the copy holds %q, %v", text, err)
	}
	if err := File(filepath.Join(dir, "none"), to, 0o644); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}
