package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/maa"
	"github.com/sesame-init/sesame/attest/policy"
)

func maaCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "maa",
		Short: "Prepare Azure Key Vault for enclaves attested by Microsoft Azure Attestation",
	}
	cmd.AddCommand(maaReleasePolicyCommand())
	return cmd
}

func maaReleasePolicyCommand() *cobra.Command {
	var authority, mrenclave, mrsigner string
	var product, svn uint16
	cmd := &cobra.Command{
		Use:   "release-policy",
		Short: "Print the release policy of a key that only these enclaves get",
		Long: `release-policy prints the JSON that "az keyvault key create --policy" takes. Name the enclave by its
MRENCLAVE, or by its signer with product id and minimum SVN; "occlum print mrenclave" and "occlum print mrsigner"
print the values. Debug enclaves are refused by the policy always.`,
		Example: "  sesame maa release-policy --authority https://sharedweu.weu.attest.azure.net --mrsigner 3e7d… --product-id 200 --min-svn 1",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var want policy.SGX
			for flag, to := range map[string]*policy.Hex{"mrenclave": &want.MREnclave, "mrsigner": &want.MRSigner} {
				if value := cmd.Flag(flag).Value.String(); value != "" {
					if err := to.UnmarshalText([]byte(value)); err != nil {
						return &attest.Error{Code: attest.CodeUsage, Step: "--" + flag, Err: err, Hint: "Give 64 hexadecimal digits."}
					}
				}
			}
			if cmd.Flag("product-id").Changed {
				want.ProductID = &product
			}
			if cmd.Flag("min-svn").Changed {
				want.MinSVN = &svn
			}
			text, err := maa.ReleasePolicy(authority, []policy.SGX{want})
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), string(text))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&authority, "authority", "", "the MAA instance, https://NAME.REGION.attest.azure.net")
	f.StringVar(&mrenclave, "mrenclave", "", "measurement of the enclave, 64 hexadecimal digits")
	f.StringVar(&mrsigner, "mrsigner", "", "signer of the enclave, 64 hexadecimal digits")
	f.Uint16Var(&product, "product-id", 0, "product id of the enclave")
	f.Uint16Var(&svn, "min-svn", 0, "least SVN of the enclave")
	return cmd
}
