package libos

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/occlum/occlumconf"
)

// rootConfigSize is that of struct user_rootfs_config.
const rootConfigSize = 56

// mountRootFS is system call 363 (L/fs/syscalls.rs, L/fs/fs_ops/mount.rs): merge the environment, open the layers,
// and only then swap the root, once.
func (l *LibOS) mountRootFS(c call) unix.Errno {
	var key *sefs.Key
	if c.args[0] != 0 {
		key = new(sefs.Key)
		defer clear(key[:])
		if err := readMemory(c.pid, c.args[0], key[:]); err != nil {
			return unix.EFAULT
		}
	}
	image, upper := l.system.RootLayers()
	if image == nil || upper == nil {
		return unix.ENOENT
	}
	entryPoints := l.system.EntryPoints
	mounts := slices.Clone(l.system.Mount)
	layer := rootLayer{source: image.Source, mac: *image.Options.MAC, upper: upper.Source,
		temporary: upper.Options != nil && upper.Options.Temporary}
	if c.args[1] != 0 {
		o, err := readRootConfig(c.pid, c.args[1])
		if err != nil {
			return errnoOf(err)
		}
		if o.env != nil {
			l.trusted = mergeEnv(o.env, l.system.Env.Default)
		}
		if o.lower != "" {
			layer.source, layer.mac = o.lower, "" // and with it, the check of the root MAC is gone
		}
		if o.upper != "" {
			layer.upper = o.upper
		}
		if o.entryPoint != "" {
			entryPoints = []string{o.entryPoint}
		}
		if o.hostSource != "" {
			if errno := replaceHostFS(mounts, o.hostSource, o.hostTarget); errno != 0 {
				return errno
			}
		}
	}
	if l.rootMounted {
		return unix.EPERM
	}
	root, err := l.openRoot(layer, key)
	if err != nil {
		l.log.WithError(err).Warn("the application's root cannot be opened")
		return unix.EIO
	}
	// The root is swapped now, whatever fails next: init can only give up then.
	l.rootMounted, l.entryPoints = true, entryPoints
	err = l.furnish(root, mounts, key)
	if swapErr := l.swapRoot(root); swapErr != nil {
		l.log.WithError(swapErr).Error("swapping the root")
		return unix.EIO
	}
	if err != nil {
		l.log.WithError(err).Warn("the application's root is incomplete")
	}
	return errnoOf(err)
}

// rootConfig is what a program may change about the root; "" keeps what Occlum.json says.
type rootConfig struct {
	upper, lower, entryPoint, hostSource, hostTarget string
	env                                              []string // nil keeps it
}

func readRootConfig(pid int, addr uint64) (rootConfig, error) {
	var o rootConfig
	raw := make([]byte, rootConfigSize)
	if err := readMemory(pid, addr, raw[:8]); err != nil {
		return o, err
	}
	if binary.LittleEndian.Uint64(raw) != rootConfigSize {
		return o, unix.EINVAL
	}
	if err := readMemory(pid, addr, raw); err != nil {
		return o, err
	}
	for i, field := range []*string{&o.upper, &o.lower, &o.entryPoint, &o.hostSource, &o.hostTarget} {
		p := binary.LittleEndian.Uint64(raw[8*(i+1):])
		if p == 0 {
			continue
		}
		var err error
		if *field, err = readString(pid, p, maxPath); err != nil {
			return o, err
		}
		if *field == "" {
			return o, unix.EINVAL
		}
	}
	p := binary.LittleEndian.Uint64(raw[48:])
	if p == 0 {
		return o, nil
	}
	env, err := readStrings(pid, p)
	o.env = append([]string{}, env...)
	return o, err
}

func replaceHostFS(mounts []occlumconf.Mount, source, target string) unix.Errno {
	if target == "" {
		target = "/host"
	}
	i := slices.IndexFunc(mounts, func(m occlumconf.Mount) bool { return m.Type == "hostfs" })
	if i < 0 {
		return unix.ENOENT
	}
	if info, err := os.Stat(source); err != nil || !info.IsDir() || !path.IsAbs(target) {
		return unix.EINVAL
	}
	mounts[i].Source, mounts[i].Target = source, target
	return 0
}

// rootLayer are the layers of a union; mac is "" if there is none to check.
type rootLayer struct {
	source, mac, upper string
	temporary          bool
}

// keptLayer is the path of a writable layer below the host directory that real Occlum keeps its own in.
const keptLayer = "upper"

// openRoot mounts a union in the scratch area and returns its path.
func (l *LibOS) openRoot(layer rootLayer, key *sefs.Key) (string, error) {
	var mac *sefs.MAC
	if layer.mac != "" {
		m, err := sefs.ParseMAC(layer.mac)
		if err != nil {
			return "", err
		}
		mac = &m
	}
	v, err := l.openVolume(layer.source, key, mac)
	if err != nil {
		return "", err
	}
	upper := ""
	if !layer.temporary {
		upper = path.Join(path.Dir(layer.upper), keptLayer)
		if err := os.MkdirAll(upper, 0o700); err != nil {
			v.close()
			return "", err
		}
	}
	root, err := l.union(v.tree(), upper)
	if err != nil {
		v.close()
		return "", err
	}
	l.volumes = append(l.volumes, v)
	return root, nil
}

