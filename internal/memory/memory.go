// Package memory keeps what this process holds in memory out of core files, debuggers and swap.
//
// An exec resets what a process that runs as root is (it is dumpable again, nothing is locked), so that every image of
// a program calls [NoDumps] and [Lock] before it reads anything secret. The limit of core files stays.
package memory

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// NoDumps keeps memory out of core files, and from debuggers and /proc/PID/mem of other processes of the same user.
func NoDumps() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("making this process not dumpable: %w", err)
	}
	err := NoCoreFiles()
	if errors.Is(err, unix.EPERM) { // it is 0 for good; what is not dumpable is given to no program, either
		return nil
	}
	return err
}

// NoCoreFiles sets the limit of core files, soft and hard, for this process and all that it will start. It is 1 and not
// 0, because with 1 the kernel runs no program either that core_pattern pipes to (core(5)). The error is [unix.EPERM]
// if the hard limit is 0 already and this process may not raise it.
func NoCoreFiles() error {
	return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1})
}

// ErrSwapped is the error of [Lock] if memory may be swapped out.
var ErrSwapped = errors.New("memory may be swapped out")

// Lock locks what this process has touched and will touch. If it may not, and the machine has no swap, nothing is
// lost; with swap, or if that cannot be known, the error is [ErrSwapped].
func Lock() error {
	err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
	if err == nil {
		return nil
	}
	if swap, swapErr := Swapping(); swapErr == nil && !swap {
		return nil
	}
	return fmt.Errorf("%w: locking it: %w", ErrSwapped, err)
}

// Swapping reports whether the machine has swap space.
func Swapping() (bool, error) {
	f, err := os.Open("/proc/swaps")
	if err != nil {
		return false, err
	}
	defer f.Close()
	lines := 0
	s := bufio.NewScanner(f)
	for s.Scan() {
		if strings.TrimSpace(s.Text()) != "" {
			lines++
		}
	}
	return lines > 1, s.Err() // the first line is the heading
}
