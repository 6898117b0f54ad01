package config

import (
	"github.com/sesame-init/sesame/attest/backend/aecs"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/backend/maa"
	"github.com/sesame-init/sesame/internal/kind"
)

// Backends are the backends that a config can choose. To add one, add a line.
func Backends() []kind.Kind {
	return []kind.Kind{
		grpcratls.Kind(),
		maa.Kind(),
		maa.TokenKind(),
		aecs.Kind(),
	}
}
