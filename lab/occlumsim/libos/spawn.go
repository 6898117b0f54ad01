package libos

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// The LibOS's calls behind posix_spawn of its two C libraries (L/process/syscalls.rs).
const (
	sysSpawnGlibc = 359
	sysSpawnMusl  = 360
)

// maxActions bounds the file actions of one spawn.
const maxActions = 1024

// fileAction is what a child does with its descriptors before it executes its program.
type fileAction struct {
	kind        uint32 // as musl numbers them
	fd, from    int32
	flags, mode uint32
	path        uint64 // address in the program
}

const (
	actionClose = 1
	actionDup   = 2
	actionOpen  = 3
)

// spawning is a spawn call between its entry and its exit.
type spawning struct {
	path, argv, envp uint64
	childPID         uint64 // where the caller wants the process id, 32 bits
	actions          []fileAction
	mask             *[8]byte // signal mask of the child, nil: the caller's
	defaults         uint64   // signals that get their default action

	pid int   // of the child
	err error // why it did not execute its program
}

// spawn turns a spawn call, at whose entry a thread is stopped, into one that makes a child and waits until that has
// executed its program; [tracer.child] makes it do so.
func (t *tracer) spawn(pid int, regs *unix.PtraceRegs) error {
	s := &spawning{childPID: regs.Rdi, path: regs.Rsi, argv: regs.Rdx, envp: regs.R10}
	if err := s.read(pid, regs.Orig_rax == sysSpawnGlibc, regs.R8, regs.R9); err != nil {
		return t.refuse(pid, regs, errnoOf(err))
	}
	if err := t.loadable(pid, s.path); err != nil {
		return t.refuse(pid, regs, errnoOf(err))
	}
	if t.exhausted(pid) {
		return nil
	}
	t.spawns[pid] = s
	t.exits[pid] = func() error { return t.spawned(pid, s) }
	regs.Orig_rax, regs.Rdi = unix.SYS_CLONE, unix.CLONE_VFORK|uint64(unix.SIGCHLD)
	regs.Rsi, regs.Rdx, regs.R10, regs.R8 = 0, 0, 0, 0
	return unix.PtraceSetRegs(pid, regs)
}

// read takes what the caller describes out of its memory.
func (s *spawning) read(pid int, glibc bool, actions, attributes uint64) (err error) {
	if _, err := readWord(pid, s.childPID&^7); err != nil {
		return err
	}
	for _, list := range []uint64{s.argv, s.envp} {
		if list == 0 {
			continue
		}
		if _, err := readStrings(pid, list); err != nil {
			return err
		}
	}
	if glibc {
		s.actions, err = glibcActions(pid, actions)
	} else {
		s.actions, err = muslActions(pid, actions)
	}
	if err != nil || attributes == 0 {
		return err
	}
	// posix_spawnattr_t: flags, 16 bits; process group; two signal sets of 128 bytes.
	const setDefaults, setMask = 4, 8
	var a [144]byte
	if err := readMemory(pid, attributes, a[:]); err != nil {
		return err
	}
	flags := binary.LittleEndian.Uint16(a[:])
	if flags&setDefaults != 0 {
		s.defaults = binary.LittleEndian.Uint64(a[8:])
	}
	if flags&setMask != 0 {
		s.mask = (*[8]byte)(a[136:])
	}
	return nil
}

// muslActions reads a list of struct fdop, in the order of what the LibOS takes for next.
func muslActions(pid int, addr uint64) ([]fileAction, error) {
	var actions []fileAction
	for ; addr != 0 && len(actions) < maxActions; addr = binary.LittleEndian.Uint64(nextOf(pid, addr)) {
		var op [48]byte
		if err := readMemory(pid, addr, op[:]); err != nil {
			return nil, err
		}
		word := func(i int) uint32 { return binary.LittleEndian.Uint32(op[i:]) }
		a := fileAction{kind: word(16), fd: int32(word(20)), from: int32(word(24)), flags: word(28), mode: word(32),
			path: binary.LittleEndian.Uint64(op[40:])}
		if a.kind < actionClose || a.kind > actionOpen {
			return nil, unix.EINVAL
		}
		actions = append(actions, a)
	}
	return actions, nil
}

