package main

import (
	"crypto/x509"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/mod/sumdb/note"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/internal/config"
	"github.com/sesame-init/sesame/internal/pki"
)

// newBackend makes the one backend that the config names.
func newBackend(c *config.Config, attester attest.Attester, now func() time.Time, log *logrus.Logger) (backend.Backend, error) {
	if c.Backend == "grpc-ratls" && c.GRPCRATLS.BrokerKey != nil { // a broker without evidence needs no collateral
		return newGRPCRATLS(c, attester, &trust{now: now}, log)
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
		return newAECS(c.AECS, attester, t, log)
	}
	return newGRPCRATLS(c, attester, t, log)
}

func newGRPCRATLS(c *config.Config, attester attest.Attester, t *trust, log *logrus.Logger) (backend.Backend, error) {
	settings := grpcratls.Config{
		Servers: c.GRPCRATLS.Servers, Protocol: grpcratls.Protocol(c.GRPCRATLS.Protocol),
		Attester: attester, Now: t.now, Logger: log,
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
	settings.Verifier, settings.Policy, settings.Staple = t.verifier(t.source), c.BrokerPolicy(), t.staple
	return grpcratls.New(settings)
}

// trust is what evidence of peers is verified with.
type trust struct {
	config config.Collateral
	roots  []*x509.Certificate // empty: Intel's
	source dcap.Source
	now    func() time.Time
}

func newTrust(c config.Collateral, now func() time.Time, log *logrus.Logger) (*trust, error) {
	t := &trust{config: c, now: now}
	var err error
	if c.RootCA != "" {
		if t.roots, err = readCertificates(c.RootCA); err != nil {
			return nil, err
		}
		log.Warnf("trust root is %s from %s, not Intel's: this is not for production", t.roots[0].Subject.CommonName, c.RootCA)
	}
	t.source, err = collateralSource(c, t.roots, now)
	return t, err
}

func (t *trust) verifier(source dcap.Source) attest.Verifier {
	return peerVerifier(dcap.NewVerifier(dcap.Config{
		Roots: t.roots, Source: source, MinimumEvaluation: t.config.MinimumTCBEvaluation,
		MinimumRootCRLNumber: t.config.MinimumRootCRL, MinimumPCKCRLNumber: t.config.MinimumPCKCRL,
	}))
}

// staple verifies with the collateral that came with the evidence.
func (t *trust) staple(c *dcap.Collateral) attest.Verifier { return t.verifier(pccs.Stapled(c)) }

func collateralSource(c config.Collateral, roots []*x509.Certificate, now func() time.Time) (dcap.Source, error) {
	pc := pccs.Config{URL: c.PCCSURL, AllowHTTP: c.AllowHTTP, Roots: roots, Now: now}
	if c.PCCSCA != "" {
		certificates, err := readCertificates(c.PCCSCA)
		if err != nil {
			return nil, err
		}
		pc.RootCAs = pki.Pool(certificates)
	}
	return pccs.New(pc)
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	certificates, err := pki.ReadCertificates(path)
	if err != nil {
		return nil, attest.Errorf(attest.CodeConfig, "reading certificates",
			"Put the PEM file into the initfs before the build, or correct its path in the config.", "%w", err)
	}
	return certificates, nil
}
