package main

import (
	"crypto/x509"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/mod/sumdb/note"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/trust"
	"github.com/sesame-init/sesame/internal/config"
	"github.com/sesame-init/sesame/internal/pki"
)

// newBackend makes the one backend that the config names.
func newBackend(c *config.Config, attester attest.Attester, now func() time.Time, log *logrus.Logger) (backend.Backend, error) {
	if c.Backend == "grpc-ratls" && c.GRPCRATLS.BrokerKey != nil { // a broker without evidence needs no collateral
		return newGRPCRATLS(c, attester, nil, now, log)
	}
	switch c.Backend { // Azure judges the evidence, and these two judge none
	case "maa":
		return newMAA(c.MAA, attester, now, log)
	case "maa-token":
		return newMAAToken(c.MAAToken, attester, now, log)
	}
	t, err := newTrust(c.Collateral, now, log)
	if err != nil {
		return nil, err
	}
	if c.Backend == "aecs" {
		return newAECS(c.AECS, attester, t, now, log)
	}
	return newGRPCRATLS(c, attester, t, now, log)
}

func newGRPCRATLS(c *config.Config, attester attest.Attester, t *trust.Trust, now func() time.Time, log *logrus.Logger) (
	backend.Backend, error) {
	settings := grpcratls.Config{
		Servers: c.GRPCRATLS.Servers, Protocol: grpcratls.Protocol(c.GRPCRATLS.Protocol),
		Attester: attester, Now: now, Logger: log,
	}
	if c.GRPCRATLS.LogKey != "" {
		var err error
		if settings.Log, err = note.NewVerifier(c.GRPCRATLS.LogKey); err != nil {
			return nil, attest.Errorf(attest.CodeConfig, "reading grpc_ratls.log_key", "", "%w", err)
		}
	}
	if c.GRPCRATLS.BrokerKey != nil {
		settings.BrokerKey = c.GRPCRATLS.BrokerKey
		return grpcratls.New(settings)
	}
	settings.Verifier, settings.Policy, settings.Staple = t.Verifier(), c.BrokerPolicy(), t.Stapled
	return grpcratls.New(settings)
}

// newTrust is what evidence of peers is verified with.
func newTrust(c config.Collateral, now func() time.Time, log *logrus.Logger) (*trust.Trust, error) {
	settings := trust.Config{
		MinimumEvaluation: c.MinimumTCBEvaluation, MinimumRootCRL: c.MinimumRootCRL, MinimumPCKCRL: c.MinimumPCKCRL,
		Collateral: trust.Collateral{URL: c.PCCSURL, AllowHTTP: c.AllowHTTP}, Kinds: peers(), Now: now,
	}
	var err error
	if c.RootCA != "" {
		if settings.Roots, err = readCertificates(c.RootCA); err != nil {
			return nil, err
		}
	}
	if c.PCCSCA != "" {
		if settings.Collateral.Authorities, err = readCertificates(c.PCCSCA); err != nil {
			return nil, err
		}
	}
	t, err := trust.New(settings)
	if err != nil {
		return nil, err
	}
	for _, line := range t.Remarks(c.RootCA) {
		log.Warn(line)
	}
	return t, nil
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	certificates, err := pki.ReadCertificates(path)
	if err != nil {
		return nil, attest.Errorf(attest.CodeConfig, "reading certificates",
			"Put the PEM file into the initfs before the build, or correct its path in the config.", "%w", err)
	}
	return certificates, nil
}
