package handover

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
)

// A Guarded process must live as long as the application.
type Guarded struct {
	PID  int
	What string // "volume at /models"
}

// patience is how long the application may take to end after SIGTERM when a volume is lost.
const patience = 10 * time.Second

// Supervisor runs an application as a child.
type Supervisor struct {
	// Self is the program to start in between. It has to call [Stage] where its argv[0] is [StageName].
	Self    string
	Guarded []Guarded
	Log     logrus.FieldLogger
}

// Run starts the app and returns its exit status when it has ended. The error has code [attest.CodeMount] where a
// guarded process ended first, and [attest.CodeLaunch] where there was nothing to start. Processes that are left are
// none of this package's business: as process 1 the kernel ends them.
func (s Supervisor) Run(a App) (status int, err error) {
	description, err := json.Marshal(a)
	if err != nil {
		return 0, attest.Errorf(attest.CodeInternal, step, "", "%w", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, attest.Errorf(attest.CodeInternal, step, "", "%w", err)
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	defer signal.Stop(signals)
	pid, err := syscall.ForkExec(s.Self, []string{StageName, string(description)}, &syscall.ProcAttr{
		Dir: "/", Files: []uintptr{0, 1, 2},
	})
	if err != nil {
		return 0, attest.Errorf(attest.CodeLaunch, step, "", "%w", err)
	}
	w := watch{supervisor: s, app: pid}
	var overdue <-chan time.Time
	for {
		if w.reap() {
			return w.end()
		}
		if w.lost != nil && overdue == nil {
			s.Log.Error(w.lost.Error() + "; the application is ended")
			w.signal(syscall.SIGTERM)
			overdue = time.After(patience)
		}
		select {
		case sig := <-signals:
			w.forward(sig)
		case <-overdue:
			w.signal(syscall.SIGKILL)
		}
	}
}

// watch is what a supervisor knows about its children.
type watch struct {
	supervisor Supervisor
	app        int
	status     syscall.WaitStatus
	lost       error // the first guarded process that ended
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
		if pid == w.app {
			w.status, appEnded = status, true
			continue
		}
		for _, g := range w.supervisor.Guarded {
			if g.PID == pid && w.lost == nil {
				w.lost = attest.Errorf(attest.CodeMount, "supervising the application",
					"Look at the kernel's log for the reason, often a lack of memory, and start again.",
					"the %s is lost: the process behind it has ended (%s)", g.What, describe(status))
			}
		}
	}
}

// end is the result once the app has ended.
func (w *watch) end() (int, error) {
	for _, g := range w.supervisor.Guarded {
		_ = syscall.Kill(g.PID, syscall.SIGTERM)
	}
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