// nextOf is the link of an entry that has been read already.
func nextOf(pid int, addr uint64) []byte {
	b := make([]byte, 8)
	_ = readMemory(pid, addr+8, b)
	return b
}

// glibcActions reads posix_spawn_file_actions_t: the number of entries at 4, their address at 8.
func glibcActions(pid int, addr uint64) ([]fileAction, error) {
	if addr == 0 {
		return nil, nil
	}
	var head [16]byte
	if err := readMemory(pid, addr, head[:]); err != nil {
		return nil, err
	}
	count, entries := binary.LittleEndian.Uint32(head[4:]), binary.LittleEndian.Uint64(head[8:])
	if count > maxActions {
		return nil, unix.EINVAL
	}
	actions := make([]fileAction, count)
	for i := range actions {
		var e [32]byte
		if err := readMemory(pid, entries+uint64(i)*uint64(len(e)), e[:]); err != nil {
			return nil, err
		}
		word := func(i int) uint32 { return binary.LittleEndian.Uint32(e[i:]) }
		switch word(0) {
		case 0:
			actions[i] = fileAction{kind: actionClose, fd: int32(word(8))}
		case 1:
			actions[i] = fileAction{kind: actionDup, from: int32(word(8)), fd: int32(word(12))}
		case 2:
			actions[i] = fileAction{kind: actionOpen, fd: int32(word(8)), path: binary.LittleEndian.Uint64(e[16:]),
				flags: word(24), mode: word(28)}
		default:
			return nil, unix.EINVAL
		}
	}
	return actions, nil
}

// loadable asks what the LibOS's loader asks of a program before there is a process for it.
func (t *tracer) loadable(pid int, addr uint64) error {
	name, err := readString(pid, addr, maxPath)
	if err != nil {
		return err
	}
	if !path.IsAbs(name) {
		if name, err = absolute(pid, unix.AT_FDCWD, name); err != nil {
			return err
		}
	}
	return checkELF(procPath(pid, "root"), name, t.p.limits.KernelHeap)
}

// child makes a new process, which is stopped at the return of its maker's call, do what it was spawned for.
func (t *tracer) child(pid int, s *spawning) {
	s.pid = pid
	if s.err = t.prepareChild(pid, s); s.err == nil {
		if s.err = t.executeChild(pid, s); s.err == nil {
			return
		}
	}
	_, _ = inject(pid, unix.SYS_EXIT_GROUP, 127)
}

func (t *tracer) prepareChild(pid int, s *spawning) error {
	// Below the stack the child's memory is its own, and free.
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &regs); err != nil {
		return err
	}
	room := (regs.Rsp - 1024) &^ 15
	for n := uint64(1); n <= 64; n++ {
		if s.defaults>>(n-1)&1 == 0 {
			continue
		}
		if err := writeMemory(pid, room, make([]byte, 32)); err != nil {
			return err
		}
		if _, err := inject(pid, unix.SYS_RT_SIGACTION, n, room, 0, 8); err != nil && n != 9 && n != 19 {
			return err
		}
	}
	if s.mask != nil {
		if err := writeMemory(pid, room, s.mask[:]); err != nil {
			return err
		}
		if _, err := inject(pid, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, room, 0, 8); err != nil {
			return err
		}
	}
	for _, a := range s.actions {
		if err := a.do(pid); err != nil {
			return err
		}
	}
	return nil
}

func (a fileAction) do(pid int) error {
	switch a.kind {
	case actionClose:
		_, err := inject(pid, unix.SYS_CLOSE, uint64(a.fd))
		return err
	case actionDup:
		_, err := inject(pid, unix.SYS_DUP2, uint64(a.from), uint64(a.fd))
		return err
	}
	fd, err := inject(pid, unix.SYS_OPEN, a.path, uint64(a.flags), uint64(a.mode))
	if err != nil || int32(fd) == a.fd {
		return err
	}
	if _, err := inject(pid, unix.SYS_DUP2, fd, uint64(a.fd)); err != nil {
		return err
	}
	_, err = inject(pid, unix.SYS_CLOSE, fd)
	return err
}

