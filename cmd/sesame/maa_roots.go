package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
)

// azureRoot is a root below which Azure's services have their certificates, by the SHA-256 of its DER
// ("Azure Certificate Authority details").
type azureRoot struct{ name, sha256 string }

func azureRoots() []azureRoot {
	return []azureRoot{
		{"DigiCert Global Root CA", "4348a0e9444c78cb265e058d5e8944b4d84f9662bd26db257f8934a443c70161"},
		{"DigiCert Global Root G2", "cb3ccbb76031e5e0138f8dd39a23f9de47ffc35e43c1144cea27d46a5ab1cb5f"},
		{"DigiCert Global Root G3", "31ad6648f8104138c738f39ea4320133393e3a18cc02296ef97c2ac9ef6731d0"},
		{"DigiCert TLS ECC P384 Root G5", "018e13f0772532cf809bd1b17281867283fc48c6e13be9c69812854a490c1b05"},
		{"DigiCert TLS RSA4096 Root G5", "371a00dc0533b3721a7eeb40e8419e70799d2b0a0f2c1d80693165f7cec4ad75"},
		{"Microsoft ECC Root Certificate Authority 2017", "358df39d764af9e1b766e9c972df352ee15cfac227af6ad1d70e8e4a6edcba02"},
		{"Microsoft RSA Root Certificate Authority 2017", "c741f70f4b2a8d88bf2e71c14122ef53ef10eba0cfa5e64cfa20f418853073e0"},
	}
}

const maxBundle = 8 << 20

func maaRootsCommand() *cobra.Command {
	var bundle string
	cmd := &cobra.Command{
		Use:   "roots",
		Short: "Print the roots of Azure's certificates, for maa.tls_roots",
		Long: `roots finds the roots of Azure's certificates in a CA bundle, by their fingerprints, and prints them in PEM. Put the
output into a file in the initfs: it is measured, and init verifies vault, MAA and Entra only with it. If a root is no
longer in the bundle, roots names it on standard error.`,
		Example: "  sesame maa roots > initfs/etc/sesame/azure_roots.pem",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := os.Open(bundle)
			if err != nil {
				return &attest.Error{Code: attest.CodeUsage, Step: "--bundle", Err: err, Hint: "Name a CA bundle in PEM (Debian package ca-certificates)."}
			}
			defer f.Close()
			text, err := io.ReadAll(io.LimitReader(f, maxBundle))
			if err != nil {
				return &attest.Error{Code: attest.CodeUsage, Step: "--bundle", Err: err, Hint: "Name a CA bundle in PEM."}
			}
			found := pickRoots(text)
			for _, root := range azureRoots() {
				block := found[root.sha256]
				if block == nil {
					fmt.Fprintf(cmd.ErrOrStderr(), "not in %s: %s\n", bundle, root.name)
					continue
				}
				fmt.Fprintf(cmd.OutOrStdout(), "# %s\n%s", root.name, pem.EncodeToMemory(block))
			}
			if len(found) == 0 {
				return attest.Errorf(attest.CodeConfig, "picking roots", "Name another CA bundle by --bundle.", "%s has none of the roots", bundle)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&bundle, "bundle", "/etc/ssl/certs/ca-certificates.crt", "CA bundle in PEM to pick from")
	return cmd
}

// pickRoots are the blocks of a bundle that are Azure's roots, by their fingerprints.
func pickRoots(bundle []byte) map[string]*pem.Block {
	found := map[string]*pem.Block{}
	for {
		var block *pem.Block
		if block, bundle = pem.Decode(bundle); block == nil {
			return found
		}
		sum := sha256.Sum256(block.Bytes)
		fingerprint := hex.EncodeToString(sum[:])
		for _, root := range azureRoots() {
			if root.sha256 == fingerprint {
				found[fingerprint] = &pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes}
			}
		}
	}
}