// furnish mounts what belongs into an application's root, and writes the host's files into it. Mount points must
// exist.
func (l *LibOS) furnish(root string, mounts []occlumconf.Mount, key *sefs.Key) error {
	if err := l.systemMounts(root); err != nil {
		return err
	}
	for _, m := range mounts {
		if m.Target == "/" {
			continue
		}
		if err := l.userMount(root, m, key); err != nil {
			return fmt.Errorf("mounting %s at %s: %w", m.Type, m.Target, err)
		}
	}
	return l.writeHostFiles(root)
}

func (l *LibOS) userMount(root string, m occlumconf.Mount, key *sefs.Key) error {
	target, err := resolveIn(root, m.Target)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	o := occlumconf.MountOptions{}
	if m.Options != nil {
		o = *m.Options
	}
	switch m.Type {
	case "hostfs":
		return l.mountHost(m.Source, target)
	case "ramfs":
		return l.mountMemory(target)
	case "sefs":
		mac := ""
		if o.MAC != nil {
			mac = *o.MAC
		}
		return l.mountSEFS(rootLayer{source: m.Source, mac: mac, temporary: o.Temporary}, key, target)
	case "unionfs":
		if len(o.Layers) != 2 {
			return unix.EINVAL
		}
		lower := rootLayer{source: o.Layers[0].Source, upper: o.Layers[1].Source}
		if first := o.Layers[0].Options; first != nil && first.MAC != nil {
			lower.mac = *first.MAC
		}
		return l.mountUnion(lower, key, target)
	}
	return unix.EINVAL
}

// systemMounts puts procfs and devfs into a root.
func (l *LibOS) systemMounts(root string) error {
	dev, err := l.makeDev()
	if err != nil {
		return err
	}
	for _, m := range []struct{ source, target string }{{scratchProc, "/proc"}, {dev, "/dev"}} {
		target, err := resolveIn(root, m.target)
		if err != nil {
			return fmt.Errorf("mount point %s: %w", m.target, err)
		}
		err = bind(m.source, target)
		unix.Close(target)
		if err != nil {
			return fmt.Errorf("mounting %s: %w", m.target, err)
		}
	}
	return nil
}

// sgxNode is the device of the host that serves as /dev/sgx: its number tells it from all others, and the LibOS
// has none of that kind. Reading and writing an unmounted /dev/fuse is EPERM, as it is for /dev/sgx. If this user
// may not open it, /dev/full must do, which can be read.
func sgxNode() string {
	const fuse = "/dev/fuse"
	if unix.Access(fuse, unix.R_OK|unix.W_OK) == nil {
		return fuse
	}
	return "/dev/full"
}

// makeDev makes a devfs (L/fs/dev_fs/mod.rs).
func (l *LibOS) makeDev() (string, error) {
	dev, err := l.newDir("dev")
	if err != nil {
		return "", err
	}
	for _, n := range []struct{ name, host string }{{"null", "/dev/null"}, {"zero", "/dev/zero"},
		{"random", "/dev/random"}, {"urandom", "/dev/urandom"}, {"arandom", "/dev/urandom"}, {"sgx", sgxNode()}} {
		name := path.Join(dev, n.name)
		if err := os.WriteFile(name, nil, 0o666); err != nil {
			return "", err
		}
		if err := unix.Mount(n.host, name, "", unix.MS_BIND, ""); err != nil {
			return "", &os.PathError{Op: "mounting", Path: n.host, Err: err}
		}
	}
	if err := os.Symlink("/proc/self/fd", path.Join(dev, "fd")); err != nil {
		return "", err
	}
	return dev, os.Mkdir(path.Join(dev, "shm"), 0o777)
}

// bind mounts a tree of the scratch area on an open directory.
func bind(source string, target int) error {
	return unix.Mount(source, fmt.Sprintf("/proc/self/fd/%d", target), "", unix.MS_BIND|unix.MS_REC, "")
}

// resolveIn opens a directory inside a root, links followed inside it only.
func resolveIn(root, name string) (int, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	return unix.Openat2(dir, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT})
}

// swapRoot makes a new root that of all programs of the LibOS, wherever in a call they are. The kernel does so for
// every task that has the old root as its own when one of them pivots; a thread of the supervisor does it for them.
// The new root then has the place of the old one, so l.root stays.
func (l *LibOS) swapRoot(root string) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its root and directory
		done <- l.pivot(root)
	}()
	return <-done
}

func (l *LibOS) pivot(root string) error {
	source, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(source)
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	// The new root has to be below the old one: it covers /dev, which the old one always has, for the moment.
	if err := unix.Mount(root, path.Join(l.root, "dev"), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("binding the new root: %w", err)
	}
	if err := unix.Chroot(l.root); err != nil {
		return err
	}
	if err := unix.Chdir("/dev"); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivoting: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leaving the old root: %w", err)
	}
	return nil
}

// errnoOf is the error number that a program gets for err.
func errnoOf(err error) unix.Errno {
	var errno unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno):
		return errno
	}
	return unix.EIO
}
