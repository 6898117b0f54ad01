// Package config reads the measured configuration of init, /etc/init_ra_conf.json in the initfs.
//
// Sesame's own form is read (see [Config]), and the two that Occlum's inits for GRPC-RATLS and for AECS ship, parsed
// unchanged (kms_server, kms_keys, ra_config, and of AECS ua_env_pccs_url). A file in Occlum's form may carry Sesame's blocks
// timeout, root, app, volumes, app_tls and collateral beside Occlum's keys, and for AECS the block aecs with what
// Occlum's form has no word for. The part of each backend is in its own package ([Backends]).
//
// Reading is strict and complete: unknown keys, keys given twice, missing keys, contradictions, and a peer
// policy that verifies less than the minimum are all reported together, each with the key and what to write.
// Nothing has an insecure default, and no switch turns a check off.
//
// The file is part of the enclave's measurement. What the host may still choose is in [HostEnvironment].
package config

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/tpm/tpmconfig"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/kind"
)

// Path is that of the config in the initfs.
const Path = "/etc/init_ra_conf.json"

// MaxSize bounds the file, in bytes.
const MaxSize = 1 << 20

// Config is the configuration of one boot.
type Config struct {
	// Platform is "occlum", the default, or "linux": see [Linux].
	Platform Platform `json:"platform,omitempty"`
	// Attester makes the evidence: "sgx", the default on Occlum and the only one there; on Linux "tdx", "snp" or "tpm".
	Attester attest.EvidenceType `json:"attester,omitempty"`
	// Backend chooses how secrets are fetched: one of [Backends], or "none" for a workload that needs no key (an
	// integrity-only root; a key broker's own enclave).
	Backend string `json:"backend"`
	// Timeout bounds attesting and fetching together, retries included. Default 60 s.
	Timeout Duration `json:"timeout,omitempty"`
	// Blocks are those of backends, by the backend's name: the chosen one's counts, others may be there.
	Blocks map[string]kind.Block `json:"-"`
	Root   Root                  `json:"root"`
	// App pins the application's program and arguments. Without it the host chooses both.
	App     *App         `json:"app,omitempty"`
	Volumes []Volume     `json:"volumes,omitempty"`
	Secrets []SecretFile `json:"secrets,omitempty"`
	// AppTLS asks for a TLS identity of the application, made inside this environment.
	AppTLS *AppTLS `json:"app_tls,omitempty"`
	// Collateral names the source of the collateral that judges the peer's evidence.
	Collateral Collateral `json:"collateral"`
	// TPM and Linux are about that attester and that platform.
	TPM   *tpmconfig.Settings `json:"tpm,omitempty"`
	Linux *Linux              `json:"linux,omitempty"`

	// Legacy is set if the file has Occlum's shape.
	Legacy bool `json:"-"`

	wanted  []string // the secrets that are or may be asked for
	opening bool     // the host's environment was applied
	pccsKey string   // of collateral.pccs_url, if another one named it
	remarks []string // what another form says that means nothing
}

// Root is the application's root file system.
type Root struct {
	// Key names the secret that holds the image key; empty for an integrity-only image.
	Key string `json:"key,omitempty"`
	// Source is, on Linux, the directory of the volume that becomes the root, with Key and MAC. Without it the root
	// stays the machine's or container's own.
	Source string   `json:"source,omitempty"`
	MAC    sefs.MAC `json:"mac,omitzero"` // the volume's root MAC, "xx-…-xx"
	// Upper says what the writable layer of the root is: "temporary" (made empty at every boot, as Occlum.json
	// sets it) or "persistent", the default. Secret files may be in a temporary one only.
	Upper string `json:"upper,omitempty"`
}

// App pins what runs after the boot.
type App struct {
	// Path is the real program, absolute in the root.
	Path string `json:"path"`
	// Args are its arguments without argv[0]. "{number}" and "{name}" in an argument are places in which the
	// host may fill in decimal digits, or a word of letters, digits, dot, dash and underscore that begins with neither
	// dot nor dash.
	Args []string `json:"args"`
	// EntryPoint is the path that the host asks for. The launcher (this very binary) is there.
	EntryPoint string `json:"entry_point,omitempty"`
}

