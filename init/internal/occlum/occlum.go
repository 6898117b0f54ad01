// Package occlum mounts file systems inside Occlum's LibOS: the application's root by its own system call 363
// (mount_rootfs), volumes and memory file systems by mount(2) with the LibOS's file system types.
//
// Keys cross into the LibOS as raw bytes or option strings in buffers that are wiped afterwards. The LibOS logs
// mount options at debug level, keys included: a production instance has debuggable false and leaves
// disable_log unset.
//
// Source: Occlum 0.31, src/libos/src/fs/fs_ops/mount.rs, config.rs, syscall/mod.rs.
//
// # Compatibility
//
// This package serves the rest of the module: its names may change in any release. The calls are Occlum's.
package occlum

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/fs"
)

// sysMountRootFS is the LibOS's own system call.
const sysMountRootFS = 363

// rootFSConfig is struct user_rootfs_config of the LibOS: 56 bytes, NULL keeps what Occlum.json says.
type rootFSConfig struct {
	length       uintptr
	upperLayer   *byte
	lowerLayer   *byte
	entryPoint   *byte
	hostFSSource *byte
	hostFSTarget *byte
	environment  **byte
}

// Mounter is the LibOS's mounter. The zero value is ready.
type Mounter struct{}

var _ fs.Mounter = Mounter{}

// MountRoot mounts the root that Occlum.json describes, and installs entry point and environment.
func (Mounter) MountRoot(_ context.Context, root fs.Root) error {
	var pin runtime.Pinner
	defer pin.Unpin()

	var key *byte
	if root.Key != nil {
		key = &root.Key[0]
		pin.Pin(key)
	}
	config := &rootFSConfig{length: unsafe.Sizeof(rootFSConfig{})}
	pin.Pin(config)
	text := func(s string) (*byte, error) {
		b, err := unix.ByteSliceFromString(s)
		if err != nil {
			return nil, fmt.Errorf("%q holds a NUL byte", s)
		}
		pin.Pin(&b[0])
		return &b[0], nil
	}
	if root.EntryPoint != "" {
		p, err := text(root.EntryPoint)
		if err != nil {
			return mountError("/", unix.EINVAL, err.Error())
		}
		config.entryPoint = p
	}
	if len(root.Environment) > 0 {
		list := make([]*byte, 0, len(root.Environment)+1)
		for _, entry := range root.Environment {
			p, err := text(entry)
			if err != nil {
				return mountError("/", unix.EINVAL, "environment: "+err.Error())
			}
			list = append(list, p)
		}
		list = append(list, nil)
		pin.Pin(&list[0])
		config.environment = &list[0]
	}
	_, _, errno := unix.Syscall(sysMountRootFS, uintptr(unsafe.Pointer(key)), uintptr(unsafe.Pointer(config)), 0)
	runtime.KeepAlive(root.Key)
	if errno != 0 {
		return mountError("/", errno, "")
	}
	return nil
}

// MountVolume mounts a SEFS volume with its own key and MAC.
func (Mounter) MountVolume(_ context.Context, v fs.Volume) error {
	if err := v.Check(); err != nil {
		return err
	}
	mac := v.MAC.String()
	options := make([]byte, 0, len(v.Source)+len(mac)+3*len(v.Key)+32)
	defer func() { clear(options[:cap(options)]) }()
	options = append(options, "dir="+v.Source+",key="...)
	for i, b := range v.Key {
		if i > 0 {
			options = append(options, '-')
		}
		options = hex.AppendEncode(options, []byte{b})
	}
	options = append(options, ",mac="+mac+"\x00"...)
	return mount("sefs", v.Target, options)
}

// MountMemory mounts the LibOS's ramfs.
func (Mounter) MountMemory(target string) error { return mount("ramfs", target, nil) }

// Unmount unmounts a file system.
func (Mounter) Unmount(target string) error {
	if err := unix.Unmount(target, 0); err != nil {
		return &attest.Error{Code: attest.CodeMount, Step: "unmounting " + target, Err: err}
	}
	return nil
}

// mount calls mount(2) itself: x/sys copies the options into a string that cannot be wiped.
func mount(fstype, target string, options []byte) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	kind, err := unix.ByteSliceFromString(fstype)
	if err != nil {
		return err
	}
	dir, err := unix.ByteSliceFromString(target)
	if err != nil {
		return mountError(target, unix.EINVAL, "the path holds a NUL byte")
	}
	pin.Pin(&kind[0])
	pin.Pin(&dir[0])
	var data uintptr
	if len(options) > 0 {
		pin.Pin(&options[0])
		data = uintptr(unsafe.Pointer(&options[0]))
	}
	_, _, errno := unix.Syscall6(unix.SYS_MOUNT, uintptr(unsafe.Pointer(&kind[0])), uintptr(unsafe.Pointer(&dir[0])),
		uintptr(unsafe.Pointer(&kind[0])), 0, data, 0)
	if errno != 0 {
		return mountError(target, errno, "")
	}
	return nil
}

// mountError names the likely cause: the LibOS folds many reasons into few numbers.
func mountError(target string, errno unix.Errno, what string) error {
	hint := ""
	switch {
	case errors.Is(errno, unix.EIO):
		hint = "The key is another one than the image was made with, the image or its MAC was changed, its directory is " +
			"missing, or another running instance holds it open."
	case errors.Is(errno, unix.EPERM):
		hint = "The root can be mounted once in an enclave's life, and nothing may be mounted over it afterwards."
	case errors.Is(errno, unix.ENOENT):
		hint = "A mount point (/proc, /dev, or a mount of Occlum.json or of the config) does not exist as a directory in the image."
	case errors.Is(errno, unix.ENOSYS):
		hint = "This kernel has no system call 363: init runs inside Occlum, or under its simulator, only."
	case errors.Is(errno, unix.EINVAL):
		hint = "The LibOS found the mount options wrong: check the volume's directory, key and MAC, and Occlum.json's mount entries."
	}
	var err error = errno
	if what != "" {
		err = fmt.Errorf("%s: %w", what, errno)
	}
	return &attest.Error{Code: attest.CodeMount, Step: "mounting " + target, Err: err, Hint: hint}
}
