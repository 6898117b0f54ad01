// Package libos runs the programs of a built instance as Occlum's LibOS would, on plain Linux.
//
// # How
//
// [Run] starts this very binary once more as a supervisor with its own mount and pid namespaces (and a user
// namespace if the caller is not root). The supervisor mounts the initfs and starts /bin/init under the LibOS's
// ABI, then, if init exited with 0, the application in the root that init mounted. When the supervisor ends, however
// it ends, so do all its programs, and the kernel removes its mounts.
//
// # What a strict program meets
//
//   - System calls that the LibOS does not have fail with ENOSYS, unknown numbers above 334 with EINVAL; futex,
//     prctl, getrandom and madvise know what the LibOS's know. A seccomp filter answers these.
//   - clone starts the new thread at the address on top of its stack, every other register undefined. A program
//     with Linux's own clone wrapper is ended at once, and told why.
//   - madvise(MADV_DONTNEED) succeeds and leaves the content; pages that happen to hold zeros are dirtied, so
//     that who relies on zeros finds out.
//   - The enclave has as many threads as Occlum.json says, for all processes together: one more ends it. A process
//     maps no more than the user space holds beside its stack and heap (a heap that brk makes counts as well). A program
//     and its loader fit into the LibOS's own heap, or are not loaded.
//   - A handler's SA_RESTART is taken, and what its signal interrupts is EINTR all the same.
//   - mmap ignores address hints, and copies files that are mapped shared: they are written back at msync, fsync and
//     munmap. There is no vDSO.
//   - 363, mount, umount2, the spawn calls (359, 360), and the commands of /dev/sgx are the LibOS's, on true volumes.
//   - /proc and /dev hold what the LibOS's do; uname says Occlum 0.1.
//
// # What differs
//
// The application runs natively, apart from 363, mount, umount2 and /dev/sgx, unless [Options.StrictApp] is set.
// Processes do not share one user space: each may map all of it. RDTSCP works, as it does on a processor with SGX2.
// Linux 6.18 takes system call 336, for its own probes in programs, past every filter: it is ENXIO there, where the
// LibOS says EINVAL. The writable layer of the initfs is in memory; that of the root is, unless it is temporary, a
// plain directory beside the one that real Occlum encrypts: one reason of many to keep real secrets away from here.
package libos

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/lab/occlumsim"
)

// Scratch area of the supervisor, relative to the instance: a tmpfs that only its namespace sees.
const (
	scratch     = "run/.libos"
	scratchProc = scratch + "/proc"
)

// LibOS is one enclave's life.
type LibOS struct {
	system  *occlumsim.System
	device  *device
	log     *logrus.Logger
	serving sync.WaitGroup

	// Calls are answered one at a time: the LibOS has one file system and one configuration.
	mu          sync.Mutex
	root        string // mount point of the root of all programs
	rootMounted bool   // 363 has succeeded, or failed for good
	entryPoints []string
	trusted     []string // environment that the LibOS gives to programs
	volumes     []*volume
	hostFiles   map[string][]byte
	dirs        int
}

func itoa(n int) string { return strconv.Itoa(n) }

// procPath is a file of a task in the supervisor's own procfs.
func procPath(pid int, name string) string { return filepath.Join(scratchProc, itoa(pid), name) }

// boot mounts the initfs.
func boot(o Options, instance *occlumsim.Instance, log *logrus.Logger) (*LibOS, error) {
	system, enclave, err := instance.Load()
	if err != nil {
		return nil, err
	}
	body, err := enclave.Report(o.KSS)
	if err != nil {
		return nil, err
	}
	l := &LibOS{
		system: system, log: log, entryPoints: []string{"/bin"}, trusted: system.Env.Default,
		device: &device{platform: o.Platform, body: body, edmm: enclave.EDMM, failing: o.QuoteFailure},
	}
	if err := prepareNamespace(); err != nil {
		return nil, err
	}
	l.readHostFiles()
	if err := l.mountInitFS(instance); err != nil {
		return nil, fmt.Errorf("mounting the initfs: %w", err)
	}
	return l, nil
}

// prepareNamespace cuts the mount namespace off the host's and makes the scratch area.
func prepareNamespace() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("leaving the host's mount namespace: %w", err)
	}
	if err := os.MkdirAll(scratch, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", scratch, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mounting the scratch area: %w", err)
	}
	if err := os.Mkdir(scratchProc, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("proc", scratchProc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting procfs: %w", err)
	}
	// Go writes the maps of a new user namespace by the number that the process has here.
	if err := unix.Mount(scratchProc, "/proc", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting procfs: %w", err)
	}
	return nil
}

