package config

import (
	"encoding/json"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/ratls/raconfig"
)

// legacyConfig is init_ra_conf.json as Occlum's GRPC-RATLS init reads it, and Sesame's own blocks that may be
// beside its three keys.
type legacyConfig struct {
	Server string          `json:"kms_server"`
	Keys   []legacyKey     `json:"kms_keys"`
	Peer   json.RawMessage `json:"ra_config"`

	Timeout    Duration   `json:"timeout"`
	Root       Root       `json:"root"`
	App        *App       `json:"app"`
	Volumes    []Volume   `json:"volumes"`
	AppTLS     *AppTLS    `json:"app_tls"`
	Collateral Collateral `json:"collateral"`
}

type legacyKey struct {
	Key  string `json:"key"`
	Path string `json:"path"`
}

// imageKeyName is the name under which Occlum's init asks for the image key.
const imageKeyName = "image_key"

// parseLegacyGRPCRATLS turns Occlum's shape into ours. What the shape leaves open, the source of collateral and that
// secrets must not persist, is asked for by name.
func parseLegacyGRPCRATLS(text []byte) (*Config, Problems) {
	var l legacyConfig
	if problems := decodeStrict(text, &l); len(problems) > 0 {
		return nil, problems
	}
	c := &Config{
		Legacy: true, Backend: "grpc-ratls", Timeout: l.Timeout, Root: l.Root, App: l.App, Volumes: l.Volumes,
		AppTLS:     l.AppTLS,
		Collateral: l.Collateral,
		GRPCRATLS:  &GRPCRATLS{Protocol: "legacy"},
	}
	var problems Problems
	if l.Server == "" {
		problems = append(problems, Problem{"kms_server", "is missing", `"host:port"`})
	} else {
		c.GRPCRATLS.Servers = []string{l.Server}
	}
	for _, k := range l.Keys {
		c.Secrets = append(c.Secrets, SecretFile{Name: k.Key, Path: k.Path})
	}
	if l.Peer == nil {
		problems = append(problems, Problem{"ra_config", "is missing", "what the broker must be"})
	} else if peer, err := raconfig.Parse(l.Peer); err != nil {
		problems = append(problems, Problem{"ra_config", err.Error(), attest.HintOf(err)})
	} else {
		c.legacyPolicy = peer
	}
	return c, problems
}
