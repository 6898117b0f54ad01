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
		Short: "Run, stage and probe an enclave in a pod",
	}
	cmd.AddCommand(podRunCommand(), podStageCommand(), podProbeCommand())
	return cmd
}

func podRunCommand() *cobra.Command {
	var cpus int
	var pccs, qcnl string
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARGUMENT]...",
		Short: "Run a command on as few processors as its enclave has threads for",
		Long: `run replaces itself with COMMAND. With --cpus the command sees at most that many processors, as with taskset. If a
program makes threads by the number of processors, this keeps it below the enclave's limit. With --qcnl and --pccs, run
first writes the config of the host's quote library.`,
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
	cmd.Flags().IntVar(&cpus, "cpus", 0, "maximum of `processors` that the command sees; 0 for all")
	cmd.Flags().StringVar(&qcnl, "qcnl", "", "write the quote library's config to this `file`")
	cmd.Flags().StringVar(&pccs, "pccs", "", "`URL` of the PCCS for that config")
	return cmd
}

func podStageCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "stage SRC DST [SRC DST]...",
		Short: "Copy directories of the image to a place that only this pod writes",
		Long: `stage copies directories. Occlum opens its volumes for writing and locks them, so each pod needs its own copy. Run
stage in an init container, to copy into an emptyDir.`,
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
		Long: `probe is for readiness and liveness probes, because the kubelet's own gRPC probes speak no TLS. It tells whether a
server serves, not whether it is the right one; clients verify that themselves. If a server answers that it has no gRPC
health service, it counts as serving: TensorFlow Serving listens only when its models are loaded.`,
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
