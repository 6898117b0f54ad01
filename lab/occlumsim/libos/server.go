package libos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
)

// Files of a started instance, relative to it. A socket's name is short: it is used from within the directory.
const (
	socketFile = "run/occlum.sock"
	logFile    = "run/occlum.log"
)

// request is what a client of a started instance asks for, first a command, then signals for it.
type request struct {
	Command []string `json:"command,omitempty"`
	Env     []string `json:"env,omitempty"`
	Signal  int      `json:"signal,omitempty"`
	Stop    bool     `json:"stop,omitempty"`
}

// reply is the exit status of a command.
type reply struct {
	Status int `json:"status"`
}

// maxRequest bounds a request in bytes, which one message carries.
const maxRequest = 128 << 10

// Start boots the instance and leaves it running, for [Exec], until [Stop]. What it prints goes to a file, whose name
// an error of booting tells.
func Start(ctx context.Context, o Options) error {
	o.Serve = true
	if connection, err := dial(o.Dir); err == nil {
		connection.Close()
		return attest.Errorf(attest.CodeUsage, "starting the instance", "Stop it with occlum stop.",
			"it is running already")
	}
	log, err := os.Create(filepath.Join(o.Dir, logFile))
	if err != nil {
		return err
	}
	defer log.Close()
	ready, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd, config, err := supervisor(ctx, o)
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
	cmd.SysProcAttr.Setsid = true
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return whyNot(err)
	}
	if err := config(); err != nil {
		return err
	}
	if b, err := io.ReadAll(ready); err != nil || len(b) == 0 {
		_ = cmd.Wait()
		text, _ := os.ReadFile(log.Name())
		return &attest.Error{Code: attest.CodeLaunch, Step: "starting the instance",
			Err: fmt.Errorf("it ended: %s", strings.TrimSpace(string(text))), Hint: "See " + log.Name() + "."}
	}
	return cmd.Process.Release()
}

// dial connects to a started instance. The name of a socket has little room: the connection goes through the open
// directory.
func dial(dir string) (*net.UnixConn, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	name := fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), socketFile)
	connection, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: name, Net: "unixpacket"})
	if err != nil {
		return nil, &attest.Error{Code: attest.CodeUsage, Step: "reaching the instance", Err: errors.Unwrap(err),
			Hint: "Start it with occlum start."}
	}
	return connection, nil
}

// Exec runs a command in a started instance, on the caller's standard streams and with its environment, and returns
// its exit status as [Run] does. The command ends with the caller.
func Exec(ctx context.Context, dir string, command []string) (int, error) {
	connection, err := dial(dir)
	if err != nil {
		return 0, err
	}
	defer connection.Close()
	defer context.AfterFunc(ctx, func() { connection.Close() })()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passedSignals...)
	defer signal.Stop(signals)
	if err := send(connection, request{Command: command, Env: os.Environ()}, 0, 1, 2); err != nil {
		return 0, err
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case s := <-signals:
				if number, ok := s.(unix.Signal); ok {
					_ = send(connection, request{Signal: int(number)})
				}
			case <-ended:
				return
			}
		}
	}()
	var r reply
	if err := json.NewDecoder(connection).Decode(&r); err != nil {
		return 0, fmt.Errorf("waiting for the command: the instance has ended: %w", err)
	}
	return r.Status, nil
}

// Stop ends a started instance and all that runs in it, and waits until it is gone.
func Stop(ctx context.Context, dir string) error {
	connection, err := dial(dir)
	if err != nil {
		return err
	}
	defer connection.Close()
	defer context.AfterFunc(ctx, func() { connection.Close() })()
	if err := send(connection, request{Stop: true}); err != nil {
		return err
	}
	if _, err := connection.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		return err
	}
	return nil
}

func send(connection *net.UnixConn, r request, files ...int) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if len(text) > maxRequest {
		return fmt.Errorf("sending the command: %w", unix.E2BIG)
	}
	var rights []byte
	if len(files) > 0 {
		rights = unix.UnixRights(files...)
	}
	_, _, err = connection.WriteMsgUnix(text, rights, nil)
	return err
}

// serveCommands runs what clients ask for until one asks to stop, or a signal ends the instance. ready is told when
// it can be reached.
func (l *LibOS) serveCommands(ready io.WriteCloser, signals <-chan os.Signal) error {
	if err := os.Remove(socketFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socketFile, Net: "unixpacket"})
	if err != nil {
		return err
	}
	defer listener.Close() // and with it the socket's name
	if err := os.Chmod(socketFile, 0o600); err != nil {
		return err
	}
	if _, err := ready.Write([]byte("ready\n")); err != nil {
		return err
	}
	ready.Close()
	stop := make(chan struct{})
	var once sync.Once
	go func() {
		for {
			connection, err := listener.AcceptUnix()
			if err != nil {
				return
			}
			go l.serveClient(connection, func() { once.Do(func() { close(stop) }) })
		}
	}()
	for {
		select {
		case <-stop:
			return nil
		case s := <-signals:
			if s == unix.SIGTERM || s == unix.SIGINT || s == unix.SIGQUIT {
				return nil
			}
		}
	}
}

func (l *LibOS) serveClient(connection *net.UnixConn, stop func()) {
	// A client that asked to stop is told by the end of this process, which closes the connection.
	r, files, err := receiveRequest(connection)
	if err == nil && r.Stop {
		stop()
		return
	}
	defer connection.Close()
	for _, f := range files {
		defer f.Close()
	}
	if err != nil || len(r.Command) == 0 || len(files) != 3 {
		return
	}
	signals := make(chan os.Signal, 16)
	go func() {
		for {
			r, _, err := receiveRequest(connection)
			number := unix.Signal(r.Signal)
			if err != nil {
				number = unix.SIGKILL // the client is gone
			}
			select {
			case signals <- number:
			default: // the command is gone
			}
			if err != nil {
				return
			}
		}
	}()
	status := l.runApp(Options{Command: r.Command}, r.Env, [3]*os.File(files), signals)
	text, err := json.Marshal(reply{Status: status})
	if err == nil {
		_, _ = connection.Write(text)
	}
}

func receiveRequest(connection *net.UnixConn) (r request, files []*os.File, err error) {
	b, oob := make([]byte, maxRequest), make([]byte, unix.CmsgSpace(3*4))
	n, oobn, _, _, err := connection.ReadMsgUnix(b, oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return r, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return r, nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return r, files, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "stdio"))
		}
	}
	return r, files, json.Unmarshal(b[:n], &r)
}

// supervisor prepares the process of an instance; config, called when it has started, hands it its options.
func supervisor(ctx context.Context, o Options) (cmd *exec.Cmd, config func() error, err error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	cmd = exec.CommandContext(ctx, executable)
	cmd.Args = []string{supervisorName}
	cmd.Dir = o.Dir
	cmd.ExtraFiles = []*os.File{read}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	if uid := os.Geteuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return cmd, func() error {
		defer write.Close()
		defer read.Close()
		_, err := write.Write(text)
		return err
	}, nil
}

// whyNot explains why a supervisor could not be started.
func whyNot(err error) error {
	e := &attest.Error{Code: attest.CodeLaunch, Step: "starting the simulator", Err: err}
	if errors.Is(err, unix.EPERM) {
		e.Hint = "It needs root or user namespaces (sysctl kernel.unprivileged_userns_clone, " +
			"kernel.apparmor_restrict_unprivileged_userns); in a container CAP_SYS_ADMIN and seccomp=unconfined."
	}
	return e
}
