// Package fs is what the boot sequence does with file systems: it mounts the application's root and its
// volumes through a [Mounter], and writes secret files.
//
// It knows no network and no evidence; of the rest of Sesame only the type attest.Secret. Mounters live below:
// init/internal/occlum speaks the LibOS's own mount calls, init/internal/linux mounts on plain Linux, by fs/fuse. fs/sefs is the volume
// format.
//
// # Compatibility
//
// This package serves the rest of the module: its names may change in any release. A Mounter is of use to init alone.
package fs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/fs/sefs"
)

// Root says how to mount the application's root.
type Root struct {
	// Source is the directory of the volume that becomes the root, and MAC its root MAC. If the platform finds its root
	// itself, as Occlum does, both are empty.
	Source string
	MAC    sefs.MAC
	// Key is the image key, which the caller clears; nil for an integrity-only image.
	Key *sefs.Key
	// EntryPoint is the one program that may be started afterwards; "" keeps what the instance allows.
	EntryPoint string
	// Environment is added to the trusted environment of the application, as NAME=value.
	Environment []string
}

// Volume is an encrypted volume beside the root.
type Volume struct {
	Source string    // directory on the host, as the platform resolves it
	Target string    // existing directory in the root
	Key    *sefs.Key // needed; the caller clears it
	MAC    sefs.MAC  // its root MAC, needed: without it an older or exchanged volume would go unnoticed
}

// Check reports an error of code [attest.CodeConfig] if the volume has no key or no MAC.
func (v Volume) Check() error {
	if v.Key == nil || v.MAC == (sefs.MAC{}) {
		return attest.Errorf(attest.CodeConfig, "mounting "+v.Target, "Give the key, and the MAC that was printed when the volume was made.",
			"a volume needs a key and a MAC")
	}
	return nil
}

// A Mounter mounts file systems on one platform. MountRoot comes first and succeeds once; it may be tried
// again after an error. A mount that ctx ends leaves nothing behind; a platform whose calls cannot be interrupted may
// finish the one that is under way.
type Mounter interface {
	MountRoot(context.Context, Root) error
	MountVolume(context.Context, Volume) error
	// MountMemory mounts an empty file system that never leaves memory.
	MountMemory(target string) error
	Unmount(target string) error
}

// MakeDir makes a directory, and those above it that are missing. undo takes away those that it made, if they are empty.
func MakeDir(dir string, mode fs.FileMode) (undo func(), err error) {
	var made []string // the innermost first
	for d := filepath.Clean(dir); ; d = filepath.Dir(d) {
		if _, err := os.Lstat(d); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		made = append(made, d)
	}
	undo = func() {
		for _, d := range made {
			_ = os.Remove(d)
		}
	}
	if err := os.MkdirAll(dir, mode); err != nil {
		undo()
		return func() {}, err
	}
	return undo, nil
}

// WriteSecret writes a secret file atomically: it appears under its name complete, with mode and owner set, or
// not at all. The directory must exist. An existing file is replaced. A uid or gid of -1 is this process's own.
func WriteSecret(name string, secret attest.Secret, mode fs.FileMode, uid, gid int) (err error) {
	suffix := make([]byte, 8)
	if _, err := rand.Read(suffix); err != nil {
		return err
	}
	temporary := filepath.Join(filepath.Dir(name), ".sesame-"+hex.EncodeToString(suffix))
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("creating a file in %s: %w", filepath.Dir(name), errors.Unwrap(err))
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(temporary)
		}
	}()
	if _, err := f.Write(secret.Expose()); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if err := f.Chmod(mode); err != nil {
		return fmt.Errorf("setting the mode of %s: %w", name, err)
	}
	if uid >= 0 && uid != os.Geteuid() || gid >= 0 && gid != os.Getegid() {
		if err := f.Chown(uid, gid); err != nil {
			return fmt.Errorf("setting the owner of %s: %w", name, err)
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return os.Rename(temporary, name)
}
