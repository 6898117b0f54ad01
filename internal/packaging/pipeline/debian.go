package pipeline

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/packaging/ociimage"
)

// debianSuite is the release whose packages the client image has.
const debianSuite = "bookworm"

// debianPython unpacks Debian's python3-minimal and what it depends on into a new directory. Packages are verified by
// apt, none of their scripts is run.
func debianPython(ctx context.Context, dst string) error {
	archive := dst + ".tar"
	defer os.Remove(archive)
	args := []string{"--quiet", "--variant=extract", "--include=python3-minimal", debianSuite, archive}
	// If the machine is a Debian, its own archive is asked.
	for _, sources := range []string{"/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"} {
		if _, err := os.Stat(sources); err == nil {
			args = append(args, sources)
			break
		}
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	cmd.Dir = filepath.Dir(dst)
	if out, err := cmd.CombinedOutput(); err != nil {
		return attest.Errorf(attest.CodeConfig, "unpacking Debian's Python",
			"Install mmdebstrap (make deps-test), or name another source: --python python:3-slim, or a directory.", "%w\n%s", err, out)
	}
	if err := os.Mkdir(dst, 0o755); err != nil {
		return err
	}
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	return ociimage.UnpackTar(f, dst)
}
