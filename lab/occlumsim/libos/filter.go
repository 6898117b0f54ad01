package libos

import (
	"golang.org/x/sys/unix"
)

// sysMountRootFS is the LibOS's own system call, beside the spawn calls 359 and 360. Its libraries never make 361 and
// 362, which handle exceptions and interrupts.
const (
	sysMountRootFS  = 363
	lastLinuxNumber = 334 // the last number that the LibOS's table lists without a gap

	lastClock = unix.CLOCK_BOOTTIME // the last clock that the LibOS has
)

// implemented are the numbers that Occlum 0.31 implements, as ranges (L/syscall/mod.rs). Every other number up to
// [lastLinuxNumber] is ENOSYS, every other one above it EINVAL.
var implemented = [][2]uint32{
	{0, 26}, {28, 33}, {35, 35}, {39, 56}, {58, 63}, {67, 67}, {72, 97}, {99, 99}, {102, 102}, {104, 104},
	{107, 111}, {115, 115}, {121, 121}, {127, 128}, {130, 132}, {137, 138}, {140, 141}, {157, 158}, {160, 160},
	{162, 162}, {165, 166}, {186, 186}, {200, 204}, {213, 213}, {217, 218}, {228, 235}, {257, 258}, {260, 271},
	{273, 274}, {280, 281}, {283, 288}, {290, 293}, {295, 296}, {302, 302}, {307, 307}, {309, 309}, {318, 318},
}

// What a filter may answer. notify asks the supervisor over the listener, trace stops the thread for its tracer.
const (
	allow  = unix.SECCOMP_RET_ALLOW
	notify = unix.SECCOMP_RET_USER_NOTIF
	trace  = unix.SECCOMP_RET_TRACE
)

func fail(errno unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(errno) }

// strictFilter gives the LibOS's answers: those that need no more than a number come from the filter itself.
func strictFilter() []unix.SockFilter {
	p := begin()
	p.on(unix.SYS_CLONE, ret(trace))
	p.on(unix.SYS_EXECVE, ret(trace))
	p.on(unix.SYS_RT_SIGACTION, ret(trace))
	p.on(unix.SYS_MMAP,
		// The tracer drops a hint without MAP_FIXED or MAP_FIXED_NOREPLACE, and copies shared mappings of files.
		arg(3), and(unix.MAP_SHARED|unix.MAP_ANONYMOUS), jump(unix.BPF_JEQ, unix.MAP_SHARED, 6, 0),
		arg(3), jump(unix.BPF_JSET, unix.MAP_FIXED|unix.MAP_FIXED_NOREPLACE, 5, 0),
		arg(0), jump(unix.BPF_JEQ, 0, 0, 2),
		argHigh(0), jump(unix.BPF_JEQ, 0, 1, 0),
		ret(trace), ret(allow))
	for _, nr := range []uint32{unix.SYS_MSYNC, unix.SYS_MUNMAP, unix.SYS_FSYNC, unix.SYS_FDATASYNC} {
		p.on(nr, ret(trace))
	}
	p.on(unix.SYS_MADVISE,
		arg(2), jump(unix.BPF_JGT, unix.MADV_DONTNEED, 0, 1), ret(fail(unix.ENOSYS)),
		jump(unix.BPF_JEQ, unix.MADV_DONTNEED, 0, 1), ret(notify), ret(fail(0)))
	p.on(unix.SYS_FUTEX, arg(1), and(0x7f),
		jump(unix.BPF_JEQ, 0, 5, 0), jump(unix.BPF_JEQ, 1, 4, 0), jump(unix.BPF_JEQ, 3, 3, 0),
		jump(unix.BPF_JEQ, 9, 2, 0), jump(unix.BPF_JEQ, 10, 1, 0), ret(fail(unix.ENOSYS)), ret(allow))
	p.on(unix.SYS_PRCTL, arg(0),
		jump(unix.BPF_JEQ, unix.PR_SET_NAME, 4, 0), jump(unix.BPF_JEQ, unix.PR_GET_NAME, 3, 0),
		jump(unix.BPF_JEQ, unix.PR_SET_TIMERSLACK, 2, 0), jump(unix.BPF_JEQ, unix.PR_GET_TIMERSLACK, 1, 0),
		ret(fail(unix.EINVAL)), ret(allow))
	p.on(unix.SYS_CLOCK_GETTIME, arg(0), jump(unix.BPF_JGT, lastClock, 0, 1), ret(fail(unix.EINVAL)), ret(allow))
	p.on(unix.SYS_GETRANDOM, arg(2), jump(unix.BPF_JGT, 3, 0, 1), ret(fail(unix.EINVAL)), ret(allow))
	p.on(unix.SYS_EPOLL_CTL, arg(1), jump(unix.BPF_JEQ, unix.EPOLL_CTL_ADD, 0, 1), ret(notify), ret(allow))
	p.on(unix.SYS_UNAME, ret(notify))
	p.on(unix.SYS_GETDENTS64, ret(notify))
	for nr := range pathCalls {
		p.on(uint32(nr), ret(notify))
	}
	p.libOSCalls()
	p.on(sysSpawnGlibc, ret(trace))
	p.on(sysSpawnMusl, ret(trace))
	p.between(sysSpawnMusl+1, sysMountRootFS-1, fail(unix.ENOSYS))
	for _, r := range implemented {
		p.between(r[0], r[1], allow)
	}
	p.between(0, lastLinuxNumber, fail(unix.ENOSYS))
	return append(p.code, ret(fail(unix.EINVAL)))
}

