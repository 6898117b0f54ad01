package handover

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/fault"
	"github.com/sesame-init/sesame/internal/pidfd"
)

const (
	// patience is how long the application may take to end after SIGTERM if a volume is lost.
	patience = 10 * time.Second
	// guardedPatience is how long a guarded process may take to end after the application.
	guardedPatience = 5 * time.Second
)

// BootName is argv[0] of the process that boots for a [Supervisor] and then becomes the application.
const BootName = "sesame-boot"

// Supervisor runs a boot, and the application that it becomes, as a child.
type Supervisor struct {
	Self string   // program to start as [BootName]
	Args []string // its arguments
	Log  logrus.FieldLogger
}

// Run starts the boot and returns the exit status of the application when that has ended, or of the boot if there will
// be no application. The error has code [attest.CodeMount] if a guarded process ended first, and [attest.CodeLaunch] if the
// boot could not be started. Guarded processes have ended then. Other processes that are left are not ended here: if this
// is process 1, the kernel does it.
func (s Supervisor) Run() (status int, err error) {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	defer signal.Stop(signals)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, attest.Errorf(attest.CodeInternal, step, "", "%w", err)
	}
	pid, reports, err := s.start()
	if err != nil {
		return 0, attest.Errorf(attest.CodeLaunch, "starting the boot", "Mount /proc before init starts.", "%w", err)
	}
	w := watch{app: pid, ended: map[int]syscall.WaitStatus{}}
	defer w.endGuarded()
	var overdue <-chan time.Time
	for {
		if w.reap() {
			for reports != nil { // what the boot has said before it ended
				r, more := <-reports
				if !more {
					break
				}
				w.take(r)
			}
			return w.end()
		}
		if w.lost != nil && overdue == nil {
			s.Log.Error(w.lost.Error() + "; the application is ended")
			w.signal(syscall.SIGTERM)
			overdue = time.After(patience)
		}
		select {
		case r, more := <-reports:
			if !more {
				reports = nil
			} else {
				w.take(r)
			}
		case sig := <-signals:
			w.forward(sig)
		case <-overdue:
			w.signal(syscall.SIGKILL)
		}
	}
}

// report is what a boot tells its supervisor, a line of JSON each.
type report struct {
	Begun bool   `json:"begun,omitempty"` // signals may come now
	Guard int    `json:"guard,omitempty"` // a process that must live as long as the application
	What  string `json:"what,omitempty"`  // "volume at /models"
}

// linkFD is the boot's end of the pipe.
const linkFD = 3

// start starts the boot. Its environment, descriptors and signal mask are those that this process was given.
func (s Supervisor) start() (pid int, reports <-chan report, err error) {
	read, write, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	pid, err = syscall.ForkExec(s.Self, append([]string{BootName}, s.Args...), &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2, write.Fd()},
		Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}, // of this thread, which lives as long as the process
	})
	if err = errors.Join(err, write.Close()); err != nil {
		return 0, nil, errors.Join(err, read.Close())
	}
	out := make(chan report)
	fault.Go(func() {
		const most = 4 << 10
		for lines := bufio.NewScanner(io.LimitReader(read, 1<<20)); lines.Scan(); {
			var r report
			if len(lines.Bytes()) <= most && json.Unmarshal(lines.Bytes(), &r) == nil {
				out <- r
			}
		}
		_ = read.Close()
		close(out)
	})
	return pid, out, nil
}

// A Link is a boot's way to tell its supervisor what it does. A nil one, of a boot without a supervisor, tells nothing.
type Link struct{ pipe *os.File }

// OpenLink finds the way in a process that a [Supervisor] has started. The application does not inherit it.
func OpenLink() (*Link, error) {
	if _, err := unix.FcntlInt(linkFD, unix.F_GETFD, 0); err != nil {
		return nil, attest.Errorf(attest.CodeUsage, "starting", "Start init by another name.", "%s is for init itself", BootName)
	}
	unix.CloseOnExec(linkFD)
	return &Link{os.NewFile(linkFD, "supervisor")}, nil
}

