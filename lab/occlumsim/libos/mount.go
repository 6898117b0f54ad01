package libos

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/fs/sefs"
)

// Flags of mount(2): those that the LibOS refuses, and all that it knows.
const (
	mountRefused = unix.MS_REMOUNT | unix.MS_BIND | unix.MS_SHARED | unix.MS_PRIVATE | unix.MS_SLAVE |
		unix.MS_UNBINDABLE | unix.MS_MOVE
	mountKnown = mountRefused | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC |
		unix.MS_SYNCHRONOUS | unix.MS_MANDLOCK | unix.MS_DIRSYNC | unix.MS_NOSYMFOLLOW | unix.MS_NOATIME |
		unix.MS_NODIRATIME | unix.MS_REC | unix.MS_SILENT | unix.MS_RELATIME | unix.MS_STRICTATIME |
		unix.MS_LAZYTIME
	umountKnown = unix.MNT_FORCE | unix.MNT_DETACH | unix.MNT_EXPIRE | unix.UMOUNT_NOFOLLOW
)

// mount is mount(2) of the LibOS (L/fs/fs_ops/mount.rs).
func (l *LibOS) mount(c call) unix.Errno {
	if c.args[0] == 0 || c.args[1] == 0 || c.args[2] == 0 {
		return unix.EINVAL
	}
	if _, err := readString(c.pid, c.args[0], maxPath); err != nil {
		return errnoOf(err)
	}
	name, err := readString(c.pid, c.args[1], maxPath)
	if err != nil {
		return errnoOf(err)
	}
	kind, err := readString(c.pid, c.args[2], maxPath)
	if err != nil {
		return errnoOf(err)
	}
	options := ""
	if c.args[4] != 0 {
		if options, err = readString(c.pid, c.args[4], 4*maxPath); err != nil {
			return errnoOf(err)
		}
	}
	if flags := c.args[3]; flags&^uint64(mountKnown) != 0 || flags&mountRefused != 0 {
		return unix.EINVAL
	}
	target, errno := l.mountPoint(c.pid, name)
	if errno != 0 {
		return errno
	}
	defer unix.Close(target)
	err = l.mountKind(kind, parseOptions(options), target)
	if err != nil {
		l.log.WithError(err).WithField("target", name).Warnf("mount of type %s refused", kind)
	}
	return errnoOf(err)
}

func (l *LibOS) mountKind(kind string, options map[string]string, target int) error {
	dir, haveDir := options["dir"]
	key, mac, err := secrets(options)
	if err != nil {
		return unix.EINVAL
	}
	switch kind {
	case "sefs":
		if !haveDir {
			return unix.EINVAL
		}
		return l.mountSEFS(rootLayer{source: dir, mac: mac, temporary: true}, key, target)
	case "unionfs":
		lower, haveLower := options["lowerdir"]
		upper, haveUpper := options["upperdir"]
		if !haveLower || !haveUpper {
			return unix.EINVAL
		}
		return l.mountUnion(rootLayer{source: lower, upper: upper}, key, target)
	case "hostfs":
		return l.mountHost(dir, target)
	case "ramfs":
		return l.mountMemory(target)
	}
	return unix.EINVAL
}

// parseOptions splits NAME=VALUE,…; the first of a name counts.
func parseOptions(text string) map[string]string {
	options := map[string]string{}
	for _, o := range strings.Split(text, ",") {
		name, value, _ := strings.Cut(o, "=")
		if _, ok := options[name]; !ok {
			options[name] = value
		}
	}
	return options
}

// secrets are the key and the MAC among mount options, both as "xx-…-xx".
func secrets(options map[string]string) (key *sefs.Key, mac string, err error) {
	if text, ok := options["key"]; ok {
		m, err := sefs.ParseMAC(text) // a key has the form of a MAC, and no other here
		if err != nil {
			return nil, "", errors.New("the key is not 16 bytes as xx-…-xx")
		}
		key = (*sefs.Key)(&m)
	}
	mac = options["mac"]
	if mac != "" {
		_, err = sefs.ParseMAC(mac)
	}
	return key, mac, err
}