// notified says whether strictFilter hands a call to the supervisor.
func notified(nr uint64) bool {
	switch nr {
	case unix.SYS_MADVISE, unix.SYS_EPOLL_CTL, unix.SYS_UNAME, unix.SYS_GETDENTS64, unix.SYS_IOCTL, sysMountRootFS,
		unix.SYS_MOUNT, unix.SYS_UMOUNT2:
		return true
	}
	_, ok := pathCalls[int(nr)]
	return ok
}

// nativeFilter lets a program run on the kernel itself, except for what only the LibOS has.
func nativeFilter() []unix.SockFilter {
	p := begin()
	p.libOSCalls()
	return append(p.code, ret(allow))
}

// program is a filter under construction. The accumulator holds the call's number between rules.
type program struct{ code []unix.SockFilter }

func begin() *program {
	return &program{code: []unix.SockFilter{
		load(4), jump(unix.BPF_JEQ, unix.AUDIT_ARCH_X86_64, 1, 0), ret(unix.SECCOMP_RET_KILL_PROCESS),
		load(0),
	}}
}

// on adds what to do for one number; body ends with a return.
func (p *program) on(nr uint32, body ...unix.SockFilter) {
	p.code = append(p.code, jump(unix.BPF_JEQ, nr, 0, uint8(len(body))))
	p.code = append(p.code, body...)
}

func (p *program) between(first, last, action uint32) {
	p.code = append(p.code, jump(unix.BPF_JGE, first, 0, 2), jump(unix.BPF_JGT, last, 1, 0), ret(action))
}

func (p *program) libOSCalls() {
	for _, nr := range []uint32{sysMountRootFS, unix.SYS_MOUNT, unix.SYS_UMOUNT2} {
		p.on(nr, ret(notify))
	}
	// The commands of /dev/sgx are those of type 's'.
	p.on(unix.SYS_IOCTL, arg(1), and(0xff00), jump(unix.BPF_JEQ, sgxIoctlType<<8, 0, 1), ret(notify), ret(allow))
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func arg(i uint32) unix.SockFilter     { return load(16 + 8*i) }
func argHigh(i uint32) unix.SockFilter { return load(20 + 8*i) }

func and(mask uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask}
}

func jump(test uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | test | unix.BPF_K, Jt: yes, Jf: no, K: k}
}

func ret(action uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
}
