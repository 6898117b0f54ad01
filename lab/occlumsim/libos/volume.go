package libos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/fs/fuse"
	"github.com/sesame-init/sesame/fs/sefs"
)

// volume is a SEFS image that is mounted read-only in the scratch area, under the LibOS's exclusive lock.
type volume struct {
	image  *sefs.Volume
	server *fuse.Server
	lock   *os.File
	dir    string // where it is mounted
	copied bool   // into memory, because there is no FUSE
}

// metadataFile is the file of an image that is locked, as the LibOS locks each that it opens.
const metadataFile = "metadata"

var errLocked = errors.New("another running instance holds the volume")

// openVolume opens and mounts the image in a host directory. If mac is nil nothing but the key is checked.
func (l *LibOS) openVolume(dir string, key *sefs.Key, mac *sefs.MAC) (_ *volume, err error) {
	v := &volume{}
	defer func() {
		if err != nil {
			v.close()
		}
	}()
	if v.lock, err = os.OpenFile(filepath.Join(dir, metadataFile), os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(v.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errLocked
	}
	if v.image, err = sefs.Open(dir, sefs.OpenOptions{Key: key, MAC: mac, Unverified: mac == nil}); err != nil {
		return nil, err
	}
	if v.dir, err = l.newDir("volume"); err != nil {
		return nil, err
	}
	if device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err == nil {
		device.Close()
		v.server, err = fuse.Mount(context.Background(), v.image, v.dir, fuse.Options{Log: l.log})
		return v, err
	}
	return v, v.extract()
}

// extract puts the content into a file system in memory, if there is no FUSE for this user.
func (v *volume) extract() error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	if err := unix.Mount("sefs", v.dir, "tmpfs", flags, "mode=0755"); err != nil {
		return err
	}
	v.copied = true
	if err := v.image.Extract(context.Background(), v.tree(), nil); err != nil {
		return err
	}
	return unix.Mount("", v.dir, "", flags|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// tree is the mounted root directory of the volume.
func (v *volume) tree() string {
	if v.copied {
		return filepath.Join(v.dir, "content")
	}
	return v.dir
}

func (v *volume) close() {
	if v.server != nil {
		_ = v.server.Unmount()
	}
	if v.copied {
		_ = unix.Unmount(v.dir, unix.MNT_DETACH)
	}
	if v.image != nil {
		_ = v.image.Close()
	}
	if v.lock != nil {
		_ = v.lock.Close()
	}
}

// newDir makes a directory in the scratch area.
func (l *LibOS) newDir(kind string) (string, error) {
	l.dirs++
	dir := filepath.Join(scratch, kind+strconv.Itoa(l.dirs))
	return dir, os.Mkdir(dir, 0o755)
}

// union mounts a writable layer over a lower tree. The layer is in memory if upper is "", else in that
// directory of the host.
func (l *LibOS) union(lower, upper string) (string, error) {
	merged, err := l.newDir("root")
	if err != nil {
		return "", err
	}
	if upper != "" {
		if err := overlay(lower, upper, merged); err == nil {
			return merged, nil
		}
		l.log.Warn("the writable layer cannot be kept on this file system: it is in memory")
	}
	if upper, err = l.newDir("upper"); err != nil {
		return "", err
	}
	return merged, overlay(lower, upper, merged)
}

func overlay(lower, upper, merged string) error {
	for _, dir := range []string{"data", "work"} {
		if err := os.MkdirAll(filepath.Join(upper, dir), 0o755); err != nil {
			return err
		}
	}
	options := "lowerdir=" + lower + ",upperdir=" + filepath.Join(upper, "data") +
		",workdir=" + filepath.Join(upper, "work")
	if inUserNamespace() {
		options += ",userxattr"
	}
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return &os.PathError{Op: "mounting overlay", Path: merged, Err: err}
	}
	return nil
}

// inUserNamespace says whether this process is root of a user namespace rather than of the machine.
func inUserNamespace() bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false
	}
	var inside, outside, count uint64
	if _, err := fmt.Sscan(string(text), &inside, &outside, &count); err != nil {
		return false
	}
	return inside != 0 || outside != 0 || count != 1<<32-1
}
