package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPrintsThePathOfTheOverlay(t *testing.T) {
	dir := t.TempDir()
	var out bytes.Buffer
	if err := run([]string{"-o", dir}, &out); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), filepath.Join(dir, "overlay.json")+"\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	if _, err := os.Stat(filepath.Join(dir, "overlay.json")); err != nil {
		t.Error(err)
	}
}

func TestToolchainThatIsNoneIsAnError(t *testing.T) {
	var out bytes.Buffer
	err := run([]string{"-o", t.TempDir(), "-goroot", t.TempDir()}, &out)
	if err == nil || !strings.Contains(err.Error(), "version of the toolchain") || out.Len() > 0 {
		t.Errorf("error %v, printed %q", err, out.String())
	}
	for _, args := range [][]string{nil, {"-o", ""}, {"-o", "x", "y"}} {
		if err := run(args, &out); err == nil || !strings.Contains(err.Error(), "usage") {
			t.Errorf("%q: error %v", args, err)
		}
	}
}
