// Package fuse mounts an encrypted volume on plain Linux, read-only.
//
// Nothing is decrypted before a reader asks for it, and nothing is handed out before it has been verified. A reader
// of bytes that the volume's MAC does not cover gets EIO, or SIGBUS in a mapping, and the log gets one line
// for each such file; the untouched rest of the volume stays readable. The kernel keeps what it has read, so that
// the second reading runs at the speed of memory; it also keeps serving that after the image has been tampered with,
// which is still the true content.
//
// A mount needs /dev/fuse and either the right to mount (root, or root of a user namespace with a mount namespace,
// or CAP_SYS_ADMIN in a container) or the program fusermount3. Files keep the owners and modes of the volume. Only
// the user who mounts has access, whatever the modes say; with [Options.AllowOther] everybody has, as the modes say.
// The mount is nosuid and nodev.
//
// The process that serves a mount may read its files, but must not map them: a thread that waits for a page cannot be
// stopped by the Go runtime, whose garbage collector then waits for it, and the page for the collector.
//
// Who can read this process's memory or be its user can read the volume: a mount protects against the host's
// storage, not against the host. The process must live as long as the mount; when it dies readers get ENOTCONN, but for
// what the kernel has in its cache.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning.
package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/fault"
)

// Volume is what a mount needs of a [sefs.Volume], by inode number from [sefs.RootInode] on. All methods are called
// concurrently. Lookup returns fs.ErrNotExist itself, not wrapped, if a directory has no such name; every other
// error is EIO, whatever it wraps: a file that the host has taken away is not a file that does not exist.
type Volume interface {
	Inode(n uint32) (*sefs.Inode, error)
	Lookup(dir uint32, name string) (*sefs.Inode, error)
	Entries(dir uint32) ([]sefs.Entry, error)
	Target(symlink uint32) (string, error)
	OpenInode(file uint32) (File, error)
}

// File is an open file of a volume.
type File interface {
	io.ReaderAt
	io.Closer
	Inode() *sefs.Inode
}

// volume is a sefs.Volume as a Volume.
type volume struct{ *sefs.Volume }

func (v volume) OpenInode(file uint32) (File, error) {
	f, err := v.Volume.OpenInode(file)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Options are how to mount.
type Options struct {
	// AllowOther lets other users in, as far as the modes of the files allow. Without CAP_SYS_ADMIN it needs
	// user_allow_other in /etc/fuse.conf.
	AllowOther bool
	// Owner replaces the owner of all files.
	Owner *Owner
	// Apart promises that no thread of this process looks into the mount. A process that waits for an answer of its own
	// cannot be killed, and stays for ever if its readers die first.
	Apart bool
	// Mounted is called when the kernel has the mount and before the first request is read, to give up the rights that
	// mounting took. Its error takes the mount away. Nothing may look into the mount before it returns.
	Mounted func() error
	// Panicked is told of a panic while a request is answered, as an error of code [attest.CodeInternal]; the request fails
	// with EIO. It may be called by several goroutines at once. Nil means that go-fuse writes the panic to the log, with its
	// stack.
	Panicked func(error)
	// Log receives one line for each file that is refused. Nil means to standard error.
	Log logrus.FieldLogger
}

// Owner is a user and a group, as numbers of the user namespace that mounts.
type Owner struct{ UID, GID uint32 }

const (
	// requestSize is the largest read the kernel may ask for. One core decrypts it; read-ahead has several under way.
	requestSize = 256 << 10
	// readAhead is what the kernel may fetch before it is asked for, so that it decrypts while the reader works.
	readAhead = 2 << 20
	// background bounds the requests of read-ahead that are under way, and so this process's memory.
	background = 16
)

// Server is a mount that is being served.
type Server struct {
	mountpoint string
	server     *fuse.Server
	direct     bool // mounted without fusermount3
	log        logrus.FieldLogger
	done       chan struct{}
	failed     error // before done is closed
	unmounting sync.Mutex
}

// Mount mounts the volume on an existing directory and serves it until [Server.Unmount], or until someone else
// unmounts it; ctx bounds the mounting only. When Mount fails nothing stays mounted. The volume has to stay open
// until [Server.Done].
func Mount(ctx context.Context, v *sefs.Volume, mountpoint string, o Options) (*Server, error) {
	return MountVolume(ctx, volume{v}, mountpoint, o)
}

// MountVolume is [Mount] for something that is not quite a sefs.Volume.
func MountVolume(ctx context.Context, v Volume, mountpoint string, o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = logrus.New()
	}
	s := &Server{log: o.Log, done: make(chan struct{})}
	if err := s.mount(ctx, newFileSystem(v, o), mountpoint, o); err != nil {
		if refusal := (*attest.Error)(nil); errors.As(err, &refusal) {
			return nil, err
		}
		hint := ""
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, exec.ErrNotFound) {
			hint = "Mounting needs root, a user namespace (unshare -Urm), or fusermount3 (Debian package fuse3); " +
				"a container needs the device /dev/fuse, and CAP_SYS_ADMIN."
		}
		return nil, &attest.Error{Code: attest.CodeMount, Step: "mounting volume",
			Err: fmt.Errorf("%s: %w", mountpoint, err), Hint: hint}
	}
	return s, nil
}

