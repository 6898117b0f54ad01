package main

import (
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
	"github.com/sesame-init/sesame/internal/config"
)

func newMAA(*config.MAA, attest.Attester, func() time.Time, *logrus.Logger) (backend.Backend, error) {
	return nil, nil
}

func newMAAToken(*config.MAAToken, attest.Attester, func() time.Time, *logrus.Logger) (backend.Backend, error) {
	return nil, nil
}
