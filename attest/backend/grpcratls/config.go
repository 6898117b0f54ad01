package grpcratls

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"reflect"

	"golang.org/x/mod/sumdb/note"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/internal/kind"
	"github.com/sesame-init/sesame/internal/raconfig"
)

// Kind is the backend "grpc-ratls": docs/backends/grpc-ratls.md is the manual of its block.
func Kind() kind.Kind {
	return kind.Kind{Name: name, New: func() kind.Block { return &block{} }, Shape: newShape}
}

const (
	name     = "grpc-ratls"
	blockKey = "grpc_ratls"
)

// block configures the key brokers.
type block struct {
	// Servers are addresses host:port, tried in order.
	Servers []string `json:"servers"`
	// Protocol is the wire: "session" is Sesame's own, with fresh evidence on both sides; "legacy" is
	// ratls.GrSecret as Occlum's C++ server speaks it.
	Protocol Protocol `json:"protocol"`
	// BrokerPolicy says what the broker must be.
	BrokerPolicy policy.Policy `json:"broker_policy,omitzero"`
	// BrokerKey pins, instead of BrokerPolicy, a broker outside an enclave, on the key owner's own premises: the
	// SHA-256 of its public key (DER SubjectPublicKeyInfo), as it prints it at its start. Protocol "session" only.
	BrokerKey policy.Hex `json:"broker_key,omitempty"`
	// LogKey is the key of the broker's release log ("NAME+HASH+KEY"). With it, secrets without a valid receipt are
	// refused. Protocol "session" only.
	LogKey string `json:"log_key,omitempty"`

	occlum *shape // what the block was made of, if the config has Occlum's form
}

// config is what the block says, as far as it can be read.
func (b *block) config() Config {
	c := Config{Servers: b.Servers, Protocol: b.Protocol, BrokerKey: b.BrokerKey}
	if b.LogKey != "" {
		c.Log, _ = note.NewVerifier(b.LogKey)
	}
	if b.BrokerKey == nil {
		c.Policy, _ = b.Policy()
	}
	return c
}

// Policy is what the broker must be: broker_policy, or the ra_config of Occlum's form, whose numbers are compared for
// equality.
func (b *block) Policy() (ratls.Appraiser, error) {
	if b.occlum == nil {
		return &b.BrokerPolicy, nil
	}
	peer, err := raconfig.Parse(b.occlum.Peer)
	if err != nil {
		return nil, err
	}
	return peer, nil
}

// Check implements [kind.Block].
func (b *block) Check(use kind.Use, bad kind.Report) {
	own := bad.In(blockKey)
	if b.occlum != nil {
		own = b.occlum.report(bad)
	}
	b.checkText(own)
	c := b.config()
	c.check(own)
	if c.Protocol == Legacy && use.Evidence != attest.SGX {
		own("protocol", `"legacy" knows quotes of enclaves only`, `"session"`)
	}
	if b.BrokerKey == nil && use.CheckTrust != nil {
		use.CheckTrust(bad)
	}
}

// checkText has the rules that only the text of a config can break.
func (b *block) checkText(bad kind.Report) {
	if b.Protocol == "" {
		bad("protocol", "is missing", `"session" or "legacy"`)
	}
	if b.LogKey != "" {
		if _, err := note.NewVerifier(b.LogKey); err != nil {
			bad("log_key", err.Error(), "the line that the broker prints at its start")
		}
	}
	switch none := reflect.ValueOf(b.BrokerPolicy).IsZero(); {
	case b.occlum != nil:
		if _, err := b.Policy(); len(b.occlum.Peer) == 0 {
			bad("broker_policy", "is missing", "what the broker must be")
		} else if err != nil {
			bad("broker_policy", err.Error(), attest.HintOf(err))
		}
	case b.BrokerKey != nil && !none:
		bad("broker_key", "is beside broker_policy", "one of them: a broker in an enclave needs no pinned key")
	case b.BrokerKey == nil:
		for _, entry := range b.BrokerPolicy.LegacyBindings() { // the protocol fixes how a server's evidence is bound
			bad("broker_policy."+entry, "is for policies of an application's clients", "nothing")
		}
	}
}

