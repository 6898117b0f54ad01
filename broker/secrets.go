package broker

import (
	"strings"
	"sync"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls/wire"
	"github.com/sesame-init/sesame/attest/ratls/raconfig"
)

// Bounds of the file of secrets.
const (
	maxSecretFile = 16 << 20
	maxSecretName = 255
)

// Secrets are the named secrets that a broker holds in memory. They are safe for concurrent use.
type Secrets struct {
	mu     sync.RWMutex
	byName map[string]attest.Secret
}

// NewSecrets takes ownership of the secrets.
func NewSecrets(byName map[string]attest.Secret) *Secrets { return &Secrets{byName: byName} }

// ParseSecrets reads Occlum's secret_config.json: one JSON object of names and padded standard base64. It wipes
// text. The error's code is [attest.CodeConfig]; it names the secret and never quotes it.
func ParseSecrets(text []byte) (*Secrets, error) {
	const step = "reading secrets"
	const hint = "Write one JSON object of names and base64 strings, as base64 -w 0 prints them."
	defer clear(text)
	members, err := raconfig.Members(text, maxSecretFile)
	if err != nil {
		return nil, attest.Errorf(attest.CodeConfig, step, hint, "%w", err)
	}
	s := NewSecrets(make(map[string]attest.Secret, len(members)))
	for name, raw := range members {
		value, err := wire.DecodeSecret(raw, maxSecretFile) // the wire has the JSON string as it stands in the file
		clear(raw)
		if name == "" || len(name) > maxSecretName || err != nil {
			s.Wipe()
			return nil, attest.Errorf(attest.CodeConfig, step, hint,
				"secret %.40q has no name of 1 to %d bytes or no value in padded standard base64", name, maxSecretName)
		}
		s.byName[name] = value
	}
	return s, nil
}

// Len is the number of secrets.
func (s *Secrets) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.byName)
}

// lookup finds a secret by its exact name, or, since Occlum's server ignores case, by the only name that differs in
// nothing else. It returns the name under which the secret is stored.
func (s *Secrets) lookup(name string) (string, attest.Secret, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if secret, ok := s.byName[name]; ok {
		return name, secret, true
	}
	var found string
	for stored := range s.byName {
		if strings.EqualFold(stored, name) {
			if found != "" {
				return "", attest.Secret{}, false
			}
			found = stored
		}
	}
	return found, s.byName[found], found != ""
}

// Wipe overwrites all secrets and forgets them.
func (s *Secrets) Wipe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, secret := range s.byName {
		secret.Wipe()
	}
	clear(s.byName)
}
