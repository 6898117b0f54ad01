package linux

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"unsafe"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/fs"
	"github.com/sesame-init/sesame/fs/fuse"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/fault"
	"github.com/sesame-init/sesame/internal/memory"
	"github.com/sesame-init/sesame/internal/pidfd"
)

// ServerName is argv[0] of a process that has to call [Serve].
const ServerName = "sesame-volume"

// Server is a process behind a volume.
type Server struct {
	PID    int
	FD     int    // its pidfd, which is closed by an exec
	Target string // of the volume, in the workload's tree
}

// The descriptors of a server beside the standard ones.
const (
	keyFD    = 3 // the key, then its end
	reportFD = 4 // nothing where the volume is mounted, a report in JSON where it is not
)

// report is how a server says why it cannot serve.
type report struct {
	Code             attest.Code
	Step, Text, Hint string
}

const maxReport = 16 << 10

// start starts a server and waits for its word, at most until ctx ends. The key is not kept.
func start(ctx context.Context, o Options, v fs.Volume, target string, owner fuse.Owner) (server Server, err error) {
	fail := func(err error) (Server, error) {
		return Server{}, attest.Errorf(attest.CodeMount, "starting the process behind "+v.Target, "", "%w", err)
	}
	keyRead, keyWrite, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer keyRead.Close()
	reportRead, reportWrite, err := os.Pipe()
	if err != nil {
		return fail(errors.Join(err, keyWrite.Close()))
	}
	defer reportRead.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return fail(err)
	}
	defer null.Close()
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil { // what this process has inherited itself
		return fail(fmt.Errorf("closing descriptors: %w", err))
	}
	args := []string{ServerName, v.Source, target, v.MAC.String(), fmt.Sprint(owner.UID), fmt.Sprint(owner.GID)}
	process := -1
	var flags uintptr
	if o.Siblings {
		flags = unix.CLONE_PARENT
	}
	pid, err := syscall.ForkExec(o.Self, args, &syscall.ProcAttr{
		Dir: "/", Env: []string{"GOMEMLIMIT=256MiB", "GOTRACEBACK=none"},
		Files: []uintptr{null.Fd(), 2, 2, keyRead.Fd(), reportWrite.Fd()},
		Sys: &syscall.SysProcAttr{
			Setsid:      true, // a terminal's signals are for the application
			Credential:  &syscall.Credential{Uid: o.UID, Gid: o.UID, NoSetGroups: false},
			AmbientCaps: ambient(),
			PidFD:       &process,
			Cloneflags:  flags,
		},
	})
	_ = reportWrite.Close()
	if err != nil {
		_ = keyWrite.Close()
		return fail(err)
	}
	if process < 0 {
		return fail(errors.New("the kernel knows no pidfd: it must be Linux 5.4 or newer"))
	}
	before := device(target)
	killed := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		killed <- fault.Try(func() error { _ = pidfd.Signal(process, unix.SIGKILL); return nil })
	})
	_, keyErr := keyWrite.Write(v.Key[:])
	keyErr = errors.Join(keyErr, keyWrite.Close())
	text, err := io.ReadAll(io.LimitReader(reportRead, maxReport))
	inTime := stop()
	if !inTime {
		_ = fault.Raise(<-killed)
	}
	if inTime && err == nil && string(text) == mounted {
		return Server{PID: pid, FD: process, Target: v.Target}, nil
	}
	_ = pidfd.Signal(process, unix.SIGKILL)
	pidfd.Wait(process, closePatience)
	var status syscall.WaitStatus
	_, waitErr := syscall.Wait4(pid, &status, 0, nil) // its own parent reaps a sibling
	_ = unix.Close(process)
	if device(target) != before { // it came so far
		_ = unix.Unmount(target, unix.MNT_DETACH)
	}
	if !inTime {
		return fail(context.Cause(ctx))
	}
	var said report
	if json.Unmarshal(text, &said) != nil || said.Text == "" {
		return fail(fmt.Errorf("it ended without a word: %w", errors.Join(err, keyErr, describe(status, waitErr))))
	}
	return Server{}, attest.Errorf(said.Code, said.Step, said.Hint, "%s", said.Text)
}

// device is that of the file system at a directory; 0 if there is none, or one that nothing serves any more.
func device(dir string) uint64 {
	var st unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, dir, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st) != nil { // asks the server nothing
		return 0
	}
	return unix.Mkdev(st.Dev_major, st.Dev_minor)
}

// ambient are the capabilities that a server starts with: to mount and to open /dev/fuse, to read the volume's files, to
// lock memory, to drop the others for good, as far as this process has them itself.
func ambient() (list []uintptr) {
	held, err := permitted()
	if err != nil {
		return nil
	}
	for _, c := range []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_IPC_LOCK, unix.CAP_SETPCAP} {
		if held&(1<<c) != 0 {
			list = append(list, c)
		}
	}
	return list
}

// permitted are the first 32 capabilities that this thread may use.
func permitted() (uint32, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&header, &data[0])
	return data[0].Permitted, err
}

func describe(s syscall.WaitStatus, err error) error {
	if err != nil {
		return errors.New("its exit status is for the supervisor to see")
	}
	if s.Signaled() {
		return fmt.Errorf("%s", s.Signal())
	}
	return fmt.Errorf("exit status %d", s.ExitStatus())
}

const mounted = "mounted"

