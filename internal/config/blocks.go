package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/internal/kind"
)

// None is the backend of a workload that needs no key.
const None = "none"

// kindOf finds a backend by its name.
func kindOf(name string) (kind.Kind, bool) {
	kinds := Backends()
	i := slices.IndexFunc(kinds, func(k kind.Kind) bool { return k.Name == name })
	if i < 0 {
		return kind.Kind{}, false
	}
	return kinds[i], true
}

// BackendNames are the words of [Config.Backend], None left out.
func BackendNames() []string {
	var names []string
	for _, k := range Backends() {
		names = append(names, k.Name)
	}
	return names
}

// oneOf lists words for a reader: `"a", "b" or "c"`.
func oneOf[S ~string](words []S) string {
	var b strings.Builder
	for i, word := range words {
		switch {
		case i == 0:
		case i == len(words)-1:
			b.WriteString(" or ")
		default:
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", word)
	}
	return b.String()
}

// HostEnvironment lists the environment variables that the host may set and init reads, with what each may
// change. They are addresses of peers that are verified by evidence or whose answers are signed, and credentials that
// authorise and do not protect, so the worst that a hostile value does is to stop the boot; the exception is the
// backend "maa-token", whose remarks say so. Everything else in the environment is ignored.
func HostEnvironment() map[string]string {
	all := map[string]string{
		"UA_ENV_PCCS_URL": "address of the collateral service (PCCS), if PCCS_URL is not set",
		"PCCS_URL":        "address of the collateral service (PCCS)",
	}
	for _, k := range Backends() {
		for name, changes := range k.New().Host() {
			if before, ok := all[name]; ok {
				changes = before + "; " + changes
			}
			all[name] = changes
		}
	}
	return all
}

// ApplyHost lets the host's environment change what [HostEnvironment] lists.
func (c *Config) ApplyHost(getenv func(string) string) {
	if b := c.Block(); b != nil {
		b.Apply(getenv)
		if p, ok := b.(kind.Publisher); ok {
			files := p.Published()
			for _, name := range slices.Sorted(maps.Keys(files)) {
				c.Secrets = append(c.Secrets, SecretFile{Name: name, Path: files[name], Mode: 0o444})
			}
		}
	}
	for _, name := range []string{"UA_ENV_PCCS_URL", "PCCS_URL"} {
		if v := getenv(name); v != "" {
			c.Collateral.PCCSURL, c.pccsKey = v, ""
		}
	}
	c.opening = true
}

// Block is that of the backend that the config chooses, or nil.
func (c *Config) Block() kind.Block { return c.Blocks[c.Backend] }

// use is what the block is used for.
func (c *Config) use(readFile func(string) ([]byte, error)) kind.Use {
	use := kind.Use{
		Evidence: c.Attester, Secrets: c.wanted, Opening: c.opening, ReadFile: readFile,
		CheckTrust: func(bad kind.Report) { c.checkCollateral(bad, readFile) },
	}
	if c.AppTLS != nil {
		use.AppBinding = c.AppTLS.Binding
	}
	return use
}

// checkCollateral reports what is wrong with the source of collateral.
func (c *Config) checkCollateral(bad kind.Report, readFile func(string) ([]byte, error)) {
	s := &c.Collateral
	key := c.pccsKey
	if key == "" {
		key = "collateral.pccs_url"
	}
	if s.PCCSURL == "" {
		bad(key, "is missing", "the address of a PCCS; the host may override it by PCCS_URL")
	} else if err := pccs.CheckURL(s.PCCSURL, s.AllowHTTP); err != nil {
		bad(key, err.Error(), attest.HintOf(err))
	}
	use := kind.Use{ReadFile: readFile}
	for key, name := range map[string]string{"collateral.pccs_ca": s.PCCSCA, "collateral.root_ca": s.RootCA} {
		if name == "" || readFile == nil {
			continue
		}
		if _, err := use.Certificates(name); err != nil {
			bad(key, err.Error(), "a PEM file in the initfs")
		}
	}
}

// checkBackend reports what is wrong with the choice of a backend and with its block.
func (c *Config) checkBackend(bad kind.Report, readFile func(string) ([]byte, error)) {
	kind, known := kindOf(c.Backend)
	switch {
	case c.Backend == "":
		bad("backend", "is missing", oneOf(append(BackendNames(), None)))
	case c.Backend == None:
		if len(c.wanted) > 0 {
			bad("backend", `"none" fetches nothing, but root.key, volumes or secrets ask for secrets`, oneOf(BackendNames()))
		}
	case !known:
		bad("backend", fmt.Sprintf("%.40q is not a backend of this build", c.Backend), oneOf(append(BackendNames(), None)))
	case c.Block() == nil:
		bad(kind.Key(), "is missing", "the block of this backend, as docs/backends describes it")
	default:
		c.Block().Check(c.use(readFile), bad)
	}
}

// CheckFiles reports what is wrong with the backend's part of a config that [Parse] has read, now that the files of its
// initfs can be read.
func (c *Config) CheckFiles(readFile func(name string) ([]byte, error)) Problems {
	var ps Problems
	c.checkBackend(ps.Add, readFile)
	return ps
}

// Files are the files that must be in the initfs, by the key that names them.
func (c *Config) Files() map[string]string {
	all := map[string]string{"collateral.pccs_ca": c.Collateral.PCCSCA, "collateral.root_ca": c.Collateral.RootCA}
	if b := c.Block(); b != nil {
		maps.Copy(all, b.Files())
	}
	maps.DeleteFunc(all, func(_, name string) bool { return name == "" })
	return all
}

// Open makes the backend that the config chooses, once the host's environment was applied. It has one. Of env.Use, ReadFile
// and ReadKey are given; the config says the rest.
func (c *Config) Open(env kind.Env) (backend.Backend, error) {
	readKey := env.ReadKey
	env.Use = c.use(env.ReadFile)
	env.ReadKey = readKey
	return c.Block().Open(env)
}
