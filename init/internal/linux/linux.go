// Package linux mounts a workload's file systems on plain Linux: encrypted volumes through FUSE, each served by a
// process of its own, memory that is never swapped out, and, if asked, a root from a volume.
//
// # What it promises
//
//   - Mounts are made in a mount namespace that [Unshare] makes: nothing else on the machine sees them, and they are
//     gone with the last process in it. Only root in the machine's first namespaces can still look inside.
//   - A volume is served by a process ([Serve]) with a user of its own. It has no capability but the one to read the
//     volume's files, cannot be traced or dumped, its memory stays out of swap, and it ends with its parent. The
//     key reaches it through a pipe.
//   - Files have the modes of the volume, which keeps no owners: they belong to the application's user, and those of a
//     root to root. No one can write.
//
// # What it does not promise
//
// When the process behind a volume dies, readers get ENOTCONN (EIO or ECONNABORTED for calls that are under way), but
// for what the kernel has in its cache. Anyone who is root in the machine and outside of the namespace reads everything: what
// keeps the machine's owner out is a confidential VM, not this package.
//
// All calls of a [Mounter] and the start of the application must come from one goroutine that is locked to its thread
// (runtime.LockOSThread), because a namespace belongs to a thread.
//
// # Compatibility
//
// This package serves the rest of the module: its names may change in any release.
package linux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/fs"
	"github.com/sesame-init/sesame/fs/fuse"
	"github.com/sesame-init/sesame/internal/memory"
	"github.com/sesame-init/sesame/internal/pidfd"
)

// runDir holds what is needed to build a root, in a file system in memory.
const runDir = "/run/sesame"

// Options of a [Mounter].
type Options struct {
	// Self is the program to start for a volume. It has to call [Serve] if its argv[0] is [ServerName].
	Self string
	// UID is the user and group that serves volumes.
	UID uint32
	// OwnerUID and OwnerGID own all files of volumes but the root's.
	OwnerUID, OwnerGID uint32
	// Siblings makes the processes behind volumes children of this process's parent, which then has to end and reap them.
	Siblings bool
	// Overlay puts a writable layer in memory above a root from a volume.
	Overlay bool
}

// Mounter implements [fs.Mounter].
type Mounter struct {
	options Options
	root    string // the directory that holds the workload's tree; "" for the root that is there
	servers []Server
	undo    []func()
}

// NewMounter returns a mounter whose root is, until MountRoot says otherwise, the one that is there.
func NewMounter(o Options) *Mounter { return &Mounter{options: o} }

// Root is the directory that holds the workload's tree until [Mounter.Enter].
func (m *Mounter) Root() string { return m.root }

// Servers are the processes behind the volumes.
func (m *Mounter) Servers() []Server { return m.servers }

// closePatience is how long a server may take to end.
const closePatience = 5 * time.Second

// Close takes back what this mounter has made and [Mounter.Unmount] has not: it ends the servers, and takes away the root
// and the directories made for mounts. After [Mounter.Enter] these are out of reach.
func (m *Mounter) Close() {
	var fds []int
	for _, s := range m.servers {
		fds = append(fds, s.FD)
	}
	pidfd.End(fds, closePatience)
	for _, s := range m.servers {
		_, _ = unix.Wait4(s.PID, nil, 0, nil)
		_ = unix.Close(s.FD)
	}
	m.servers = nil
	for i := len(m.undo) - 1; i >= 0; i-- {
		m.undo[i]()
	}
	m.undo = nil
}

// makeDir makes a directory that Close takes away.
func (m *Mounter) makeDir(dir string, mode os.FileMode) error {
	undo, err := fs.MakeDir(dir, mode)
	m.undo = append(m.undo, undo)
	return err
}

// Unshare gives the calling thread a mount namespace of its own, from which no mount gets out.
func Unshare() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return attest.Errorf(attest.CodeMount, "making a mount namespace",
			"It needs CAP_SYS_ADMIN: docker run --cap-add SYS_ADMIN, or a user namespace around it.", "%w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return mountError("/", err)
	}
	return nil
}

func mountError(target string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		hint = "Mounting needs CAP_SYS_ADMIN, and an AppArmor or seccomp profile that lets it: " +
			"docker run --cap-add SYS_ADMIN --device /dev/fuse --security-opt apparmor=unconfined."
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EROFS):
		hint = "Make the directory in the image: it does not exist and cannot be made."
	case errors.Is(err, unix.ENODEV):
		hint = "The kernel lacks this file system: modprobe fuse overlay."
	}
	return attest.Errorf(attest.CodeMount, "mounting "+target, hint, "%w", err)
}