// Begun says that signals end the boot from now on, and are not lost. Until then the supervisor keeps them.
func (l *Link) Begun() error { return l.tell(report{Begun: true}) }

// Guard names a process, a child of the supervisor's, that must live as long as the application.
func (l *Link) Guard(pid int, what string) error { return l.tell(report{Guard: pid, What: what}) }

func (l *Link) tell(r report) error {
	if l == nil {
		return nil
	}
	text, err := json.Marshal(r)
	if err == nil {
		_, err = l.pipe.Write(append(text, '\n'))
	}
	if err != nil {
		return attest.Errorf(attest.CodeInternal, "telling the supervisor", "", "%w", err)
	}
	return nil
}

// watch is what a supervisor knows about its children.
type watch struct {
	app     int
	begun   bool
	held    []syscall.Signal // that came before the boot could take them
	guarded []report         // processes that live
	ended   map[int]syscall.WaitStatus
	status  syscall.WaitStatus // of the app
	lost    error              // the first guarded process that ended
}

// take notes what the boot says.
func (w *watch) take(r report) {
	switch status, ended := w.ended[r.Guard]; {
	case r.Begun:
		w.begun = true
		for _, s := range w.held {
			w.signal(s)
		}
		w.held = nil
	case r.Guard <= 1:
	case ended: // before its name was here
		w.lose(r, status)
	default:
		w.guarded = append(w.guarded, r)
	}
}

func (w *watch) lose(r report, status syscall.WaitStatus) {
	if w.lost == nil {
		w.lost = attest.Errorf(attest.CodeMount, "supervising the application",
			"Look at the kernel's log for the reason, often a lack of memory, and start again.",
			"the %s is lost: the process behind it has ended (%s)", r.What, describe(status))
	}
}

// reap takes over all children that have ended, and reports whether the app is among them.
func (w *watch) reap() (appEnded bool) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return appEnded
		}
		i := slices.IndexFunc(w.guarded, func(r report) bool { return r.Guard == pid })
		switch {
		case pid == w.app:
			w.status, appEnded = status, true
		case i >= 0:
			w.lose(w.guarded[i], status)
			w.guarded = slices.Delete(w.guarded, i, i+1)
		case len(w.ended) < 1<<10: // only a boot's few children matter, and they end early
			w.ended[pid] = status
		}
	}
}

// endGuarded ends the guarded processes, and reaps them. None of the numbers can mean another process: what has ended
// keeps its number until it is reaped.
func (w *watch) endGuarded() {
	var fds []int
	for _, g := range w.guarded {
		if fd, err := unix.PidfdOpen(g.Guard, 0); err == nil {
			defer unix.Close(fd)
			fds = append(fds, fd)
		}
	}
	pidfd.End(fds, guardedPatience)
	w.reap()
}

// end is the result once the app has ended.
func (w *watch) end() (int, error) {
	if w.lost != nil {
		return 0, w.lost
	}
	if w.status.Signaled() {
		return 128 + int(w.status.Signal()), nil
	}
	return w.status.ExitStatus(), nil
}

// forward passes a signal on, unless it is about this process itself.
func (w *watch) forward(sig os.Signal) {
	number, ok := sig.(syscall.Signal)
	switch {
	case !ok, number == syscall.SIGCHLD, number == syscall.SIGURG, number == syscall.SIGPIPE:
	case !w.begun:
		w.held = append(w.held, number)
	default:
		w.signal(number)
	}
}

func (w *watch) signal(number syscall.Signal) { _ = syscall.Kill(w.app, number) }

func describe(s syscall.WaitStatus) string {
	if s.Signaled() {
		return "signal: " + s.Signal().String()
	}
	return fmt.Sprintf("exit status %d", s.ExitStatus())
}
