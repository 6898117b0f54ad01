//go:build plainlinux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/init/internal/handover"
	"github.com/sesame-init/sesame/init/internal/linux"
	"github.com/sesame-init/sesame/internal/boundedfile"
	"github.com/sesame-init/sesame/internal/clock"
	"github.com/sesame-init/sesame/internal/config"
	"github.com/sesame-init/sesame/internal/fault"
)

// self is this very program, wherever the root is by then.
const self = "/proc/self/exe"

func main() {
	defer fault.Exit()
	runtime.LockOSThread() // namespaces and capabilities belong to threads
	var status int
	var err error
	log := newLogger()
	switch args := os.Args[1:]; os.Args[0] {
	case linux.ServerName:
		os.Exit(linux.Serve(args, log))
	case handover.BootName:
		var link *handover.Link
		if link, err = handover.OpenLink(); err == nil {
			_, err = runOnLinux(args, link, log)
		}
	default:
		status, err = runOnLinux(args, nil, log)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		status = refuse(os.Stderr, err)
	}
	os.Exit(status)
}

// runOnLinux boots and hands over, and takes back what it did if it fails. In mode supervise, which no supervisor has
// started yet, it starts itself anew for that, below one that never holds a secret, and returns the application's exit
// status.
func runOnLinux(args []string, link *handover.Link, log *logrus.Logger) (status int, err error) {
	if err := linux.Harden(); err != nil {
		return 0, err
	}
	path, asked, err := parseArgs(args)
	if err != nil {
		return 0, err
	}
	text, c, err := readConfig(path)
	if err != nil {
		return 0, err
	}
	if mode := c.Linux.Mode; link == nil && (mode == config.Supervise || mode == "" && os.Getpid() == 1) {
		return handover.Supervisor{Self: self, Args: args, Log: log}.Run()
	}
	l := &linuxInit{link: link, text: text}
	l.config = c
	err = boundBySignals(func(ctx context.Context) error {
		err := link.Begun()
		if err == nil {
			err = l.prepare(asked, log)
		}
		if err == nil {
			err = l.run(ctx)
		}
		return err
	})
	if err == nil {
		err = l.handOver()
	}
	var gone *finalError
	if l.mounter != nil && !errors.As(err, &gone) {
		l.takeBack()
	}
	return 0, err
}

func readConfig(path string) ([]byte, *config.Config, error) {
	text, err := boundedfile.Read(path, config.MaxSize)
	if err != nil {
		return nil, nil, attest.Errorf(attest.CodeConfig, "reading the config", "Name it with --config, or put it at "+config.Path+".",
			"%w", err)
	}
	c, err := config.Parse(text)
	if err != nil {
		return nil, nil, err
	}
	if c.Platform != config.OnLinux {
		return nil, nil, attest.Errorf(attest.CodeConfig, "choosing the platform", `Write "platform": "linux", or use Occlum's build.`,
			"this build of init is for Linux, the config is for %s", c.Platform)
	}
	return text, c, nil
}

// finalError is an error that came after this process has given up what it would need to take anything back. The end of the
// process does it: mounts are gone with the mount namespace, and processes behind volumes end with it.
type finalError struct{ error }

func (g *finalError) Unwrap() error { return g.error }

// linuxInit is a boot on Linux, and what it hands over to.
type linuxInit struct {
	boot
	link    *handover.Link // nil without a supervisor
	text    []byte         // of the config
	mounter *linux.Mounter
	app     handover.App
}

// prepare does what needs no secret.
func (l *linuxInit) prepare(asked []string, log *logrus.Logger) (err error) {
	c := l.config
	c.ApplyHost(os.Getenv)
	for _, line := range c.Remarks() {
		log.Warn(line)
	}
	if l.app, err = application(c, asked); err != nil {
		return err
	}
	l.app.Tied = l.link != nil
	if err := linux.Unshare(); err != nil {
		return err
	}
	l.mounter = linux.NewMounter(linux.Options{
		Self: self, UID: *c.Linux.VolumeUID, OwnerUID: *c.Linux.UID, OwnerGID: *c.Linux.GID,
		Siblings: l.link != nil, Overlay: c.Root.Upper == "temporary",
	})
	l.boot = boot{config: c, mounter: l.mounter, log: log, root: l.mounter.Root}
	return nil
}

