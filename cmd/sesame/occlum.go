package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/packaging/occlumcheck"
	"github.com/sesame-init/sesame/packaging/occlumconf"
)

func occlumCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "occlum",
		Short: "Check instances and programs for Occlum before they run",
	}
	cmd.AddCommand(occlumCheckCommand(), occlumCheckELFCommand())
	return cmd
}

func occlumCheckCommand() *cobra.Command {
	var o occlumcheck.Options
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check INSTANCE",
		Short: "Name every setting of an instance directory that would fail or is unsafe",
		Long: `check looks through an instance directory of Occlum or of the simulator, before or after "occlum build":
Occlum.json, the initfs with init and its measured config, the image, and what a build left.
Each finding is a line with its severity, the setting, what follows from it and what to write.
With at least one error the exit status is 1; warnings alone leave it 0.`,
		Example: "  sesame occlum check occlum_tf\n" +
			"  sesame occlum check --occlum-libc /opt/occlum occlum_tf",
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			found, err := occlumcheck.Instance(args[0], o)
			if errors.Is(err, fs.ErrNotExist) {
				return &attest.Error{Code: attest.CodeUsage, Err: err,
					Hint: "Name a directory that occlum new made; it holds Occlum.json."}
			}
			if err != nil {
				return err
			}
			return printFindings(cmd.OutOrStdout(), found, asJSON)
		},
	}
	cmd.Flags().StringVar(&o.OcclumLibc, "occlum-libc", "", "compare C libraries with those that Occlum installed in `DIR`, or a list of\ntheir hashes as sha256sum prints it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the findings as JSON")
	return cmd
}

func occlumCheckELFCommand() *cobra.Command {
	var o occlumcheck.ProgramOptions
	var size string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check-elf FILE",
		Short: "Check that a program is built so that Occlum can run it",
		Long: `check-elf checks what Occlum's loader and memory demand of a program, and names the flag of the build that
is missing. Of a Go program it also wants the runtime overlay, stripped symbols, trimmed paths, and none of Sesame's
development packages.`,
		Example: "  sesame occlum check-elf --interpreter /lib/ld-musl-x86_64.so.1 --max-size 16MB build/init",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			max, err := occlumconf.ParseSize(size)
			if err != nil {
				return &attest.Error{Code: attest.CodeUsage, Err: fmt.Errorf("--max-size: %w", err), Hint: "Write 16MB."}
			}
			o.MaxSize, o.Forbidden = int64(max), occlumcheck.Development()
			found, err := occlumcheck.Program(args[0], o)
			if errors.Is(err, fs.ErrNotExist) {
				return &attest.Error{Code: attest.CodeUsage, Err: err, Hint: "Name a program."}
			}
			if err != nil {
				return err
			}
			return printFindings(cmd.OutOrStdout(), found, asJSON)
		},
	}
	cmd.Flags().StringVar(&o.Interpreter, "interpreter", "", "the loader that the file system holds")
	cmd.Flags().StringVar(&size, "max-size", "0B", "largest size of the program, as 16MB; 0B for any")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the findings as JSON")
	return cmd
}

// printFindings prints what was found, and fails where an error is among it.
func printFindings(w io.Writer, found occlumcheck.Findings, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		result := struct {
			OK       bool                 `json:"ok"`
			Findings occlumcheck.Findings `json:"findings"`
		}{!found.Failed(), append(occlumcheck.Findings{}, found...)}
		if err := enc.Encode(result); err != nil {
			return err
		}
	} else {
		for _, f := range found {
			fmt.Fprintln(w, f)
		}
	}
	if found.Failed() {
		return errQuiet
	}
	return nil
}
