package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/admin"
	"github.com/sesame-init/sesame/internal/broker/admin/adminpb"
	"github.com/sesame-init/sesame/internal/broker/keystore"
)

func secretCommand() *cobra.Command {
	link := &brokerLink{}
	cmd := &cobra.Command{
		Use:   "secret",
		Short: "Give secrets to a key broker, rotate, withdraw and list them",
		Long:  "Values go to the broker and never come back: list shows names, versions and times." + linkHelp,
	}
	link.flags(cmd)
	cmd.AddCommand(secretPutCommand(link), secretGenerateCommand(link), secretRotateCommand(link), secretListCommand(link),
		secretWithdrawCommand(link), secretDeleteCommand(link))
	return cmd
}

// valueFlags name the source of a value. A value is never on the command line, which other users can read.
type valueFlags struct {
	file  string
	stdin bool
	kind  string
}

func (v *valueFlags) flags(cmd *cobra.Command, kind, kindIs string) {
	cmd.Flags().StringVar(&v.file, "file", "", "file with the value, taken as it is; a private one (chmod 600)")
	cmd.Flags().BoolVar(&v.stdin, "stdin", false, "read the value from standard input")
	cmd.Flags().StringVar(&v.kind, "kind", kind, "value, image-key, random, x509 or tf-ssl-config"+kindIs)
}

func (v *valueFlags) read(cmd *cobra.Command) (attest.Secret, error) {
	if (v.file == "") == !v.stdin {
		return attest.Secret{}, usage("Give one of --file and --stdin.", "needs exactly one of --file and --stdin")
	}
	in := cmd.InOrStdin()
	if v.file != "" {
		f, err := private(cmd).Open(v.file)
		if err != nil {
			return attest.Secret{}, usage("", "%w", err)
		}
		defer f.Close()
		in = f
	}
	return readSecret(in, keystore.MaxValue)
}

func readSecret(in io.Reader, limit int64) (attest.Secret, error) {
	text, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err == nil && (len(text) == 0 || int64(len(text)) > limit) {
		err = fmt.Errorf("it has %d bytes, want 1 to %d", len(text), limit)
	}
	if err != nil {
		clear(text)
		return attest.Secret{}, usage("", "reading the value: %w", err)
	}
	return attest.NewSecret(text), nil
}

func secretPutCommand(link *brokerLink) *cobra.Command {
	var v valueFlags
	cmd := &cobra.Command{
		Use:     "put NAME --file F|--stdin",
		Short:   "Give the broker a new secret, and print its version",
		Example: "  sesame secret put model_key --kind image-key --file model.key",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE:    func(cmd *cobra.Command, args []string) error { return putSecret(cmd, link, &v, args[0], false) },
	}
	v.flags(cmd, string(keystore.Value), "")
	return cmd
}

func secretRotateCommand(link *brokerLink) *cobra.Command {
	var v valueFlags
	cmd := &cobra.Command{
		Use:   "rotate NAME --file F|--stdin",
		Short: "Give the broker a new version of a secret, and print its id",
		Long: `The broker releases the new version from now on. The old one stays valid until you withdraw it: a policy may name it, and
it is released again if you withdraw the newer ones. If the broker should make the new value, use generate --rotate.`,
		Example: "  sesame secret rotate ssl_config --file ssl.cfg",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE:    func(cmd *cobra.Command, args []string) error { return putSecret(cmd, link, &v, args[0], true) },
	}
	v.flags(cmd, "", " (default: that of the newest version)")
	return cmd
}

// newestKind is the kind of a secret's newest version, or that of a plain value if there is no such secret, which the broker
// then refuses.
func newestKind(ctx context.Context, c *admin.Client, name string) (string, error) {
	reply, err := c.ListSecrets(ctx, &adminpb.ListSecretsRequest{})
	if err != nil {
		return "", err
	}
	for _, s := range reply.GetSecrets() {
		if versions := s.GetVersions(); s.GetName() == name && len(versions) > 0 {
			return versions[len(versions)-1].GetKind(), nil
		}
	}
	return string(keystore.Value), nil
}

func putSecret(cmd *cobra.Command, link *brokerLink, v *valueFlags, name string, rotate bool) error {
	value, err := v.read(cmd)
	if err != nil {
		return err
	}
	defer value.Wipe()
	return link.with(cmd, func(ctx context.Context, c *admin.Client) error {
		if v.kind == "" {
			var err error
			if v.kind, err = newestKind(ctx, c, name); err != nil {
				return err
			}
		}
		reply, err := c.PutSecret(ctx, &adminpb.PutSecretRequest{Name: name, Kind: v.kind, Rotate: rotate,
			Value: &adminpb.PutSecretRequest_Content{Content: value.Expose()}})
		if err == nil {
			fmt.Fprintln(cmd.OutOrStdout(), reply.GetVersion())
		}
		return err
	})
}

