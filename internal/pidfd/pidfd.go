// Package pidfd signals child processes by descriptor: unlike a number, it never comes to mean another process.
package pidfd

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// Signal sends a signal. A process that has ended is no error.
func Signal(fd int, s unix.Signal) error {
	err := unix.PidfdSendSignal(fd, s, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// End asks processes to end by SIGTERM, and kills those that have not ended after patience. It returns once all have
// ended, or after patience again, and reaps none.
func End(fds []int, patience time.Duration) {
	for _, fd := range fds {
		_ = Signal(fd, unix.SIGTERM)
	}
	late := time.Now().Add(patience)
	for _, fd := range fds {
		if !Wait(fd, time.Until(late)) {
			_ = Signal(fd, unix.SIGKILL)
			Wait(fd, patience)
		}
	}
}

// Wait reports whether a process has ended within a time.
func Wait(fd int, within time.Duration) bool {
	for late := time.Now().Add(within); ; {
		timeout := int(max(0, time.Until(late)) / time.Millisecond)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, timeout)
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}