func (t *tracer) executeChild(pid int, s *spawning) error {
	if _, err := inject(pid, unix.SYS_EXECVE, s.path, s.argv, s.envp); err != nil {
		return err
	}
	if err := hideVDSO(pid); err != nil {
		return err
	}
	return unix.PtraceCont(pid, 0)
}

// spawned ends the spawn call of a thread that is stopped at its exit.
func (t *tracer) spawned(pid int, s *spawning) error {
	delete(t.spawns, pid)
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &regs); err != nil {
		return err
	}
	switch {
	case s.err != nil:
		regs.Rax = -uint64(errnoOf(s.err))
	case int64(regs.Rax) > 0:
		if err := writeMemory(pid, s.childPID, binary.LittleEndian.AppendUint32(nil, uint32(regs.Rax))); err != nil {
			return err
		}
		regs.Rax = 0
	}
	return unix.PtraceSetRegs(pid, &regs)
}

// inject has a stopped thread, whose last instruction was a system call, make another one, and leaves it stopped at
// that one's exit; after an execve, in the new program.
func inject(pid int, nr uint64, args ...uint64) (uint64, error) {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &regs); err != nil {
		return 0, err
	}
	const instruction = 2 // bytes of "syscall"
	before := regs.Rip
	regs.Rip -= instruction
	regs.Rax, regs.Orig_rax = nr, ^uint64(0)
	for i, r := range []*uint64{&regs.Rdi, &regs.Rsi, &regs.Rdx, &regs.R10, &regs.R8, &regs.R9} {
		*r = 0
		if i < len(args) {
			*r = args[i]
		}
	}
	if err := unix.PtraceSetRegs(pid, &regs); err != nil {
		return 0, err
	}
	entered := false
	for {
		if err := unix.PtraceSyscall(pid, 0); err != nil {
			return 0, err
		}
		var status unix.WaitStatus
		if _, err := wait(pid, &status); err != nil {
			return 0, err
		}
		switch {
		case !status.Stopped():
			if nr == unix.SYS_EXIT_GROUP {
				return 0, nil
			}
			return 0, unix.ESRCH
		case int(status)>>16 == unix.PTRACE_EVENT_EXEC:
			return 0, nil
		case status.StopSignal() != syscallStop || int(status)>>16 != 0:
			continue // a signal for the child, or a filter that says trace
		case !entered:
			entered = true
			continue
		}
		if err := unix.PtraceGetRegs(pid, &regs); err != nil {
			return 0, err
		}
		if regs.Rip != before {
			return 0, fmt.Errorf("a system call of a new process returned to %#x", regs.Rip)
		}
		if n := int64(regs.Rax); n < 0 && n > -pageSize {
			return 0, unix.Errno(-n)
		}
		return regs.Rax, nil
	}
}

// absolute turns a program's name for a file into an absolute path in its root.
func absolute(pid, dir int, name string) (string, error) {
	if path.IsAbs(name) {
		return path.Clean(name), nil
	}
	link := procPath(pid, "cwd")
	if dir != unix.AT_FDCWD {
		link = procPath(pid, "fd/"+itoa(dir))
	}
	base, err := readlink(link)
	if err != nil {
		return "", err
	}
	root, err := readlink(procPath(pid, "root"))
	if err != nil {
		return "", err
	}
	inside, ok := strings.CutPrefix(base, strings.TrimSuffix(root, "/"))
	if !ok {
		return "", errors.New("the directory is not in the program's root")
	}
	return path.Join("/", inside, name), nil
}

func readlink(name string) (string, error) {
	b := make([]byte, maxPath)
	n, err := unix.Readlink(name, b)
	return string(b[:max(n, 0)]), err
}
