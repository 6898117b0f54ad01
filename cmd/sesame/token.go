package main

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/maa"
	"github.com/sesame-init/sesame/internal/boundedfile"
	"github.com/sesame-init/sesame/internal/privatefile"
)

func tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Verify attestation tokens",
	}
	cmd.AddCommand(tokenVerifyCommand())
	return cmd
}

func tokenVerifyCommand() *cobra.Command {
	var issuer, jwks, ca, at, data string
	var debug, asJSON bool
	var enclave enclaveFlags
	cmd := &cobra.Command{
		Use:   "verify --issuer URL [--jwks FILE] TOKEN",
		Short: "Verify a token of Microsoft Azure Attestation for an SGX enclave",
		Long: `verify checks signature, issuer, dates and type of a token, as a relying party must. TOKEN is a file, or "-" for
standard input. The keys come from the issuer over TLS, or from a file; verify never follows addresses in the token. A
valid token says only that some enclave runs. So name the enclave that you expect by its measurement, or by its signer
with product id and SVN, and what its quote must hold by the report data, the SHA-256 of the attested runtime data. The
exit status is 0 if the token is valid, 1 if it is refused, and 2 for wrong usage.`,
		Example: "  sesame token verify --issuer https://sharedweu.weu.attest.azure.net --mrenclave 3e7d… token.jwt",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			now := time.Now()
			if at != "" {
				var err error
				if now, err = time.Parse(time.RFC3339, at); err != nil {
					return &attest.Error{Code: attest.CodeUsage, Step: "--at", Err: err, Hint: "Write it as 2026-01-31T12:00:00Z."}
				}
			}
			if !strings.HasPrefix(issuer, "https://") {
				return attest.Errorf(attest.CodeUsage, "--issuer", "Name the instance that you trust.", "%q does not begin with https://", issuer)
			}
			want, err := enclave.read(cmd)
			if err != nil {
				return err
			}
			held, err := hex.DecodeString(data)
			if err != nil || len(held) > attest.ReportDataSize {
				return attest.Errorf(attest.CodeUsage, "--report-data", "Give up to 128 hexadecimal digits.", "%q is no report data", data)
			}
			if len(held) > 0 {
				held = append(held, make([]byte, attest.ReportDataSize-len(held))...)
			} else {
				held = nil
			}
			text, err := readInput(cmd, args[0], privatefile.Rule{Unchecked: true}) // a token is to be shown around
			if err != nil {
				return &attest.Error{Code: attest.CodeUsage, Step: "reading token", Err: err, Hint: "Name a readable file."}
			}
			keys, err := tokenKeys(cmd.Context(), issuer, jwks, ca)
			if err != nil {
				return err
			}
			token, err := maa.ParseToken(strings.TrimSpace(string(text)))
			if err == nil {
				err = token.Validate(maa.Expectation{
					Issuer: issuer, Keys: keys, Now: now, Debug: debug,
					ReportData: held, MREnclave: want.MREnclave, MRSigner: want.MRSigner, ProductID: want.ProductID, MinSVN: want.MinSVN,
				})
			}
			if asJSON {
				return printTokenJSON(cmd.OutOrStdout(), token, err)
			}
			if err != nil {
				return err
			}
			c := token.Claims
			fmt.Fprintf(cmd.OutOrStdout(), "valid until %s\nmrenclave %x\nmrsigner %x\n",
				time.Unix(c.Expires, 0).UTC().Format(time.RFC3339), []byte(c.MREnclave), []byte(c.MRSigner))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&issuer, "issuer", "", "the MAA instance, https://NAME.REGION.attest.azure.net")
	f.StringVar(&jwks, "jwks", "", "read the instance's keys from this file instead of asking it")
	f.StringVar(&ca, "ca", "", "verify the instance's TLS certificate with the roots in this PEM file")
	enclave.add(cmd)
	f.StringVar(&data, "report-data", "", "report data of the quote, up to 128 hexadecimal digits, padded with zeros")
	f.StringVar(&at, "at", "", "verify at this time (RFC 3339) instead of now")
	f.BoolVar(&debug, "debug", false, "also accept tokens of debug enclaves")
	f.BoolVar(&asJSON, "json", false, "print verdict, reason and claims as JSON")
	return cmd
}

// readInput reads a file, or standard input if it is "-".
func readInput(cmd *cobra.Command, name string, rule privatefile.Rule) ([]byte, error) {
	if name != "-" {
		return rule.Read(name, maxInput)
	}
	return boundedfile.ReadFrom(cmd.InOrStdin(), "standard input", maxInput)
}

// tokenKeys reads the instance's keys from a file, or asks the instance over TLS to the machine's roots or those in ca.
func tokenKeys(ctx context.Context, issuer, file, ca string) (*maa.KeySet, error) {
	if file != "" {
		text, err := readBounded(file)
		if err != nil {
			return nil, &attest.Error{Code: attest.CodeUsage, Step: "--jwks", Err: err, Hint: "Name a readable file."}
		}
		return maa.ParseKeySet(text)
	}
	network := maa.Network{}
	if ca != "" {
		text, err := readBounded(ca)
		network.Roots = x509.NewCertPool()
		if err == nil && !network.Roots.AppendCertsFromPEM(text) {
			err = errors.New(ca + " holds no certificate")
		}
		if err != nil {
			return nil, &attest.Error{Code: attest.CodeUsage, Step: "--ca", Err: err, Hint: "Name a PEM file."}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return maa.FetchKeySet(ctx, network, issuer)
}

func printTokenJSON(w io.Writer, token *maa.Token, refused error) error {
	result := struct {
		Verdict string      `json:"verdict"`
		Reason  string      `json:"reason,omitempty"`
		Claims  *maa.Claims `json:"claims,omitempty"`
	}{Verdict: "accepted"}
	if refused != nil {
		result.Verdict, result.Reason = "refused", refused.Error()
	} else {
		result.Claims = &token.Claims
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(result); err != nil {
		return err
	}
	if refused != nil {
		return errQuiet
	}
	return nil
}
