package libos

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/lab/occlumsim"
)

// stageName is argv[0] of the process that becomes a program of the LibOS: it is this binary once more, enters
// the root, puts the filter on itself, hands the listener to the supervisor and executes the program.
const stageName = "occlum-stage"

// stageSocket is the stage's end of the socket to the supervisor.
const stageSocket = 3

// program is what the stage is to execute.
type programSpec struct {
	Root   string   `json:"root"`
	Path   string   `json:"path"`
	Args   []string `json:"args"`
	Env    []string `json:"env"`
	Strict bool     `json:"strict"`
	// Isolated is set if the stage has its own user, mount and PID namespaces.
	Isolated bool `json:"isolated"`
}

// runStage returns only if it failed; the supervisor has been told why.
func runStage() int {
	runtime.LockOSThread()
	unix.CloseOnExec(stageSocket)
	err := becomeProgram()
	_, _ = unix.Write(stageSocket, []byte(err.Error()))
	return 127
}

func becomeProgram() error {
	var spec programSpec
	// Duplicated, so that no finalizer closes the socket.
	fd, err := unix.FcntlInt(stageSocket, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	input := os.NewFile(uintptr(fd), "socket")
	defer input.Close()
	if err := json.NewDecoder(input).Decode(&spec); err != nil {
		return fmt.Errorf("reading what to execute: %w", err)
	}
	name, err := unix.BytePtrFromString(spec.Path)
	if err != nil {
		return err
	}
	args, err := syscall.SlicePtrFromStrings(spec.Args)
	if err != nil {
		return err
	}
	env, err := syscall.SlicePtrFromStrings(spec.Env)
	if err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	if spec.Isolated {
		// The procfs of the others shows their processes, and not this one's by its own number.
		if err := unix.Mount("proc", filepath.Join(spec.Root, "proc"), "proc",
			unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mounting procfs in a pid namespace: %w", err)
		}
	}
	if err := unix.Chroot(spec.Root); err != nil {
		return &os.PathError{Op: "chroot", Path: spec.Root, Err: err}
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	filter := nativeFilter()
	if spec.Strict {
		filter = strictFilter()
	}
	listener, err := install(filter)
	if err != nil {
		return fmt.Errorf("installing the seccomp filter: %w", err)
	}
	unix.CloseOnExec(listener)
	if err := unix.Sendmsg(stageSocket, []byte{0}, unix.UnixRights(listener), nil, 0); err != nil {
		return fmt.Errorf("handing over the listener: %w", err)
	}
	// From here on this thread may only make calls that the filter lets through.
	_, _, errno := unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(name)),
		uintptr(unsafe.Pointer(&args[0])), uintptr(unsafe.Pointer(&env[0])))
	runtime.KeepAlive(args)
	runtime.KeepAlive(env)
	return fmt.Errorf("executing %s: %w", spec.Path, errno)
}

// process is a program of the LibOS that runs.
type process struct {
	pid    int
	limits occlumsim.Limits
	exited chan struct{} // closed when status is set
	status unix.WaitStatus
	reason string // why a strict program was ended by the simulator, "" if it was not
	// isolated is set if the program is the first of a pid namespace. The kernel spares it every signal that it does
	// not handle; ending is the one that it was ended by all the same.
	isolated bool
	ending   unix.Signal
}

// start executes a program in the LibOS; it returns when the program has been executed, or could not be.
func (l *LibOS) start(spec programSpec, stdio [3]*os.File) (*process, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "socket"), os.NewFile(uintptr(pair[1]), "socket")
	defer ours.Close()
	files := []uintptr{stdio[0].Fd(), stdio[1].Fd(), stdio[2].Fd(), theirs.Fd()}
	p := &process{limits: l.system.Limits(), isolated: spec.Isolated, exited: make(chan struct{})}
	started := make(chan error, 1)
	if spec.Strict {
		go p.trace(files, started)
	} else {
		go p.watch(files, started)
	}
	err = <-started
	runtime.KeepAlive(stdio)
	theirs.Close()
	if err != nil {
		return nil, err
	}
	if err := l.handOver(int(ours.Fd()), spec); err != nil {
		_ = unix.Kill(p.pid, unix.SIGKILL)
		<-p.exited
		return nil, err
	}
	return p, nil
}

// handOver tells the stage what to execute, takes its listener and waits until it has executed the program.
func (l *LibOS) handOver(socket int, spec programSpec) error {
	text, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	for len(text) > 0 {
		n, err := unix.Write(socket, text)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		text = text[n:]
	}
	buf, oob := make([]byte, maxPath), make([]byte, unix.CmsgSpace(4))
	n, oobn, err := receive(socket, buf, oob)
	if err != nil {
		return err
	}
	if oobn == 0 {
		return errors.New("starting a program: " + string(buf[:n]))
	}
	listener, err := receivedFile(oob[:oobn])
	if err != nil {
		return err
	}
	l.serving.Go(func() { _ = serve(listener, l.answer) })
	// The socket closes when the program is executed.
	if n, _, err = receive(socket, buf, nil); err != nil || n > 0 {
		return errors.New("starting a program: " + string(buf[:n]))
	}
	return nil
}

func receive(socket int, b, oob []byte) (n, oobn int, err error) {
	for {
		n, oobn, _, _, err = unix.Recvmsg(socket, b, oob, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), oobn, err
		}
	}
}

func receivedFile(oob []byte) (int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1, err
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil && len(fds) == 1 {
			return fds[0], nil
		}
	}
	return -1, errors.New("starting a program: no listener came")
}

// watch starts the stage and waits for it as an ordinary child. The thread stays: the child is to die with it.
func (p *process) watch(files []uintptr, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(p.exited)
	pid, err := forkStage(files, false, p.isolated)
	p.pid = pid
	started <- err
	if err != nil {
		return
	}
	for {
		_, err := unix.Wait4(pid, &p.status, 0, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// executable is this very program, wherever the file system that it came from is now.
const executable = "/proc/self/exe"
