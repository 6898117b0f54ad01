package main

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/tpm"
	"github.com/sesame-init/sesame/internal/pki"
)

func tpmCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "tpm", Short: "Prepare machines that prove themselves by a TPM"}
	cmd.AddCommand(tpmEnrollCommand())
	return cmd
}

// enrolment is what the flags of tpm enroll say.
type enrolment struct {
	device, name, config, certificates string
	pcrs                               []int
	configPCR                          int
	endorsement, keep, asJSON          bool
}

func tpmEnrollCommand() *cobra.Command {
	var e enrolment
	cmd := &cobra.Command{
		Use:   "enroll",
		Short: "Print this machine's entry for the broker's policy",
		Long: `enroll asks the TPM for a quote and prints what a broker's policy needs of it: the attestation key, and the registers
as they are now. Run it on the machine itself, booted as it will be, over a path that you trust: its output decides which
machine gets the secrets.

With --config, enroll does not read the register of --config-pcr but computes it from init's config, which init measures
itself. With --endorsement-key the entry also pins the TPM's endorsement key and has secrets encrypted to it; init's
config then needs "endorsement_key": true. A TPM chip takes up to half a minute to make that key after every boot, unless
you let the TPM keep it with --keep-endorsement-key (at TCG's handle 0x81010001).`,
		Example: "  sesame tpm enroll --pcrs 0,2,4,7 --config /etc/sesame/init.json --config-pcr 12 >entry.yaml",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			entry, err := e.run(cmd)
			if err != nil {
				return err
			}
			out := map[string][]policy.TPM{"tpm": {*entry}}
			var text []byte
			if e.asJSON {
				if text, err = json.MarshalIndent(out, "", "  "); err == nil {
					text = append(text, '\n')
				}
			} else {
				text, err = yaml.Marshal(out)
			}
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&e.device, "device", tpm.DefaultDevice, "the TPM, or the unix socket of a software TPM")
	f.IntSliceVar(&e.pcrs, "pcrs", []int{0, 2, 4, 7}, "registers to pin")
	f.StringVar(&e.name, "name", "", "name of the entry, for people (default: the host's name)")
	f.StringVar(&e.config, "config", "", "init's config, which it measures into the register of --config-pcr")
	f.IntVar(&e.configPCR, "config-pcr", -1, "register that init's config names as config_pcr")
	f.BoolVar(&e.endorsement, "endorsement-key", false, "pin the endorsement key, too, and wrap secrets to it")
	f.BoolVar(&e.keep, "keep-endorsement-key", false, "let the TPM keep the endorsement key instead of making it after every boot")
	f.StringVar(&e.certificates, "certificates", "", "PEM file with the certificates above the endorsement key's, to print its root")
	f.BoolVar(&e.asJSON, "json", false, "print JSON")
	return cmd
}

func (e *enrolment) run(cmd *cobra.Command) (*policy.TPM, error) {
	if (e.config == "") != (e.configPCR < 0) {
		return nil, &attest.Error{Code: attest.CodeUsage, Err: errors.New("--config and --config-pcr belong together"),
			Hint: "See " + cmd.CommandPath() + " -h."}
	}
	chain, err := readChain(e.certificates)
	if err != nil {
		return nil, err
	}
	device, err := tpm.Open(tpm.Options{Path: e.device, EK: e.endorsement || e.certificates != "", Chain: chain})
	if err != nil {
		return nil, err
	}
	defer device.Close()
	switch {
	case e.keep:
		if err := device.KeepEK(); err != nil {
			return nil, err
		}
	case (e.endorsement || e.certificates != "") && !device.HasEK():
		fmt.Fprintln(cmd.ErrOrStderr(), "The TPM makes the endorsement key anew after every boot, which may take half a minute; "+
			"--keep-endorsement-key lets it keep the key.")
	}
	var nonce attest.ReportData
	if _, err := rand.Read(nonce[:]); err != nil {
		return nil, err
	}
	evidence, err := device.Evidence(cmd.Context(), nonce)
	if err != nil {
		return nil, err
	}
	claims, err := new(tpm.Verifier).Verify(cmd.Context(), evidence, time.Now())
	if err != nil {
		return nil, err
	}
	if claims.ReportData != nonce {
		return nil, attest.Errorf(attest.CodeEvidence, "checking the quote", "", "it is not fresh")
	}
	return e.entry(claims.TPM)
}

func (e *enrolment) entry(c *attest.TPMClaims) (*policy.TPM, error) {
	entry := &policy.TPM{Name: e.name, AK: c.AK[:], PCRs: policy.PCRs{}}
	if entry.Name == "" {
		entry.Name, _ = os.Hostname()
	}
	if e.endorsement {
		entry.EK, entry.Wrap = c.EK[:], true
	}
	if e.certificates != "" {
		if c.EKRoot == [32]byte{} {
			return nil, attest.Errorf(attest.CodeEvidence, "reading the endorsement key's certificate",
				"Give every certificate above it, the root last.", "it does not chain to a root in %s", e.certificates)
		}
		entry.EKRoots = []policy.Hex{c.EKRoot[:]}
	}
	for _, i := range e.pcrs {
		value, ok := c.PCRs[i]
		if !ok {
			return nil, &attest.Error{Code: attest.CodeUsage, Err: fmt.Errorf("there is no register %d", i), Hint: "Name registers 0 to 23."}
		}
		entry.PCRs[i] = value[:]
	}
	if e.config != "" {
		text, err := readBounded(e.config)
		if err != nil {
			return nil, err
		}
		value := tpm.Measured(sha256.Sum256(text))
		entry.PCRs[e.configPCR] = value[:]
	}
	p := policy.Policy{TPM: []policy.TPM{*entry}}
	return entry, p.Validate()
}

func readChain(path string) ([]*x509.Certificate, error) {
	if path == "" {
		return nil, nil
	}
	return pki.ReadCertificates(path)
}
