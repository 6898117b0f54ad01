package main

import (
	"crypto/x509"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
	"github.com/sesame-init/sesame/attest/trust"
	"github.com/sesame-init/sesame/internal/boundedfile"
	"github.com/sesame-init/sesame/internal/config"
	"github.com/sesame-init/sesame/internal/kind"
	"github.com/sesame-init/sesame/internal/pki"
	"github.com/sesame-init/sesame/internal/privatefile"
)

// maxInitFile bounds the files of the initfs that are read, in bytes.
const maxInitFile = 1 << 20

// newBackend makes the one backend that the config names.
func newBackend(c *config.Config, attester attest.Attester, now func() time.Time, log *logrus.Logger) (backend.Backend, error) {
	return c.Open(kind.Env{
		Attester: attester, Now: now, Logger: log,
		Trust: func() (*trust.Trust, error) { return newTrust(c.Collateral, now, log) },
		Use: kind.Use{
			ReadFile: func(name string) ([]byte, error) { return boundedfile.Read(name, maxInitFile) },
			ReadKey:  func(name string) ([]byte, error) { return private(c, log).Read(name, maxInitFile) },
		},
	})
}

// private is the rule for files with private keys. In Occlum rights are not looked at: there is no other user in the enclave,
// files of the initfs and the image have the rights that packaging wrote (root's, 0644) and are measured, and what protects a
// key from the host is the encryption of the image that it is in. "sesame occlum check" finds one that is in none.
func private(c *config.Config, log *logrus.Logger) privatefile.Rule {
	return privatefile.Rule{Unchecked: c.Platform != config.OnLinux, Remark: func(remark string) { log.Warn(remark) }}
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
