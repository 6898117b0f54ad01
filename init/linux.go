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
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/clock"
	"github.com/sesame-init/sesame/fs/linux"
	"github.com/sesame-init/sesame/init/config"
	"github.com/sesame-init/sesame/init/handover"
	"github.com/sesame-init/sesame/internal/boundedfile"
)

// self is this very program, wherever the root is by then.
const self = "/proc/self/exe"

func main() {
	runtime.LockOSThread() // namespaces and capabilities belong to threads
	switch os.Args[0] {
	case linux.ServerName:
		os.Exit(linux.Serve(os.Args[1:], newLogger()))
	case handover.StageName:
		os.Exit(refuse(os.Stderr, handover.Stage(os.Args[1:])))
	}
	status, err := runOnLinux(os.Args[1:], newLogger())
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		status = refuse(os.Stderr, err)
	}
	os.Exit(status)
}

// runOnLinux boots and hands over. It returns only in mode supervise, or with an error.
func runOnLinux(args []string, log *logrus.Logger) (status int, err error) {
	path, asked, err := parseArgs(args)
	if err != nil {
		return 0, err
	}
	if err := linux.Harden(); err != nil {
		return 0, err
	}
	text, err := boundedfile.Read(path, config.MaxSize)
	if err != nil {
		return 0, attest.Errorf(attest.CodeConfig, "reading the config", "Name it with --config, or put it at "+config.Path+".",
			"%w", err)
	}
	c, err := config.Parse(text)
	if err != nil {
		return 0, err
	}
	if c.Platform != config.OnLinux {
		return 0, attest.Errorf(attest.CodeConfig, "choosing the platform", `Write "platform": "linux", or use Occlum's build.`,
			"this build of init is for Linux, the config is for %s", c.Platform)
	}
	c.ApplyHost(os.Getenv)
	for _, line := range c.Remarks() {
		log.Warn(line)
	}
	app, err := application(c, asked)
	if err != nil {
		return 0, err
	}
	if err := linux.Unshare(); err != nil {
		return 0, err
	}
	mounter := linux.NewMounter(linux.Options{
		Self: self, UID: *c.Linux.VolumeUID, OwnerUID: *c.Linux.UID, OwnerGID: *c.Linux.GID,
		Overlay: c.Root.Upper == "temporary",
	})
	if err := bootLinux(c, text, mounter, log); err != nil {
		return 0, err
	}
	if err := mounter.Enter(); err != nil {
		return 0, err
	}
	if c.Linux.Mode == config.Supervise || c.Linux.Mode == "" && os.Getpid() == 1 {
		s := handover.Supervisor{Self: self, Log: log}
		for _, server := range mounter.Servers() {
			s.Guarded = append(s.Guarded, handover.Guarded{PID: server.PID, What: "volume at " + server.Target})
		}
		return s.Run(app)
	}
	if err := linux.Unlock(); err != nil { // what was secret is wiped
		return 0, err
	}
	return 0, app.Exec()
}

func bootLinux(c *config.Config, text []byte, mounter *linux.Mounter, log *logrus.Logger) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	b := &boot{config: c, mounter: mounter, log: log, root: mounter.Root}
	if c.Backend != "none" {
		attester, err := openAttester(ctx, c, sha256.Sum256(text))
		if err != nil {
			return err
		}
		defer attester.Close()
		log.WithFields(logrus.Fields{"platform": "linux", "attester": attester.Type()}).Info("chosen by the config")
		host, err := clock.Built(time.Now, buildTime)
		if err != nil {
			return attest.Errorf(attest.CodeInternal, "reading the clock", "Build with make.", "%w", err)
		}
		if b.backend, err = newBackend(c, attester, host.Now, log); err != nil {
			return err
		}
		b.identity = identityMaker{attester, host.Now}
	}
	return b.run(ctx)
}

// parseArgs reads init's own command line: what stands behind -- is the host's wish for the application.
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
		err = fmt.Errorf("%q: the application stands behind --", flags.Arg(0))
	}
	if err != nil {
		return "", nil, attest.Errorf(attest.CodeUsage, "reading the command line", "See init -h.", "%w", err)
	}
	return path, asked, nil
}

const usage = `Attest this machine, fetch keys, mount encrypted volumes, write secret files, and start the application.

Usage: init [--config FILE] [-- PROGRAM ARG...]

  --config FILE   default ` + config.Path + `

PROGRAM is needed where the config has no app block. Where it has one, PROGRAM and ARG must be what it says.

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
