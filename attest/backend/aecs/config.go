package aecs

import (
	"crypto/tls"
	"fmt"
	"slices"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/internal/aecs/uar"
	"github.com/sesame-init/sesame/internal/kind"
	"github.com/sesame-init/sesame/internal/pki"
)

// Kind is the backend "aecs": docs/backends/aecs.md is the manual of its block.
func Kind() kind.Kind {
	return kind.Kind{Name: "aecs", New: func() kind.Block { return &block{} }, Shape: newShape}
}

// block configures KubeTEE AECS servers.
type block struct {
	// Servers are addresses host:port, tried in order. The usual port is 19527.
	Servers []string `json:"servers"`
	// Generation is the protocol: "a" (tag v2.0.0, what Occlum's own init speaks), "b" (master since 2023-11-29), or
	// "auto": b and, if allow_downgrade is true and the server does not know it, a.
	Generation     Generation `json:"generation"`
	AllowDowngrade bool       `json:"allow_downgrade,omitempty"`
	// Service holds the secrets of which secrets says nothing else.
	Service string `json:"service,omitempty"`
	// Secrets says which secrets of the AECS single ones are, by the name that root, volumes and secrets use.
	Secrets map[string]blockSecret `json:"secrets,omitempty"`

	// TLS secures the connection. Without it Plaintext must be true: reports and envelopes then travel in the open, which
	// shows hashes of secrets, and in generation a answers can be exchanged for earlier ones.
	TLS       *blockTLS `json:"tls,omitempty"`
	Plaintext bool      `json:"plaintext,omitempty"`

	// UserData is what our quote says in the first 32 bytes of its report data, as a policy of the server may want.
	UserData policy.Hex `json:"user_data,omitempty"`

	// ServerPolicy says what the server must be.
	ServerPolicy *policy.Policy `json:"server_policy,omitempty"`
	// ServerKey pins the server's key besides: the SHA-256 of its PEM text, which "aecsadmin status" prints as
	// identity_hash.
	ServerKey policy.Hex `json:"server_key,omitempty"`
	// ServerEvidence is "none" for a server outside an enclave, or built for simulation: then server_key alone decides.
	ServerEvidence string `json:"server_evidence,omitempty"`

	occlum       bool // the config has Occlum's form
	occlumPolicy bool // and ServerPolicy comes from its ra_config
}

// blockSecret is the place of a secret in an AECS.
type blockSecret struct {
	Service string `json:"service,omitempty"` // default: that of the block
	Name    string `json:"name,omitempty"`    // default: the same name
	// Type is wanted in generation b: "IMPORT_DATA", "AES256_KEY", "RSA_KEY_PAIR", "CERTIFICATE", "SM2_KEY_PAIR" or
	// "CONFIGURATIONS".
	Type string `json:"type,omitempty"`
	// Encode is "base64" for a secret that is stored in base64, because it is no text.
	Encode string `json:"encode,omitempty"`
}

// blockTLS are files in the initfs, in PEM. The AECS demands a certificate of its clients, but derives no right from
// it; its key in the initfs is no secret.
type blockTLS struct {
	CA          string `json:"ca"`
	Certificate string `json:"certificate,omitempty"`
	Key         string `json:"key,omitempty"`
	// ServerName must be in the server's certificate. Default "enclave-service", as the upstream makes them.
	ServerName string `json:"server_name,omitempty"`
}

// config is what the block says, but for the files that it names.
func (b *block) config() Config {
	c := Config{
		Servers: b.Servers, Generation: b.Generation, AllowDowngrade: b.AllowDowngrade, Plaintext: b.Plaintext,
		Service: b.Service, Secrets: make(map[string]Secret, len(b.Secrets)), UserData: b.UserData,
		Policy: b.ServerPolicy, NoServerEvidence: b.ServerEvidence == "none",
	}
	for name, s := range b.Secrets {
		c.Secrets[name] = Secret{Service: s.Service, Name: s.Name, Type: s.Type, Base64: s.Encode == "base64"}
	}
	if len(b.ServerKey) == 32 {
		c.ServerKey = (*[32]byte)(b.ServerKey)
	}
	if b.TLS != nil {
		c.TLS = &TLS{ServerName: b.TLS.ServerName}
	}
	return c
}