// Volume is an encrypted volume beside the root.
type Volume struct {
	// Source is the volume's directory on the host, relative to the instance directory.
	Source string `json:"source"`
	// Target is the mount point, an existing directory in the root.
	Target string `json:"target"`
	// Key names the secret that holds the volume's key.
	Key string `json:"key"`
	// MAC is the volume's root MAC, "xx-…-xx": without it the host could roll the volume back.
	MAC sefs.MAC `json:"mac"`
}

// SecretFile is a secret that is handed to the application as a file.
type SecretFile struct {
	Name string `json:"name"`
	Path string `json:"path"`
	Mode Mode   `json:"mode,omitempty"` // default 0400
	// UID and GID own the file. Default on Linux the application's, in Occlum init's own.
	UID *uint32 `json:"uid,omitempty"`
	GID *uint32 `json:"gid,omitempty"`
}

// Owner is the file's user and group, -1 for init's own.
func (s SecretFile) Owner() (uid, gid int) { return number(s.UID), number(s.GID) }

func number(id *uint32) int {
	if id == nil {
		return -1
	}
	return int(*id)
}

// Collateral names the source of collateral and what it must at least be.
type Collateral struct {
	// PCCSURL is the base address, "https://host:8081/sgx/certification/v4/".
	PCCSURL string `json:"pccs_url,omitempty"`
	// PCCSCA is a PEM file in the initfs with the CA of a PCCS that has a private certificate.
	PCCSCA string `json:"pccs_ca,omitempty"`
	// AllowHTTP permits an unencrypted PCCS: collateral is public and signed.
	AllowHTTP bool `json:"allow_http,omitempty"`
	// RootCA is a PEM file in the initfs with another trust root than Intel's. It is logged at every boot, and
	// as part of the measurement every peer's policy sees it.
	RootCA string `json:"root_ca,omitempty"`
	// MinimumTCBEvaluation is the smallest tcbEvaluationDataNumber that is believed.
	MinimumTCBEvaluation uint32 `json:"minimum_tcb_evaluation,omitempty"`
	// MinimumRootCRL and MinimumPCKCRL are the smallest CRL numbers that are believed, of the root CA's list and
	// of the list of the CA that issued the PCK certificate. "sesame quote verify" prints the present ones.
	MinimumRootCRL uint64 `json:"minimum_root_crl,omitempty"`
	MinimumPCKCRL  uint64 `json:"minimum_pck_crl,omitempty"`
}

// Duration is a time span written as Go writes it: "90s", "2m".
type Duration time.Duration

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err == nil && v <= 0 {
		err = fmt.Errorf("%q must be positive: write a time such as \"60s\", or leave the key out", b)
	}
	*d = Duration(v)
	return err
}

// MarshalText implements [encoding.TextMarshaler].
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Mode is a file mode written as a string of octal digits: "0400".
type Mode fs.FileMode

// UnmarshalText implements [encoding.TextUnmarshaler].
func (m *Mode) UnmarshalText(b []byte) error {
	v, err := strconv.ParseUint(string(b), 8, 32)
	if err != nil || v == 0 || v > 0o777 {
		return fmt.Errorf("%q is not a file mode, write octal digits such as \"0400\"", b)
	}
	*m = Mode(v)
	return nil
}

// MarshalText implements [encoding.TextMarshaler].
func (m Mode) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%04o", uint32(m)), nil }

// Problem is one thing that is wrong with a config, Problems is everything.
type (
	Problem  = kind.Problem
	Problems = kind.Problems
)

// Parse reads a config of either shape. The error has code [attest.CodeConfig] and wraps [Problems] if the
// text is JSON at all.
func Parse(text []byte) (*Config, error) {
	c, problems := parse(text)
	if len(problems) > 0 {
		return nil, &attest.Error{
			Code: attest.CodeConfig, Step: "reading " + path.Base(Path), Err: problems,
			Hint: "Correct the file in the initfs and build the instance again; \"sesame config check FILE\" lists everything at once.",
		}
	}
	return c, nil
}

