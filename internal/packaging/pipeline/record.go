package pipeline

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// stepsDir holds a record for each step that was done.
const stepsDir = ".steps"

// input is what a step depends on.
type input struct {
	words []string // options
	files []string // files and directories of this machine
}

// once does a step unless it was done with the same input and its results are there.
func (p *Pipeline) once(step string, in input, results []string, do func() error) error {
	now, err := in.digest(step)
	if err != nil {
		return err
	}
	record := p.path(stepsDir, step)
	if before, err := os.ReadFile(record); err == nil && string(before) == now && allExist(results) {
		p.say(step, "done before with the same input")
		return nil
	}
	if err := os.Remove(record); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return os.WriteFile(record, []byte(now), 0o644)
}

func allExist(files []string) bool {
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			return false
		}
	}
	return true
}

func (in input) digest(step string) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q\n", step, in.words)
	for _, file := range in.files {
		if file == "" {
			continue
		}
		if err := addFile(h, file); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// addFile hashes names, modes, link targets and contents below a file or directory, which may be missing.
func addFile(h io.Writer, top string) error {
	return filepath.WalkDir(top, func(file string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			_, err = fmt.Fprintf(h, "%q is missing\n", top)
			return err
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(top, file)
		if err != nil {
			return err
		}
		switch info.Mode().Type() {
		case 0:
			f, err := os.Open(file)
			if err != nil {
				return err
			}
			defer f.Close()
			fmt.Fprintf(h, "%q %v %d\n", relative, info.Mode(), info.Size())
			_, err = io.Copy(h, f)
			return err
		case fs.ModeSymlink:
			target, err := os.Readlink(file)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(h, "%q -> %q\n", relative, target)
			return err
		default:
			_, err = fmt.Fprintf(h, "%q %v\n", relative, info.Mode())
			return err
		}
	})
}
