// Command sesame is the tool of operators and developers: keys, volumes, quotes, configs, and the inference
// client. "sesame help" lists the commands; each has -h with an example.
//
// Exit codes: 0 done (or accepted), 1 refused or failed, 2 wrong usage.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
)

func main() { os.Exit(run()) }

// run is main with a result, so that command-line tests can run it in process.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd, err := newRootCommand().ExecuteContextC(ctx)
	if err != nil && !cmd.Runnable() { // cobra's own error: no such command
		err = &attest.Error{Code: attest.CodeUsage, Err: err, Hint: "See " + cmd.CommandPath() + " -h."}
	}
	return exitStatus(err)
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "sesame",
		Short:         "Attested boot, encrypted volumes and key release for enclaves",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &attest.Error{Code: attest.CodeUsage, Err: err, Hint: "See " + cmd.CommandPath() + " -h."}
	})
	root.AddCommand(
		benchCommand(),
		configCommand(),
		keygenCommand(),
		logCommand(),
		maaCommand(),
		occlumCommand(),
		packageCommand(),
		podCommand(),
		policyCommand(),
		predictCommand(),
		quoteCommand(),
		rootkeyCommand(),
		secretCommand(),
		tokenCommand(),
		tpmCommand(),
		volumeCommand(),
	)
	return root
}

// exitStatus prints err and turns it into the exit code.
func exitStatus(err error) int {
	if err == nil {
		return 0
	}
	if !errors.Is(err, errQuiet) {
		fmt.Fprintln(os.Stderr, "sesame: "+err.Error())
		if hint := attest.HintOf(err); hint != "" {
			fmt.Fprintln(os.Stderr, "hint: "+hint)
		}
	}
	if attest.CodeOf(err) == attest.CodeUsage {
		return 2
	}
	return 1
}

// errQuiet ends a command with exit code 1 after it has printed its own verdict.
var errQuiet = errors.New("refused")

// usageArgs makes a positional-argument check that fails with exit code 2.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &attest.Error{Code: attest.CodeUsage, Err: err, Hint: "See " + cmd.CommandPath() + " -h."}
		}
		return nil
	}
}
