package main

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/maa"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/internal/privatefile"
)

func maaCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "maa",
		Short: "Prepare Azure Key Vault for enclaves attested by Microsoft Azure Attestation",
	}
	cmd.AddCommand(maaReleasePolicyCommand(), maaRootsCommand(), maaWrapCommand())
	return cmd
}

func maaReleasePolicyCommand() *cobra.Command {
	var authority string
	var enclave enclaveFlags
	cmd := &cobra.Command{
		Use:   "release-policy",
		Short: "Print the release policy of a key that only these enclaves get",
		Long: `release-policy prints the JSON that "az keyvault key create --policy" takes. Name the enclave by its
MRENCLAVE, or by its signer with product id and minimum SVN; "occlum print mrenclave" and "occlum print mrsigner"
print the values. The policy always refuses debug enclaves.`,
		Example: "  sesame maa release-policy --authority https://sharedweu.weu.attest.azure.net --mrsigner 3e7d… --product-id 200 --min-svn 1",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			want, err := enclave.read(cmd)
			if err != nil {
				return err
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
	enclave.add(cmd)
	return cmd
}

// enclaveFlags name an enclave on the command line.
type enclaveFlags struct {
	mrenclave, mrsigner string
	product, svn        uint16
}

func (e *enclaveFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&e.mrenclave, "mrenclave", "", "measurement of the enclave, 64 hexadecimal digits")
	f.StringVar(&e.mrsigner, "mrsigner", "", "signer of the enclave, 64 hexadecimal digits")
	f.Uint16Var(&e.product, "product-id", 0, "product id of the enclave")
	f.Uint16Var(&e.svn, "min-svn", 0, "minimum SVN of the enclave")
}

// read is what the flags name; what is not given is not named.
func (e *enclaveFlags) read(cmd *cobra.Command) (want policy.SGX, err error) {
	for flag, to := range map[string]*policy.Hex{"mrenclave": &want.MREnclave, "mrsigner": &want.MRSigner} {
		value := cmd.Flag(flag).Value.String()
		if value == "" {
			continue
		}
		if err := to.UnmarshalText([]byte(value)); err != nil || len(*to) != 32 {
			return want, attest.Errorf(attest.CodeUsage, "--"+flag, "Give 64 hexadecimal digits.", "%q is no measurement", value)
		}
	}
	if cmd.Flag("product-id").Changed {
		want.ProductID = &e.product
	}
	if cmd.Flag("min-svn").Changed {
		want.MinSVN = &e.svn
	}
	return want, nil
}

func maaWrapCommand() *cobra.Command {
	var public, oct string
	cmd := &cobra.Command{
		Use:   "wrap (--rsa-public FILE | --oct-key FILE) SECRET",
		Short: "Wrap a secret with a key of the vault, as a blob for maa.keys",
		Long: `wrap prints a secret, wrapped with a key that the vault releases, for the member "blob" of maa.keys. If there is no
blob, the secret is the vault's key itself; with a blob, one key opens secrets of any kind, up to 1 MiB each.
SECRET is a file, or "-" for standard input. Nothing is sent anywhere. For an RSA key you need only the public part
("az keyvault key download"); an oct key is the file that you imported into the vault, 16, 24 or 32 raw bytes.`,
		Example: "  az keyvault key download --vault-name models -n kek -f kek.pem\n  sesame maa wrap --rsa-public kek.pem ssl.cfg",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (public == "") == (oct == "") {
				return attest.Errorf(attest.CodeUsage, "sesame maa wrap", "Give one of the two.", "give --rsa-public or --oct-key")
			}
			text, err := readInput(cmd, args[0], private(cmd))
			if err != nil {
				return &attest.Error{Code: attest.CodeUsage, Step: "reading secret", Err: err, Hint: "Name a readable file."}
			}
			secret := attest.NewSecret(text)
			defer secret.Wipe()
			blob, err := wrapBlob(private(cmd), public, oct, secret)
			if err != nil {
				return &attest.Error{Code: attest.CodeSecret, Step: "wrapping secret", Err: err,
					Hint: "The key must be a public RSA key in PEM, or 16, 24 or 32 raw bytes; the secret has between one byte and one MiB."}
			}
			fmt.Fprintln(cmd.OutOrStdout(), blob)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&public, "rsa-public", "", "public part of an RSA key of the vault, PEM")
	f.StringVar(&oct, "oct-key", "", "an oct key that was imported into the vault, raw bytes")
	return cmd
}

func wrapBlob(rule privatefile.Rule, public, oct string, secret attest.Secret) (string, error) {
	if oct != "" {
		text, err := rule.Read(oct, maxInput)
		if err != nil {
			return "", err
		}
		key := attest.NewSecret(text)
		defer key.Wipe()
		return maa.WrapBlobOct(key, secret)
	}
	text, err := readBounded(public)
	if err != nil {
		return "", err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return "", fmt.Errorf("%s is not PEM", public)
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("%s holds no public key: %w", public, err)
	}
	key, ok := parsed.(*rsa.PublicKey)
	if !ok {
		return "", fmt.Errorf("%s holds no RSA key", public)
	}
	return maa.WrapBlob(key, secret)
}
