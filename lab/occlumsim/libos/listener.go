package libos

import (
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call is a system call that waits for the supervisor's answer.
type call struct {
	pid  int // thread that calls
	nr   int
	args [6]uint64
}

// answer is what the caller gets: an error number, or a value; or the kernel executes the call after all.
type answer struct {
	errno   unix.Errno
	value   int64
	proceed bool
}

// notification and response are struct seccomp_notif and seccomp_notif_resp.
type notification struct {
	id    uint64
	pid   uint32
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

type response struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

// serve answers the calls that arrive on a seccomp listener, until every task under its filter is gone. It
// closes the listener.
func serve(listener int, handle func(call) answer) error {
	defer unix.Close(listener)
	for {
		poll := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return err
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			return nil
		}
		var n notification
		err := ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n))
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT):
			continue
		case err != nil:
			return err
		}
		a := handle(call{pid: int(n.pid), nr: int(n.nr), args: n.args})
		r := response{id: n.id, value: a.value, errno: -int32(a.errno)}
		if a.proceed {
			r = response{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		}
		if err := ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r)); err != nil &&
			!errors.Is(err, unix.ENOENT) {
			return err
		}
	}
}

func ioctl(fd int, command uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), command, uintptr(arg))
	runtime.KeepAlive(arg)
	if errno != 0 {
		return errno
	}
	return nil
}

// install puts a filter on the calling thread, and on what it executes, and returns the listener.
func install(filter []unix.SockFilter) (listener int, err error) {
	p := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
		uintptr(unsafe.Pointer(&p)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}
