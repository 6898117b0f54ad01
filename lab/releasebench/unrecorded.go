package main

import (
	"bytes"
	"context"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker"
)

// unrecorded is a keeper that releases one secret and records nothing: what a release costs without its log.
type unrecorded struct {
	name   string
	secret []byte
}

var _ broker.Keeper = unrecorded{}

func (u unrecorded) Resolve(_ context.Context, asked string) (string, bool, error) {
	return u.name, asked == u.name, nil
}

func (u unrecorded) Release(_ context.Context, d broker.Decision) ([]attest.Secret, broker.Receipt, error) {
	out := make([]attest.Secret, len(d.Grants))
	for i := range out {
		out[i] = attest.NewSecret(bytes.Clone(u.secret))
	}
	return out, broker.Receipt{}, nil
}

func (unrecorded) Refuse(context.Context, broker.Decision) (broker.Receipt, error) {
	return broker.Receipt{}, nil
}

func (unrecorded) Adopt(context.Context, broker.Adoption) (broker.Receipt, error) {
	return broker.Receipt{}, nil
}

func (unrecorded) Ready(context.Context) error { return nil }
