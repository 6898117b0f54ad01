package libos

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// forkStage starts the stage. If it is to be traced, it stops at its first instruction, and the calling thread
// becomes its tracer.
func forkStage(files []uintptr, traced, isolated bool) (int, error) {
	sys := &syscall.SysProcAttr{Ptrace: traced}
	if isolated {
		sys.Cloneflags = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID
		sys.UidMappings = []syscall.SysProcIDMap{{Size: 1}}
		sys.GidMappings = []syscall.SysProcIDMap{{Size: 1}}
	}
	return syscall.ForkExec(executable, []string{stageName}, &syscall.ProcAttr{Env: []string{}, Files: files, Sys: sys})
}

const traceOptions = unix.PTRACE_O_EXITKILL | unix.PTRACE_O_TRACESECCOMP | unix.PTRACE_O_TRACECLONE |
	unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_TRACESYSGOOD

// syscallStop is the signal of a stop at a call's exit.
const syscallStop = unix.SIGTRAP | 0x80

// poison is in all general registers of a new thread: the LibOS promises nothing about them.
const poison = 0xbadc0de5bad00bad

// tracer changes what only a debugger can: the registers of new threads, the address hints of mmap, and the
// auxiliary vector. All its calls come from one thread.
type tracer struct {
	p       *process
	armed   bool // the program has been executed; before, it is the stage that runs
	waiting map[int]bool
	threads map[int]threadStart  // new threads whose first stop has not come
	asked   map[int]threadStart  // what the last clone of a thread asked for
	exits   map[int]func() error // of threads that are between entry and exit of a call: what to do at the exit
	spawns  map[int]*spawning    // calls that have not made their child yet, by thread
	tasks   int                  // how many threads there are, of all processes
	ended   bool                 // the program has ended
	copies  []*mapping
}

// threadStart is how the LibOS starts a thread: no other register is defined.
type threadStart struct {
	known    bool // false for a new process, which starts as the kernel starts it
	rip, rsp uint64
	spawned  *spawning // what a process that was spawned is to do
}

// trace starts the stage as a traced child and follows it to its end.
func (p *process) trace(files []uintptr, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pid, err := forkStage(files, true, p.isolated)
	if err != nil {
		close(p.exited)
		started <- err
		return
	}
	p.pid = pid
	t := &tracer{p: p, waiting: map[int]bool{}, threads: map[int]threadStart{}, asked: map[int]threadStart{},
		exits: map[int]func() error{}, spawns: map[int]*spawning{}, tasks: 1}
	err = t.attach(pid)
	started <- err
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	t.follow()
	if !t.ended {
		close(p.exited)
	}
}

func (t *tracer) attach(pid int) error {
	var status unix.WaitStatus
	if _, err := wait(pid, &status); err != nil {
		return err
	}
	if err := unix.PtraceSetOptions(pid, traceOptions); err != nil {
		return fmt.Errorf("tracing a program: %w", err)
	}
	return unix.PtraceCont(pid, 0)
}

// wait waits for a child of this thread or a thread that it traces.
func wait(pid int, status *unix.WaitStatus) (int, error) {
	for {
		got, err := unix.Wait4(pid, status, unix.WALL|unix.WNOTHREAD, nil)
		if !errors.Is(err, unix.EINTR) {
			return got, err
		}
	}
}

// follow tells when the program has ended, and returns when all that it started have, too: they may outlive it.
func (t *tracer) follow() {
	for {
		var status unix.WaitStatus
		pid, err := wait(-1, &status)
		if err != nil {
			return
		}
		if !status.Stopped() {
			t.tasks--
			if pid == t.p.pid {
				t.p.status, t.ended = status, true
				close(t.p.exited)
			}
			continue
		}
		signal := 0
		switch event := int(status) >> 16; {
		case event != 0:
			err = t.event(pid, event)
		case status.StopSignal() == syscallStop:
			exit := t.exits[pid]
			delete(t.exits, pid)
			if exit != nil {
				err = exit()
			}
		case t.isNew(pid, status.StopSignal()):
			continue
		case status.StopSignal() == unix.SIGILL && t.isUnfiltered(pid):
		case status.StopSignal() != unix.SIGTRAP:
			signal = int(status.StopSignal())
			err = t.repeat(pid)
		}
		// A thread that is killed meanwhile is not there any more (ESRCH), which its end will tell.
		switch {
		case err != nil:
		case t.exits[pid] != nil:
			err = unix.PtraceSyscall(pid, signal)
		default:
			err = unix.PtraceCont(pid, signal)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			t.kill(pid, "tracing it failed: "+err.Error())
		}
	}
}

// sysUretprobe is a call that the kernel takes from its own trampolines only, and shows to no filter: elsewhere it is
// answered with SIGILL. Its newer sibling, 336, gives no signal and stays ENXIO.
const sysUretprobe = 335

// isUnfiltered gives the LibOS's answer if a SIGILL is the kernel's answer to that call.
func (t *tracer) isUnfiltered(pid int) bool {
	var regs unix.PtraceRegs
	if unix.PtraceGetRegs(pid, &regs) != nil || regs.Orig_rax != sysUretprobe {
		return false
	}
	return t.refuse(pid, &regs, unix.EINVAL) == nil
}

