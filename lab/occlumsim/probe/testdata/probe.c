// probe asks the LibOS, call by call, for the answers that Occlum 0.31 gives, and prints a line for each:
//
//	row<TAB>name<TAB>got<TAB>want
//
// Numbers are what the kernel returns in rax: a result, or the negative error. The last line is "end", so that a
// probe which dies on the way is noticed. It makes its system calls itself and starts no thread through libc, whose
// clone is not the LibOS's.
//
// As /bin/init it reads what to do from /etc/probe, a line "key value" each; under any other name it is the
// application and prints what it was given.
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

extern char **environ;

static long call6(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long ret;
	__asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

#define SELECT(_0, _1, _2, _3, _4, _5, _6, NAME, ...) NAME
#define CALL0(n) call6(n, 0, 0, 0, 0, 0, 0)
#define CALL1(n, a) call6(n, (long)(a), 0, 0, 0, 0, 0)
#define CALL2(n, a, b) call6(n, (long)(a), (long)(b), 0, 0, 0, 0)
#define CALL3(n, a, b, c) call6(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define CALL4(n, a, b, c, d) call6(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define CALL5(n, a, b, c, d, e) call6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define CALL6(n, a, b, c, d, e, f) call6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define CALL(...) SELECT(__VA_ARGS__, CALL6, CALL5, CALL4, CALL3, CALL2, CALL1, CALL0)(__VA_ARGS__)

static void row(const char *name, long got, long want)
{
	printf("row\t%s\t%ld\t%ld\n", name, got, want);
	fflush(stdout);
}

// Where only success or failure is said.
static void works(const char *name, long got) { row(name, got < 0 ? got : 0, 0); }

static struct {
	char mode[256], key[256], wrong[256], dir[256], volume_key[256], mac[256];
} settings;

static void read_settings(void)
{
	FILE *f = fopen("/etc/probe", "r");
	char key[32], value[256];
	if (!f)
		exit(99);
	while (fscanf(f, "%31s %255s", key, value) == 2) {
#define SETTING(name) else if (!strcmp(key, #name)) snprintf(settings.name, sizeof settings.name, "%s", value)
		if (0)
			;
		SETTING(mode);
		SETTING(key);
		SETTING(wrong);
		SETTING(dir);
		SETTING(volume_key);
		SETTING(mac);
	}
	fclose(f);
}

static void parse_key(const char *text, uint8_t key[16])
{
	for (int i = 0; i < 16; i++) {
		unsigned v = 0;
		sscanf(text + 3 * i, "%2x", &v);
		key[i] = v;
	}
}

// ---- what the process is given (1.2) ----

static void given(int argc, char **argv)
{
	char cwd[64] = "";
	row("argc", argc, 1);
	row("argv[0] is init", strcmp(argv[0], "init"), 0);
	CALL(SYS_getcwd, cwd, sizeof cwd);
	row("working directory is /", strcmp(cwd, "/"), 0);
	row("getuid", CALL(SYS_getuid), 0);
	row("geteuid", CALL(SYS_geteuid), 0);
	row("getgid", CALL(SYS_getgid), 0);
	row("getegid", CALL(SYS_getegid), 0);

	char **e = environ;
	while (*e)
		e++;
	long want[64] = {0};
	for (Elf64_auxv_t *a = (Elf64_auxv_t *)(e + 1); a->a_type; a++)
		if (a->a_type < 64)
			want[a->a_type] = 1;
	row("auxv has AT_PHDR", want[AT_PHDR], 1);
	row("auxv has AT_ENTRY", want[AT_ENTRY], 1);
	row("auxv has AT_RANDOM", want[AT_RANDOM], 1);
	row("auxv has AT_PAGESZ", want[AT_PAGESZ], 1);
	row("auxv has AT_SYSINFO_EHDR", want[AT_SYSINFO_EHDR], 0);
	row("auxv has AT_EXECFN", want[AT_EXECFN], 0);
	row("auxv has AT_HWCAP", want[AT_HWCAP], 0);
	row("auxv has AT_CLKTCK", want[AT_CLKTCK], 0);

	const char *v = getenv("PROBE_DEFAULT");
	row("env: a default", v ? strcmp(v, "trusted") : -1, 0);
	v = getenv("PROBE_BOTH");
	row("env: the host's value of an untrusted name", v ? strcmp(v, "host") : -1, 0);
	v = getenv("PROBE_UNTRUSTED");
	row("env: an untrusted name without default", v ? strcmp(v, "host") : -1, 0);
	row("env: a name that is not listed", getenv("PROBE_UNLISTED") != NULL, 0);
	row("env: PATH", getenv("PATH") != NULL, 0);
}

// ---- numbers without a call (appendix B) ----

static int implemented(int nr)
{
	static const short ranges[][2] = {
		{0, 26}, {28, 33}, {35, 35}, {39, 56}, {58, 63}, {67, 67}, {72, 97}, {99, 99}, {102, 102}, {104, 104},
		{107, 111}, {115, 115}, {121, 121}, {127, 128}, {130, 132}, {137, 138}, {140, 141}, {157, 158},
		{160, 160}, {162, 162}, {165, 166}, {186, 186}, {200, 204}, {213, 213}, {217, 218}, {228, 235},
		{257, 258}, {260, 271}, {273, 274}, {280, 281}, {283, 288}, {290, 293}, {295, 296}, {302, 302},
		{307, 307}, {309, 309}, {318, 318}, {359, 363},
	};
	for (unsigned i = 0; i < sizeof ranges / sizeof *ranges; i++)
		if (nr >= ranges[i][0] && nr <= ranges[i][1])
			return 1;
	return 0;
}

static void numbers(void)
{
	char name[32];
	for (int nr = 0; nr < 480; nr++) {
		if (implemented(nr))
			continue;
		snprintf(name, sizeof name, "system call %d", nr);
		long got = CALL(nr);
		// 336 is the kernel's own since 6.18, for probes in programs: no filter sees it there, and it is ENXIO.
		if (nr == 336 && got == -ENXIO)
			continue;
		row(name, got, nr <= 334 ? -ENOSYS : -EINVAL);
	}
	row("system call 100000", CALL(100000), -EINVAL);

	// Those that are implemented say something else, whatever it is. Left out are those that would end or block the
	// probe, and those whose own answer to such arguments is ENOSYS.
	for (int nr = 0; nr < 364; nr++) {
		switch (nr) {
		case SYS_rt_sigreturn: case SYS_clone: case SYS_vfork: case SYS_exit: case SYS_exit_group: case SYS_sync:
		case SYS_futex: case SYS_madvise: case 361: case 362:
			continue;
		}
		if (!implemented(nr))
			continue;
		snprintf(name, sizeof name, "system call %d is there", nr);
		row(name, CALL(nr, -1, -1, -1, -1, -1, -1) == -ENOSYS, 0);
	}
	CALL(SYS_umask, 022);
}

// ---- calls that know less than Linux's (5.4, 5.5) ----

#define MAPPED 3, 0x22, -1, 0 // read and write, private and anonymous

static void memory(void)
{
	char *p = (char *)CALL(SYS_mmap, 0, 16384, MAPPED);
	works("mmap", (long)p < 0 && (long)p > -4096 ? (long)p : 0);
	memset(p, 0x5a, 8192);
	for (int advice = 0; advice <= 4; advice++) {
		char name[32];
		snprintf(name, sizeof name, "madvise advice %d", advice);
		row(name, CALL(SYS_madvise, p, 8192, advice), 0);
	}
	row("MADV_DONTNEED leaves the first byte", p[0], 0x5a);
	row("MADV_DONTNEED leaves the last byte", p[8191], 0x5a);
	row("MADV_FREE", CALL(SYS_madvise, p, 8192, 8), -ENOSYS);
	row("MADV_HUGEPAGE", CALL(SYS_madvise, p, 8192, 14), -ENOSYS);
	row("MADV_COLLAPSE", CALL(SYS_madvise, p, 8192, 25), -ENOSYS);

	long hint = 0x300000000000;
	long at = CALL(SYS_mmap, hint, 4096, MAPPED);
	row("mmap follows a hint", at == hint, 0);
	works("mmap with a hint", at < 0 && at > -4096 ? at : 0);
	row("mmap MAP_FIXED over a mapping", CALL(SYS_mmap, p, 4096, 3, 0x32, -1, 0) == (long)p, 1);
	works("mprotect", CALL(SYS_mprotect, p, 4096, 1));
	works("munmap", CALL(SYS_munmap, p, 16384));
}

static void calls(void)
{
	uint32_t word = 1;
	char buf[32] = "";
	char name[32];

	row("futex WAIT on another value", CALL(SYS_futex, &word, 0, 2, 0), -EAGAIN);
	row("futex WAKE", CALL(SYS_futex, &word, 1, 1), 0);
	row("futex WAIT_BITSET on another value", CALL(SYS_futex, &word, 9, 2, 0, 0, -1), -EAGAIN);
	row("futex WAKE_BITSET", CALL(SYS_futex, &word, 10, 1, 0, 0, -1), 0);
	row("futex REQUEUE", CALL(SYS_futex, &word, 3, 1, 1, &word + 0), 0);
	row("futex WAIT, private", CALL(SYS_futex, &word, 128, 2, 0), -EAGAIN);
	for (int op = 0; op < 14; op++)
		if (op == 2 || (op >= 4 && op <= 8) || op >= 11) {
			snprintf(name, sizeof name, "futex operation %d", op);
			row(name, CALL(SYS_futex, &word, op, 1, 0, &word, 0), -ENOSYS);
		}

	works("prctl PR_SET_NAME", CALL(SYS_prctl, 15, "probe"));
	works("prctl PR_GET_NAME", CALL(SYS_prctl, 16, buf));
	row("prctl gives the name that was set", strcmp(buf, "probe"), 0);
	works("prctl PR_SET_TIMERSLACK", CALL(SYS_prctl, 29, 0));
	works("prctl PR_GET_TIMERSLACK", CALL(SYS_prctl, 30));
	row("prctl PR_SET_DUMPABLE", CALL(SYS_prctl, 4, 0), -EINVAL);
	row("prctl PR_SET_NO_NEW_PRIVS", CALL(SYS_prctl, 38, 1), -EINVAL);
	row("prctl PR_SET_VMA", CALL(SYS_prctl, 0x53564d41, 0), -EINVAL);

	row("getrandom", CALL(SYS_getrandom, buf, 16, 0), 16);
	row("getrandom, both flags", CALL(SYS_getrandom, buf, 16, 3), 16);
	row("getrandom, an unknown flag", CALL(SYS_getrandom, buf, 16, 4), -EINVAL);

	long ts[2];
	for (int id = 0; id <= 7; id++) {
		snprintf(name, sizeof name, "clock_gettime %d", id);
		works(name, CALL(SYS_clock_gettime, id, ts));
	}
	for (int id = 8; id <= 11; id++) {
		snprintf(name, sizeof name, "clock_gettime %d", id);
		row(name, CALL(SYS_clock_gettime, id, ts), -EINVAL);
	}

	struct { char sysname[65], nodename[65], release[65], version[65], machine[65], domain[65]; } u;
	works("uname", CALL(SYS_uname, &u));
	row("uname: sysname Occlum", strcmp(u.sysname, "Occlum"), 0);
	row("uname: release 0.1", strcmp(u.release, "0.1"), 0);
	row("uname: machine x86_64", strcmp(u.machine, "x86_64"), 0);

	long ep = CALL(SYS_epoll_create1, 0);
	long file = CALL(SYS_open, "/etc/probe", 0);
	struct { uint32_t events; uint64_t data; } __attribute__((packed)) event = {1, 0};
	row("epoll_ctl on a regular file", CALL(SYS_epoll_ctl, ep, 1, file, &event), -EINVAL);
	int pair[2];
	works("pipe2", CALL(SYS_pipe2, pair, 0));
	works("epoll_ctl on a pipe", CALL(SYS_epoll_ctl, ep, 1, pair[0], &event));
	row("epoll_pwait2", CALL(441, ep, 0, 0, 0), -EINVAL);
}

// ---- files (1.4) ----

// Whether a directory has a name.
static int lists(long fd, const char *want)
{
	static char buf[4096];
	long n;
	int found = 0;
	CALL(SYS_lseek, fd, 0, 0);
	while ((n = CALL(SYS_getdents64, fd, buf, sizeof buf)) > 0)
		for (long at = 0; at < n; at += *(unsigned short *)(buf + at + 16))
			found |= !strcmp(buf + at + 19, want);
	return found;
}

static void files(void)
{
	static const char *const there[] = {
		"/bin/init", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/null", "/dev/zero", "/dev/random",
		"/dev/urandom", "/dev/arandom", "/dev/sgx", "/dev/shm", "/dev/fd", "/proc/cpuinfo", "/proc/meminfo",
		"/proc/stat", "/proc/self/cmdline", "/proc/self/exe", "/proc/self/comm", "/proc/self/stat",
		"/proc/self/maps", "/proc/self/fd", "/proc/self/cwd", "/proc/self/root",
	};
	static const char *const missing[] = {
		"/sys", "/tmp", "/home", "/dev/tty", "/dev/stdin", "/dev/pts", "/proc/mounts", "/proc/version", "/proc/sys",
		"/proc/net", "/proc/self/status", "/proc/self/auxv", "/proc/self/mountinfo", "/proc/self/cgroup",
	};
	char name[64];
	for (unsigned i = 0; i < sizeof there / sizeof *there; i++) {
		snprintf(name, sizeof name, "open %s", there[i]);
		long fd = CALL(SYS_open, there[i], 0);
		works(name, fd);
		if (fd >= 0)
			CALL(SYS_close, fd);
	}
	for (unsigned i = 0; i < sizeof missing / sizeof *missing; i++) {
		snprintf(name, sizeof name, "open %s", missing[i]);
		row(name, CALL(SYS_open, missing[i], 0), -ENOENT);
	}
	struct stat st;
	char link[64];
	static const char *const hidden[] = {"/proc/mounts", "/proc/self/status", "/proc/self/../version", "/proc/1/environ"};
	for (unsigned i = 0; i < sizeof hidden / sizeof *hidden; i++) {
		snprintf(name, sizeof name, "stat %s", hidden[i]);
		row(name, CALL(SYS_stat, hidden[i], &st), -ENOENT);
		snprintf(name, sizeof name, "access %s", hidden[i]);
		row(name, CALL(SYS_access, hidden[i], 0), -ENOENT);
	}
	works("stat /proc/self/stat", CALL(SYS_stat, "/proc/self/stat", &st));
	row("readlink /proc/self/exe", CALL(SYS_readlink, "/proc/self/exe", link, sizeof link) > 0, 1);
	row("readlink /proc/self/ns", CALL(SYS_readlink, "/proc/self/ns/pid", link, sizeof link), -ENOENT);
	row("open a link to /proc/mounts", CALL(SYS_open, "/etc/mtab", 0), -ENOENT);
	long proc = CALL(SYS_open, "/proc", 0200000);
	works("open /proc", proc);
	row("openat version in /proc", CALL(SYS_openat, proc, "version", 0), -ENOENT);
	works("openat self/stat in /proc", CALL(SYS_openat, proc, "self/stat", 0));
	row("/proc lists cpuinfo", lists(proc, "cpuinfo"), 1);
	row("/proc lists mounts", lists(proc, "mounts"), 0);
	row("/proc lists version", lists(proc, "version"), 0);
	long self = CALL(SYS_open, "/proc/self", 0200000);
	row("/proc/self lists maps", lists(self, "maps"), 1);
	row("/proc/self lists environ", lists(self, "environ"), 0);
	works("create a file in the root", CALL(SYS_open, "/etc/made", 0102, 0600));
	works("create a file in /dev/shm", CALL(SYS_open, "/dev/shm/made", 0102, 0600));
}

// ---- clone (5.3) ----

// The child is entered with nothing but rsp and fs. It keeps two registers, says that it ran and ends.
volatile uint32_t child_ran;
volatile uint64_t child_rsp, child_rbx, child_r12, child_fs;
void child_entry(void);
__asm__(".text\n"
	"child_entry:\n"
	"	mov %rsp, child_rsp(%rip)\n"
	"	mov %rbx, child_rbx(%rip)\n"
	"	mov %r12, child_r12(%rip)\n"
	"	mov %fs:0, %rax\n"
	"	mov %rax, child_fs(%rip)\n"
	"	movl $1, child_ran(%rip)\n"
	"	lea child_ran(%rip), %rdi\n" // futex(&child_ran, FUTEX_WAKE, 1)
	"	mov $1, %esi\n"
	"	mov $1, %edx\n"
	"	mov $202, %eax\n"
	"	syscall\n"
	"	xor %edi, %edi\n" // exit(0)
	"	mov $60, %eax\n"
	"	syscall\n"
	"	hlt\n");

// clone with values in rbx and r12 that a child on Linux would inherit.
static long clone_marked(long flags, void *stack, void *tls)
{
	register long r10 __asm__("r10") = 0;
	register void *r8 __asm__("r8") = tls;
	register long r12 __asm__("r12") = 0x1212121212121212;
	long ret;
	__asm__ volatile("syscall" : "=a"(ret)
			 : "a"(SYS_clone), "D"(flags), "S"(stack), "d"(0L), "r"(r10), "r"(r8), "r"(r12),
			   "b"(0x3b3b3b3b3b3b3b3bL)
			 : "rcx", "r11", "memory");
	return ret;
}

#define THREAD 0xd0f00L // VM FS FILES SIGHAND THREAD SYSVSEM SETTLS
static uint64_t child_stack[1024] __attribute__((aligned(16)));
static uint64_t child_tls[64];

static void threads(void)
{
	uint64_t *top = child_stack + 1000;
	uint32_t tid = 0;
	long timeout[2] = {5, 0};
	top[0] = (uint64_t)child_entry;
	child_tls[0] = (uint64_t)child_tls;

	static const struct { const char *name; long flags; } refused[] = {
		{"clone without CLONE_VM", THREAD & ~0x100}, {"clone without CLONE_FS", THREAD & ~0x200},
		{"clone without CLONE_FILES", THREAD & ~0x400}, {"clone without CLONE_SIGHAND", THREAD & ~0x800},
		{"clone without CLONE_THREAD", THREAD & ~0x10000}, {"clone without CLONE_SYSVSEM", THREAD & ~0x40000},
		{"clone without CLONE_SETTLS", THREAD & ~0x80000}, {"clone with CLONE_VFORK", THREAD | 0x4000},
		{"clone with CLONE_PTRACE", THREAD | 0x2000}, {"clone with CLONE_UNTRACED", THREAD | 0x800000},
		{"clone with CLONE_PIDFD", THREAD | 0x1000}, {"clone with CLONE_NEWNS", THREAD | 0x20000},
		{"clone with CLONE_NEWUSER", THREAD | 0x10000000}, {"clone with CLONE_NEWPID", THREAD | 0x20000000},
		{"clone with CLONE_PARENT_SETTID and no address", THREAD | 0x100000},
		{"clone with CLONE_CHILD_SETTID and no address", THREAD | 0x1000000},
		{"clone with CLONE_CHILD_CLEARTID and no address", THREAD | 0x200000},
	};
	for (unsigned i = 0; i < sizeof refused / sizeof *refused; i++)
		row(refused[i].name, CALL(SYS_clone, refused[i].flags, top, 0, 0, child_tls), -EINVAL);
	row("clone with an address and no CLONE_PARENT_SETTID", CALL(SYS_clone, THREAD, top, &tid, 0, child_tls), -EINVAL);
	row("clone with an address and no CLONE_CHILD_CLEARTID", CALL(SYS_clone, THREAD, top, 0, &tid, child_tls), -EINVAL);
	row("clone that was refused starts nothing", child_ran, 0);

	long child = clone_marked(THREAD, top, child_tls);
	row("clone gives a thread id", child > 0, 1);
	while (!child_ran && CALL(SYS_futex, &child_ran, 0, 0, timeout) != -ETIMEDOUT)
		;
	row("child is entered at the address on its stack", child_ran, 1);
	row("child's rsp is its stack", child_rsp == (uint64_t)top, 1);
	row("child's fs is its TLS", child_fs == (uint64_t)child_tls, 1);
	row("child inherits rbx", child_rbx == 0x3b3b3b3b3b3b3b3b, 0);
	row("child inherits r12", child_r12 == 0x1212121212121212, 0);
	row("vfork through clone", CALL(SYS_clone, 0x4100 | 17, 0, 0, 0, 0), -EINVAL);
}

// A thread that runs a function; the LibOS gives it its stack and its TLS, which is all that it needs.
static void run_child(void);
void function_entry(void);
__asm__(".text\n"
	"function_entry:\n"
	"	call run_child\n"
	"	xor %edi, %edi\n" // exit(0)
	"	mov $60, %eax\n"
	"	syscall\n"
	"	hlt\n");
static void (*volatile child_function)(void);
__attribute__((used)) static void run_child(void) { child_function(); }

static long start(void (*function)(void), uint64_t *stack, int words)
{
	uint64_t *top = stack + (words & ~1);
	child_function = function;
	child_tls[0] = (uint64_t)child_tls;
	top[-2] = (uint64_t)function_entry;
	return CALL(SYS_clone, THREAD, top - 2, 0, 0, child_tls);
}

static void sleep_for(long seconds, long nanoseconds)
{
	long pause[2] = {seconds, nanoseconds};
	CALL(SYS_nanosleep, pause, 0);
}

// ---- signals (5.5) ----

static int pipe_of_signals[2];
static volatile long main_thread;
static volatile int reading, interrupted;

static void note(int signal) { (void)signal; }

// Signals the first thread until a call of it was interrupted, and ends the call otherwise.
static void interrupt(void)
{
	for (int i = 0; i < 5000 && !interrupted; i += reading) {
		CALL(SYS_tgkill, main_thread, main_thread, SIGUSR1);
		sleep_for(0, 100000);
	}
	CALL(SYS_write, pipe_of_signals[1], "x", 1);
}

static void signals(void)
{
	struct sigaction action = {.sa_handler = note, .sa_flags = SA_RESTART}, former;
	char byte;
	main_thread = CALL(SYS_gettid);
	works("a pipe", CALL(SYS_pipe2, pipe_of_signals, 0));
	works("a handler with SA_RESTART", sigaction(SIGUSR1, &action, &former));
	works("a thread for signals", start(interrupt, child_stack, 1024));
	struct stat st;
	int failed = 0;
	for (int i = 0; i < 2000; i++)
		failed += CALL(SYS_stat, "/bin/init", &st) != 0;
	row("a signal interrupts no call that the LibOS answers at once", failed, 0);
	reading = 1;
	long got = CALL(SYS_read, pipe_of_signals[0], &byte, 1);
	row("a read that a signal interrupts is not restarted", got, -EINTR);
	interrupted = 1;
	while (got == -EINTR)
		got = CALL(SYS_read, pipe_of_signals[0], &byte, 1);
	action.sa_flags = 0;
	works("a handler without SA_RESTART", sigaction(SIGUSR1, &former, &action));
	row("the first handler is told as it was", action.sa_handler == note, 1);
	struct { void *handler; unsigned long flags; void *restorer; uint64_t mask; } ignore = {SIG_IGN, SA_RESTART, 0, 0};
	works("SIGUSR2 is ignored", CALL(SYS_rt_sigaction, SIGUSR2, &ignore, 0, 8));
	row("the caller's own flags are left alone", ignore.flags, SA_RESTART);
}

// ---- limits (5.3, 5.4) ----

// The instance has 1536 MB of user space, of which stack and heap take 36.
static void limits(void)
{
	long at = CALL(SYS_mmap, 0, 1300L << 20, 0, 0x4022, -1, 0);
	works("mmap of most of the user space, without any right", at < 0 && at > -4096 ? at : 0);
	row("mmap of more than is left", CALL(SYS_mmap, 0, 300L << 20, 0, 0x4022, -1, 0), -ENOMEM);
	works("munmap", CALL(SYS_munmap, at, 1300L << 20));
}

static void rest(void)
{
	for (;;)
		sleep_for(3600, 0);
}

// Starts threads that stay until the LibOS has none.
static void greedy(void)
{
	static uint64_t stacks[64][512] __attribute__((aligned(16)));
	for (int i = 0; i < 64; i++) {
		printf("threads\t%d\n", i + 1);
		fflush(stdout);
		if (start(rest, stacks[i], 512) < 0)
			return;
	}
}

// ---- spawn (359, 360) ----

// What the LibOS takes for musl's and glibc's file actions.
struct fdop { const struct fdop *prev, *next; int cmd, fd, srcfd, oflag; unsigned mode; const char *path; };
struct action {
	int tag;
	union {
		int fd;
		struct { int fd, newfd; } dup;
		struct { int fd; const char *path; int oflag, mode; } open;
	};
};
struct actions { int allocated, used; const struct action *list; int pad[16]; };
struct attributes { unsigned short flags; int group; uint64_t defaults[16], mask[16]; };

static void spawned(const char *how, long nr, const void *actions, const char *output)
{
	static const char *const argv[] = {"child", "exit", "7", NULL}, *const env[] = {"CHILD=yes", NULL};
	static const char *const mask[] = {"child", "mask", "", NULL};
	struct attributes blocked = {.flags = 8, .mask = {1 << 9}}; // SIGUSR1
	char name[64], text[512] = "";
	uint32_t child = 0;
	int status = -1;

#define SPAWN(path, argv, actions, attributes) CALL(nr, &child, path, argv, env, actions, attributes)
#define ROW(what, got, want) (snprintf(name, sizeof name, "%s: %s", how, what), row(name, got, want))
	ROW("starts a program", SPAWN("/bin/init", argv, actions, 0), 0);
	ROW("gives the child's number", child > 1, 1);
	ROW("the child can be waited for", CALL(SYS_wait4, child, &status, 0, 0) == child, 1);
	ROW("the child's exit status", status, 7 << 8);
	long fd = CALL(SYS_open, output, 0);
	ROW("the child's output went where the actions said", fd >= 0, 1);
	CALL(SYS_read, fd, text, sizeof text - 1);
	ROW("the child has its arguments", strstr(text, "arg\texit\narg\t7\n") != NULL, 1);
	ROW("the child has its environment", strstr(text, "env\tCHILD=yes\n") != NULL, 1);
	ROW("starts a program with a signal mask", SPAWN("/bin/init", mask, actions, &blocked), 0);
	CALL(SYS_wait4, child, &status, 0, 0);
	ROW("the child has the mask", status, 1 << 8);
	ROW("a program that is missing", SPAWN("/bin/missing", argv, 0, 0), -ENOENT);
	ROW("a directory", SPAWN("/etc", argv, 0, 0), -EACCES);
	ROW("a wild path", SPAWN(1, argv, 0, 0), -EFAULT);
	ROW("wild arguments", SPAWN("/bin/init", 1, 0, 0), -EFAULT);
	ROW("wild actions", SPAWN("/bin/init", argv, 1, 0), -EFAULT);
	ROW("wild attributes", SPAWN("/bin/init", argv, 0, 1), -EFAULT);
	ROW("nowhere to put the number", CALL(nr, 0, "/bin/init", argv, env, 0, 0), -EFAULT);
	ROW("what was refused has left no child", CALL(SYS_wait4, -1, &status, 0, 0), -ECHILD);
}

static void spawns(void)
{
	struct fdop last = {NULL, NULL, 1, 0, 0, 0, 0, NULL}; // close 0
	struct fdop dup = {NULL, &last, 2, 2, 1, 0, 0, NULL};
	struct fdop first = {NULL, &dup, 3, 1, 0, 01101, 0600, "/dev/shm/musl"};
	struct fdop unknown = {NULL, NULL, 9, 0, 0, 0, 0, NULL};
	struct action list[] = {
		{.tag = 2, .open = {1, "/dev/shm/glibc", 01101, 0600}}, {.tag = 1, .dup = {1, 2}}, {.tag = 0, .fd = 0},
	};
	struct action strange = {.tag = 9};
	struct actions all = {.allocated = 3, .used = 3, .list = list};
	struct actions wrong = {.allocated = 1, .used = 1, .list = &strange};
	static const char *const argv[] = {"child", NULL};
	uint32_t child;

	spawned("spawn_musl", 360, &first, "/dev/shm/musl");
	row("spawn_musl: an unknown action", CALL(360, &child, "/bin/init", argv, 0, &unknown, 0), -EINVAL);
	spawned("spawn_glibc", 359, &all, "/dev/shm/glibc");
	row("spawn_glibc: an unknown action", CALL(359, &child, "/bin/init", argv, 0, &wrong, 0), -EINVAL);
}

// ---- /dev/sgx (4) ----

static void sgx(void)
{
	static uint8_t target[512], report[432], data[64], quote[65536], key[16], request[512];
	long fd = CALL(SYS_open, "/dev/sgx", 0);
	int32_t number = -1;
	uint32_t size = 0;
	char name[48];

	struct stat st;
	works("fstat /dev/sgx", CALL(SYS_fstat, fd, &st));
	row("/dev/sgx is a character device", S_ISCHR(st.st_mode), 1);
	long both = CALL(SYS_open, "/dev/sgx", 2);
	row("read from /dev/sgx", CALL(SYS_read, both, data, sizeof data), -EPERM);
	row("write to /dev/sgx", CALL(SYS_write, both, data, sizeof data), -EPERM);
	CALL(SYS_close, both);

#define IOCTL(cmd, arg) CALL(SYS_ioctl, fd, cmd, arg)
	row("ioctl IS_EDMM_SUPPORTED", IOCTL(0x80047300, &number), 0);
	row("EDMM is 0 or 1", number == 0 || number == 1, 1);
	row("ioctl GET_EPID_GROUP_ID", IOCTL(0x80047301, request), -EINVAL);
	row("ioctl GEN_EPID_QUOTE", IOCTL(0xC0807302, request), -EINVAL);
	row("ioctl SELF_TARGET", IOCTL(0x82007303, target), 0);

	for (int i = 0; i < 64; i++)
		data[i] = i;
	struct { void *target, *data, *report; } create = {target, data, report};
	row("ioctl CREATE_REPORT", IOCTL(0xC0187304, &create), 0);
	row("report has the report data", memcmp(report + 320, data, 64), 0);
	row("report has the measurement of SELF_TARGET", memcmp(report + 64, target, 32), 0);
	row("ioctl VERIFY_REPORT", IOCTL(0x41B07305, report), 0);
	report[320] ^= 1;
	row("ioctl VERIFY_REPORT of a changed report", IOCTL(0x41B07305, report), -EINVAL);
	create.target = create.data = NULL;
	row("ioctl CREATE_REPORT without target and data", IOCTL(0xC0187304, &create), 0);

	row("ioctl DETECT_DCAP_DRIVER", IOCTL(0x80047306, &number), 0);
	row("ioctl GET_DCAP_QUOTE_SIZE", IOCTL(0x80047307, &size), 0);
	row("size of a quote is plausible", size > 436 && size <= sizeof quote, 1);
	uint32_t asked = size;
	struct { void *data; uint32_t *size; void *quote; } generate = {data, &asked, quote};
	row("ioctl GEN_DCAP_QUOTE", IOCTL(0xC0187308, &generate), 0);
	row("quote has the report data", memcmp(quote + 48 + 320, data, 64), 0);
	row("quote has version 3", quote[0] | quote[1] << 8, 3);
	row("quote's size is left alone", asked == size, 1);
	asked = size - 1;
	row("ioctl GEN_DCAP_QUOTE with too small a buffer", IOCTL(0xC0187308, &generate), -EINVAL);
	asked = size + 100;
	row("ioctl GEN_DCAP_QUOTE with a larger buffer", IOCTL(0xC0187308, &generate), 0);
	asked = size;
	generate.quote = (void *)1;
	row("ioctl GEN_DCAP_QUOTE with a wild buffer", IOCTL(0xC0187308, &generate), -EINVAL);
	row("ioctl GET_DCAP_SUPPLEMENTAL_SIZE", IOCTL(0x80047309, &size), 0);

	uint32_t expired = 0, result = 0;
	struct { void *quote; uint32_t size; uint32_t *expired, *result; uint32_t extra_size; void *extra; } verify = {
		quote, asked, &expired, &result, 0, NULL,
	};
	row("ioctl VER_DCAP_QUOTE", IOCTL(0xC030730A, &verify), 0);
	row("result for a genuine quote", result, 0);
	row("its collateral is not expired", expired, 0);
	quote[48 + 320] ^= 1;
	row("ioctl VER_DCAP_QUOTE of a changed quote", IOCTL(0xC030730A, &verify), 0);
	row("result for a changed quote", result, 0xA004);
	verify.quote = (void *)1;
	row("ioctl VER_DCAP_QUOTE with a wild quote", IOCTL(0xC030730A, &verify), -EINVAL);
	struct { void *request, *key; } get = {request, key};
	request[0] = 4; // seal key
	request[2] = 2; // MRSIGNER
	row("ioctl GET_KEY", IOCTL(0xC010730B, &get), 0);
	uint8_t again[16];
	get.key = again;
	row("ioctl GET_KEY, again", IOCTL(0xC010730B, &get), 0);
	row("the same request gives the same key", memcmp(key, again, 16), 0);
	request[2] = 1; // MRENCLAVE
	row("ioctl GET_KEY of another policy", IOCTL(0xC010730B, &get), 0);
	row("another request gives another key", memcmp(key, again, 16) != 0, 1);
	request[4] = 0xff; // an SVN above the enclave's own
	row("ioctl GET_KEY of a later SVN", IOCTL(0xC010730B, &get), -EINVAL);

	static const unsigned unknown[] = {0x8004730C, 0x800473ff, 0x80087300, 0x00007300, 0xC0187307};
	for (unsigned i = 0; i < sizeof unknown / sizeof *unknown; i++) {
		snprintf(name, sizeof name, "ioctl %#x", unknown[i]);
		row(name, IOCTL(unknown[i], quote), -EINVAL);
	}
	row("ioctl without an argument", IOCTL(0x82007303, 0), -EINVAL);
	row("ioctl with a wild argument", IOCTL(0x82007303, 0x7ffffffff000), -EFAULT);
	row("ioctl TIOCGWINSZ", IOCTL(0x5413, quote), -ENOTTY);
	row("ioctl TCGETS", IOCTL(0x5401, quote), -ENOTTY);
	CALL(SYS_close, fd);
	row("ioctl on a closed descriptor", IOCTL(0x82007303, target), -EBADF);
}

// ---- 363 (2) ----

struct user_rootfs_config {
	size_t len;
	const char *upper, *lower, *entry_point, *hostfs_source, *hostfs_target;
	const char *const *envp;
};

static void mount_root(void)
{
	uint8_t key[16], wrong[16];
	static const char *const first[] = {"PROBE_FIRST=1", "PROBE_SECOND=0", NULL};
	static const char *const second[] = {"PROBE_SECOND=2", NULL};
	struct user_rootfs_config c = {.len = 48};
	parse_key(settings.key, key);
	parse_key(settings.wrong, wrong);

	row("sizeof user_rootfs_config", sizeof c, 56);
	row("363: another size", CALL(363, key, &c), -EINVAL);
	row("363: a wild config", CALL(363, key, 0x7ffffffff000), -EFAULT);
	c.len = 56;
	row("363: a wrong key", CALL(363, wrong, &c), -EIO);
	row("363: no key", CALL(363, 0, &c), -EIO);
	c.lower = "./no/such/dir";
	row("363: a missing image", CALL(363, key, &c), -EIO);
	c.lower = NULL;
	c.hostfs_source = "./no/such/dir";
	row("363: a host directory without an entry for it", CALL(363, key, &c), -ENOENT);
	c.hostfs_source = NULL;
	c.envp = first;
	row("363: a wrong key, again", CALL(363, wrong, &c), -EIO);
	row("363: the right key", CALL(363, key, &c), 0);
	c.envp = second;
	row("363: a second time", CALL(363, key, &c), -EPERM);
	row("363: a second time, with a wrong size", (c.len = 8, CALL(363, key, &c)), -EINVAL);

	works("363: the new root is there", CALL(SYS_open, "/etc/image", 0));
	row("363: the old root is gone", CALL(SYS_open, "/etc/probe", 0), -ENOENT);
	works("363: hosts are written into the new root", CALL(SYS_open, "/etc/hosts", 0));
	works("363: the new root has /dev/sgx", CALL(SYS_open, "/dev/sgx", 0));
	works("363: the new root has /proc", CALL(SYS_open, "/proc/self/stat", 0));
	works("363: the new root is writable", CALL(SYS_open, "/etc/made", 0102, 0600));
}

// Everything that a config can change at once: another image without a MAC, another writable layer, one entry point,
// and another directory of the host.
static void other_layers(void)
{
	uint8_t key[16];
	struct user_rootfs_config c = {
		.len = 56, .upper = "./other/upper/__ROOT", .lower = "./other/lower", .entry_point = "/bin/other",
		.hostfs_source = "./no/such/dir", .hostfs_target = "/mnt",
	};
	parse_key(settings.volume_key, key);
	row("363: a missing directory of the host", CALL(363, key, &c), -EINVAL);
	c.hostfs_source = "./weights";
	c.hostfs_target = "mnt";
	row("363: a relative target", CALL(363, key, &c), -EINVAL);
	c.hostfs_target = "/mnt";
	row("363: other layers", CALL(363, key, &c), 0);
	works("363: a file for the next run", CALL(SYS_open, "/etc/kept", 0102, 0600));
}

// ---- mount and umount2 (3) ----

static char *options(const char *format, ...)
{
	static char text[1024];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	return text;
}

static void mounts(void)
{
#define MOUNT(source, target, type, flags, data) CALL(SYS_mount, source, target, type, flags, data)
#define UMOUNT(target, flags) CALL(SYS_umount2, target, flags)
	row("mount: no source", MOUNT(0, "/mnt", "ramfs", 0, 0), -EINVAL);
	row("mount: on /", MOUNT("x", "/", "ramfs", 0, 0), -EPERM);
	row("mount: on nothing", MOUNT("x", "", "ramfs", 0, 0), -ENOENT);
	row("mount: on a missing directory", MOUNT("x", "/missing", "ramfs", 0, 0), -ENOENT);
	row("mount: MS_BIND", MOUNT("x", "/mnt", "ramfs", 4096, 0), -EINVAL);
	row("mount: MS_REMOUNT", MOUNT("x", "/mnt", "ramfs", 32, 0), -EINVAL);
	row("mount: MS_MOVE", MOUNT("x", "/mnt", "ramfs", 8192, 0), -EINVAL);
	row("mount: an undefined flag", MOUNT("x", "/mnt", "ramfs", 1L << 40, 0), -EINVAL);
	row("mount: procfs", MOUNT("x", "/mnt", "procfs", 0, 0), -EINVAL);
	row("mount: devfs", MOUNT("x", "/mnt", "devfs", 0, 0), -EINVAL);
	row("mount: ext2", MOUNT("x", "/mnt", "ext2", 0, "dir=./x"), -EINVAL);
	row("mount: hostfs without a directory", MOUNT("x", "/mnt", "hostfs", 0, "dir=./no/such/dir"), -EINVAL);
	row("mount: sefs without dir", MOUNT("x", "/mnt", "sefs", 0, "key=x"), -EINVAL);
	row("mount: sefs with a malformed key",
	    MOUNT("x", "/mnt", "sefs", 0, options("dir=%s,key=zz-zz,mac=%s", settings.dir, settings.mac)), -EINVAL);
	row("mount: sefs with a malformed mac",
	    MOUNT("x", "/mnt", "sefs", 0, options("dir=%s,key=%s,mac=1", settings.dir, settings.volume_key)), -EINVAL);
	row("mount: sefs with a wrong key",
	    MOUNT("x", "/mnt", "sefs", 0, options("dir=%s,key=%s,mac=%s", settings.dir, settings.wrong, settings.mac)), -EIO);
	row("mount: sefs with a wrong mac",
	    MOUNT("x", "/mnt", "sefs", 0, options("dir=%s,key=%s,mac=%s", settings.dir, settings.volume_key, settings.wrong)),
	    -EIO);
	row("mount: sefs that is missing",
	    MOUNT("x", "/mnt", "sefs", 0, options("dir=./missing,key=%s,mac=%s", settings.volume_key, settings.mac)), -EIO);
	row("mount: sefs",
	    MOUNT("x", "/mnt", "sefs", 0, options("dir=%s,key=%s,mac=%s", settings.dir, settings.volume_key, settings.mac)), 0);
	long weights = CALL(SYS_open, "/mnt/weights", 0);
	works("the volume's file is there", weights);
	row("umount2: a path that is no mount point", UMOUNT("/etc", 0), -EINVAL);
	row("umount2: /", UMOUNT("/", 0), -EPERM);
	row("umount2: MNT_EXPIRE with MNT_FORCE", UMOUNT("/mnt", 5), -EINVAL);
	row("umount2: MNT_EXPIRE with MNT_DETACH", UMOUNT("/mnt", 6), -EINVAL);
	row("umount2, with a file open", UMOUNT("/mnt", 0), 0);
	char word[8];
	row("an open file outlives its mount", CALL(SYS_read, weights, word, 7), 7);
	CALL(SYS_close, weights);
	row("the volume's file is gone", CALL(SYS_open, "/mnt/weights", 0), -ENOENT);
	row("mount: sefs again, read-only, which is ignored",
	    MOUNT("x", "/mnt", "sefs", 1, options("dir=%s,key=%s,mac=%s", settings.dir, settings.volume_key, settings.mac)), 0);
	row("mount: ramfs, the target relative", MOUNT("x", "run/secrets", "ramfs", 0, 0), 0);
	works("a file in the ramfs", CALL(SYS_open, "/run/secrets/made", 0102, 0600));
}

static int application(int argc, char **argv)
{
	char cwd[256] = "";
	if (argc > 1 && !strcmp(argv[1], "rest")) {
		if (argc > 2) {
			puts(argv[2]);
			fflush(stdout);
		}
		rest();
	}
	if (argc > 2 && !strcmp(argv[1], "exec")) {
		char *args[] = {argv[2], NULL};
		return -CALL(SYS_execve, argv[2], args, environ);
	}
	CALL(SYS_getcwd, cwd, sizeof cwd);
	printf("app\t%s\t%d\n", cwd, argc);
	for (int i = 0; i < argc; i++)
		printf("arg\t%s\n", argv[i]);
	for (char **e = environ; *e; e++)
		printf("env\t%s\n", *e);
	printf("file\t/mnt/weights\t%ld\n", CALL(SYS_open, "/mnt/weights", 0) >= 0 ? 0L : 1L);
	printf("file\t/etc/kept\t%ld\n", CALL(SYS_open, "/etc/kept", 0) >= 0 ? 0L : 1L);
	printf("file\t/run/secrets/made\t%ld\n", CALL(SYS_open, "/run/secrets/made", 0) >= 0 ? 0L : 1L);
	if (argc > 1 && !strcmp(argv[1], "mask")) {
		uint64_t mask = 0;
		CALL(SYS_rt_sigprocmask, 0, 0, &mask, 8);
		return mask == 1 << 9;
	}
	if (argc > 2 && !strcmp(argv[1], "exit"))
		return atoi(argv[2]);
	return 0;
}

int main(int argc, char **argv)
{
	if (strcmp(argv[0], "init"))
		return application(argc, argv);
	read_settings();
	if (!strncmp(settings.mode, "exit:", 5))
		return atoi(settings.mode + 5);
	if (!strcmp(settings.mode, "abort"))
		abort();
	if (!strcmp(settings.mode, "layers")) {
		other_layers();
		return 0;
	}
	if (!strcmp(settings.mode, "greedy")) {
		greedy();
		return 0;
	}
	if (!strcmp(settings.mode, "leave")) {
		static const char *const args[] = {"child", "rest", NULL};
		uint32_t child;
		return -CALL(360, &child, "/bin/init", args, 0, 0, 0);
	}
	given(argc, argv);
	numbers();
	memory();
	calls();
	files();
	threads();
	signals();
	limits();
	spawns();
	sgx();
	mount_root();
	mounts();
	puts("end");
	return 0;
}
