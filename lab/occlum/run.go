package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/lab/occlumsim"
	"github.com/sesame-init/sesame/lab/occlumsim/libos"
)

// runFlags are how to start an enclave.
type runFlags struct {
	platform, configID string
	configSVN          uint16
	strictApp          bool
	isolateApp         bool
	quoteFailure       bool
}

func (f *runFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SetInterspersed(false)
	flags.StringVar(&f.platform, "platform", "", "directory of the software platform that signs quotes; made on first\n"+
		"use (default $XDG_STATE_HOME/sesame/softsgx, simulator only)")
	flags.StringVar(&f.configID, "config-id", "", "64 bytes in base64 for the enclave's config id (needs KSS)")
	flags.BoolVar(&f.quoteFailure, "quote-failure", false, "make the host's quoting service fail at its first use, and so for the\n"+
		"enclave's life (simulator only)")
	flags.Uint16Var(&f.configSVN, "config-svn", 0, "the enclave's config SVN (needs KSS)")
}

func (f *runFlags) options(command []string) (libos.Options, error) {
	o := libos.Options{Command: command, StrictApp: f.strictApp, IsolateApp: f.isolateApp,
		QuoteFailure: f.quoteFailure, KSS: occlumsim.KSS{ConfigSVN: f.configSVN}}
	instance, err := occlumsim.Open(".")
	if err != nil {
		return o, err
	}
	o.Dir = instance.Dir
	if f.configID != "" {
		id, err := base64.StdEncoding.DecodeString(f.configID)
		if err != nil || len(id) != len(o.KSS.ConfigID) {
			return o, attest.Errorf(attest.CodeUsage, "reading --config-id",
				"Write: openssl dgst -sha512 -binary FILE | base64 -w0", "not 64 bytes in base64")
		}
		copy(o.KSS.ConfigID[:], id)
	}
	if o.Platform, err = platformDir(f.platform); err != nil {
		return o, err
	}
	return o, occlumsim.EnsureMachine(o.Platform)
}

// platformDir is the absolute name of the software platform's directory.
func platformDir(name string) (string, error) {
	if name != "" {
		return filepath.Abs(name)
	}
	dir, err := stateDir()
	return filepath.Join(dir, "softsgx"), err
}

func runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:     "run [flags] PROGRAM [ARGUMENT]...",
		Short:   "Boot the instance in the current directory and run a program in it",
		Example: "  occlum run /bin/tensorflow_model_server --port=9001",
		Args:    usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := f.options(args)
			if err != nil {
				return err
			}
			status, err := libos.Run(cmd.Context(), o)
			if err == nil && status != 0 {
				err = exitStatus(status)
			}
			return err
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&f.strictApp, "strict-app", false, "also run the program under the LibOS's rules (simulator only)")
	cmd.Flags().BoolVar(&f.isolateApp, "isolate-app", false, "run the program in user, mount and pid namespaces of its own (simulator only)")
	return cmd
}

func startCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:     "start",
		Short:   "Boot the instance in the current directory and leave it running",
		Example: "  occlum start\n  occlum exec /bin/app\n  occlum stop",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := f.options(nil)
			if err != nil {
				return err
			}
			return libos.Start(cmd.Context(), o)
		},
	}
	f.add(cmd)
	return cmd
}

func execCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "exec PROGRAM [ARGUMENT]...",
		Short:   "Run a program in the started instance in the current directory",
		Example: "  occlum exec /bin/app --help",
		Args:    usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			instance, err := occlumsim.Open(".")
			if err != nil {
				return err
			}
			status, err := libos.Exec(cmd.Context(), instance.Dir, args)
			if err == nil && status != 0 {
				err = exitStatus(status)
			}
			return err
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func stopCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "stop",
		Short:   "Stop the instance in the current directory, and everything that runs in it",
		Example: "  occlum stop",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			instance, err := occlumsim.Open(".")
			if err != nil {
				return err
			}
			return libos.Stop(cmd.Context(), instance.Dir)
		},
	}
}

func simPlatformCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sim-platform",
		Short: "Software platforms (simulator only)",
	}
	cmd.AddCommand(&cobra.Command{
		Use:     "new DIR",
		Short:   "Make a new software platform, which nothing trusts yet",
		Example: "  occlum sim-platform new platform\n  occlum run --platform platform /bin/app",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			return occlumsim.NewMachine(args[0])
		},
	})
	return cmd
}

func simPCCSCommand() *cobra.Command {
	var platform, listen, urlFile string
	cmd := &cobra.Command{
		Use:     "sim-pccs",
		Short:   "Serve a software platform's collateral, like a PCCS (simulator only)",
		Example: "  occlum sim-pccs --platform platform --listen 127.0.0.1:8081",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := platformDir(platform)
			if err != nil {
				return err
			}
			if err := occlumsim.EnsureMachine(dir); err != nil {
				return err
			}
			machine, err := occlumsim.LoadMachine(dir)
			if err != nil {
				return err
			}
			var config net.ListenConfig
			listener, err := config.Listen(cmd.Context(), "tcp", listen)
			if err != nil {
				return err
			}
			url := "http://" + listener.Addr().String() + "/sgx/certification/v4/"
			fmt.Fprintln(cmd.OutOrStdout(), url)
			if urlFile != "" {
				if err := writeWhole(urlFile, url+"\n"); err != nil {
					return errors.Join(err, listener.Close())
				}
			}
			server := &http.Server{Handler: machine.Platform.PCCS(), ReadHeaderTimeout: 10 * time.Second}
			stop := make(chan error, 1)
			go func() { stop <- server.Serve(listener) }()
			select {
			case err := <-stop:
				return err
			case <-cmd.Context().Done():
				return server.Close()
			}
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&platform, "platform", "", "directory of the software platform (default $XDG_STATE_HOME/sesame/softsgx)")
	flags.StringVar(&listen, "listen", "127.0.0.1:0", "address to listen on")
	flags.StringVar(&urlFile, "url-file", "", "write the URL to this file when it is being served")
	return cmd
}

// writeWhole makes a file appear with all of its content.
func writeWhole(name, text string) error {
	temporary := name + ".new"
	if err := os.WriteFile(temporary, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, name)
}
