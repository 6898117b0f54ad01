package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/admin"
	"github.com/sesame-init/sesame/internal/broker/admin/adminpb"
	"github.com/sesame-init/sesame/internal/privatefile"
)

func rootkeyCommand() *cobra.Command {
	link := &brokerLink{}
	cmd := &cobra.Command{
		Use:   "rootkey",
		Short: "Protect the root key of a key broker's store, and unlock it",
		Long: `A broker opens its store by itself, with a key from its processor or from a key file. On another machine, or after an
upgrade, that key differs. Then either a running replica hands the root key over, or operators unlock the store with
shares or a passphrase. Make one of the two before you need it.` + linkHelp,
	}
	link.flags(cmd)
	cmd.AddCommand(rootkeyListCommand(link), rootkeySharesCommand(link), rootkeyPassphraseCommand(link),
		rootkeyUnlockCommand(link), rootkeyRemoveCommand(link))
	return cmd
}

func rootkeyListCommand(link *brokerLink) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "Show whether the store is open, and how its root key is protected",
		Example: "  sesame rootkey list",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return link.with(cmd, func(ctx context.Context, c *admin.Client) error {
				s, err := c.Status(ctx, &adminpb.StatusRequest{})
				if err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				state := "open"
				if s.GetLocked() != "" {
					state = "locked: " + s.GetLocked()
				}
				fmt.Fprintf(out, "store %s, %s\n", s.GetStore(), state)
				if s.GetLogKey() != "" {
					fmt.Fprintf(out, "log key %s\n", s.GetLogKey())
				}
				w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
				fmt.Fprintln(w, "SLOT\tKIND\tCREATED")
				for _, slot := range s.GetSlots() {
					fmt.Fprintf(w, "%s\t%s\t%s\n", slot.GetId(), slot.GetKind(), time.Unix(slot.GetCreated(), 0).UTC().Format(time.RFC3339))
				}
				return w.Flush()
			})
		},
	}
}

func rootkeySharesCommand(link *brokerLink) *cobra.Command {
	var threshold, number int32
	var dir string
	cmd := &cobra.Command{
		Use:   "shares --threshold K --number N --out DIR",
		Short: "Split a key into N shares, any K of which unlock the store",
		Long: `Each share is written to its own file in DIR. Give one to each operator, then delete the files. If a share is wrong,
the broker says so when it is used.`,
		Example: "  sesame rootkey shares --threshold 3 --number 5 --out shares",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return usage("See "+cmd.CommandPath()+" -h.", "--out is missing")
			}
			if err := os.Mkdir(dir, 0o700); err != nil { // before the broker makes any
				return usage("Name a folder that does not exist yet.", "%w", err)
			}
			return link.with(cmd, func(ctx context.Context, c *admin.Client) error {
				reply, err := c.Protect(ctx, &adminpb.ProtectRequest{By: &adminpb.ProtectRequest_Split{
					Split: &adminpb.Split{Threshold: threshold, Number: number}}})
				if err != nil {
					return err
				}
				for i, share := range reply.GetShares() {
					err := privatefile.Create(filepath.Join(dir, fmt.Sprintf("share-%d", i+1)), append(share, '\n'))
					clear(share)
					if err != nil {
						return err
					}
				}
				fmt.Fprintf(cmd.OutOrStdout(), "slot %s: %d shares in %s, any %d of them unlock\n", reply.GetSlot().GetId(), number, dir, threshold)
				return nil
			})
		},
	}
	cmd.Flags().Int32Var(&threshold, "threshold", 3, "number of shares needed to unlock")
	cmd.Flags().Int32Var(&number, "number", 5, "number of shares to make")
	cmd.Flags().StringVar(&dir, "out", "", "new folder for the shares (required)")
	return cmd
}

