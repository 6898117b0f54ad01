package config

import (
	"fmt"
	"net"
	"slices"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/aecs"
	"github.com/sesame-init/sesame/attest/backend/aecs/uar"
	"github.com/sesame-init/sesame/attest/policy"
)

// AECS configures KubeTEE AECS servers (package attest/backend/aecs says what its protocols protect).
type AECS struct {
	// Servers are addresses host:port, tried in order. The usual port is 19527.
	Servers []string `json:"servers"`
	// Generation is the protocol: "a" (tag v2.0.0, what Occlum's own init speaks), "b" (master since 2023-11-29), or
	// "auto": b and, if allow_downgrade is true and the server does not know it, a.
	Generation     string `json:"generation"`
	AllowDowngrade bool   `json:"allow_downgrade,omitempty"`
	// Service holds the secrets of which secrets says nothing else.
	Service string `json:"service,omitempty"`
	// Secrets says which secrets of the AECS single ones are, by the name that root, volumes and secrets use.
	Secrets map[string]AECSSecret `json:"secrets,omitempty"`

	// TLS secures the connection. Without it Plaintext must be true: reports and envelopes then travel in the open, which
	// shows hashes of secrets, and in generation a answers can be exchanged for earlier ones.
	TLS       *AECSTLS `json:"tls,omitempty"`
	Plaintext bool     `json:"plaintext,omitempty"`

	// UserData is what our quote says in the first 32 bytes of its report data, as a policy of the server may want.
	UserData policy.Hex `json:"user_data,omitempty"`

	// ServerPolicy says what the server must be.
	ServerPolicy *policy.Policy `json:"server_policy,omitempty"`
	// ServerKey pins the server's key besides: the SHA-256 of its PEM text, which "aecsadmin status" prints as
	// identity_hash.
	ServerKey policy.Hex `json:"server_key,omitempty"`
	// ServerEvidence is "none" for a server outside an enclave, or built for simulation: then server_key alone decides.
	ServerEvidence string `json:"server_evidence,omitempty"`
}

// AECSSecret is the place of a secret in an AECS.
type AECSSecret struct {
	Service string `json:"service,omitempty"` // default: that of the block
	Name    string `json:"name,omitempty"`    // default: the same name
	// Type is wanted in generation b: "IMPORT_DATA", "AES256_KEY", "RSA_KEY_PAIR", "CERTIFICATE", "SM2_KEY_PAIR" or
	// "CONFIGURATIONS".
	Type string `json:"type,omitempty"`
	// Encode is "base64" for a secret that is stored in base64, because it is no text.
	Encode string `json:"encode,omitempty"`
}

// AECSTLS are files in the initfs, in PEM. The AECS demands a certificate of its clients, but derives no right from
// it; its key in the initfs is no secret.
type AECSTLS struct {
	CA          string `json:"ca"`
	Certificate string `json:"certificate,omitempty"`
	Key         string `json:"key,omitempty"`
	// ServerName must be in the server's certificate. Default "enclave-service", as the upstream makes them.
	ServerName string `json:"server_name,omitempty"`
}

// Places are the secrets that are not in the block's service under their own name, or that are encoded.
func (a *AECS) Places() map[string]aecs.Secret {
	places := make(map[string]aecs.Secret, len(a.Secrets))
	for name, s := range a.Secrets {
		places[name] = aecs.Secret{Service: s.Service, Name: s.Name, Type: s.Type, Base64: s.Encode == "base64"}
	}
	return places
}

func (c *Config) completeAECS(bad func(key, text, write string)) {
	a := c.AECS
	if a == nil {
		bad("aecs", "is missing", "the block with servers, generation and server_policy")
		return
	}
	if len(a.Servers) == 0 && !c.Legacy {
		bad("aecs.servers", "is missing", `a list such as ["aecs:19527"]`)
	}
	for i, s := range a.Servers {
		if host, port, err := net.SplitHostPort(s); err != nil || host == "" || port == "" {
			bad(fmt.Sprintf("aecs.servers[%d]", i), fmt.Sprintf("%q has no host or no port", s), `"host:port", without a scheme`)
		}
	}
	switch aecs.Generation(a.Generation) {
	case aecs.GenerationA, aecs.GenerationB:
		if a.AllowDowngrade {
			bad("aecs.allow_downgrade", fmt.Sprintf("generation %q has nothing to fall from", a.Generation),
				`generation "auto", or false`)
		}
	case aecs.Auto:
	case "":
		bad("aecs.generation", "is missing: the two generations of AECS do not understand each other", `"a", "b" or "auto"`)
	default:
		bad("aecs.generation", fmt.Sprintf("%q is not a generation", a.Generation), `"a", "b" or "auto"`)
	}
	switch {
	case c.Attester == attest.TPM || c.Attester == attest.SNP:
		bad("attester", fmt.Sprintf("an AECS takes no evidence of %q", c.Attester), `"sgx" or "tdx", or another backend`)
	case c.Attester == attest.TDX && a.Generation == string(aecs.GenerationA):
		bad("aecs.generation", "servers of generation a know no TDX", `"b"`)
	}
	c.completeAECSSecrets(bad)
	c.completeAECSServer(bad)
	if len(a.UserData) > uar.UserDataSize {
		bad("aecs.user_data", fmt.Sprintf("has %d bytes", len(a.UserData)), "at most 64 hexadecimal digits")
	}
	if c.Collateral.PCCSURL == "" {
		bad("collateral.pccs_url", "is missing: an AECS wants our quote with its collateral",
			"the address of a PCCS, for generation a of version 3; the host may override it by UA_ENV_PCCS_URL or PCCS_URL")
	}
}

