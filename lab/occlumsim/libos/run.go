package libos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"runtime"
	"strconv"
	"strings"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/lab/occlumsim"
)

// Options say what to run.
type Options struct {
	Dir      string        `json:"dir"`      // the instance
	Platform string        `json:"platform"` // directory of the software platform
	KSS      occlumsim.KSS `json:"kss"`
	// Command is the application and its arguments.
	Command []string `json:"command"`
	// Serve is set by [Start]: commands come from clients.
	Serve bool `json:"serve"`
	// StrictApp runs the application under the LibOS's ABI, too.
	StrictApp bool `json:"strict_app"`
	// IsolateApp runs the application in user, mount and pid namespaces of its own.
	IsolateApp bool `json:"isolate_app"`
	// QuoteFailure makes the first use of the quote generator fail, and with it every later one.
	QuoteFailure bool `json:"quote_failure"`
}

// supervisorName is argv[0] of the supervisor.
const supervisorName = "occlum-libos"

// Descriptors of the supervisor: its options, and in a started instance the pipe on which it reports that it is ready.
const (
	optionsFile = 3
	readyFile   = 4
)

// Reexec must be called first by every program that uses [Run]: if the process is one that Run started, it does
// that process's work and reports its exit status.
func Reexec() (status int, reexecuted bool) {
	switch os.Args[0] {
	case supervisorName:
		return supervise(), true
	case stageName:
		return runStage(), true
	}
	return 0, false
}

// passedSignals are handed on to the application. The terminal sends those of the keyboard to all by itself.
var passedSignals = []os.Signal{unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGINT, unix.SIGQUIT}

// Run boots the instance and runs the application in it, on the caller's standard streams. It returns the
// application's exit status, 128 and the signal's number if one ended it, and 127 if it could not be started.
// What ctx ends is killed.
func Run(ctx context.Context, o Options) (int, error) {
	cmd, config, err := supervisor(ctx, o)
	if err != nil {
		return 0, err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passedSignals...)
	defer signal.Stop(signals)

	// The parent-death signal is that of the thread that starts the child: it must live as long as the child.
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return 0, whyNot(err)
	}
	if err := config(); err != nil {
		return 0, err
	}
	for {
		select {
		case s := <-signals:
			if !fromTerminal(s) {
				_ = cmd.Process.Signal(s)
			}
		case err := <-ended:
			var exit *exec.ExitError
			if errors.As(err, &exit) && exit.Exited() {
				err = nil
			}
			return cmd.ProcessState.ExitCode(), err
		}
	}
}

// fromTerminal says whether a signal is one that the terminal has sent to the application as well.
func fromTerminal(s os.Signal) bool {
	if s != unix.SIGINT && s != unix.SIGQUIT {
		return false
	}
	foreground, err := unix.IoctlGetInt(0, unix.TIOCGPGRP)
	return err == nil && foreground == unix.Getpgrp()
}

// supervise is the process in its own namespaces. Its working directory is the instance: host paths of the LibOS are
// relative to it.
func supervise() int {
	log := logrus.New()
	log.SetFormatter(plainFormatter{})
	var o Options
	unix.CloseOnExec(readyFile)
	config := os.NewFile(optionsFile, "options")
	err := json.NewDecoder(config).Decode(&o)
	config.Close()
	if err == nil {
		var status int
		if status, err = live(o, log); err == nil {
			return status
		}
	}
	fmt.Fprintln(os.Stderr, "occlum: "+err.Error())
	if hint := attest.HintOf(err); hint != "" {
		fmt.Fprintln(os.Stderr, "hint: "+hint)
	}
	return 1
}

// plainFormatter writes one line for each entry, as the rest of the command does.
type plainFormatter struct{}

func (plainFormatter) Format(e *logrus.Entry) ([]byte, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "occlum: %s", e.Message)
	for _, name := range []string{"target", "inode"} {
		if v, ok := e.Data[name]; ok {
			fmt.Fprintf(&b, " (%s %v)", name, v)
		}
	}
	if err, ok := e.Data[logrus.ErrorKey]; ok {
		fmt.Fprintf(&b, ": %v", err)
	}
	return append([]byte(b.String()), '\n'), nil
}

