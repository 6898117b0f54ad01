package main

import (
	"context"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/broker/store"
)

func openPostgres(context.Context, string) (store.Store, error) {
	return nil, attest.Errorf(attest.CodeConfig, "opening the store", "Name an embedded store (broker.store.sqlite).", "this build knows no PostgreSQL")
}
