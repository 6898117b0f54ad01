package libos

import (
	"encoding/binary"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The procfs of the LibOS has few files; the kernel's, which serves it, has many. Names of the others do not
// exist for a strict program: they are neither found nor listed.

// procFiles are what procfs of the LibOS has, in itself and for each process.
var (
	procFiles        = []string{"cpuinfo", "meminfo", "self", "stat"}
	procProcessFiles = []string{"cmdline", "cwd", "exe", "root", "comm", "stat", "maps", "fd"}
)

// pathCalls are the system calls that look a name up, and the places of its address and its directory among their
// arguments; directory -1 means the working directory.
var pathCalls = map[int]struct{ directory, name int }{
	unix.SYS_OPEN: {-1, 0}, unix.SYS_STAT: {-1, 0}, unix.SYS_LSTAT: {-1, 0}, unix.SYS_ACCESS: {-1, 0},
	unix.SYS_READLINK: {-1, 0}, unix.SYS_CHDIR: {-1, 0}, unix.SYS_STATFS: {-1, 0},
	unix.SYS_OPENAT: {0, 1}, unix.SYS_NEWFSTATAT: {0, 1}, unix.SYS_FACCESSAT: {0, 1}, unix.SYS_READLINKAT: {0, 1},
}

// lookUp lets a program use a name, unless that is one in procfs which the LibOS has not.
func (l *LibOS) lookUp(c call) answer {
	where := pathCalls[c.nr]
	name, err := readString(c.pid, c.args[where.name], maxPath)
	if err != nil {
		return answer{errno: errnoOf(err)}
	}
	directory := unix.AT_FDCWD
	if where.directory >= 0 {
		directory = int(int32(c.args[where.directory]))
	}
	if l.hidden(c.pid, directory, name) {
		return answer{errno: unix.ENOENT}
	}
	return answer{proceed: true}
}

func (l *LibOS) hidden(pid, directory int, name string) bool {
	full, err := absolute(pid, directory, name)
	if err != nil {
		return false // the kernel will say what is wrong
	}
	if rest, ok := strings.CutPrefix(full, "/proc/"); ok {
		return !inLibOSProc(rest)
	}
	// Links may lead there.
	fd, err := openPath(l.root, full)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) != nil || fs.Type != unix.PROC_SUPER_MAGIC {
		return false
	}
	target, err := readlink("/proc/self/fd/" + itoa(fd))
	if err != nil {
		return false
	}
	_, rest, ok := strings.Cut(target, "/proc/")
	return ok && !inLibOSProc(rest)
}

// openPath opens whatever a name refers to in a root, without using it.
func openPath(root, name string) (int, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	return unix.Openat2(dir, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
}

// inLibOSProc says whether the LibOS has a name, relative to its procfs.
func inLibOSProc(name string) bool {
	first, rest, deeper := strings.Cut(path.Clean(name), "/")
	if !deeper {
		if _, err := strconv.Atoi(first); err == nil {
			return true
		}
		return slices.Contains(procFiles, first)
	}
	if _, err := strconv.Atoi(first); err != nil && first != "self" {
		return false
	}
	file, _, _ := strings.Cut(rest, "/")
	return slices.Contains(procProcessFiles, file)
}

// maxListing bounds how much of a directory one call lists, in bytes.
const maxListing = 1 << 20

// list is getdents64. A directory of procfs is listed in the program's stead, without what the LibOS has not.
func (l *LibOS) list(c call) answer {
	name := procPath(c.pid, "fd/"+itoa(int(int32(c.args[0]))))
	var fs unix.Statfs_t
	if unix.Statfs(name, &fs) != nil || fs.Type != unix.PROC_SUPER_MAGIC {
		return answer{proceed: true}
	}
	target, err := readlink(name)
	if err != nil {
		return answer{proceed: true}
	}
	_, inside, ok := strings.Cut(target+"/", "/proc/")
	if !ok || path.Base(target) == "fd" {
		return answer{proceed: true}
	}
	directory, err := takeFile(c.pid, int(int32(c.args[0])))
	if err != nil {
		return answer{proceed: true}
	}
	defer unix.Close(directory)
	buffer := make([]byte, min(c.args[2], maxListing))
	for {
		n, err := unix.Getdents(directory, buffer) // getdents64, and the place in the listing is the program's
		if err != nil || n == 0 {
			return answer{errno: errnoOf(err)}
		}
		kept := keepEntries(buffer[:n], func(name string) bool { return inLibOSProc(path.Join(inside, name)) })
		if len(kept) == 0 {
			continue
		}
		if err := writeMemory(c.pid, c.args[1], kept); err != nil {
			return answer{errno: errnoOf(err)}
		}
		return answer{value: int64(len(kept))}
	}
}

// keepEntries drops entries of a listing as getdents64 gives it: length of the entry at 16, name at 19.
func keepEntries(listing []byte, keep func(name string) bool) []byte {
	var kept []byte
	for len(listing) > 19 {
		size := int(binary.LittleEndian.Uint16(listing[16:]))
		if size < 20 || size > len(listing) {
			break
		}
		name, _, _ := strings.Cut(string(listing[19:size]), "\x00")
		if name == "." || name == ".." || keep(name) {
			kept = append(kept, listing[:size]...)
		}
		listing = listing[size:]
	}
	return kept
}

// takeFile is a copy of a descriptor of a program; both have one place in the file.
func takeFile(pid, fd int) (int, error) {
	process, err := unix.PidfdOpen(processOf(pid), 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(process)
	return unix.PidfdGetfd(process, fd, 0)
}

// processOf is the process of a thread.
func processOf(pid int) int {
	status, err := os.ReadFile(procPath(pid, "status"))
	if err != nil {
		return pid
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "Tgid:"); ok {
			if n, err := strconv.Atoi(strings.TrimSpace(value)); err == nil {
				return n
			}
		}
	}
	return pid
}
