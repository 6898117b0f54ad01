package tpm

import (
	"context"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/tpm/tpmconfig"
	"github.com/sesame-init/sesame/attest/trust"
)

// Kind is the attester of machines with a TPM. Its settings are [tpmconfig.Settings].
func Kind() trust.Kind {
	return trust.Kind{
		Type:     attest.TPM,
		Verifier: func(c trust.Config) attest.Verifier { return &Verifier{Certificates: c.Certificates} },
		Open:     open,
	}
}

// open opens the TPM and makes it ready. It measures the config first if the settings say so.
func open(ctx context.Context, o trust.Opening) (trust.Device, error) {
	settings, ok := o.Settings.(*tpmconfig.Settings)
	if !ok {
		return nil, attest.Errorf(attest.CodeInternal, "opening the TPM", "", "it has settings of type %T", o.Settings)
	}
	options := Options{
		Path: settings.Device, PCRs: settings.PCRs, EphemeralAK: settings.EphemeralAK, EK: settings.EndorsementKey,
		Log: settings.EventLog,
	}
	if settings.Certificates != "" {
		var err error
		if options.Chain, err = o.Certificates(settings.Certificates); err != nil {
			return nil, err
		}
	}
	device, err := Open(options)
	if err != nil {
		return nil, err
	}
	if err := prepare(ctx, device, settings.ConfigPCR, o.Config); err != nil {
		_ = device.Close()
		return nil, err
	}
	return device, nil
}

// prepare makes the TPM's keys, for which a chip takes up to half a minute, and measures the config if a register is named.
func prepare(ctx context.Context, device *Device, register *int, digest [32]byte) error {
	if err := device.Prepare(ctx); err != nil || register == nil {
		return err
	}
	now, err := device.Measure(*register, digest)
	if err == nil && now != Measured(digest) {
		err = attest.Errorf(attest.CodeAttester, "measuring the config into the TPM",
			"Start the machine anew: a register is reset by nothing else. If it is used again then, name another config_pcr.",
			"register %d has been used since the start, and not for this config", *register)
	}
	return err
}