// check has all other rules, under the keys of the block.
func (c *Config) check(bad kind.Report) {
	bad.CheckServers(c.Servers, "init-ra-server-svc:5000")
	switch c.Protocol {
	case "", SessionV1:
	case Legacy:
		if c.BrokerKey != nil || c.Log != nil {
			bad("protocol", `"legacy" knows neither broker_key nor log_key`, `"session"`)
		}
	default:
		bad("protocol", fmt.Sprintf("%.40q is not a protocol of this build", c.Protocol), `"session" or "legacy"`)
	}
	if c.BrokerKey != nil && len(c.BrokerKey) != sha256.Size {
		bad("broker_key", fmt.Sprintf("has %d bytes", len(c.BrokerKey)), "64 hexadecimal digits")
	}
	if c.Policy != nil {
		if err := policy.CheckServer(c.Policy); err != nil {
			bad("broker_policy", err.Error(), attest.HintOf(err))
		}
	}
}

// Open implements [kind.Block].
func (b *block) Open(env kind.Env) (backend.Backend, error) {
	if err := kind.Check(name, b, env.Use); err != nil {
		return nil, err
	}
	c := b.config()
	c.Attester, c.Now, c.Logger = env.Attester, env.Now, env.Logger
	if c.BrokerKey == nil { // a broker without evidence needs no collateral
		trust, err := env.Trust()
		if err != nil {
			return nil, err
		}
		c.Verifier, c.Staple = trust.Verifier(), trust.Stapled
	}
	return New(c)
}

// serverVariable is the host's. Occlum's init reads it, too.
const serverVariable = "OCCLUM_INIT_RA_KMS_SERVER"

// Host implements [kind.Block].
func (*block) Host() map[string]string {
	return map[string]string{serverVariable: "address of the key broker, host:port"}
}

// Apply implements [kind.Block].
func (b *block) Apply(getenv func(string) string) {
	if v := getenv(serverVariable); v != "" {
		b.Servers = []string{v}
	}
}

// Files implements [kind.Block].
func (*block) Files() map[string]string { return nil }

// Remarks implements [kind.Block].
func (b *block) Remarks() (lines []string) {
	if b.Protocol == Legacy {
		lines = append(lines, "legacy wire: the broker's evidence is not fresh, only its collateral is")
	}
	if b.BrokerKey != nil {
		lines = append(lines, "the broker is known by its key alone: nothing proves what it runs")
	}
	return lines
}

// shape is init_ra_conf.json as Occlum's GRPC-RATLS init reads it.
type shape struct {
	Server string          `json:"kms_server"`
	Keys   []shapeKey      `json:"kms_keys"`
	Peer   json.RawMessage `json:"ra_config"`
}

type shapeKey struct {
	Key  string `json:"key"`
	Path string `json:"path"`
}

// newShape tells Occlum's form from that of its AECS init, which has the same keys and policies of other words.
func newShape(members map[string]json.RawMessage) kind.Shape {
	if _, ok := members["ua_env_pccs_url"]; ok || bytes.Contains(members["ra_config"], []byte(`"ua_`)) {
		return nil
	}
	for _, key := range []string{"kms_server", "kms_keys", "ra_config"} {
		if _, ok := members[key]; ok {
			return &shape{}
		}
	}
	return nil
}

// Settings implements [kind.Shape].
func (s *shape) Settings(kind.Report) kind.Settings {
	b := &block{Protocol: Legacy, occlum: s}
	if s.Server != "" {
		b.Servers = []string{s.Server}
	}
	var files []kind.SecretFile
	for _, k := range s.Keys {
		files = append(files, kind.SecretFile{Name: k.Key, Path: k.Path})
	}
	return kind.Settings{Block: b, Secrets: files}
}

// report names what is wrong by the keys of Occlum's form.
func (*shape) report(bad kind.Report) kind.Report {
	return func(key, text, write string) {
		switch key {
		case "servers", "servers[0]":
			key = "kms_server"
		case "broker_policy":
			key = "ra_config"
		default:
			key = blockKey + "." + key
		}
		bad(key, text, write)
	}
}
