// Package handover starts the application on plain Linux, in one of two ways.
//
// [App.Exec] replaces this process: same pid, same parent. What the application leaves behind is not reaped, and when the
// process behind a volume dies, the application reads ENOTCONN, but for what the kernel has in its cache.
//
// A [Supervisor] stays: it starts the boot as a child, which then becomes the application by [App.Exec]. So nothing that a
// boot has in its memory, keys and secrets, is ever in that of the process that stays. It forwards signals (those that
// come before the boot can take them it keeps until then), reaps every process that is left to it, passes the
// application's exit status on (128 + n if signal n ended it), and ends it when a volume is lost: with SIGTERM, and with
// SIGKILL ten seconds later. When the supervisor itself is killed, so is the application.
//
// In both the application gets exactly the user, groups, environment and capabilities that the config names, the three
// standard descriptors and no other, no core dumps (for itself and for its children: it cannot raise the limit), and
// no_new_privs, so that no set-user-id program gives it more. It has the signal mask that init was given, but for the
// signals that end a program: Go's runtime unblocks those. What does not outlive an exec, such as protection from
// debuggers, it does not get.
//
// Threads have identities and namespaces of their own: all calls must come from one goroutine that is locked to its
// thread.
package handover

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/memory"
)

// App is what is started.
type App struct {
	Path         string   // absolute
	Args         []string // without argv[0]
	Env          []string
	UID, GID     uint32
	Groups       []uint32
	Capabilities []string // by name: all that it may ever have
	Directory    string   // to start in

	// Tied ends the app with its parent, a [Supervisor].
	Tied bool
}

const step = "starting the application"

// Check finds what is wrong with the app before anything is given up for it.
func (a App) Check() error {
	if _, err := mask(a.Capabilities); err != nil {
		return attest.Errorf(attest.CodeConfig, step, "Write the names as capabilities(7) has them.", "%w", err)
	}
	if err := memory.NoCoreFiles(); err != nil {
		return attest.Errorf(attest.CodeConfig, step, "Set it to 1: LimitCORE=1 in a unit, --ulimit core=1 for a container. "+
			"With 0 the kernel still hands a dump of the application to the program that core_pattern names.",
			"the hard limit of core files is 0 and may not be raised: %w", err)
	}
	return nil
}

// Exec gives up what the app may not have and replaces this process by it. It returns only an error; its code is
// [attest.CodeLaunch], and this process must then end.
func (a App) Exec() error {
	if err := a.become(); err != nil {
		return attest.Errorf(attest.CodeLaunch, step,
			"Changing user and capabilities needs CAP_SETPCAP, CAP_SETUID and CAP_SETGID.", "%w", err)
	}
	if err := unix.Chdir(a.Directory); err != nil {
		return attest.Errorf(attest.CodeLaunch, step, "Check linux.directory.", "changing to %s: %w", a.Directory, err)
	}
	if a.Tied {
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
			return attest.Errorf(attest.CodeLaunch, step, "", "%w", err)
		}
	}
	err := syscall.Exec(a.Path, append([]string{a.Path}, a.Args...), a.Env)
	hint := "Check app.path: it must be an executable file in the root that linux.uid may execute."
	if errors.Is(err, syscall.ENOENT) {
		hint = "Check app.path, and that its interpreter or loader (ldd shows it) is in the root, too."
	}
	return attest.Errorf(attest.CodeLaunch, step, hint, "%s: %w", a.Path, err)
}

// become takes on the app's identity in this thread.
func (a App) become() error {
	keep, err := mask(a.Capabilities)
	if err != nil {
		return err
	}
	if err := memory.NoCoreFiles(); err != nil {
		return err
	}
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("closing descriptors: %w", err)
	}
	if err := dropBounding(keep); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return err
	}
	groups := make([]int, len(a.Groups))
	for i, g := range a.Groups {
		groups[i] = int(g)
	}
	if err := syscall.Setgroups(groups); err != nil {
		return fmt.Errorf("setting groups: %w", err)
	}
	if err := syscall.Setresgid(int(a.GID), int(a.GID), int(a.GID)); err != nil {
		return fmt.Errorf("setting the group: %w", err)
	}
	if err := syscall.Setresuid(int(a.UID), int(a.UID), int(a.UID)); err != nil {
		return fmt.Errorf("setting the user: %w", err)
	}
	if err := setCapabilities(keep); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

func dropBounding(keep uint64) error {
	for c := range uintptr(64) {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil // beyond the kernel's last
		}
		if err != nil {
			return err
		}
		if has == 0 || keep&(1<<c) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("dropping capability %d: %w", c, err)
		}
	}
	return nil
}

// setCapabilities makes keep all that this thread has, and what an exec passes on to any user.
func setCapabilities(keep uint64) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for i := range data {
		part := uint32(keep >> (32 * i))
		data[i] = unix.CapUserData{Effective: part, Permitted: part, Inheritable: part}
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("keeping capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return err
	}
	for c := range uintptr(64) {
		if keep&(1<<c) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0); err != nil {
			return fmt.Errorf("keeping capability %d: %w", c, err)
		}
	}
	return nil
}
