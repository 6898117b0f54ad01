package fs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/sesame-init/sesame/attest"
	sesamefs "github.com/sesame-init/sesame/fs"
)

func TestSecretFileAppearsCompleteWithItsMode(t *testing.T) {
	name := filepath.Join(t.TempDir(), "tf_ssl.cfg")
	for _, content := range []string{"first", "second, longer than the first"} {
		err := sesamefs.WriteSecret(name, attest.NewSecret([]byte(content)), 0o400, os.Geteuid(), os.Getegid())
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if err != nil || string(got) != content {
			t.Fatalf("file holds %q (%v), want %q", got, err, content)
		}
		if info, _ := os.Stat(name); info.Mode() != 0o400 {
			t.Errorf("mode is %v, want 0400", info.Mode())
		}
	}
}

func TestSecretFileThatCannotBeWrittenLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "taken")
	if err := os.MkdirAll(filepath.Join(name, "child"), 0o755); err != nil {
		t.Fatal(err)
	}
	secret := attest.NewSecret([]byte("canary"))
	if err := sesamefs.WriteSecret(name, secret, 0o400, os.Geteuid(), os.Getegid()); err == nil {
		t.Error("replaced a directory by a secret")
	}
	if err := sesamefs.WriteSecret(filepath.Join(dir, "absent", "x"), secret, 0o400, 0, 0); err == nil {
		t.Error("wrote into a directory that does not exist")
	}
	var left []string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			left = append(left, path)
		}
		return err
	})
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