func (l *LibOS) mountInitFS(instance *occlumsim.Instance) error {
	mac, err := instance.InitFSMAC()
	if err != nil {
		return err
	}
	v, err := l.openVolume(occlumsim.InitFSVolume, nil, &mac)
	if err != nil {
		return err
	}
	l.volumes = append(l.volumes, v)
	manifest, err := occlumsim.Manifest(v.image)
	if err != nil {
		return err
	}
	if manifest != l.system.InitFS {
		return errors.New("it is not the one that was measured")
	}
	if l.root, err = l.union(v.tree(), ""); err != nil {
		return err
	}
	if err := l.systemMounts(l.root); err != nil {
		return err
	}
	if err := l.writeHostFiles(l.root); err != nil {
		l.log.WithError(err).Warn("the host's files cannot be written into the initfs")
	}
	return nil
}

// answer answers the system calls that the filters hand over.
func (l *LibOS) answer(c call) answer {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch c.nr {
	case sysMountRootFS:
		return answer{errno: l.mountRootFS(c)}
	case unix.SYS_MOUNT:
		return answer{errno: l.mount(c)}
	case unix.SYS_UMOUNT2:
		return answer{errno: l.unmount(c)}
	case unix.SYS_IOCTL:
		if !isSGX(c.pid, int(int32(c.args[0]))) {
			return answer{proceed: true}
		}
		return answer{errno: l.device.ioctl(c.pid, uint32(c.args[1]), c.args[2])}
	case unix.SYS_MADVISE:
		return answer{errno: dirty(c.pid, c.args[0], c.args[1])}
	case unix.SYS_UNAME:
		return answer{errno: l.uname(c)}
	case unix.SYS_EPOLL_CTL:
		return l.epollAdd(c)
	case unix.SYS_GETDENTS64:
		return l.list(c)
	}
	if _, ok := pathCalls[c.nr]; ok {
		return l.lookUp(c)
	}
	return answer{errno: unix.ENOSYS}
}

// isSGX says whether a descriptor of a program is /dev/sgx.
func isSGX(pid, fd int) bool {
	var have, want unix.Stat_t
	return unix.Stat(procPath(pid, "fd/"+itoa(fd)), &have) == nil && unix.Stat(sgxNode(), &want) == nil &&
		have.Mode&unix.S_IFMT == unix.S_IFCHR && have.Rdev == want.Rdev
}

// maxDirtied bounds how many pages of one madvise are dirtied.
const maxDirtied = 1024

// dirty is madvise(MADV_DONTNEED): the content stays. If a page happens to hold zeros it is given other content, as
// a page in real use would have: a program that takes it for zero finds out.
func dirty(pid int, addr, size uint64) unix.Errno {
	if addr%pageSize != 0 {
		return unix.EINVAL
	}
	page := make([]byte, pageSize)
	for i := uint64(0); i < min((size+pageSize-1)/pageSize, maxDirtied); i++ {
		at := addr + i*pageSize
		if readMemory(pid, at, page) != nil {
			continue
		}
		if allZero(page) {
			_ = writeMemory(pid, at, []byte("dirty page of the LibOS\n"))
		}
	}
	return 0
}

func allZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// uname answers as L/misc/uname.rs does.
func (l *LibOS) uname(c call) unix.Errno {
	var name unix.Utsname
	copy(name.Sysname[:], "Occlum")
	copy(name.Nodename[:len(name.Nodename)-1], strings.TrimSpace(string(l.hostFiles["/etc/hostname"])))
	copy(name.Release[:], "0.1")
	copy(name.Machine[:], "x86_64")
	raw := make([]byte, 0, 6*65)
	for _, field := range [][65]byte{name.Sysname, name.Nodename, name.Release, name.Version, name.Machine,
		name.Domainname} {
		raw = append(raw, field[:]...)
	}
	return errnoOf(writeMemory(c.pid, c.args[0], raw))
}

// epollAdd refuses regular files with EINVAL; Linux says EPERM.
func (l *LibOS) epollAdd(c call) answer {
	var st unix.Stat_t
	if unix.Stat(procPath(c.pid, "fd/"+itoa(int(int32(c.args[2])))), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
		return answer{errno: unix.EINVAL}
	}
	return answer{proceed: true}
}
