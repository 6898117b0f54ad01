// Command occlum is Occlum's command on plain Linux, without SGX: it makes, builds and runs instances with Occlum's
// own file layout, so that the same scripts work with either. Development, tests and demonstrations only: its quotes
// come from a software platform, and nothing it runs is protected. "occlum help" lists the commands.
//
// Exit codes: that of the application for run and exec; else 0 done, 1 failed, 2 wrong usage.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/lab/occlumsim/libos"
)

func main() { os.Exit(run()) }

// run is main with a result, so that command-line tests can run it in process.
func run() int {
	if status, reexecuted := libos.Reexec(); reexecuted {
		return status
	}
	return report(newRootCommand().ExecuteContext(context.Background()))
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "occlum",
		Short:         "Occlum's command without SGX: a simulator for development and tests",
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.ErrOrStderr(), "occlum: SIMULATOR: no SGX, no protection, quotes from a software platform")
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &attest.Error{Code: attest.CodeUsage, Err: err, Hint: "See " + cmd.CommandPath() + " -h."}
	})
	root.AddCommand(newCommand(), buildCommand(), runCommand(), startCommand(), execCommand(),
		stopCommand(), packageCommand(), printCommand(), genImageKeyCommand(),
		simPlatformCommand(), simPCCSCommand())
	return root
}

// exitStatus ends the command with the status of what it ran.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// report prints err and turns it into the exit code.
func report(err error) int {
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	}
	fmt.Fprintln(os.Stderr, "occlum: "+err.Error())
	if hint := attest.HintOf(err); hint != "" {
		fmt.Fprintln(os.Stderr, "hint: "+hint)
	}
	if attest.CodeOf(err) == attest.CodeUsage {
		return 2
	}
	return 1
}

// usageArgs makes a positional-argument check that fails with exit code 2.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &attest.Error{Code: attest.CodeUsage, Err: err, Hint: "See " + cmd.CommandPath() + " -h."}
		}
		return nil
	}
}

// stateDir keeps the user's signing key and software platform.
func stateDir() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "sesame"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", &attest.Error{Code: attest.CodeConfig, Step: "finding the state directory", Err: err,
			Hint: "Set XDG_STATE_HOME, or name files with --sign-key and --platform."}
	}
	return filepath.Join(home, ".local", "state", "sesame"), nil
}