// isNew takes the first stop of a new thread. It may come before the event of the thread that made it.
func (t *tracer) isNew(pid int, signal unix.Signal) bool {
	start, ok := t.threads[pid]
	switch {
	case ok:
		t.begin(pid, start)
		return true
	case signal == unix.SIGSTOP && pid != t.p.pid && !t.waiting[pid]:
		t.waiting[pid] = true
		return true
	}
	return false
}

// begin sets the registers of a new thread and lets it run.
func (t *tracer) begin(pid int, start threadStart) {
	delete(t.threads, pid)
	delete(t.waiting, pid)
	if start.spawned != nil {
		t.child(pid, start.spawned)
		return
	}
	if start.known {
		var regs unix.PtraceRegs
		if err := unix.PtraceGetRegs(pid, &regs); err != nil {
			return
		}
		for _, r := range []*uint64{&regs.Rax, &regs.Rbx, &regs.Rcx, &regs.Rdx, &regs.Rsi, &regs.Rdi, &regs.Rbp,
			&regs.R8, &regs.R9, &regs.R10, &regs.R11, &regs.R12, &regs.R13, &regs.R14, &regs.R15} {
			*r = poison
		}
		regs.Orig_rax = ^uint64(0) // so that no call is restarted
		regs.Rip, regs.Rsp = start.rip, start.rsp
		if err := unix.PtraceSetRegs(pid, &regs); err != nil && !errors.Is(err, unix.ESRCH) {
			t.kill(pid, "setting the registers of a thread: "+err.Error())
			return
		}
	}
	_ = unix.PtraceCont(pid, 0)
}

func (t *tracer) event(pid, event int) error {
	switch event {
	case unix.PTRACE_EVENT_EXEC:
		t.armed = true
		if pid == t.p.pid {
			t.copies = nil
		}
		limit := unix.Rlimit{Cur: uint64(t.p.limits.Mappings), Max: uint64(t.p.limits.Mappings)}
		if err := unix.Prlimit(pid, unix.RLIMIT_AS, &limit, nil); err != nil {
			return fmt.Errorf("limiting its memory: %w", err)
		}
		return hideVDSO(pid)
	case unix.PTRACE_EVENT_SECCOMP:
		if t.armed {
			return t.call(pid)
		}
	case unix.PTRACE_EVENT_CLONE, unix.PTRACE_EVENT_FORK, unix.PTRACE_EVENT_VFORK:
		message, err := unix.PtraceGetEventMsg(pid)
		if err != nil {
			return err
		}
		t.tasks++
		child := int(message)
		start := threadStart{}
		if event == unix.PTRACE_EVENT_CLONE {
			start = t.asked[pid]
			delete(t.asked, pid)
		} else {
			start.spawned = t.spawns[pid]
		}
		t.threads[child] = start
		if t.waiting[child] {
			t.begin(child, start)
		}
	}
	return nil
}

// Flags of clone that the LibOS wants, and that it refuses (L/process/do_clone.rs).
const (
	cloneMandatory = unix.CLONE_VM | unix.CLONE_THREAD | unix.CLONE_SIGHAND | unix.CLONE_FILES | unix.CLONE_FS |
		unix.CLONE_SETTLS | unix.CLONE_SYSVSEM
	cloneRefused = unix.CLONE_VFORK | unix.CLONE_PIDFD | unix.CLONE_PTRACE | unix.CLONE_UNTRACED |
		unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
		unix.CLONE_NEWPID | unix.CLONE_NEWNET
)

// call is a system call whose filter said trace.
func (t *tracer) call(pid int) error {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &regs); err != nil {
		return err
	}
	switch regs.Orig_rax {
	case unix.SYS_MMAP:
		if regs.R10&(unix.MAP_FIXED|unix.MAP_FIXED_NOREPLACE) == 0 {
			regs.Rdi = 0
		}
		if regs.R10&unix.MAP_SHARED != 0 && regs.R10&unix.MAP_ANONYMOUS == 0 {
			return t.mapFile(pid, &regs)
		}
		return unix.PtraceSetRegs(pid, &regs)
	case unix.SYS_MSYNC:
		return t.sync(regs.Rdi, regs.Rsi)
	case unix.SYS_MUNMAP:
		return t.unmap(regs.Rdi, regs.Rsi)
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC:
		return t.syncFile(int(int32(regs.Rdi)))
	case unix.SYS_CLONE:
		return t.clone(pid, &regs)
	case unix.SYS_EXECVE:
		if err := t.loadable(pid, regs.Rdi); err != nil {
			return t.refuse(pid, &regs, errnoOf(err))
		}
	case unix.SYS_RT_SIGACTION:
		return t.handler(pid, regs.Rsi, regs.Rdx)
	case sysSpawnGlibc, sysSpawnMusl:
		return t.spawn(pid, &regs)
	}
	return nil
}