// run boots and enters the root.
func (l *linuxInit) run(ctx context.Context) error {
	c := l.config
	if c.Backend != "none" {
		attester, err := openAttester(ctx, c, sha256.Sum256(l.text))
		if err != nil {
			return err
		}
		defer attester.Close()
		l.log.WithFields(logrus.Fields{"platform": "linux", "attester": attester.Type()}).Info("chosen by the config")
		host, err := clock.Built(time.Now, buildTime)
		if err != nil {
			return attest.Errorf(attest.CodeInternal, "reading the clock", "Build with make.", "%w", err)
		}
		if l.backend, err = newBackend(c, attester, host.Now, l.log); err != nil {
			return err
		}
		l.identity = identityMaker{attester, host.Now}
	}
	if err := l.boot.run(ctx); err != nil {
		return err
	}
	return l.mounter.Enter()
}

// handOver becomes the application, and returns only with an error.
func (l *linuxInit) handOver() error {
	for _, server := range l.mounter.Servers() {
		if err := l.link.Guard(server.PID, "volume at "+server.Target); err != nil {
			return err
		}
	}
	if err := linux.Unlock(); err != nil { // what was secret is wiped
		return err
	}
	return &finalError{l.app.Exec()}
}

// takeBack undoes what the boot did.
func (l *linuxInit) takeBack() {
	l.boot.takeBack()
	l.mounter.Close()
}

// parseArgs reads init's own command line: what follows -- is the host's wish for the application.
func parseArgs(args []string) (path string, asked []string, err error) {
	if i := slices.Index(args, "--"); i >= 0 {
		args, asked = args[:i], args[i+1:]
	}
	flags := flag.NewFlagSet("init", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&path, "config", config.Path, "")
	err = flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Print(usage)
		return "", nil, err
	}
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("%q: the application comes after --", flags.Arg(0))
	}
	if err != nil {
		return "", nil, attest.Errorf(attest.CodeUsage, "reading the command line", "See init -h.", "%w", err)
	}
	return path, asked, nil
}

const usage = `Attest this machine, fetch keys, mount encrypted volumes, write secret files, and start the application.

Usage: init [--config FILE] [-- PROGRAM ARG...]

  --config FILE   default ` + config.Path + `

If the config has no app block, give PROGRAM. If it has one, PROGRAM and ARG must match it, or be left out.

Example: init --config /etc/sesame/init.json -- /usr/sbin/nginx -g "daemon off;"
`

// application is what is started: what the config names, or what the host asks for where it names nothing.
func application(c *config.Config, asked []string) (handover.App, error) {
	a := handover.App{
		Env: c.Linux.EnvironmentOf(os.LookupEnv), UID: *c.Linux.UID, GID: *c.Linux.GID, Groups: c.Linux.Groups,
		Capabilities: c.Linux.Capabilities, Directory: c.Linux.Directory,
	}
	switch {
	case c.App != nil:
		a.Path, a.Args = c.App.Path, c.App.Args
		if len(asked) == 0 {
			break
		}
		err := matchArgs(c.App.Args, asked[1:])
		if err == nil && asked[0] != c.App.Path {
			err = fmt.Errorf("the host asks for %q, the measured config has %q", asked[0], c.App.Path)
		}
		if err != nil {
			return a, &attest.Error{Code: attest.CodeLaunch, Step: "choosing the application", Err: err,
				Hint: "Ask for exactly app.path and app.args of the config, or for nothing."}
		}
		a.Args = asked[1:]
	case len(asked) > 0 && bytes.HasPrefix([]byte(asked[0]), []byte("/")):
		a.Path, a.Args = asked[0], asked[1:]
	default:
		return a, attest.Errorf(attest.CodeLaunch, "choosing the application",
			"Write an app block into the config, or name the program with its whole path behind --.",
			"neither the config nor the command line names a program")
	}
	return a, a.Check()
}