// Serve is the whole of a server: it mounts the volume that its arguments name, gives up its capabilities and answers
// until it is told to end. It returns the exit status. If a goroutine behind it panics, Serve does.
func Serve(args []string, log *logrus.Logger) int {
	out := os.NewFile(reportFD, "report")
	parent, err := openParent()
	panics := make(chan error, 1)
	var served *fuse.Server
	if err == nil {
		served, err = serve(args, log, func(err error) {
			select {
			case panics <- err:
			default: // the first one ends this process
			}
		})
	}
	if err != nil {
		text, _ := json.Marshal(report{attest.CodeOf(err), "mounting volume", err.Error(), attest.HintOf(err)})
		_, _ = out.Write(text)
		return 1
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	if _, err := out.WriteString(mounted); err != nil {
		return 1
	}
	_ = out.Close()
	select {
	case <-served.Done():
		served.Wait()
	case err := <-ended(parent):
		_ = fault.Raise(err)
		_ = served.Unmount()
	case err := <-panics:
		_ = fault.Raise(err)
	case <-stop:
		_ = served.Unmount()
	}
	return 0
}

// openParent is a pidfd of the process that started this one. PR_SET_PDEATHSIG would not do: the signal needs the dying
// process's permission, and an application of another user has none.
func openParent() (fd int, err error) {
	pid := os.Getppid()
	fd, err = unix.PidfdOpen(pid, 0)
	if err != nil || os.Getppid() != pid {
		return -1, errors.Join(errors.New("the process that started this one is gone"), err)
	}
	return fd, nil
}

// ended tells when a process has ended, whatever it has become by exec until then, or how the wait has failed.
func ended(fd int) <-chan error {
	done := make(chan error, 1)
	go func() {
		done <- fault.Try(func() error {
			for {
				n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
				if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
					return nil
				}
			}
		})
	}()
	return done
}

func serve(args []string, log *logrus.Logger, panicked func(error)) (*fuse.Server, error) {
	if len(args) != 5 {
		return nil, attest.Errorf(attest.CodeUsage, "starting", "", "want source, target, MAC, owner and group")
	}
	uid, uidErr := strconv.ParseUint(args[3], 10, 32)
	gid, gidErr := strconv.ParseUint(args[4], 10, 32)
	if err := errors.Join(uidErr, gidErr); err != nil {
		return nil, attest.Errorf(attest.CodeUsage, "starting", "", "%w", err)
	}
	source, target := args[0], args[1]
	mac, err := sefs.ParseMAC(args[2])
	if err != nil {
		return nil, err
	}
	if err := Harden(); err != nil {
		return nil, err
	}
	key, err := readKey()
	if err != nil {
		return nil, err
	}
	// Relative to a directory that stays, because the root above it may be exchanged.
	if err := os.Chdir(source); err != nil {
		return nil, attest.Errorf(attest.CodeMount, "opening volume", "Check the volume's source in the config.", "%w", err)
	}
	volume, err := sefs.Open(".", sefs.OpenOptions{Key: &key, MAC: &mac})
	clear(key[:])
	if err != nil {
		return nil, err
	}
	return fuse.Mount(context.Background(), volume, target, fuse.Options{
		AllowOther: true, Owner: &fuse.Owner{UID: uint32(uid), GID: uint32(gid)}, Log: log, Apart: true, Mounted: dropCapabilities,
		Panicked: panicked,
	})
}

func readKey() (key sefs.Key, err error) {
	in := os.NewFile(keyFD, "key")
	defer in.Close()
	if _, err := io.ReadFull(in, key[:]); err != nil {
		return key, attest.Errorf(attest.CodeSecret, "reading key", "", "%w", err)
	}
	return key, nil
}

// Harden keeps this process out of core dumps, debuggers and swap. If memory cannot be locked and the machine has
// swap, it fails with [attest.CodeInternal].
func Harden() error {
	const step = "protecting own memory"
	if err := memory.NoDumps(); err != nil {
		return attest.Errorf(attest.CodeInternal, step, "", "%w", err)
	}
	if err := memory.Lock(); err != nil {
		return attest.Errorf(attest.CodeInternal, step, "Grant CAP_IPC_LOCK (docker run --cap-add IPC_LOCK), or turn swap off.",
			"%w", err)
	}
	return nil
}

// Unlock ends the locking of memory that [Harden] has begun, as the exec that follows would. Without CAP_IPC_LOCK a process
// that locks what it maps can map next to nothing, and the Go runtime ends where it cannot.
func Unlock() error {
	if err := unix.Munlockall(); err != nil {
		return attest.Errorf(attest.CodeInternal, "unlocking own memory", "", "%w", err)
	}
	return nil
}

// dropCapabilities leaves, in all threads, those to read the volume's files and to keep memory locked, and none that
// could be had again.
//
// No other goroutine may enter a system call meanwhile that blocks, so it comes before the first request is read: each
// call below stops the world, for which Go 1.26 can wait a minute if a thread enters such a call at that moment.
func dropCapabilities() error {
	if err := dropBounding(); err != nil {
		return attest.Errorf(attest.CodeInternal, "dropping capabilities", "Grant CAP_SETPCAP.", "%w", err)
	}
	held, err := permitted()
	if err != nil {
		return attest.Errorf(attest.CodeInternal, "dropping capabilities", "", "%w", err)
	}
	keep := held & (1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_IPC_LOCK)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: keep, Permitted: keep}}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET,
		uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	if errno != 0 {
		return attest.Errorf(attest.CodeInternal, "dropping capabilities",
			"This program has to be built without cgo.", "%w", errno)
	}
	_, _, errno = syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	if errno != 0 {
		return attest.Errorf(attest.CodeInternal, "dropping capabilities", "", "%w", errno)
	}
	return nil
}

// dropBounding empties the bounding set of all threads.
func dropBounding() error {
	for c := range uintptr(64) {
		_, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil // beyond the kernel's last
		}
		if err != nil {
			return err
		}
		if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0, 0); errno != 0 {
			return errno
		}
	}
	return nil
}
