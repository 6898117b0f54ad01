package main

import (
	"crypto/tls"
	"crypto/x509"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
	"github.com/sesame-init/sesame/attest/backend/aecs"
	"github.com/sesame-init/sesame/attest/trust"
	"github.com/sesame-init/sesame/internal/config"
)

// newAECS makes the client of a KubeTEE AECS.
func newAECS(c *config.AECS, attester attest.Attester, t *trust.Trust, now func() time.Time, log *logrus.Logger) (
	backend.Backend, error) {
	settings := aecs.Config{
		Servers: c.Servers, Generation: aecs.Generation(c.Generation), AllowDowngrade: c.AllowDowngrade,
		Plaintext: c.Plaintext,
		Service:   c.Service, Secrets: c.Places(), Attester: attester, UserData: c.UserData,
		Collateral: t.Source(), Verifier: t.Verifier(), Staple: t.Stapled,
		Policy: c.ServerPolicy, NoServerEvidence: c.ServerEvidence == "none",
		Now: now, Logger: log,
	}
	if c.ServerKey != nil {
		settings.ServerKey = (*[32]byte)(c.ServerKey)
	}
	if c.TLS != nil {
		var err error
		if settings.TLS, err = readAECSTLS(c.TLS); err != nil {
			return nil, err
		}
	}
	return aecs.New(settings)
}

func readAECSTLS(c *config.AECSTLS) (*aecs.TLS, error) {
	authorities, err := readCertificates(c.CA)
	if err != nil {
		return nil, err
	}
	t := &aecs.TLS{Roots: x509.NewCertPool(), ServerName: c.ServerName}
	for _, authority := range authorities {
		t.Roots.AddCert(authority)
	}
	if c.Certificate != "" {
		pair, err := tls.LoadX509KeyPair(c.Certificate, c.Key)
		if err != nil {
			return nil, attest.Errorf(attest.CodeConfig, "reading aecs.tls",
				"Put certificate and key in PEM into the initfs before the build, or correct their paths.", "%w", err)
		}
		t.Certificate = &pair
	}
	return t, nil
}
