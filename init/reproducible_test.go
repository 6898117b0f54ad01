package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/sesame-init/sesame/internal/testenv"
)

// TestEnclaveProgramsHaveTheSameBytesWhereverTheyAreBuilt builds them by make in a clone, in what git archive writes, and in
// a folder that git knows nothing of.
func TestEnclaveProgramsHaveTheSameBytesWhereverTheyAreBuilt(t *testing.T) {
	if err := exec.Command("git", "rev-parse", "HEAD").Run(); err != nil {
		testenv.Missing(t, "git", "these sources are not in a repository of git")
	}
	testenv.Long(t, "links programs six times")
	run := func(dir, name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOFLAGS=") // what the Makefile says must be enough
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
	}
	work := t.TempDir()
	places := map[string]string{"clone": "clone", "archive": "archive", "without git": filepath.Join("some", "where", "else")}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	run(work, "git", "clone", "--quiet", root, places["clone"])
	for _, name := range []string{"archive", "without git"} {
		dir := filepath.Join(work, places[name])
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		run(work, "sh", "-c", `git -C clone archive HEAD | tar -x -C "$1"`, "sh", dir)
	}
	programs := []string{"bin/init", "bin/libos/keybroker"}
	built := map[string]map[string]string{} // program, digest: the first place
	for name, place := range places {
		dir := filepath.Join(work, place)
		run(dir, "make", programs...)
		for _, program := range programs {
			b, err := os.ReadFile(filepath.Join(dir, program))
			if err != nil {
				t.Fatal(err)
			}
			digest := fmt.Sprintf("%x", sha256.Sum256(b))
			if built[program] == nil {
				built[program] = map[string]string{}
			}
			built[program][digest] = name
		}
	}
	for program, digests := range built {
		if len(digests) != 1 {
			t.Errorf("%s has other bytes in other places: %v", program, digests)
		}
	}
}