func parse(text []byte) (*Config, Problems) {
	if len(text) > MaxSize {
		return nil, Problems{{Key: "(file)", Text: fmt.Sprintf("has %d bytes, more than %d", len(text), MaxSize)}}
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(text, &keys); err != nil {
		return nil, Problems{{Key: "(file)", Text: "is not a JSON object: " + err.Error()}}
	}
	return decode(text, keys)
}

var (
	nameForm  = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)
	holeForm  = regexp.MustCompile(`\{(number|name)\}`)
	braceForm = regexp.MustCompile(`[{}]`)
)

// complete fills in defaults and reports what is missing or contradicts itself.
func (c *Config) complete() Problems {
	var ps Problems
	bad := ps.Add

	if c.Timeout == 0 {
		c.Timeout = Duration(60 * time.Second)
	}
	c.completePlatform(bad)
	c.wanted = c.SecretNames()
	if c.Legacy {
		c.wanted = append(c.wanted, imageKeyName) // asked for if the image turns out to be encrypted
	}
	c.checkBackend(bad, nil)
	if c.Root.Key != "" && !nameForm.MatchString(c.Root.Key) {
		bad("root.key", "is not a secret's name", "letters, digits, dot, dash, underscore")
	}
	switch c.Root.Upper {
	case "", "persistent", "temporary":
	default:
		bad("root.upper", fmt.Sprintf("%q is not a kind of upper layer", c.Root.Upper), `"temporary" or "persistent"`)
	}
	if c.App != nil {
		c.completeApp(bad)
	}
	for i, v := range c.Volumes {
		key := fmt.Sprintf("volumes[%d]", i)
		if v.Source == "" || strings.ContainsAny(v.Source, ",\x00") {
			bad(key+".source", "is missing or has a comma", "the volume's directory on the host")
		}
		if !cleanAbsolute(v.Target) || v.Target == "/" {
			bad(key+".target", fmt.Sprintf("%q is not an absolute path below /", v.Target), "the mount point")
		}
		if !nameForm.MatchString(v.Key) {
			bad(key+".key", "is missing", "the name of the secret that holds the volume's key")
		}
		if v.MAC == (sefs.MAC{}) {
			bad(key+".mac", "is missing: without it the host can roll the volume back",
				`the MAC that "sesame volume create" printed`)
		}
		for j := range i {
			if c.Volumes[j].Target == v.Target {
				bad(key+".target", "is also the target of another volume", "one target each")
			}
		}
	}
	for i := range c.Secrets {
		c.completeSecret(i, bad)
	}
	if c.AppTLS != nil {
		c.completeAppTLS(bad)
	}
	return ps
}

func (c *Config) completeApp(bad func(key, text, write string)) {
	a := c.App
	if !cleanAbsolute(a.Path) {
		bad("app.path", fmt.Sprintf("%q is not an absolute path", a.Path), "the real program in the root")
	}
	if c.Platform == OnLinux {
		if a.EntryPoint != "" {
			bad("app.entry_point", "means nothing on Linux: init itself starts the program", "nothing")
		}
	} else if !cleanAbsolute(a.EntryPoint) {
		bad("app.entry_point", fmt.Sprintf("%q is not an absolute path", a.EntryPoint),
			"the path that the host asks for, where the launcher stands")
	} else if a.EntryPoint == a.Path {
		bad("app.entry_point", "is app.path itself, so nothing would check the arguments",
			"the launcher's path, with the real program elsewhere")
	}
	for i, arg := range a.Args {
		if braceForm.MatchString(holeForm.ReplaceAllString(arg, "")) {
			bad(fmt.Sprintf("app.args[%d]", i), fmt.Sprintf("%q has a brace that is no place holder", arg),
				`"{number}" or "{name}"`)
		}
	}
}

func (c *Config) completeSecret(i int, bad func(key, text, write string)) {
	s := &c.Secrets[i]
	key := fmt.Sprintf("secrets[%d]", i)
	if c.Legacy {
		key = fmt.Sprintf("kms_keys[%d]", i)
	}
	if !nameForm.MatchString(s.Name) {
		bad(key+".name", "is missing or malformed", "letters, digits, dot, dash, underscore")
	}
	if s.Mode == 0 {
		s.Mode = 0o400
	}
	c.checkSecretPath(key+".path", s.Path, bad)
	for j := range i {
		if c.Secrets[j].Path == s.Path {
			bad(key+".path", "is also the path of another secret", "one path each")
		}
	}
}

