// Command goruntime writes the Go runtime overlay that every program which runs inside Occlum is built with:
//
//	overlay=$(go run ./internal/occlum/goruntime -o build/goruntime)
//	CGO_ENABLED=0 go build -trimpath -overlay "$overlay" -buildmode=pie \
//		-ldflags "-s -w -I /lib/ld-musl-x86_64.so.1" -o init ./init
//
// It prints the path of overlay.json, and fails with the hunk, the file and the Go version if the toolchain's
// source is not what the overlay was written for. Why the overlay is needed and what it promises is in the
// package overlay below.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/sesame-init/sesame/internal/occlum/goruntime/overlay"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "goruntime:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("goruntime", flag.ContinueOnError)
	dir := flags.String("o", "", "write patched files and overlay.json to `dir`")
	goroot := flags.String("goroot", "", "patch the toolchain in `dir` (default: go env GOROOT)")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if *dir == "" || flags.NArg() > 0 {
		return errors.New("usage: goruntime -o DIR [-goroot DIR]")
	}
	if *goroot == "" {
		out, err := exec.Command("go", "env", "GOROOT").Output()
		if err != nil {
			return fmt.Errorf("asking go for GOROOT: %w", err)
		}
		*goroot = strings.TrimSpace(string(out))
	}
	root, err := overlay.Root(*dir, *goroot)
	if err != nil {
		return err
	}
	path, err := overlay.Write(*dir, root, overlay.Hunks())
	if err != nil {
		return err
	}
	if root != *goroot {
		fmt.Fprintf(os.Stderr, "goruntime: go replaces no files in the module cache, where this toolchain is: build with "+
			"GOTOOLCHAIN=local GOROOT=%s %s\n", root, filepath.Join(root, "bin", "go"))
	}
	_, err = fmt.Fprintln(stdout, path)
	return err
}
