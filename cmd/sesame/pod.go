package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/packaging/pod"
)

func podCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pod",
		Short: "What containers of a deployment do around an enclave",
	}
	cmd.AddCommand(podRunCommand(), podStageCommand(), podProbeCommand())
	return cmd
}

func podRunCommand() *cobra.Command {
	var cpus int
	var pccs, qcnl string
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARGUMENT]...",
		Short: "Run a command on few enough processors for its enclave's threads",
		Long: `run replaces itself by COMMAND. With --cpus the command sees that many processors at most, as with taskset: a
program that makes threads by their number stays below the enclave's limit. With --qcnl and --pccs it first writes the
config of the host's quote library.`,
		Example: "  sesame pod run --cpus=4 -- occlum run /bin/tensorflow_model_server",
		Args:    usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			if cpus < 0 || (qcnl != "") != (pccs != "") {
				return attest.Errorf(attest.CodeUsage, "reading command line", "",
					"--cpus is positive, and --qcnl and --pccs go together")
			}
			if qcnl != "" {
				if err := pod.WriteQCNL(qcnl, pccs); err != nil {
					return err
				}
			}
			if cpus > 0 {
				if err := pod.LimitCPUs(cpus); err != nil {
					return err
				}
			}
			return pod.Exec(args)
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().IntVar(&cpus, "cpus", 0, "most `processors` that the command sees; 0 for all")
	cmd.Flags().StringVar(&qcnl, "qcnl", "", "write the quote library's config to this `file`")
	cmd.Flags().StringVar(&pccs, "pccs", "", "`URL` of the PCCS for that config")
	return cmd
}

func podStageCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "stage SRC DST [SRC DST]...",
		Short: "Copy directories of the image to where this pod alone writes",
		Long: `stage copies directories. Occlum opens its volumes for writing and locks them, so each pod needs its own copy;
an init container makes it, in an emptyDir.`,
		Example: "  sesame pod stage . /stage",
		Args: usageArgs(func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || len(args)%2 != 0 {
				return attest.Errorf(attest.CodeUsage, "", "", "want pairs of directories")
			}
			return nil
		}),
		RunE: func(_ *cobra.Command, args []string) error {
			for ; len(args) > 0; args = args[2:] {
				if err := pod.Stage(args[0], args[1]); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func podProbeCommand() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "probe HOST:PORT",
		Short: "Ask a gRPC server over TLS whether it serves",
		Long: `probe is for readiness and liveness probes: the kubelet's own gRPC probes speak no TLS. It says that something
serves there, not that it is the right thing; clients find that out for themselves. A server without the gRPC health
service that answers so counts as serving: TensorFlow Serving listens only when its models are loaded.`,
		Example: "  sesame pod probe 127.0.0.1:9001",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return pod.Probe(ctx, args[0])
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "how long it may take")
	return cmd
}
