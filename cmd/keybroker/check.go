package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/boundedfile"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/internal/broker/store/postgres"
	"github.com/sesame-init/sesame/internal/broker/store/sqlite"
)

// policyName is the policy in the working folder.
const policyName = "policy.yaml"

func (c *command) checkCommand(usage func(error) error) *cobra.Command {
	return &cobra.Command{
		Use:   "check [POLICY]",
		Short: "Report every error in a policy, or in a folder with Occlum's two files",
		Long: `check reads a policy as the broker would, and reports all errors at once, with line numbers. POLICY is a file, or a
folder with policy.yaml or with Occlum's dynamic_config.json and secret_config.json; the default is the working folder.
If the store and the root key that the policy names already exist, they must be private. The exit status is 0 if the
broker would accept the policy, 1 if it would not, and 64 for wrong usage.`,
		Example: "  keybroker check policy.yaml",
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.MaximumNArgs(1)(cmd, args); err != nil {
				return usage(err)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			path := c.folder
			if len(args) == 1 {
				path = args[0]
			}
			info, err := os.Stat(path)
			if err != nil {
				return usage(err)
			}
			if info.IsDir() {
				if _, err := os.Stat(filepath.Join(path, policyName)); err != nil {
					return c.checkFolder(path)
				}
				path = filepath.Join(path, policyName)
			}
			text, err := readPolicyFile(path)
			if err != nil {
				return err
			}
			p, err := policy.Parse(text)
			if err != nil {
				return err
			}
			if err := c.checkFiles(p.Broker); err != nil {
				return err
			}
			fmt.Fprintf(c.stdout, "sound: version %d, %d workloads, %d secrets\n", p.Version, len(p.Workloads), len(p.Secrets))
			return nil
		},
	}
}

// checkFiles judges the private files that a policy names. What is not there the broker makes.
func (c *command) checkFiles(b policy.Settings) error {
	if b.Store.SQLite != "" {
		if err := sqlite.Check(b.Store.SQLite, c.private(c.warn)); err != nil {
			return err
		}
	}
	if b.Store.Postgres != "" {
		if err := postgres.CheckFiles(b.Store.Postgres, os.Getenv, c.private(c.warn)); err != nil {
			return err
		}
	}
	if b.RootKey.File != "" {
		if err := c.private(c.warn).Check(b.RootKey.File); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (c *command) warn(what ...any) { fmt.Fprintln(c.stderr, append([]any{"warning:"}, what...)...) }

func (c *command) checkFolder(path string) error {
	folder, err := broker.ReadFolder(path, c.private(c.warn))
	if err != nil {
		return err
	}
	defer folder.Wipe()
	fmt.Fprintf(c.stdout, "sound: Occlum's files, %d secrets for every peer that they accept\n", len(folder.Secrets))
	return nil
}

func readPolicyFile(path string) ([]byte, error) {
	return readBounded(path, policy.MaxSize)
}

func readBounded(path string, limit int64) ([]byte, error) {
	text, err := boundedfile.Read(path, limit)
	if err != nil {
		return nil, &attest.Error{Code: attest.CodeConfig, Step: "reading", Err: err}
	}
	return text, nil
}