// mountPoint opens the directory that a program names as the target of a mount.
func (l *LibOS) mountPoint(pid int, name string) (int, unix.Errno) {
	if name == "" {
		return -1, unix.ENOENT
	}
	if !path.IsAbs(name) {
		dir, err := os.Readlink(procPath(pid, "cwd"))
		if err != nil {
			return -1, errnoOf(err)
		}
		root, err := filepath.Abs(l.root)
		if err != nil {
			return -1, errnoOf(err)
		}
		name = path.Join("/", strings.TrimPrefix(dir, root), name)
	}
	if path.Clean(name) == "/" {
		return -1, unix.EPERM
	}
	fd, err := resolveIn(l.root, name)
	return fd, errnoOf(err)
}

// mountSEFS mounts one image. With a MAC it is read-only; without, changes go to a layer in memory. An image that
// does not exist is made, empty, as the LibOS does if no MAC is asked for.
func (l *LibOS) mountSEFS(layer rootLayer, key *sefs.Key, target int) error {
	if layer.mac == "" {
		if _, err := os.Stat(filepath.Join(layer.source, metadataFile)); errors.Is(err, fs.ErrNotExist) {
			if info, err := os.Stat(layer.source); err != nil || !info.IsDir() {
				return unix.EIO
			}
			return l.mountMemory(target)
		}
		return l.mountUnion(layer, key, target)
	}
	mac, err := sefs.ParseMAC(layer.mac)
	if err != nil {
		return unix.EINVAL
	}
	v, err := l.openVolume(layer.source, key, &mac)
	if err != nil {
		return hideCause(err)
	}
	if err := bind(v.tree(), target); err != nil {
		v.close()
		return err
	}
	l.volumes = append(l.volumes, v)
	return nil
}

func (l *LibOS) mountUnion(layer rootLayer, key *sefs.Key, target int) error {
	root, err := l.openRoot(layer, key)
	if err != nil {
		return hideCause(err)
	}
	return bind(root, target)
}

// opaqueError is what a program sees as EIO, and the supervisor's log with its cause.
type opaqueError struct{ cause error }

func (e opaqueError) Error() string { return e.cause.Error() }

// hideCause keeps an error number of the host from the program: whatever is wrong with a volume is EIO.
func hideCause(err error) error { return opaqueError{err} }

func (l *LibOS) mountHost(source string, target int) error {
	if info, err := os.Stat(source); err != nil || !info.IsDir() {
		return unix.EINVAL
	}
	return bind(source, target)
}

func (l *LibOS) mountMemory(target int) error {
	dir, err := l.newDir("memory")
	if err != nil {
		return err
	}
	if err := unix.Mount("ramfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return err
	}
	return bind(dir, target)
}

// unmount is umount2(2) of the LibOS.
func (l *LibOS) unmount(c call) unix.Errno {
	name, err := readString(c.pid, c.args[0], maxPath)
	if err != nil {
		return errnoOf(err)
	}
	flags := c.args[1]
	if flags&^umountKnown != 0 || flags&unix.MNT_EXPIRE != 0 && flags&(unix.MNT_FORCE|unix.MNT_DETACH) != 0 {
		return unix.EINVAL
	}
	target, errno := l.mountPoint(c.pid, name)
	if errno != 0 {
		return errno
	}
	var st unix.Stat_t
	err = unix.Fstat(target, &st)
	if err == nil {
		err = unix.Unmount("/proc/self/fd/"+itoa(target), unix.MNT_DETACH)
	}
	unix.Close(target) // a volume is served as long as it is open
	if err != nil {
		return errnoOf(err)
	}
	l.release(st.Dev)
	return 0
}

// release gives up the volume whose file system has this number, and with it the lock.
func (l *LibOS) release(dev uint64) {
	for i, v := range l.volumes {
		var st unix.Stat_t
		if unix.Stat(v.dir, &st) == nil && st.Dev == dev {
			l.volumes = append(l.volumes[:i], l.volumes[i+1:]...)
			_ = v.lock.Close()
			go v.close() // which waits for those who have files open
			return
		}
	}
}