func (t *tracer) clone(pid int, regs *unix.PtraceRegs) error {
	flags, stack := regs.Rdi, regs.Rsi
	if flags&cloneMandatory != cloneMandatory || flags&cloneRefused != 0 || stack == 0 ||
		(flags&unix.CLONE_PARENT_SETTID != 0) != (regs.Rdx != 0) ||
		(flags&(unix.CLONE_CHILD_SETTID|unix.CLONE_CHILD_CLEARTID) != 0) != (regs.R10 != 0) {
		return t.refuse(pid, regs, unix.EINVAL)
	}
	if t.exhausted(pid) {
		return nil
	}
	entry, err := readWord(pid, stack)
	if err != nil || !executableAt(pid, entry) {
		t.kill(pid, fmt.Sprintf("it starts a thread as Linux does: the LibOS takes a thread's first instruction from the "+
			"top of its stack, where this program has %#x, which is no code. A Go program must be built with the "+
			"runtime overlay of internal/occlum/goruntime, a C program with Occlum's libc", entry))
		return nil
	}
	t.asked[pid] = threadStart{known: true, rip: entry, rsp: stack}
	return nil
}

// handler takes SA_RESTART out of the handler that a thread installs, for the call alone: the LibOS takes the flag, and
// does not restart what a signal interrupts.
func (t *tracer) handler(pid int, action, former uint64) error {
	const restart = 0x10000000
	at := action + 8
	flags, err := readWord(pid, at)
	if action == 0 || err != nil || flags&restart == 0 {
		return nil
	}
	// The program's memory may be read-only to itself.
	put := func(flags uint64) error {
		_, err := unix.PtracePokeData(pid, uintptr(at), binary.LittleEndian.AppendUint64(nil, flags))
		return err
	}
	if former != action {
		t.exits[pid] = func() error { return put(flags) }
	}
	return put(flags &^ restart)
}

// repeat has a thread that a signal is for make its call again after it, if it was waiting for the supervisor. The LibOS
// answers at once, so no signal interrupts such a call there.
func (t *tracer) repeat(pid int) error {
	const (
		interrupted = -512 // ERESTARTSYS, which only the kernel and tracers see
		instruction = 2    // bytes of "syscall"
	)
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &regs); err != nil {
		return err
	}
	if int64(regs.Rax) != interrupted || !notified(regs.Orig_rax) {
		return nil
	}
	regs.Rip -= instruction
	regs.Rax, regs.Orig_rax = regs.Orig_rax, ^uint64(0)
	return unix.PtraceSetRegs(pid, &regs)
}

// exhausted ends the program if there is no thread left for it: the LibOS ends with all its processes then.
func (t *tracer) exhausted(pid int) bool {
	if t.tasks < t.p.limits.Threads {
		return false
	}
	t.kill(pid, fmt.Sprintf("it wants more threads than the enclave has, %d (resource_limits.max_num_of_threads)",
		t.p.limits.Threads))
	return true
}

// refuse lets the kernel skip the call of a thread that is stopped at it.
func (t *tracer) refuse(pid int, regs *unix.PtraceRegs, errno unix.Errno) error {
	regs.Orig_rax = ^uint64(0)
	regs.Rax = -uint64(errno)
	return unix.PtraceSetRegs(pid, regs)
}

// kill ends the program. What outlives it is ended alone, and without a word.
func (t *tracer) kill(pid int, reason string) {
	if t.ended {
		_ = unix.Kill(pid, unix.SIGKILL)
		return
	}
	if t.p.reason == "" {
		t.p.reason = reason
	}
	_ = unix.Kill(t.p.pid, unix.SIGKILL)
}

// executableAt says whether a program has code at an address.
func executableAt(pid int, addr uint64) bool {
	f, err := os.Open(procPath(pid, "maps"))
	if err != nil {
		return false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var first, last uint64
		var perm string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &first, &last, &perm); err != nil {
			return false
		}
		if first <= addr && addr < last {
			return strings.Contains(perm, "x")
		}
	}
	return false
}

// Types of auxiliary vector entries.
const (
	auxNull   = 0
	auxIgnore = 1
)

// auxvHidden are the entries that the LibOS does not give: flags of the loader, hardware capabilities, clock
// ticks, the vDSO, the name of the file, restartable sequences, the signal stack's size.
var auxvHidden = map[uint64]bool{15: true, 16: true, 17: true, 24: true, 26: true, 27: true, 28: true, 29: true,
	30: true, 31: true, 33: true, 51: true}

// hideVDSO removes from the auxiliary vector of a program that has just been executed what the LibOS does not give.
func hideVDSO(pid int) error {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &regs); err != nil {
		return err
	}
	addr := regs.Rsp
	count, err := readWord(pid, addr)
	if err != nil {
		return err
	}
	addr += 8 * (count + 2) // the arguments and their NULL
	for value := uint64(1); value != 0; addr += 8 {
		if value, err = readWord(pid, addr); err != nil {
			return err
		}
	}
	for ; ; addr += 16 {
		kind, err := readWord(pid, addr)
		if err != nil || kind == auxNull {
			return err
		}
		if auxvHidden[kind] {
			if err := writeMemory(pid, addr, []byte{auxIgnore, 0, 0, 0, 0, 0, 0, 0}); err != nil {
				return err
			}
		}
	}
}