// Check implements [kind.Block].
func (b *block) Check(use kind.Use, bad kind.Report) {
	own := bad.In("aecs")
	if b.occlum {
		own = b.report(bad)
	}
	switch {
	case use.Evidence == attest.TPM || use.Evidence == attest.SNP:
		bad("attester", fmt.Sprintf("an AECS takes no evidence of %q", use.Evidence), `"sgx" or "tdx", or another backend`)
	case use.Evidence == attest.TDX && b.Generation == GenerationA:
		own("generation", "servers of generation a know no TDX", `"b"`)
	}
	c := b.config()
	c.check(own)
	b.checkSecrets(use.Secrets, own)
	b.checkServer(own)
	b.checkTLS(use, own)
	if use.CheckTrust != nil {
		use.CheckTrust(bad)
	}
}

// check has the rules that hold for every user of the package, under the keys of the block.
func (c *Config) check(bad kind.Report) {
	bad.CheckServers(c.Servers, "aecs:19527")
	switch c.Generation {
	case GenerationA, GenerationB:
		if c.AllowDowngrade {
			bad("allow_downgrade", fmt.Sprintf("generation %q has nothing to fall from", c.Generation),
				`generation "auto", or false`)
		}
	case Auto:
	case "":
		bad("generation", "is missing: the two generations of AECS do not understand each other", `"a", "b" or "auto"`)
	default:
		bad("generation", fmt.Sprintf("%.40q is not a generation", c.Generation), `"a", "b" or "auto"`)
	}
	switch {
	case c.TLS == nil && !c.Plaintext:
		bad("tls", "is missing: the connection would be in the open",
			`"tls": {"ca": …}; or, knowing what that shows and permits, "plaintext": true`)
	case c.TLS != nil && c.Plaintext:
		bad("plaintext", "is beside tls", "one of them")
	}
	switch {
	case c.NoServerEvidence && c.Policy != nil:
		bad("server_policy", "has nothing to judge if server_evidence is \"none\"", "one of them")
	case c.NoServerEvidence && c.ServerKey == nil:
		bad("server_key", "is missing: a server without evidence must be known by its key",
			"64 hexadecimal digits, the identity_hash of aecsadmin status")
	case !c.NoServerEvidence && c.Policy == nil:
		bad("server_policy", "is missing: nothing would say what the server must be",
			`{"sgx": [{"mr_signer": …, "product_id": …, "min_svn": …}]}`)
	case c.Policy != nil:
		if err := c.Policy.ValidateServer(); err != nil {
			bad("server_policy", err.Error(), attest.HintOf(err))
		}
	}
	if len(c.UserData) > uar.UserDataSize {
		bad("user_data", fmt.Sprintf("has %d bytes", len(c.UserData)), "at most 64 hexadecimal digits")
	}
	if err := (Secret{Service: c.Service}).check(); err != nil {
		bad("service", err.Error(), attest.HintOf(err))
	}
	for name, s := range c.Secrets {
		if err := s.check(); err != nil {
			bad("secrets."+name, err.Error(), attest.HintOf(err))
		}
	}
}

// checkSecrets compares the secrets with those that are asked for.
func (b *block) checkSecrets(wanted []string, bad kind.Report) {
	for name, s := range b.Secrets {
		if !slices.Contains(wanted, name) {
			bad("secrets."+name, "is not asked for", "the name as root, volumes or secrets have it")
		}
		if s.Encode != "" && s.Encode != "base64" {
			bad("secrets."+name+".encode", fmt.Sprintf("%.40q is not an encoding", s.Encode), `"base64", or nothing`)
		}
	}
	for _, name := range wanted {
		if b.Service == "" && b.Secrets[name].Service == "" {
			bad("service", "is missing, and "+name+" has none of its own", `the service in the AECS, such as "service1"`)
			break
		}
	}
}

