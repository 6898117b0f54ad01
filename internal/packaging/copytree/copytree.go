// Package copytree copies files and directories of this machine to a place whose owner may write to the copy.
//
// Whatever has a file's name is removed first, a link too: it would lead the write somewhere else. So a copy can be
// made again over an earlier one. Links are copied as they are. A FIFO, socket or device is an error.
package copytree

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Copy copies a file to the name to, or all that is in a directory into the directory to, which is made if it is
// missing, with those above it. What else is there stays. Files keep their permissions, and the owner may write.
func Copy(from, to string) error {
	return filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(from, file)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, relative)
		if d.IsDir() {
			return os.MkdirAll(dst, 0o755)
		}
		if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
			return err
		}
		if err := remove(dst); err != nil {
			return err
		}
		switch d.Type() {
		case 0:
			info, err := d.Info()
			if err != nil {
				return err
			}
			return copyFile(file, dst, info.Mode().Perm()|0o600)
		case fs.ModeSymlink:
			target, err := os.Readlink(file)
			if err != nil {
				return err
			}
			return os.Symlink(target, dst)
		default:
			return fmt.Errorf("copying %s: it is a %s", file, d.Type())
		}
	})
}

// File copies one file to the name to, with this mode. A link at from is followed.
func File(from, to string, mode fs.FileMode) error {
	if err := remove(to); err != nil {
		return err
	}
	return copyFile(from, to, mode)
}

func remove(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func copyFile(from, to string, mode fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(mode), out.Close())
}