func secretGenerateCommand(link *brokerLink) *cobra.Command {
	var kind, out string
	var rotate bool
	recipe := &adminpb.Recipe{}
	cmd := &cobra.Command{
		Use:   "generate NAME --kind KIND",
		Short: "Have the broker make a secret that no one else ever sees, and print its version",
		Long: `KIND is image-key (16 bytes in Occlum's form), random (--size bytes), x509 (a P-256 key and a certificate for --name,
in PEM) or tf-ssl-config (the same as TensorFlow Serving's ssl_config). The certificate, which clients pin, goes to --out.`,
		Example: `  sesame secret generate model_key --kind image-key
  sesame secret generate ssl_config --kind tf-ssl-config --name localhost --out server.crt`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if kind == "" {
				return usage("See "+cmd.CommandPath()+" -h.", "--kind is missing")
			}
			return link.with(cmd, func(ctx context.Context, c *admin.Client) error {
				reply, err := c.PutSecret(ctx, &adminpb.PutSecretRequest{Name: args[0], Kind: kind, Rotate: rotate,
					Value: &adminpb.PutSecretRequest_Recipe{Recipe: recipe}})
				if err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), reply.GetVersion())
				if out != "" {
					return os.WriteFile(out, reply.GetPublic(), 0o644)
				}
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&kind, "kind", "", "image-key, random, x509 or tf-ssl-config (required)")
	f.Int32Var(&recipe.Size, "size", 0, "size of a random secret, in bytes (default 32)")
	f.StringSliceVar(&recipe.Names, "name", nil, "host name or IP address of a certificate (default localhost)")
	f.Int32Var(&recipe.Days, "days", 0, "how many days a certificate is valid (default 365)")
	f.BoolVar(&rotate, "rotate", false, "make a new version of an existing secret")
	f.StringVar(&out, "out", "", "file for the certificate")
	return cmd
}

// secretRow is a secret as list --json prints it.
type secretRow struct {
	Name     string       `json:"name"`
	Releases uint64       `json:"releases"`
	ReadOnly bool         `json:"read_only,omitempty"`
	Versions []versionRow `json:"versions"`
}

type versionRow struct {
	ID        string `json:"id"`
	Kind      string `json:"kind"`
	Created   string `json:"created,omitempty"`
	Withdrawn string `json:"withdrawn,omitempty"`
}

func secretListCommand(link *brokerLink) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "Show names, versions, kinds and times, never values",
		Example: "  sesame secret list",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return link.with(cmd, func(ctx context.Context, c *admin.Client) error {
				reply, err := c.ListSecrets(ctx, &adminpb.ListSecretsRequest{})
				if err != nil {
					return err
				}
				rows := secretRows(reply)
				if asJSON {
					return writeIndented(cmd.OutOrStdout(), rows)
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
				fmt.Fprintln(w, "NAME\tRELEASES\tVERSION\tKIND\tCREATED\tWITHDRAWN")
				for _, r := range rows {
					for i := len(r.Versions) - 1; i >= 0; i-- {
						v := r.Versions[i]
						fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", r.Name, r.Releases, v.ID, v.Kind, v.Created, v.Withdrawn)
					}
				}
				return w.Flush()
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func secretRows(reply *adminpb.ListSecretsReply) []secretRow {
	shown := func(seconds int64) string {
		if seconds == 0 {
			return ""
		}
		return time.Unix(seconds, 0).UTC().Format(time.RFC3339)
	}
	rows := []secretRow{}
	for _, s := range reply.GetSecrets() {
		r := secretRow{Name: s.GetName(), Releases: s.GetReleases(), ReadOnly: s.GetReadOnly()}
		for _, v := range s.GetVersions() {
			r.Versions = append(r.Versions, versionRow{v.GetId(), v.GetKind(), shown(v.GetCreated()), shown(v.GetWithdrawn())})
		}
		rows = append(rows, r)
	}
	return rows
}

func secretWithdrawCommand(link *brokerLink) *cobra.Command {
	return &cobra.Command{
		Use:     "withdraw NAME VERSION",
		Short:   "Make a version of a secret invalid, and erase its value",
		Example: "  sesame secret withdraw ssl_config 3f0c…",
		Args:    usageArgs(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return link.with(cmd, func(ctx context.Context, c *admin.Client) error {
				_, err := c.WithdrawVersion(ctx, &adminpb.WithdrawVersionRequest{Name: args[0], Version: args[1]})
				return err
			})
		},
	}
}

func secretDeleteCommand(link *brokerLink) *cobra.Command {
	return &cobra.Command{
		Use:     "delete NAME",
		Short:   "Remove a secret with all its versions; what is encrypted with it is lost",
		Example: "  sesame secret delete old_key",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return link.with(cmd, func(ctx context.Context, c *admin.Client) error {
				_, err := c.DeleteSecret(ctx, &adminpb.DeleteSecretRequest{Name: args[0]})
				return err
			})
		},
	}
}