func (s *Server) mount(ctx context.Context, fsys *fileSystem, mountpoint string, o Options) error {
	var err error
	if s.mountpoint, err = filepath.Abs(mountpoint); err != nil {
		return err
	}
	before, err := device(s.mountpoint)
	if err != nil {
		return err
	}
	options := &fuse.MountOptions{
		FsName:        "sesame",
		Name:          fsys.String(),
		AllowOther:    o.AllowOther,
		Options:       []string{"ro", "nosuid", "nodev"},
		MaxWrite:      requestSize,
		MaxBackground: background,
		// Bytes of this process cannot be spliced, but go-fuse would set up a pipe for every read.
		DisableSplice:            true,
		DisableXAttrs:            true,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		DirectMountStrict:        true,
		ExtraCapabilities:        fuse.CAP_NO_OPENDIR_SUPPORT,
		Logger:                   log.New(lines{s.log}, "", 0),
	}
	if o.AllowOther {
		options.Options = append(options.Options, "default_permissions")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if o.Panicked != nil {
		options.PanicHandler = func(cause any) fuse.Status {
			o.Panicked(fault.Try(func() error { panic(cause) }))
			return fuse.EIO
		}
	}
	s.server, err = fuse.NewServer(fsys, s.mountpoint, options)
	s.direct = err == nil
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		options.DirectMountStrict = false
		if s.server, err = fuse.NewServer(fsys, s.mountpoint, options); err != nil {
			err = errors.Join(unix.EPERM, err)
		}
	}
	if err != nil {
		// go-fuse leaves the mount behind when the kernel and it do not understand each other.
		if now, statErr := device(s.mountpoint); statErr != nil || now != before {
			err = errors.Join(err, s.detach())
		}
		return err
	}
	s.raiseReadAhead()
	if o.Mounted != nil {
		err = o.Mounted()
	}
	go func() {
		defer close(s.done)
		s.failed = fault.Try(func() error { s.server.Serve(); return nil })
	}()
	if err != nil {
		return errors.Join(err, s.Unmount())
	}
	if !o.Apart { // go-fuse asks the mount for something, which keeps Go's poller from waiting for this very server
		if err := s.server.WaitMount(); err != nil {
			return errors.Join(err, s.Unmount())
		}
	}
	if err := ctx.Err(); err != nil {
		return errors.Join(err, s.Unmount())
	}
	return nil
}

// device is that of the file system at a directory.
func device(dir string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return 0, unix.ENOTDIR
	}
	return st.Dev, nil
}

// raiseReadAhead lets the kernel read further ahead than the 128 KiB that FUSE can ask for. Only root of the machine
// may; elsewhere the mount is slower, and nothing else.
func (s *Server) raiseReadAhead() {
	var st unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, s.mountpoint, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st) != nil { // asks the file system nothing
		return
	}
	knob := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", st.Dev_major, st.Dev_minor)
	if err := os.WriteFile(knob, strconv.AppendInt(nil, readAhead>>10, 10), 0); err != nil {
		s.log.WithError(err).Debug("the kernel's read-ahead stays at its default")
	}
}

// Done is closed when the mount is gone and nothing is served any more, no matter who unmounted it.
func (s *Server) Done() <-chan struct{} { return s.done }

// Wait waits for [Server.Done]. It panics if what serves has.
func (s *Server) Wait() {
	<-s.done
	_ = fault.Raise(s.failed)
}

// Unmount takes the mount away and waits until nothing is served any more. A mount that is still in use is detached
// instead, with a warning in the log: it disappears from the tree at once, and who has files open can go on reading
// while this process lives. Unmounting twice does nothing.
func (s *Server) Unmount() error {
	s.unmounting.Lock()
	defer s.unmounting.Unlock()
	select {
	case <-s.done:
		return nil
	default:
	}
	err := s.server.Unmount()
	if err == nil {
		<-s.done
		return nil
	}
	if err := s.detach(); err != nil {
		return fmt.Errorf("unmounting %s: %w", s.mountpoint, err)
	}
	s.log.WithError(err).Warnf("%s is still in use; it was detached and ends with its last user", s.mountpoint)
	return nil
}

// detach removes the mount from the tree, in use or not.
func (s *Server) detach() error {
	if err := unix.Unmount(s.mountpoint, unix.MNT_DETACH); err == nil || s.direct {
		return err
	}
	out, err := exec.Command("fusermount3", "-u", "-z", s.mountpoint).CombinedOutput()
	if err != nil {
		return fmt.Errorf("fusermount3: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// lines passes go-fuse's own messages on.
type lines struct{ log logrus.FieldLogger }

func (l lines) Write(p []byte) (int, error) {
	l.log.Warn("fuse: " + string(bytes.TrimSpace(p)))
	return len(p), nil
}
