package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/internal/broker/admin"
	"github.com/sesame-init/sesame/internal/broker/admin/adminpb"
	"github.com/sesame-init/sesame/internal/broker/policy"
)

func policyPushCommand() *cobra.Command {
	link := &brokerLink{}
	cmd := &cobra.Command{
		Use:   "push POLICY",
		Short: "Put a policy in force at a key broker in an enclave",
		Long: `push gives a running broker the policy in the file POLICY. The broker accepts all of it, or nothing. The version must
be higher than that of the policy in force; the broker's own settings stay as they were measured.` + linkHelp,
		Example: "  sesame policy push policy.yaml --context broker.yaml",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := readBounded(args[0])
			if err != nil {
				return err
			}
			p, err := policy.Parse(text) // every fault is said here, with its line
			if err != nil {
				return err
			}
			if err := link.with(cmd, func(ctx context.Context, c *admin.Client) error {
				_, err := c.PushPolicy(ctx, &adminpb.PushPolicyRequest{Text: text})
				return err
			}); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "version %d is in force\n", p.Version)
			return err
		},
	}
	link.flags(cmd)
	return cmd
}
