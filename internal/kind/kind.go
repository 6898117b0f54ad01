// Package kind is the seam between init's config and its backends: what a package below attest/backend says of itself, and what
// it is given to open. internal/config has the list of them. That a backend fetches secrets is package attest/backend.
package kind

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"path"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
	"github.com/sesame-init/sesame/attest/trust"
	"github.com/sesame-init/sesame/internal/pki"
)

// A Kind is a backend that a config can choose: all that is known of it lives in its own package.
type Kind struct {
	// Name is the word in the config's "backend".
	Name string
	// New returns an empty block, a pointer that encoding/json reads the member [Kind.Key] of a config into.
	New func() Block
	// Shape is nil, or makes what a config in the form of another program's init is read into. It returns nil if the members
	// of the file are not of that form.
	Shape func(members map[string]json.RawMessage) Shape
}

// Key is the member of a config that holds the block: the name, with "_" in the place of "-".
func (k Kind) Key() string { return strings.ReplaceAll(k.Name, "-", "_") }

// A Block is one backend's part of a config, with its rules.
type Block interface {
	// Check reports all that is wrong. These are the only rules: Open fails with [attest.CodeConfig] if and only if Check
	// reports something for the same [Use].
	Check(use Use, bad Report)
	// Host lists the environment variables that the host may set, with what each may change.
	Host() map[string]string
	// Apply lets the host's environment change what Host lists, and nothing else.
	Apply(getenv func(string) string)
	// Remarks are things that are allowed and that a reader of the log should know, a line each.
	Remarks() []string
	// Files are the files that must be in the initfs, by the key that names them.
	Files() map[string]string
	// Open makes the backend. What only the machine can tell, such as devices and networks, has another code than
	// [attest.CodeConfig], and may only show in Fetch.
	Open(env Env) (backend.Backend, error)
}

// A Publisher is a [Block] whose backend hands out files that no one asked for by name. They are no secrets.
type Publisher interface {
	// Published are their paths in the root, by the names that Fetch takes.
	Published() map[string]string
}

// A Shape is what a config in the form of another program's init is read into. Sesame's own members timeout, root, app,
// volumes, app_tls and collateral may be beside it.
type Shape interface {
	// Settings says the same in Sesame's words.
	Settings(bad Report) Settings
}

// Settings are what a [Shape] says.
type Settings struct {
	Block   Block
	Secrets []SecretFile
	PCCS    []PCCS
	Remarks []string
}

// A SecretFile is a secret, by its name, that is written to a path in the root.
type SecretFile struct{ Name, Path string }

// PCCS is an address of the collateral service, and the key that names it.
type PCCS struct{ Key, URL string }

// Use is what a block is used for, as far as its rules depend on it.
type Use struct {
	// Evidence is the type of our own evidence.
	Evidence attest.EvidenceType
	// Secrets are the names that are or may be asked for.
	Secrets []string
	// AppBinding is app_tls.binding.
	AppBinding attest.Binding
	// Opening is true once the host's environment was applied: what only the host can give must then be there.
	Opening bool
	// ReadFile reads a file of the initfs, of bounded size. If it is nil, the contents of files are not checked.
	ReadFile func(name string) ([]byte, error)
	// ReadKey reads a file with a private key, of bounded size, and refuses one that other users of the machine may read. If it
	// is nil, ReadFile is used: before the boot no one knows these rights.
	ReadKey func(name string) ([]byte, error)
	// CheckTrust reports what is wrong with the config's collateral. Blocks call it that call [Env.Trust].
	CheckTrust func(bad Report)
}

// Env is what a backend is opened with. ReadFile and ReadKey are needed.
type Env struct {
	Use
	Attester attest.Attester
	// Trust makes what the peer's evidence is verified with.
	Trust  func() (*trust.Trust, error)
	Now    func() time.Time
	Logger logrus.FieldLogger
}

// A Report takes one thing that is wrong: the path of the key, what is wrong, and what to write instead, if that is known.
type Report func(key, text, write string)

// In is a Report for keys below another one.
func (r Report) In(parent string) Report {
	return func(key, text, write string) { r(parent+"."+key, text, write) }
}

// Problem is one thing that is wrong with a config.
type Problem struct {
	Key   string `json:"key"`             // path of the key: "grpc_ratls.servers"
	Text  string `json:"text"`            // what is wrong
	Write string `json:"write,omitempty"` // what to write instead
}

// String is the problem on one line.
func (p Problem) String() string {
	s := p.Key + ": " + p.Text
	if p.Write != "" {
		s += "; write " + p.Write
	}
	return s
}

// Problems is everything that is wrong, as an error.
type Problems []Problem

// Add is a [Report].
func (ps *Problems) Add(key, text, write string) { *ps = append(*ps, Problem{key, text, write}) }

// Error implements error.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "; ")
}

// Err is nil without problems, and otherwise an error with [attest.CodeConfig] that wraps them.
func (ps Problems) Err(step string) error {
	if len(ps) == 0 {
		return nil
	}
	return &attest.Error{Code: attest.CodeConfig, Step: step, Err: ps,
		Hint: "Correct each key in the config. What an environment variable of the host replaced, correct there."}
}

// Check returns all that is wrong with a block as one error with [attest.CodeConfig]. Open begins with it.
func Check(name string, b Block, use Use) error {
	var ps Problems
	b.Check(use, ps.Add)
	return ps.Err("configuring " + name)
}

// CheckServers reports what is wrong with the addresses of a backend's servers, under the key "servers".
func (r Report) CheckServers(servers []string, example string) {
	if len(servers) == 0 {
		r("servers", "is missing", fmt.Sprintf("a list such as [%q]", example))
	}
	for i, s := range servers {
		if host, port, err := net.SplitHostPort(s); err != nil || host == "" || port == "" {
			r(fmt.Sprintf("servers[%d]", i), fmt.Sprintf("%q has no host or no port", s), `"host:port", without a scheme`)
		}
	}
}

// Certificates reads a PEM file of the initfs.
func (u Use) Certificates(name string) ([]*x509.Certificate, error) {
	text, err := u.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return pki.ParseCertificates(name, text)
}

// CheckCertificates reports a key that does not name a PEM file with certificates in the initfs.
func (u Use) CheckCertificates(bad Report, key, name, write string) {
	if !path.IsAbs(name) || path.Clean(name) != name || strings.ContainsRune(name, 0) {
		bad(key, fmt.Sprintf("%q is not an absolute path", name), write)
	} else if u.ReadFile != nil {
		if _, err := u.Certificates(name); err != nil {
			bad(key, err.Error(), write)
		}
	}
}