func (c *Config) completeAECSSecrets(bad func(key, text, write string)) {
	a := c.AECS
	wanted := c.SecretNames()
	if c.Legacy {
		wanted = append(wanted, imageKeyName) // asked for where the image turns out to be encrypted
	}
	for name, s := range a.Secrets {
		key := "aecs.secrets." + name
		if !slices.Contains(wanted, name) {
			bad(key, "is asked for by nobody", "the name as it stands in root, volumes or secrets")
		}
		if s.Encode != "" && s.Encode != "base64" {
			bad(key+".encode", fmt.Sprintf("%q is not an encoding", s.Encode), `"base64", or nothing`)
		}
		if err := a.Places()[name].Check(); err != nil {
			bad(key, err.Error(), attest.HintOf(err))
		}
	}
	for _, name := range wanted {
		if a.Service == "" && a.Secrets[name].Service == "" {
			bad("aecs.service", "is missing, and "+name+" has none of its own", `the service in the AECS, such as "service1"`)
			break
		}
	}
	if err := (aecs.Secret{Service: a.Service}).Check(); err != nil {
		bad("aecs.service", err.Error(), attest.HintOf(err))
	}
}

func (c *Config) completeAECSServer(bad func(key, text, write string)) {
	a := c.AECS
	switch t := a.TLS; {
	case t == nil && !a.Plaintext:
		bad("aecs.tls", "is missing: the connection would be in the open",
			`"tls": {"ca": …}; or, knowing what that shows and permits, "plaintext": true`)
	case t != nil && a.Plaintext:
		bad("aecs.plaintext", "stands beside tls", "one of them")
	case t != nil && !cleanAbsolute(t.CA):
		bad("aecs.tls.ca", fmt.Sprintf("%q is not an absolute path", t.CA),
			"the PEM file in the initfs with the authority of the server's certificate")
	case t != nil && (t.Certificate == "") != (t.Key == ""):
		bad("aecs.tls", "has only one of certificate and key", "both, or none where the server demands none")
	}
	if a.ServerKey != nil && len(a.ServerKey) != 32 {
		bad("aecs.server_key", fmt.Sprintf("has %d bytes", len(a.ServerKey)),
			"64 hexadecimal digits, the identity_hash of aecsadmin status")
	}
	switch {
	case a.ServerEvidence == "none" && a.ServerPolicy != nil:
		bad("aecs.server_policy", "has nothing to judge where server_evidence is \"none\"", "one of them")
	case a.ServerEvidence == "none" && a.ServerKey == nil:
		bad("aecs.server_key", "is missing: a server without evidence must be known by its key",
			"64 hexadecimal digits, the identity_hash of aecsadmin status")
	case a.ServerEvidence != "" && a.ServerEvidence != "none":
		bad("aecs.server_evidence", fmt.Sprintf("%q is unknown", a.ServerEvidence), `"none", or nothing`)
	case a.ServerEvidence == "" && a.ServerPolicy == nil && !c.Legacy:
		bad("aecs.server_policy", "is missing: nobody would know what the server is",
			`{"sgx": [{"mr_signer": …, "product_id": …, "min_svn": …}]}`)
	case a.ServerPolicy != nil && !c.Legacy:
		if err := a.ServerPolicy.ValidateServer(); err != nil {
			bad("aecs.server_policy", err.Error(), attest.HintOf(err))
		}
		checkBindings("aecs.server_policy", a.ServerPolicy, bad)
	}
}

// remarks are those of [Config.Remarks] about the AECS.
func (a *AECS) remarks() []string {
	var lines []string
	switch {
	case a.Generation == string(aecs.GenerationA):
		lines = append(lines, "AECS of generation a: answers are not bound to their requests, "+
			"only the hash of a secret is signed")
	case a.AllowDowngrade:
		lines = append(lines, "AECS of either generation: whoever is on the way can force generation a, which protects less")
	}
	if a.Plaintext {
		lines = append(lines, "AECS without TLS: everybody on the way sees hashes of the secrets, and which they are")
	}
	if a.ServerEvidence == "none" {
		lines = append(lines, "the AECS is known by its key alone: nothing proves what it runs")
	}
	return lines
}
