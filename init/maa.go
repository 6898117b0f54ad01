package main

import (
	"crypto/x509"
	"encoding/base64"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
	"github.com/sesame-init/sesame/attest/backend/maa"
	"github.com/sesame-init/sesame/internal/config"
)

// newMAA makes the client of Azure Attestation and Key Vault.
func newMAA(c *config.MAA, attester attest.Attester, now func() time.Time, log *logrus.Logger) (backend.Backend, error) {
	network, err := azureNetwork(c.TLSRoots, now, log)
	if err != nil {
		return nil, err
	}
	return maa.New(maa.Config{
		Endpoint: c.Endpoint, Vault: c.Vault, Resource: c.Resource, Keys: c.Keys, AAD: c.AAD,
		APIVersion: c.APIVersion, KeyAPIVersion: c.KeyAPIVersion, KeyBits: *c.KeyBits,
		Attester: attester, Network: network,
	})
}

// newMAAToken makes the drop-in for Occlum's maa_init.
func newMAAToken(c *config.MAAToken, attester attest.Attester, now func() time.Time, log *logrus.Logger) (backend.Backend, error) {
	network, err := azureNetwork(c.TLSRoots, now, log)
	if err != nil {
		return nil, err
	}
	data, err := base64.StdEncoding.DecodeString(c.ReportData)
	if err != nil {
		return nil, attest.Errorf(attest.CodeConfig, "reading MAA_REPORT_DATA", "Give it in standard base64.", "it is not base64")
	}
	return maa.NewTokenOnly(maa.TokenConfig{Endpoint: c.Endpoint, ReportData: data, Attester: attester, Network: network})
}

func azureNetwork(roots string, now func() time.Time, log *logrus.Logger) (maa.Network, error) {
	certificates, err := readCertificates(roots)
	if err != nil {
		return maa.Network{}, err
	}
	pool := x509.NewCertPool()
	for _, certificate := range certificates {
		pool.AddCert(certificate)
	}
	return maa.Network{Roots: pool, Now: now, Logger: log}, nil
}
