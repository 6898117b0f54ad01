package broker

import (
	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls/wire"
	"github.com/sesame-init/sesame/internal/raconfig"
)

// Bounds of the file of secrets.
const (
	maxSecretFile = 16 << 20
	maxSecretName = 255
)

// ParseSecrets reads Occlum's secret_config.json: one JSON object of names and padded standard base64. It wipes
// text. The error's code is [attest.CodeConfig]; it names the secret and never quotes it.
func ParseSecrets(text []byte) (map[string]attest.Secret, error) {
	const step = "reading secrets"
	const hint = "Write one JSON object of names and base64 strings, as base64 -w 0 prints them."
	defer clear(text)
	members, err := raconfig.Members(text, maxSecretFile)
	if err != nil {
		return nil, attest.Errorf(attest.CodeConfig, step, hint, "%w", err)
	}
	secrets := make(map[string]attest.Secret, len(members))
	for name, raw := range members {
		value, err := wire.DecodeSecret(raw, maxSecretFile) // the wire has the JSON string as the file has it
		clear(raw)
		if name == "" || len(name) > maxSecretName || err != nil {
			wipe(secrets)
			return nil, attest.Errorf(attest.CodeConfig, step, hint,
				"secret %.40q has no name of 1 to %d bytes or no value in padded standard base64", name, maxSecretName)
		}
		secrets[name] = value
	}
	return secrets, nil
}

func wipe(secrets map[string]attest.Secret) {
	for _, s := range secrets {
		s.Wipe()
	}
	clear(secrets)
}
