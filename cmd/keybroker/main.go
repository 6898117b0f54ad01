// Command keybroker is the key broker: it releases secrets to enclaves that prove what they are.
//
//	keybroker [options] ADDRESS
//	keybroker check [POLICY]
//
// It decides by a policy (package internal/broker/policy), the file policy.yaml. Started in a folder with Occlum's
// dynamic_config.json and secret_config.json instead, it takes the place of Occlum's /bin/server: the same wire, the
// same line "Server listening on ADDRESS" on standard output once it answers, and it listens on exactly ADDRESS. It
// fails closed: a file that it cannot read to the letter, or that demands less than a minimum of a peer, ends it before
// it listens. docs/broker.md is the manual.
//
// Whether it runs in an enclave is a matter of the build, not of an option. In an enclave the host writes the command
// line, so no option changes who is trusted or what a peer must be: policy and secrets stand in the working folder,
// which belongs into the measured image, and a later policy is taken only if the key has signed it that the measured one
// names. Outside of an enclave the policy file is followed while the broker runs.
//
// Exit codes: 0 ended by SIGTERM, SIGINT or SIGQUIT, 1 refused or failed, 20 a fault of the program itself (package
// internal/fault), 64 wrong usage. 2 is a fault of Go's runtime, such as a lack of memory, or inside a library that starts
// goroutines.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/internal/fault"
	"github.com/sesame-init/sesame/internal/memory"
)

// buildTime raises the lower bound of the clock, in seconds since 1970, if a linker sets it. Programs that are to have the
// same measurement leave it alone.
var buildTime = "0"

// exitUsage is EX_USAGE of sysexits.h.
const exitUsage = 64

func main() {
	defer fault.Exit()
	swapped := protect()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	defer stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	here, err := findPlace(where)
	if err != nil {
		fmt.Fprintf(os.Stderr, "keybroker: %v\n", err)
		os.Exit(1)
	}
	ticks := time.NewTicker(followInterval)
	defer ticks.Stop()
	c := command{folder: ".", place: here, hangup: hangup, ticks: ticks.C, stdout: os.Stdout, stderr: os.Stderr, swapped: swapped}
	os.Exit(c.run(ctx, os.Args[1:], os.Getenv("PCCS_URL")))
}

// protect keeps memory with secrets out of core files, swap, and other processes of the same user. The error is
// [memory.ErrSwapped] if memory may be swapped out. If the kernel does not know how, as in an enclave, there is nothing to
// keep it from.
func protect() error {
	_ = memory.NoDumps()
	return memory.Lock()
}

// followInterval is how often the policy file is looked at.
const followInterval = 2 * time.Second

// command is one run of the program.
type command struct {
	folder         string
	place          place
	swapped        error // why memory may be swapped out, nil if it may not
	hangup         <-chan os.Signal
	ticks          <-chan time.Time
	stdout, stderr io.Writer

	policyFile, signedPolicy string
	secretsFile, keyFile     string
	collateral, http         string
	logLevel, logFormat      string
}

// run is main with a result.
func (c *command) run(ctx context.Context, args []string, pccsURL string) int {
	root := &cobra.Command{
		Use:   "keybroker [options] ADDRESS",
		Short: "Release secrets to enclaves that prove what they are",
		Example: `  keybroker --policy policy.yaml --secrets secret_config.json --key broker.key 0.0.0.0:5000
  keybroker --collateral https://pccs:8081/sgx/certification/v4/ 0.0.0.0:5000
  keybroker check policy.yaml`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	f := root.Flags()
	f.StringVar(&c.collateral, "collateral", pccsURL,
		"PCCS address, or a folder with collateral, instead of the policy's; the default is the environment variable PCCS_URL")
	f.StringVar(&c.http, "http", "", "HOST:PORT for /healthz, /readyz and /metrics; default: none")
	f.StringVar(&c.logLevel, "log-level", "info", "debug, info, warning or error")
	f.StringVar(&c.logFormat, "log-format", "text", "text or json")
	f.StringVar(&c.signedPolicy, "signed-policy", "", "file to follow with policies that the policy's policy_key has signed")
	if !c.place.enclave {
		f.StringVar(&c.policyFile, "policy", "", "policy to follow (default policy.yaml in the working folder)")
		f.StringVar(&c.secretsFile, "secrets", "", "secrets in the format of Occlum's secret_config.json")
		f.StringVar(&c.keyFile, "key", "broker.key", "the broker's key, which clients pin; created if it does not exist")
	}
	usage := func(err error) error {
		return &attest.Error{Code: attest.CodeUsage, Err: err, Hint: "See keybroker -h."}
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	root.Args = func(cmd *cobra.Command, args []string) error {
		if err := cobra.ExactArgs(1)(cmd, args); err != nil {
			return usage(err)
		}
		return nil
	}
	root.RunE = func(cmd *cobra.Command, args []string) error { return c.serve(cmd.Context(), args[0]) }
	root.AddCommand(c.checkCommand(usage))
	root.SetArgs(args)
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var faults policy.Faults
	if errors.As(err, &faults) {
		for _, f := range faults {
			fmt.Fprintln(c.stderr, f)
		}
		fmt.Fprintf(c.stderr, "keybroker: the policy has %d faults\n", len(faults))
	} else {
		fmt.Fprintf(c.stderr, "keybroker: %v\n", err)
	}
	if hint := attest.HintOf(err); hint != "" {
		fmt.Fprintf(c.stderr, "hint: %s\n", hint)
	}
	if attest.CodeOf(err) == attest.CodeUsage {
		return exitUsage
	}
	return 1
}
