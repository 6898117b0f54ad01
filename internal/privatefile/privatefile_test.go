package privatefile_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/privatefile"
	"github.com/sesame-init/sesame/internal/testenv"
)

// write makes a file of exactly this mode.
func write(t *testing.T, path, text string, mode fs.FileMode) string {
	t.Helper()
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadTakesWhatOnlyItsOwnerMayUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	for mode, want := range map[fs.FileMode]bool{0o600: true, 0o400: true, 0o644: false, 0o640: false, 0o604: false, 0o620: false} {
		write(t, path, "secret", mode)
		text, err := privatefile.Rule{Remark: func(s string) { t.Errorf("%o: said %q", mode, s) }}.Read(path, 6)
		if (err == nil) != want || want && string(text) != "secret" {
			t.Errorf("%o: %q, error %v", mode, text, err)
		}
		if checked := (privatefile.Rule{}).Check(path); (checked == nil) != want {
			t.Errorf("%o: checking says %v", mode, checked)
		}
		if !want && (attest.CodeOf(err) != attest.CodeConfig || !strings.Contains(attest.HintOf(err), "chmod 600 "+path)) {
			t.Errorf("%o: error %v, hint %q", mode, err, attest.HintOf(err))
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%o: the file was mended: %v", mode, info.Mode())
		}
		if text, err := (privatefile.Rule{Unchecked: true}).Read(path, 6); err != nil || string(text) != "secret" {
			t.Errorf("%o, unchecked: %q, error %v", mode, text, err)
		}
	}
}

func TestReadIsBounded(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "key"), "secret", 0o600)
	if text, err := (privatefile.Rule{}).Read(path, 5); err == nil {
		t.Errorf("read %q", text)
	}
}

func TestWhatIsNoFileIsNamed(t *testing.T) {
	dir := t.TempDir()
	if _, err := (privatefile.Rule{}).Read(filepath.Join(dir, "none"), 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := (privatefile.Rule{}).Read(dir, 1); attest.HintOf(err) != "Name a file." {
		t.Errorf("folder: %v, hint %q", err, attest.HintOf(err))
	}
}

// As Kubernetes does: the name in a volume is a link into a folder that an update replaces.
func TestLinkCountsAsTheFileBehindIt(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "..1"), 0o755), os.Symlink("..1", filepath.Join(dir, "..data")),
		os.Symlink("..data/key", filepath.Join(dir, "key"))); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[fs.FileMode]bool{0o400: true, 0o444: false} {
		write(t, filepath.Join(dir, "..1", "key"), "secret", mode)
		if _, err := (privatefile.Rule{}).Read(filepath.Join(dir, "key"), 6); (err == nil) != want {
			t.Errorf("%o: %v", mode, err)
		}
		if err := os.Remove(filepath.Join(dir, "..1", "key")); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPipesAndDevicesAreTaken(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.WriteString(w, "secret"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	link := filepath.Join(t.TempDir(), "pipe") // as the shell's <(...) hands one over
	if err := os.Symlink(fmt.Sprintf("/proc/self/fd/%d", r.Fd()), link); err != nil {
		t.Fatal(err)
	}
	if text, err := (privatefile.Rule{}).Read(link, 6); err != nil || string(text) != "secret" {
		t.Errorf("pipe: %q, error %v", text, err)
	}
	if text, err := (privatefile.Rule{}).Read(os.DevNull, 6); err != nil || len(text) != 0 {
		t.Errorf("device: %q, error %v", text, err)
	}
}

func TestGroupMayReadAnotherUsersFileAndItIsSaid(t *testing.T) {
	testenv.Root(t)
	path := write(t, filepath.Join(t.TempDir(), "key"), "secret", 0o440)
	if err := os.Chown(path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	var said []string
	rule := privatefile.Rule{Remark: func(s string) { said = append(said, s) }}
	if text, err := rule.Read(path, 6); err != nil || string(text) != "secret" {
		t.Errorf("%q, error %v", text, err)
	}
	if len(said) != 1 || !strings.Contains(said[0], path) || !strings.Contains(said[0], "0440") || !strings.Contains(said[0], "65534") {
		t.Errorf("said %q", said)
	}
	if err := os.Chmod(path, 0o460); err != nil {
		t.Fatal(err)
	}
	if _, err := rule.Read(path, 6); err == nil || len(said) != 1 {
		t.Errorf("its group may write it: error %v, said %q", err, said)
	}
}

func TestSwappedFileIsNotReadUnjudged(t *testing.T) {
	dir := t.TempDir()
	path := write(t, filepath.Join(dir, "key"), "judged", 0o400)
	swap := func() {
		if err := os.Rename(write(t, filepath.Join(dir, "new"), "others", 0o666), path); err != nil {
			t.Error(err)
		}
	}
	f, err := privatefile.Rule{}.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	swap()
	if text, err := io.ReadAll(f); err != nil || string(text) != "judged" {
		t.Errorf("opened: %q, error %v", text, err)
	}
	testenv.Root(t) // only another user's file is remarked on, which happens between judging and reading
	write(t, path, "judged", 0o440)
	if err := os.Chown(path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	text, err := privatefile.Rule{Remark: func(string) { swap() }}.Read(path, 6)
	if err != nil || string(text) != "judged" {
		t.Errorf("read: %q, error %v", text, err)
	}
}

func TestCreatedFileIsItsOwnersOnly(t *testing.T) {
	defer unix.Umask(unix.Umask(0)) // which would allow everything
	path := filepath.Join(t.TempDir(), "key")
	if err := privatefile.Create(path, []byte("secret")); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
	if err := privatefile.Create(path, []byte("another")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second time: %v", err)
	}
	if text, err := (privatefile.Rule{}).Read(path, 100); err != nil || string(text) != "secret" {
		t.Errorf("%q, error %v", text, err)
	}
}
