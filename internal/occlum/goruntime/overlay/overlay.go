// Package overlay derives the Go runtime that can live inside Occlum's LibOS from the installed toolchain's own
// source, as files for "go build -overlay".
//
// A stock Go program dies in Occlum at its second thread, and what lives longer corrupts its heap. Three hunks
// mend that:
//
//   - clone: Occlum's clone(2) starts a thread at the address on top of the child's stack and leaves
//     every register but the stack pointer and the TLS base undefined. Stock Go returns from the system call in
//     the child and reads three registers.
//   - zero: Occlum's madvise(MADV_DONTNEED) answers success and does nothing. Stock Go takes such pages for
//     zeroed, and hands out old memory as new.
//   - hints: Occlum ignores the address hints of mmap. Stock Go tries every one of its hints before it takes what
//     it is given; each try maps and unmaps 64 MiB of enclave memory.
//
// # Promises
//
// A hunk is applied only if its exact old text occurs exactly once in its file, and only to a toolchain of a
// minor version in [Minors]; anything else is an error that names the hunk, the file and the Go version,
// so a build either has all the hunks that its version needs or fails. The result depends on nothing but the toolchain's source: two
// builds with the same toolchain give the same bytes. A program built with the overlay still runs on plain Linux.
//
// # Limits
//
// Only linux/amd64 without cgo, since with cgo threads come from the C library; and not with the race detector,
// which wants the heap at addresses of its own. The overlay repairs the runtime, not what Occlum lacks: os/exec
// does not work there.
package overlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Minors are the release series of Go that the hunks were written for and tested with, the oldest first.
func Minors() []string { return []string{"go1.25", "go1.26"} }

// A Hunk replaces one passage of one file of the Go distribution.
type Hunk struct {
	Name string // short name, used in errors
	File string // path below GOROOT/src, with slashes
	Old  string // the passage; it must stand in the file exactly once
	New  string // what takes its place
	// Since is the first of [Minors] that needs the hunk; "" means all.
	Since string
}

// needed reports whether a release of a minor version needs the hunk.
func (h Hunk) needed(minor string) bool {
	return h.Since == "" || slices.Index(Minors(), minor) >= slices.Index(Minors(), h.Since)
}

// Root is the name under which go lets the files of the toolchain in goroot be replaced. That is goroot, but for a
// toolchain in the module cache, where GOTOOLCHAIN puts those that it downloads: go replaces no file there, so Root
// makes a link named goroot in dir, which must be used in its place: GOTOOLCHAIN=local GOROOT=LINK LINK/bin/go build.
func Root(dir, goroot string) (string, error) {
	link, err := filepath.Abs(filepath.Join(dir, "goroot"))
	if err != nil {
		return "", err
	}
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if !strings.HasPrefix(filepath.Base(goroot), "toolchain@") {
		return goroot, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return link, os.Symlink(goroot, link)
}

// Write patches the runtime of the toolchain in goroot with hunks, writes the patched files and overlay.json to
// dir, which it makes, and returns the absolute path of overlay.json. Of goroot it reads the file VERSION and the
// files that hunks name. Nothing is written unless every hunk applies.
func Write(dir, goroot string, hunks []Hunk) (string, error) {
	goroot, err := filepath.Abs(goroot)
	if err != nil {
		return "", err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	version, err := readVersion(goroot)
	if err != nil {
		return "", fmt.Errorf("patching the Go runtime: %w", err)
	}
	files, err := Patch(version, func(file string) (string, error) {
		b, err := os.ReadFile(filepath.Join(goroot, "src", filepath.FromSlash(file)))
		return string(b), err
	}, hunks)
	if err != nil {
		return "", fmt.Errorf("patching the Go runtime in %s: %w", goroot, err)
	}

	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	var replace struct{ Replace map[string]string }
	replace.Replace = make(map[string]string)
	for file, text := range files {
		patched := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(patched, []byte(text), 0o644); err != nil {
			return "", err
		}
		replace.Replace[filepath.Join(goroot, "src", filepath.FromSlash(file))] = patched
	}
	b, err := json.MarshalIndent(replace, "", "\t")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, append(b, '\n'), 0o644)
}

// Patch applies hunks to the sources of the Go release version ("go1.26.8") and returns the patched files by
// their path below GOROOT/src. read returns the stock text of such a file. All hunks that do not apply are named
// at once.
func Patch(version string, read func(file string) (string, error), hunks []Hunk) (map[string]string, error) {
	minor := ""
	for _, m := range Minors() {
		if version == m || strings.HasPrefix(version, m+".") {
			minor = m
		}
	}
	if minor == "" {
		known := strings.Join(Minors(), ".x and ") + ".x"
		return nil, fmt.Errorf("the toolchain is %s, and the hunks are for %s only: build with one of those "+
			"(GOTOOLCHAIN), or port the hunks and test them under the simulator", version, known)
	}
	files := make(map[string]string)
	var failures []error
	for _, h := range hunks {
		if !h.needed(minor) {
			continue
		}
		text, ok := files[h.File]
		if !ok {
			var err error
			if text, err = read(h.File); err != nil {
				failures = append(failures, fmt.Errorf("hunk %q for %s of %s: %w", h.Name, h.File, version, err))
				continue
			}
		}
		if n := strings.Count(text, h.Old); n != 1 {
			failures = append(failures, fmt.Errorf("hunk %q does not apply to %s of %s: its old text stands there "+
				"%d times, want once", h.Name, h.File, version, n))
			continue
		}
		files[h.File] = strings.Replace(text, h.Old, h.New, 1)
	}
	if len(failures) > 0 {
		return nil, errors.Join(failures...)
	}
	return files, nil
}

// readVersion is the release that goroot holds, from the first line of its file VERSION.
func readVersion(goroot string) (string, error) {
	b, err := os.ReadFile(filepath.Join(goroot, "VERSION"))
	if err != nil {
		return "", fmt.Errorf("finding the version of the toolchain: %w", err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(line), nil
}
