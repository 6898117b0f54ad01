// Package testenv tells tests which folder has the larger test data and whether the machine has what they need.
//
// A test that needs something a machine may lack asks for it by name here. If it is missing the test is
// skipped, saying what; if the environment variable SESAME_REQUIRE lists the name (comma-separated, or
// "all"), as it does in CI, the test fails instead, so that nothing is skipped unnoticed.
//
// Names in use: "vectors" (the data sets below the folder in SESAME_VECTORS), "fuse", "root", "userns",
// "ptrace", "musl", "cc", "podman", "swtpm", "nginx", "redis", "toolchains", "postgres", "bin", "shellcheck",
// "buildah", "git" (a repository around the sources), "vm" (of make test-vm).
package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Missing skips the test because what it needs is not there, or fails it if SESAME_REQUIRE names it.
func Missing(t testing.TB, name, why string) {
	t.Helper()
	required := strings.Split(os.Getenv("SESAME_REQUIRE"), ",")
	if slices.Contains(required, name) || slices.Contains(required, "all") {
		t.Fatalf("%s is required by SESAME_REQUIRE, but: %s", name, why)
	}
	t.Skipf("needs %s: %s", name, why)
}

// Long skips a test that make test-short has no time for, saying why it takes long.
func Long(t testing.TB, why string) {
	t.Helper()
	if testing.Short() {
		t.Skip("not with -short: " + why)
	}
}

// Effort is full, or short with -short: how often a test repeats what it does, or in which steps it goes.
func Effort(full, short int) int {
	if testing.Short() {
		return short
	}
	return full
}

// Sweep is full, or sample with -short and under the race detector: how densely a test that runs in one goroutine tries
// inputs, such as every byte of a file. The race detector makes it ten times slower and finds nothing in the other
// inputs that it does not find in the sample. make test runs each package that has a sweep once more without it.
func Sweep(full, sample int) int {
	if testing.Short() || raceEnabled {
		return sample
	}
	return full
}

// LongSweep skips a test with -short and under the race detector, for the reasons that [Sweep] gives.
func LongSweep(t testing.TB, why string) {
	t.Helper()
	Long(t, why)
	if raceEnabled {
		t.Skip("not under the race detector; make test runs it without: " + why)
	}
}

// Vectors is a path below the folder of the larger data sets: Vectors(t, "dcap", "INDEX.json").
func Vectors(t testing.TB, elem ...string) string {
	t.Helper()
	root := os.Getenv("SESAME_VECTORS")
	if root == "" {
		Missing(t, "vectors", "SESAME_VECTORS is not set")
	}
	path := filepath.Join(append([]string{root}, elem...)...)
	if _, err := os.Stat(path); err != nil {
		Missing(t, "vectors", err.Error())
	}
	return path
}

// FUSE makes sure that this process can mount a FUSE file system.
func FUSE(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		Missing(t, "fuse", err.Error())
	}
	_ = f.Close()
	if os.Geteuid() == 0 {
		return
	}
	if _, err := exec.LookPath("fusermount3"); err != nil {
		Missing(t, "fuse", "not root, and there is no fusermount3 (Debian package fuse3)")
	}
}

// Program is the path of a program of the machine, named as SESAME_REQUIRE names it.
func Program(t testing.TB, name, program, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		Missing(t, name, "no "+program+" (Debian package "+debianPackage+")")
	}
	return path
}

// UserNamespaces makes sure that this process can make a user namespace with a mount namespace in it.
func UserNamespaces(t testing.TB) {
	t.Helper()
	out, err := exec.Command("unshare", "-Urm", "true").CombinedOutput()
	if err != nil {
		Missing(t, "userns", "unshare -Urm: "+err.Error()+" "+string(out))
	}
}

// Root makes sure that the test runs as root.
func Root(t testing.TB) {
	t.Helper()
	if unix.Geteuid() != 0 {
		Missing(t, "root", "not root")
	}
}

// Toolchains are the roots of the other Go releases in the module cache, as GOTOOLCHAIN downloads them; nothing is
// downloaded here. series are those of which there must be one: "go1.25".
func Toolchains(t testing.TB, series ...string) []string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOMODCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, s := range series {
		roots, _ := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)),
			"golang.org", "toolchain@v0.0.1-"+s+".*."+runtime.GOOS+"-"+runtime.GOARCH))
		if len(roots) == 0 {
			Missing(t, "toolchains", "no "+s+" in the module cache (GOTOOLCHAIN="+s+".0 go version)")
		}
		found = append(found, roots...)
	}
	return found
}