func rootkeyPassphraseCommand(link *brokerLink) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:     "passphrase",
		Short:   "Also protect the root key with a passphrase",
		Example: "  sesame rootkey passphrase",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			passphrase, err := readPassphrase(cmd, file, true)
			if err != nil {
				return err
			}
			defer passphrase.Wipe()
			return link.with(cmd, func(ctx context.Context, c *admin.Client) error {
				reply, err := c.Protect(ctx, &adminpb.ProtectRequest{By: &adminpb.ProtectRequest_Passphrase{Passphrase: passphrase.Expose()}})
				if err == nil {
					fmt.Fprintf(cmd.OutOrStdout(), "slot %s\n", reply.GetSlot().GetId())
				}
				return err
			})
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "file with the passphrase (default: ask, or standard input)")
	return cmd
}

func rootkeyUnlockCommand(link *brokerLink) *cobra.Command {
	var passphraseFile, shareFile string
	cmd := &cobra.Command{
		Use:   "unlock [--share FILE | --passphrase-file FILE]",
		Short: "Unlock the store with a passphrase, or with one share after the other",
		Long:  "If you give no flags, unlock asks for the passphrase. Several operators may give their shares, one command each.",
		Example: `  sesame rootkey unlock --share share-2
  sesame rootkey unlock`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if passphraseFile != "" && shareFile != "" {
				return usage("See "+cmd.CommandPath()+" -h.", "a share or a passphrase, not both")
			}
			request := &adminpb.UnlockRequest{}
			if shareFile != "" {
				text, err := private(cmd).Read(shareFile, maxInput)
				defer clear(text)
				if err != nil {
					return usage("", "%w", err)
				}
				request.By = &adminpb.UnlockRequest_Share{Share: bytes.TrimSpace(text)}
			} else {
				passphrase, err := readPassphrase(cmd, passphraseFile, false)
				if err != nil {
					return err
				}
				defer passphrase.Wipe()
				request.By = &adminpb.UnlockRequest_Passphrase{Passphrase: passphrase.Expose()}
			}
			return link.with(cmd, func(ctx context.Context, c *admin.Client) error {
				reply, err := c.Unlock(ctx, request)
				if err != nil {
					return err
				}
				if n := reply.GetMissing(); n > 0 {
					fmt.Fprintf(cmd.OutOrStdout(), "the share is right; %d more needed\n", n)
					return nil
				}
				fmt.Fprintln(cmd.OutOrStdout(), "unlocked")
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&passphraseFile, "passphrase-file", "", "file with the passphrase")
	cmd.Flags().StringVar(&shareFile, "share", "", "file with a share")
	return cmd
}

func rootkeyRemoveCommand(link *brokerLink) *cobra.Command {
	return &cobra.Command{
		Use:     "remove SLOT",
		Short:   "Remove a way to unlock the store; the last one stays",
		Example: "  sesame rootkey remove 0f3a…",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return link.with(cmd, func(ctx context.Context, c *admin.Client) error {
				_, err := c.RemoveSlot(ctx, &adminpb.RemoveSlotRequest{Id: args[0]})
				return err
			})
		},
	}
}

// readPassphrase takes it from a file, from the terminal, or from standard input; without the line's end.
func readPassphrase(cmd *cobra.Command, file string, twice bool) (attest.Secret, error) {
	if in, ok := cmd.InOrStdin().(*os.File); ok && file == "" && term.IsTerminal(int(in.Fd())) {
		ask := func(prompt string) (attest.Secret, error) {
			fmt.Fprint(cmd.ErrOrStderr(), prompt)
			text, err := term.ReadPassword(int(in.Fd()))
			fmt.Fprintln(cmd.ErrOrStderr())
			return attest.NewSecret(text), err
		}
		first, err := ask("Passphrase: ")
		if err != nil || !twice {
			return first, err
		}
		second, err := ask("Once more: ")
		defer second.Wipe()
		if err == nil && !first.Equal(second) {
			first.Wipe()
			err = usage("", "they differ")
		}
		return first, err
	}
	in := cmd.InOrStdin()
	if file != "" {
		f, err := private(cmd).Open(file)
		if err != nil {
			return attest.Secret{}, usage("", "%w", err)
		}
		defer f.Close()
		in = f
	}
	text, err := readSecret(in, 4096)
	if err != nil {
		return text, err
	}
	return attest.NewSecret(bytes.TrimRight(text.Expose(), "\r\n")), nil
}
