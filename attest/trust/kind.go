package trust

import (
	"context"
	"crypto/x509"
	"io"

	"github.com/sesame-init/sesame/attest"
)

// A Kind is an attester: all that programs need to make and to verify its evidence. What its claims say is in their type
// ([attest.Details]), what a policy can want of them in the attester's entry (attest/policy).
type Kind struct {
	Type attest.EvidenceType
	// Verifier verifies evidence of the type. It is nil for evidence that is a quote, which every [Trust] verifies.
	Verifier func(Config) attest.Verifier
	// Open opens the attester of the machine that the program runs on. It fails with [attest.CodeAttester], and with
	// [attest.CodeConfig] if a file that the settings name is wrong.
	Open func(ctx context.Context, o Opening) (Device, error)
}

// Opening is what an attester is opened with.
type Opening struct {
	// Settings is the block of init's config that has the attester's name. Nil if there are no settings.
	Settings any
	// Config is the SHA-256 of init's config, which some attesters can measure.
	Config [32]byte
	// Certificates reads a PEM file that the settings name.
	Certificates func(path string) ([]*x509.Certificate, error)
}

// A Device is an attester that keeps a device open.
type Device interface {
	attest.Attester
	io.Closer
}