// checkServer has the rules on the server that only the text of a config can break.
func (b *block) checkServer(bad kind.Report) {
	if b.ServerKey != nil && len(b.ServerKey) != 32 {
		bad("server_key", fmt.Sprintf("has %d bytes", len(b.ServerKey)),
			"64 hexadecimal digits, the identity_hash of aecsadmin status")
	}
	if b.ServerEvidence != "" && b.ServerEvidence != "none" {
		bad("server_evidence", fmt.Sprintf("%.40q is unknown", b.ServerEvidence), `"none", or nothing`)
	}
	if b.ServerPolicy != nil && !b.occlum {
		for _, entry := range b.ServerPolicy.LegacyBindings() { // the protocol fixes how a server's evidence is bound
			bad("server_policy."+entry, "is for policies of an application's clients", "nothing")
		}
	}
}

func (b *block) checkTLS(use kind.Use, bad kind.Report) {
	t := b.TLS
	if t == nil {
		return
	}
	use.CheckCertificates(bad, "tls.ca", t.CA, "the PEM file in the initfs with the authority of the server's certificate")
	if (t.Certificate == "") != (t.Key == "") {
		bad("tls", "has only one of certificate and key", "both, or none if the server demands none")
	} else if t.Certificate != "" && use.ReadFile != nil {
		if _, err := t.pair(use); err != nil {
			text := err.Error()
			if hint := attest.HintOf(err); hint != "" {
				text += ": " + hint
			}
			bad("tls.certificate", text, "certificate and key in PEM, in files of the initfs")
		}
	}
}

// pair is what we show the server.
func (t *blockTLS) pair(use kind.Use) (tls.Certificate, error) {
	readKey := use.ReadKey
	if readKey == nil {
		readKey = use.ReadFile
	}
	certificate, err := use.ReadFile(t.Certificate)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := readKey(t.Key)
	if err != nil {
		return tls.Certificate{}, err
	}
	defer clear(key)
	return tls.X509KeyPair(certificate, key)
}

// Open implements [kind.Block].
func (b *block) Open(env kind.Env) (backend.Backend, error) {
	if err := kind.Check("aecs", b, env.Use); err != nil {
		return nil, err
	}
	c := b.config()
	trust, err := env.Trust()
	if err != nil {
		return nil, err
	}
	c.Collateral, c.Verifier, c.Staple = trust.Source(), trust.Verifier(), trust.Stapled
	c.Attester, c.Now, c.Logger = env.Attester, env.Now, env.Logger
	if b.TLS != nil {
		if err := b.TLS.read(env, c.TLS); err != nil {
			return nil, attest.Errorf(attest.CodeConfig, "reading aecs.tls",
				"Put the PEM files into the initfs before the build, or correct their paths.", "%w", err)
		}
	}
	return New(c)
}

func (t *blockTLS) read(env kind.Env, to *TLS) error {
	authorities, err := env.Certificates(t.CA)
	if err != nil {
		return err
	}
	to.Roots = pki.Pool(authorities)
	if t.Certificate == "" {
		return nil
	}
	pair, err := t.pair(env.Use)
	to.Certificate = &pair
	return err
}

// serverVariable is the host's. Occlum's init reads it, too.
const serverVariable = "OCCLUM_INIT_RA_KMS_SERVER"

// Host implements [kind.Block].
func (*block) Host() map[string]string {
	return map[string]string{serverVariable: "address of the AECS, host:port"}
}

// Apply implements [kind.Block].
func (b *block) Apply(getenv func(string) string) {
	if v := getenv(serverVariable); v != "" {
		b.Servers = []string{v}
	}
}

// Files implements [kind.Block].
func (b *block) Files() map[string]string {
	t := b.TLS
	if t == nil {
		return nil
	}
	return map[string]string{"aecs.tls.ca": t.CA, "aecs.tls.certificate": t.Certificate, "aecs.tls.key": t.Key}
}

// Remarks implements [kind.Block].
func (b *block) Remarks() (lines []string) {
	switch {
	case b.Generation == GenerationA:
		lines = append(lines, "AECS of generation a: answers are not bound to their requests, "+
			"only the hash of a secret is signed")
	case b.AllowDowngrade:
		lines = append(lines, "AECS of either generation: anyone on the network path can force generation a, which protects less")
	}
	if b.Plaintext {
		lines = append(lines, "AECS without TLS: anyone on the network path sees hashes of the secrets, and which they are")
	}
	if b.ServerEvidence == "none" {
		lines = append(lines, "the AECS is known by its key alone: nothing proves what it runs")
	}
	return lines
}
