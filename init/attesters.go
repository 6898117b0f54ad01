//go:build plainlinux

package main

import (
	"context"

	"github.com/sesame-init/sesame/attest/attesters"
	"github.com/sesame-init/sesame/attest/trust"
	"github.com/sesame-init/sesame/internal/config"
)

// openAttester opens the one that the config names.
func openAttester(ctx context.Context, c *config.Config, digest [32]byte) (trust.Device, error) {
	kind, err := attesters.Of(c.Attester)
	if err != nil {
		return nil, err
	}
	return kind.Open(ctx, trust.Opening{Settings: c.AttesterSettings(), Config: digest, Certificates: readCertificates})
}

// peers are the attesters, beside those that make quotes, whose evidence a broker may prove itself with.
func peers() []trust.Kind { return attesters.All() }
