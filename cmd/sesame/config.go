package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/boundedfile"
	"github.com/sesame-init/sesame/internal/config"
	"github.com/sesame-init/sesame/internal/rootfs"
)

func configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check the measured config of init",
	}
	cmd.AddCommand(configCheckCommand())
	return cmd
}

func configCheckCommand() *cobra.Command {
	var asJSON bool
	var initfs string
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Report every error in an init_ra_conf.json",
		Long: `check reads an init_ra_conf.json, in Sesame's own format or in Occlum's, as init reads it at boot. If there are
errors, it prints a line for each, with the key and what to write, and exits with 1. If init would accept the config,
check describes it on standard output and exits with 0. With --initfs it also reads the files that the config names.`,
		Example: "  sesame config check --initfs occlum_tf/initfs occlum_tf/init_ra_conf.json",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := readConfig(args[0])
			if err != nil {
				return &attest.Error{Code: attest.CodeUsage, Err: err, Hint: "Name a readable init_ra_conf.json."}
			}
			c, err := config.Parse(text)
			var problems config.Problems
			if err != nil && !errors.As(err, &problems) {
				return err
			}
			if err == nil && initfs != "" {
				problems = c.CheckFiles(func(name string) ([]byte, error) { return readInitFS(initfs, name) })
			}
			if asJSON {
				return printConfigJSON(cmd.OutOrStdout(), c, problems)
			}
			for _, p := range problems {
				fmt.Fprintln(cmd.OutOrStdout(), p)
			}
			if len(problems) > 0 {
				return errQuiet
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: backend %s, asks for %d secrets\n", args[0], c.Backend, len(c.SecretNames()))
			for _, remark := range c.Remarks() {
				fmt.Fprintln(cmd.OutOrStdout(), "remark: "+remark)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	cmd.Flags().StringVar(&initfs, "initfs", "", "`directory` of the initfs")
	return cmd
}

// readInitFS reads a file as init will, in an initfs that is still a directory.
func readInitFS(dir, name string) ([]byte, error) {
	host := rootfs.Resolve(dir, name)
	if host == "" {
		return nil, fmt.Errorf("%s is not in %s", name, dir)
	}
	return boundedfile.Read(host, 1<<20)
}

func printConfigJSON(w io.Writer, c *config.Config, problems config.Problems) error {
	result := struct {
		OK       bool             `json:"ok"`
		Problems []config.Problem `json:"problems"`
		Remarks  []string         `json:"remarks"`
	}{OK: len(problems) == 0, Problems: problems}
	if c != nil {
		result.Remarks = c.Remarks()
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(result); err != nil {
		return err
	}
	if !result.OK {
		return errQuiet
	}
	return nil
}

func readConfig(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, config.MaxSize+1))
}