// live is the enclave's life: init to its end, then the application.
func live(o Options, log *logrus.Logger) (int, error) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passedSignals...)
	instance, err := occlumsim.Open(".")
	if err != nil {
		return 0, err
	}
	l, err := boot(o, instance, log)
	if err != nil {
		return 0, err
	}
	stdio := [3]*os.File{os.Stdin, os.Stdout, os.Stderr}
	if code, err := l.runInit(stdio, signals); err != nil {
		return 0, err
	} else if code != 0 {
		log.Errorf("The init process exit with code: %d", code)
		return 1, nil
	}
	if o.Serve {
		return 0, l.serveCommands(os.NewFile(readyFile, "ready"), signals)
	}
	return l.runApp(o, os.Environ(), stdio, signals), nil
}

const initProgram = "/bin/init"

// runInit returns the code of init's end as the LibOS computes it; anything but 0 destroys the enclave.
func (l *LibOS) runInit(stdio [3]*os.File, signals <-chan os.Signal) (int, error) {
	spec := programSpec{Root: l.root, Path: initProgram, Args: []string{"init"},
		Env: environment(l.trusted, l.system.Env.Untrusted, os.Environ()), Strict: true}
	p, err := l.spawn(spec, stdio)
	if err != nil {
		return 0, &attest.Error{Code: attest.CodeLaunch, Step: "starting " + initProgram, Err: err}
	}
	status := p.wait(signals)
	switch {
	case p.reason != "":
		l.log.Errorf("%s was ended: %s", initProgram, p.reason)
		return 128 + int(unix.SIGSEGV), nil // what the LibOS would have seen
	case status.Signaled():
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus() & 0x7F, nil
}

// runApp runs the application and returns its exit status.
func (l *LibOS) runApp(o Options, host []string, stdio [3]*os.File, signals <-chan os.Signal) int {
	l.mu.Lock()
	entryPoints, trusted := l.entryPoints, l.trusted
	l.mu.Unlock()
	program := o.Command[0]
	var err error
	switch {
	case !path.IsAbs(program), hasDotDot(program):
		err = unix.EINVAL
	case !permitted(path.Clean(program), entryPoints):
		err = fmt.Errorf("%w: not below an entry point (%s)", unix.EACCES, strings.Join(entryPoints, ", "))
	}
	var p *process
	if err == nil {
		p, err = l.spawn(programSpec{Root: l.root, Path: program, Args: o.Command,
			Env: environment(trusted, l.system.Env.Untrusted, host), Strict: o.StrictApp, Isolated: o.IsolateApp}, stdio)
	}
	if err != nil {
		l.log.Errorf("failed to start %s: %v", program, err)
		return 127
	}
	status := p.wait(signals)
	if p.reason != "" {
		l.log.Errorf("%s was ended: %s", program, p.reason)
		return 128 + int(unix.SIGSEGV)
	}
	switch {
	case status.Signaled() && p.ending != 0:
		return 128 + int(p.ending)
	case status.Signaled():
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

func hasDotDot(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

// spawn checks what the LibOS checks before it starts a program.
func (l *LibOS) spawn(spec programSpec, stdio [3]*os.File) (*process, error) {
	if limit := int(l.system.StackArea()); stackUse(spec.Args, spec.Env) > limit {
		return nil, fmt.Errorf("%w: arguments and environment do not fit into the stack's %d bytes for them "+
			"(1/256 of process.default_stack_size)", unix.ENOMEM, limit)
	}
	if spec.Strict {
		if err := checkELF(spec.Root, spec.Path, l.system.Limits().KernelHeap); err != nil {
			return nil, err
		}
	}
	return l.start(spec, stdio)
}

// wait hands signals on until the program ends.
func (p *process) wait(signals <-chan os.Signal) unix.WaitStatus {
	for {
		select {
		case s := <-signals:
			number, ok := s.(unix.Signal)
			switch {
			case !ok:
			case p.isolated && p.endsBy(number):
				p.ending = number
				_ = unix.Kill(p.pid, unix.SIGKILL)
			case !fromTerminal(s):
				_ = unix.Kill(p.pid, number)
			}
		case <-p.exited:
			// A program that is ending has no memory any more, in which its tracer would find what it looks for.
			if !p.status.Signaled() || p.status.Signal() != unix.SIGKILL {
				p.reason = ""
			}
			return p.status
		}
	}
}

// endsBy says whether a signal would end the program: all that are passed on do if they are neither handled nor
// ignored, and wait if they are blocked.
func (p *process) endsBy(s unix.Signal) bool {
	text, err := os.ReadFile(procPath(p.pid, "status"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if name != "SigBlk" && name != "SigIgn" && name != "SigCgt" {
			continue
		}
		set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil || set>>(s-1)&1 != 0 {
			return false
		}
	}
	return true
}
