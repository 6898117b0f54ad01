package broker

import (
	"context"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls/wire"
	"github.com/sesame-init/sesame/attest/ratls/raconfig"
)

// Bounds of the file of secrets.
const (
	maxSecretFile = 16 << 20
	maxSecretName = 255
)

// maxRemembered bounds the decisions whose repetition a Memory recognises.
const maxRemembered = 4096

// Memory is a [Keeper] for Occlum's secret_config.json. It holds secrets and release counts in memory and keeps no
// release log: its decisions are lines of the program's log, which nothing protects, its receipts prove nothing and
// have no checkpoint, and counts begin anew with every start.
type Memory struct {
	log logrus.FieldLogger

	mu      sync.Mutex
	byName  map[string]attest.Secret
	counts  map[string]uint64
	entries uint64
	known   map[[32]byte]uint64 // binders of releases, to their entries
	order   [][32]byte          // of known, the oldest first
	version uint64
	digest  [32]byte
}

var _ Keeper = (*Memory)(nil)

// NewMemory takes ownership of the secrets.
func NewMemory(secrets map[string]attest.Secret, log logrus.FieldLogger) *Memory {
	return &Memory{log: log, byName: secrets, counts: map[string]uint64{}, known: map[[32]byte]uint64{}}
}

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

// Len is the number of secrets.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.byName)
}

// Resolve implements [Keeper].
func (m *Memory) Resolve(_ context.Context, name string) (string, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.byName[name]; ok {
		return name, true, nil
	}
	found := ""
	for stored := range m.byName {
		if strings.EqualFold(stored, name) {
			if found != "" {
				return "", false, nil
			}
			found = stored
		}
	}
	return found, found != "", nil
}

// Release implements [Keeper].
func (m *Memory) Release(_ context.Context, d Decision) ([]attest.Secret, Receipt, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	const step = "releasing secrets"
	if d.Fresh != nil && !d.Fresh() {
		return nil, Receipt{}, ErrStale
	}
	for _, g := range d.Grants {
		if _, ok := m.byName[g.Secret]; !ok {
			return nil, Receipt{}, attest.Errorf(attest.CodeSecret, step, "", "there is no secret %s", g.Secret)
		}
	}
	index, again := m.known[d.Binder]
	if !again {
		for _, g := range d.Grants {
			if err := g.Exhausted(m.counts[g.Secret]); err != nil {
				m.record(d, "limit")
				return nil, Receipt{}, err
			}
		}
		for _, g := range d.Grants {
			m.counts[g.Secret]++
		}
		index = m.record(d, "released")
		m.remember(d.Binder, index)
	}
	out := make([]attest.Secret, len(d.Grants))
	for i, g := range d.Grants {
		out[i] = attest.NewSecret(append([]byte(nil), m.byName[g.Secret].Expose()...))
	}
	return out, Receipt{Index: index}, nil
}

func (m *Memory) remember(binder [32]byte, index uint64) {
	if len(m.order) == maxRemembered {
		delete(m.known, m.order[0])
		m.order = m.order[1:]
	}
	m.known[binder] = index
	m.order = append(m.order, binder)
}

// Refuse implements [Keeper].
func (m *Memory) Refuse(_ context.Context, d Decision) (Receipt, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Receipt{Index: m.record(d, "refused")}, nil
}

// record numbers a decision. Its line in the log is the server's.
func (m *Memory) record(d Decision, outcome string) uint64 {
	index := m.entries
	m.entries++
	m.log.WithFields(logrus.Fields{"entry": index, "outcome": outcome, "wire": d.Wire}).Debug("decision")
	return index
}

// Adopt implements [Keeper].
func (m *Memory) Adopt(_ context.Context, a Adoption) (Receipt, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.Pinned && (a.Version < m.version || a.Version == m.version && m.version != 0 && a.Digest != m.digest) {
		return Receipt{}, attest.Errorf(attest.CodeConfig, "checking version", "Give the policy a higher version.",
			"version %d does not follow version %d", a.Version, m.version)
	}
	if a.Version >= m.version {
		m.version, m.digest = a.Version, a.Digest
	}
	index := m.entries
	m.entries++
	return Receipt{Index: index}, nil
}

// Ready implements [Keeper].
func (m *Memory) Ready(context.Context) error { return nil }

// Wipe overwrites all secrets and forgets them.
func (m *Memory) Wipe() {
	m.mu.Lock()
	defer m.mu.Unlock()
	wipe(m.byName)
}