// MountRoot mounts the volume that becomes the root, if there is one. [Mounter.Enter] goes into it.
func (m *Mounter) MountRoot(ctx context.Context, root fs.Root) error {
	if root.Source == "" {
		return nil
	}
	if err := m.makeDir(runDir, 0o700); err != nil {
		return mountError(runDir, err)
	}
	if err := mountMemory(runDir, "mode=0755"); err != nil {
		return err
	}
	takeBack := func() {
		_ = unix.Unmount(runDir, unix.MNT_DETACH)
		m.root = ""
	}
	undo := func(err error) error {
		takeBack()
		return err
	}
	volume := fs.Volume{Source: root.Source, Target: "/", Key: root.Key, MAC: root.MAC}
	m.root = filepath.Join(runDir, "root")
	if !m.options.Overlay {
		if err := m.MountVolume(ctx, volume); err != nil {
			return undo(err)
		}
		m.undo = append(m.undo, takeBack)
		return nil
	}
	merged := m.root
	m.root = filepath.Join(runDir, "lower")
	if err := m.MountVolume(ctx, volume); err != nil {
		return undo(err)
	}
	upper, work := filepath.Join(runDir, "upper"), filepath.Join(runDir, "work")
	for _, dir := range []string{merged, upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return undo(mountError(dir, err))
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", m.root, upper, work)
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_NODEV, options); err != nil {
		return undo(mountError(merged, err))
	}
	m.root = merged
	m.undo = append(m.undo, takeBack)
	return nil
}

// MountVolume starts a process that serves the volume and waits until it does.
func (m *Mounter) MountVolume(ctx context.Context, v fs.Volume) error {
	if err := v.Check(); err != nil {
		return err
	}
	target := filepath.Join(m.root, v.Target)
	if err := m.makeDir(target, 0o755); err != nil {
		return mountError(v.Target, err)
	}
	source, err := filepath.Abs(v.Source)
	if err != nil {
		return mountError(v.Target, err)
	}
	v.Source = source
	owner := fuse.Owner{UID: m.options.OwnerUID, GID: m.options.OwnerGID}
	if v.Target == "/" {
		owner = fuse.Owner{}
	}
	server, err := start(ctx, m.options, v, target, owner)
	if err != nil {
		return err
	}
	m.servers = append(m.servers, server)
	return nil
}

// MountMemory mounts a file system in memory that is never swapped out.
func (m *Mounter) MountMemory(target string) error {
	dir := filepath.Join(m.root, target)
	if err := m.makeDir(dir, 0o755); err != nil {
		return mountError(target, err)
	}
	return mountMemory(dir, "mode=0755")
}

// mountMemory mounts a tmpfs with noswap (Linux 6.4), or a ramfs, which is never swapped but has no limit and no attributes.
func mountMemory(dir, options string) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	err := unix.Mount("sesame", dir, "tmpfs", flags, options+",noswap,size=50%")
	if !errors.Is(err, unix.EINVAL) {
		if err != nil {
			return mountError(dir, err)
		}
		return nil
	}
	if swap, swapErr := memory.Swapping(); swapErr == nil && !swap {
		err = unix.Mount("sesame", dir, "tmpfs", flags, options+",size=50%")
	} else {
		err = unix.Mount("sesame", dir, "ramfs", flags, options)
	}
	if err != nil {
		return mountError(dir, err)
	}
	return nil
}

// Unmount takes a mount away. The process behind a volume ends by itself.
func (m *Mounter) Unmount(target string) error {
	dir := filepath.Join(m.root, target)
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return &attest.Error{Code: attest.CodeMount, Step: "unmounting " + target, Err: err}
	}
	return nil
}

// Enter makes the volume that MountRoot mounted the root of this thread and its children, with /proc, /sys, /dev and a
// fresh /tmp. Without such a volume it does nothing.
func (m *Mounter) Enter() error {
	if m.root == "" {
		return nil
	}
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := os.MkdirAll(filepath.Join(m.root, dir), 0o755); err != nil {
			return mountError(dir, err)
		}
		if err := unix.Mount(dir, filepath.Join(m.root, dir), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return mountError(dir, err)
		}
	}
	if err := os.Chdir(m.root); err != nil {
		return mountError("/", err)
	}
	// With both the same directory the old root is stacked on the new one, and comes off again (pivot_root(2)).
	err := unix.PivotRoot(".", ".")
	if err == nil {
		err = unix.Unmount(".", unix.MNT_DETACH)
	} else if errors.Is(err, unix.EINVAL) {
		// The first root of a machine, an initramfs, cannot be pivoted away from.
		if err = unix.Mount(".", "/", "", unix.MS_MOVE, ""); err == nil {
			err = unix.Chroot(".")
		}
	}
	if err == nil {
		err = os.Chdir("/")
	}
	if err != nil {
		return mountError("/", err)
	}
	m.root, m.undo = "", nil
	return nil
}