// checkSecretPath makes sure that what is written to a path does not outlive the boot.
func (c *Config) checkSecretPath(key, path string, bad func(key, text, write string)) {
	if !cleanAbsolute(path) {
		bad(key, fmt.Sprintf("%q is not an absolute path", path), "where the application reads it")
	} else if c.Platform == OnLinux {
		if !strings.HasPrefix(path, SecretsDir+"/") {
			bad(key, path+" is not in memory only", "a path below "+SecretsDir)
		}
	} else if c.Root.Upper != "temporary" && !InMemory(path) {
		bad(key, fmt.Sprintf("%s is in a writable layer that persists on the host until the next build", path),
			`a path below /dev/shm or /run/secrets; or make the upper layer "temporary" in Occlum.json and state "root": {"upper": "temporary"} here`)
	}
}

// MemoryDirs are the directories that init keeps in memory only: LibOS's own /dev/shm, and a ramfs that init
// mounts at /run/secrets if a secret is below it.
var MemoryDirs = []string{"/dev/shm", "/run/secrets"}

// InMemory reports whether a file at p is in memory only.
func InMemory(p string) bool {
	for _, dir := range MemoryDirs {
		if strings.HasPrefix(p, dir+"/") {
			return true
		}
	}
	return false
}

// SecretNames are the names of all secrets that the boot needs, each once, in the order of use.
func (c *Config) SecretNames() []string {
	var names []string
	add := func(name string) {
		for _, n := range names {
			if n == name {
				return
			}
		}
		if name != "" {
			names = append(names, name)
		}
	}
	add(c.Root.Key)
	for _, v := range c.Volumes {
		add(v.Key)
	}
	for _, s := range c.Secrets {
		add(s.Name)
	}
	return names
}

// SecretPaths are the paths of all files that hold secrets.
func (c *Config) SecretPaths() []string {
	var paths []string
	for _, s := range c.Secrets {
		paths = append(paths, s.Path)
	}
	if a := c.AppTLS; a != nil {
		paths = append(paths, a.Path)
		if a.KeyPath != "" {
			paths = append(paths, a.KeyPath)
		}
	}
	return paths
}

// MatchImage compares the config with what occlum build says of the image: an encrypted image needs a key, and
// a key for one that is not encrypted is a contradiction. In Occlum's shape the image alone decides.
func (c *Config) MatchImage(encrypted bool) error {
	if c.Legacy && encrypted && c.Root.Key == "" {
		c.Root.Key = imageKeyName
	}
	const hint = "Build with occlum build --image-key, or change root.key in init_ra_conf.json, and build again with -f: " +
		"the type of the image is not renewed otherwise."
	switch {
	case encrypted && c.Root.Key == "":
		return attest.Errorf(attest.CodeConfig, "matching config and image", hint,
			"the image is encrypted, but root.key names no secret")
	case !encrypted && c.Root.Key != "":
		return attest.Errorf(attest.CodeConfig, "matching config and image", hint,
			"root.key names %s, but the image is integrity-only: anyone can read it, and it is weakly authenticated", c.Root.Key)
	}
	return nil
}

// Remarks are things that are allowed and that a reader of the log should know, a line each.
func (c *Config) Remarks() []string {
	lines := slices.Clone(c.remarks)
	if b := c.Block(); b != nil {
		lines = append(lines, b.Remarks()...)
	}
	if c.AppTLS != nil && c.AppTLS.Binding == attest.BindingLegacy {
		lines = append(lines, "app_tls has binding legacy: the application's certificate has the form of a legacy broker's, so this image "+
			"must share neither measurement nor product id with a broker")
	}
	if c.App == nil {
		lines = append(lines, "no app block: the host chooses the application's arguments, and any program below the entry points")
	}
	return lines
}

func cleanAbsolute(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && !strings.ContainsRune(p, 0)
}
