package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/occlum/occlumcheck"
	"github.com/sesame-init/sesame/internal/occlum/occlumconf"
	"github.com/sesame-init/sesame/internal/occlum/sizing"
)

func occlumCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "occlum",
		Short: "Check instances and programs for Occlum before they run",
	}
	cmd.AddCommand(occlumCheckCommand(), occlumCheckELFCommand(), occlumLimitsCommand())
	return cmd
}

func occlumCheckCommand() *cobra.Command {
	var o occlumcheck.Options
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check INSTANCE|Occlum.json",
		Short: "Report every setting of an instance directory that would fail or is unsafe",
		Long: `check reads an instance directory of Occlum or of the simulator, before or after "occlum build": Occlum.json, the
initfs with init and its measured config, the image, and the result of a build. If you give it an Occlum.json alone,
such as a template, it checks only that file. Each finding is a line with its severity, the setting, its consequence
and what to write. The exit status is 1 if there is an error; warnings do not change it.`,
		Example: "  sesame occlum check occlum_tf\n" +
			"  sesame occlum check --occlum-libc /opt/occlum occlum_tf",
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			look := occlumcheck.Instance
			if info, err := os.Stat(args[0]); err == nil && info.Mode().IsRegular() {
				look = func(name string, _ occlumcheck.Options) (occlumcheck.Findings, error) { return occlumcheck.File(name) }
			}
			found, err := look(args[0], o)
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
		Long: `check-elf checks that a program meets the requirements of Occlum's loader and memory. If a build flag is missing,
it names the flag. If the program is in Go, it must also have the runtime overlay, stripped symbols, trimmed paths,
and none of Sesame's development packages.`,
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
	cmd.Flags().StringVar(&o.Interpreter, "interpreter", "", "the loader that is in the file system")
	cmd.Flags().StringVar(&size, "max-size", "0B", "maximum size of the program, such as 16MB; 0B for any")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the findings as JSON")
	return cmd
}

func occlumLimitsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "limits INSTANCE|Occlum.json",
		Short: "Print what a pod must request for an enclave with these limits",
		Long: `limits computes what a Kubernetes manifest must say for an enclave: the EPC that its pod requests, and how many
processors its application may see at most ("sesame pod run --cpus") so that its threads stay below max_num_of_threads.`,
		Example: "  sesame occlum limits Occlum.json",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, err := loadOcclumJSON(args[0])
			if err != nil {
				return err
			}
			epc, why := sizing.EPC(conf)
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
					EPC     string `json:"epc"`
					CPUs    int    `json:"cpus"`
					Threads uint32 `json:"threads"`
				}{sizing.Quantity(epc), sizing.CPUs(conf.Threads()), conf.Threads()})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n--cpus=%d: %d threads\n", why, sizing.CPUs(conf.Threads()), conf.Threads())
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// loadOcclumJSON reads a file, or the one of an instance directory.
func loadOcclumJSON(name string) (*occlumconf.Config, error) {
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		name = filepath.Join(name, "Occlum.json")
	}
	conf, err := occlumconf.Load(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &attest.Error{Code: attest.CodeUsage, Err: err, Hint: "Name an Occlum.json, or the directory of an instance."}
	}
	if err != nil {
		return nil, &attest.Error{Code: attest.CodeConfig, Err: err, Hint: "See sesame occlum check."}
	}
	return conf, nil
}

// printFindings prints what was found, and fails if an error is among it.
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
