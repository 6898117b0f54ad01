//go:build plainlinux

package main

import (
	"context"
	"io"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/attesters"
	"github.com/sesame-init/sesame/attest/cvm"
	"github.com/sesame-init/sesame/attest/tpm"
	"github.com/sesame-init/sesame/attest/trust"
	"github.com/sesame-init/sesame/internal/config"
)

// attester is an [attest.Attester] that keeps a device open.
type attester interface {
	attest.Attester
	io.Closer
}

// openAttester opens the one that the config names. A TPM measures the config first if it says so.
func openAttester(ctx context.Context, c *config.Config, digest [32]byte) (attester, error) {
	switch c.Attester {
	case attest.TDX:
		return cvm.OpenTDX()
	case attest.SNP:
		return cvm.OpenSNP()
	}
	options := tpm.Options{
		Path: c.TPM.Device, PCRs: c.TPM.PCRs, EphemeralAK: c.TPM.EphemeralAK, EK: c.TPM.EndorsementKey, Log: c.TPM.EventLog,
	}
	if c.TPM.Certificates != "" {
		var err error
		if options.Chain, err = readCertificates(c.TPM.Certificates); err != nil {
			return nil, err
		}
	}
	device, err := tpm.Open(options)
	if err != nil {
		return nil, err
	}
	if err := prepareTPM(ctx, c, device, digest); err != nil {
		_ = device.Close()
		return nil, err
	}
	return device, nil
}

// prepareTPM makes the TPM's keys, for which a chip takes up to half a minute, and measures the config if it says so.
func prepareTPM(ctx context.Context, c *config.Config, device *tpm.Device, digest [32]byte) error {
	if err := device.Prepare(ctx); err != nil || c.TPM.ConfigPCR == nil {
		return err
	}
	register := *c.TPM.ConfigPCR
	now, err := device.Measure(register, digest)
	if err == nil && now != tpm.Measured(digest) {
		err = attest.Errorf(attest.CodeAttester, "measuring the config into the TPM",
			"Start the machine anew: a register is reset by nothing else. If it is used again then, name another config_pcr.",
			"register %d has been used since the start, and not for this config", register)
	}
	return err
}

// peers are the kinds of evidence, beside quotes, that a broker may prove itself with.
func peers() []trust.Kind { return attesters.All() }
