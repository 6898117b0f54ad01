// Package occlumconf is Occlum.json, the configuration of an Occlum instance, as Go types.
//
// [Parse] reads the file more strictly than Occlum does: an unknown field, which Occlum drops without a word
// (a misspelt "temporary" leaves secrets on the host's disk), is an error that names it, and so is a missing one
// that Occlum's own tool wants. The defaults that Occlum fills in are methods ([Config.UserSpace],
// [Config.KernelHeap], [Config.Threads]), so that the types hold what the file says and nothing else.
//
// Source of the format: Occlum 0.31, etc/template/Occlum.json and tools/gen_internal_conf/src/main.rs.
package occlumconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/sesame-init/sesame/internal/strictjson"
)

// MaxFile bounds the size of an Occlum.json that [Parse] takes.
const MaxFile = 1 << 20

// Config is Occlum.json.
type Config struct {
	ResourceLimits ResourceLimits `json:"resource_limits"`
	Process        Process        `json:"process"`
	EntryPoints    []string       `json:"entry_points"`
	Env            Env            `json:"env"`
	Metadata       Metadata       `json:"metadata"`
	Feature        Feature        `json:"feature"`
	Mount          []Mount        `json:"mount"`
}

// ResourceLimits sizes the enclave. A maximum counts on platforms with EDMM (dynamic enclave memory) and, if it
// is given, as the one size on platforms without.
type ResourceLimits struct {
	KernelHeap    Size   `json:"kernel_space_heap_size"`
	KernelHeapMax Size   `json:"kernel_space_heap_max_size,omitempty"`
	KernelStack   Size   `json:"kernel_space_stack_size"`
	UserSpace     Size   `json:"user_space_size"`
	UserSpaceMax  Size   `json:"user_space_max_size,omitempty"`
	InitThreads   uint32 `json:"init_num_of_threads,omitempty"`
	MaxThreads    uint32 `json:"max_num_of_threads"`
}

// Process sizes every process of the LibOS. The mmap size is obsolete, and still required.
type Process struct {
	Stack Size `json:"default_stack_size"`
	Heap  Size `json:"default_heap_size"`
	Mmap  Size `json:"default_mmap_size"`
}

// Env is the environment that a process gets: Default ("NAME=value"), and the host's value of every name in
// Untrusted, which wins over the default.
type Env struct {
	Default   []string `json:"default"`
	Untrusted []string `json:"untrusted"`
}

// Metadata is what goes into the enclave's identity. DisableLog is nil if the file leaves the choice to Occlum,
// which then disables the log of enclaves that cannot be debugged.
type Metadata struct {
	ProductID     uint32 `json:"product_id"`
	VersionNumber uint32 `json:"version_number"` // ISVSVN
	Debuggable    bool   `json:"debuggable"`
	DisableLog    *bool  `json:"disable_log,omitempty"`
	EnableKSS     bool   `json:"enable_kss"`
	FamilyID      ID128  `json:"family_id"`
	ExtProdID     ID128  `json:"ext_prod_id"`
}

// ID128 is a number of 128 bits, in two halves of hex digits with or without 0x.
type ID128 struct {
	High string `json:"high"`
	Low  string `json:"low"`
}

// Feature switches parts of the LibOS on.
type Feature struct {
	AMX            uint32 `json:"amx"`
	PKRU           uint32 `json:"pkru"`
	IOUring        uint32 `json:"io_uring,omitempty"`
	EnableEDMM     bool   `json:"enable_edmm"`
	EnablePOSIXShm bool   `json:"enable_posix_shm"`
}

// Mount is one file system of the app stage, or one layer of a union.
type Mount struct {
	Target  string        `json:"target"`
	Type    string        `json:"type"`
	Source  string        `json:"source,omitempty"`
	Options *MountOptions `json:"options,omitempty"`
}

// MountOptions are the options of a [Mount]. A MAC, even an empty one, marks the image layer; Occlum's build fills
// it in.
type MountOptions struct {
	MAC       *string `json:"MAC,omitempty"`
	Layers    []Mount `json:"layers,omitempty"`
	Temporary bool    `json:"temporary,omitempty"`
	CacheSize Size    `json:"cache_size,omitempty"`
	DiskSize  Size    `json:"disk_size,omitempty"`
}

// What Occlum takes if the platform has EDMM and the file says less.
const (
	edmmUserSpaceMax  Size   = 16 << 30
	edmmKernelHeapMax Size   = 1 << 30
	edmmThreadsMax    uint32 = 4096
)

// UserSpace is how much memory all processes together may have.
func (c *Config) UserSpace() Size {
	return grown(c.ResourceLimits.UserSpace, c.ResourceLimits.UserSpaceMax, c.Feature.EnableEDMM, edmmUserSpaceMax)
}

// KernelHeap is how much memory the LibOS itself may have.
func (c *Config) KernelHeap() Size {
	return grown(c.ResourceLimits.KernelHeap, c.ResourceLimits.KernelHeapMax, c.Feature.EnableEDMM, edmmKernelHeapMax)
}

// Threads is how many threads all processes together may have.
func (c *Config) Threads() uint32 {
	if c.Feature.EnableEDMM {
		return max(c.ResourceLimits.MaxThreads, edmmThreadsMax)
	}
	return c.ResourceLimits.MaxThreads
}

func grown(size, limit Size, edmm bool, least Size) Size {
	if limit == 0 {
		limit = size
	}
	if edmm {
		limit = max(limit, least)
	}
	return limit
}

// Root is the union that becomes the app's root, nil if there is none, which Occlum's build refuses. Image is
// its read-only layer and Container the writable one, each nil if it is missing.
func (c *Config) Root() (root, image, container *Mount) {
	for i := range c.Mount {
		if m := &c.Mount[i]; m.Target == "/" && m.Type == "unionfs" {
			root = m
			break
		}
	}
	if root == nil || root.Options == nil {
		return root, nil, nil
	}
	for i := range root.Options.Layers {
		layer := &root.Options.Layers[i]
		switch {
		case layer.Type != "sefs":
		case layer.Options != nil && layer.Options.MAC != nil:
			if image == nil {
				image = layer
			}
		case container == nil:
			container = layer
		}
	}
	return root, image, container
}

// Size is a number of bytes, written with a unit: "300MB". Units are powers of 1024.
type Size uint64

var units = []struct {
	name   string
	factor Size
}{{"TB", 1 << 40}, {"GB", 1 << 30}, {"MB", 1 << 20}, {"KB", 1 << 10}, {"B", 1}}

// ParseSize reads a size as Occlum writes it: digits and one of the units B, KB, MB, GB and TB.
func ParseSize(s string) (Size, error) {
	s = strings.TrimSpace(s)
	for _, unit := range units {
		digits, ok := strings.CutSuffix(s, unit.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 64)
		if err != nil || n > uint64(^Size(0)/unit.factor) {
			break
		}
		return Size(n) * unit.factor, nil
	}
	return 0, fmt.Errorf("size %q is not a number with a unit B, KB, MB, GB or TB", s)
}

// String is the size with the largest unit that leaves no fraction.
func (s Size) String() string {
	for _, unit := range units {
		if s >= unit.factor && s%unit.factor == 0 {
			return strconv.FormatUint(uint64(s/unit.factor), 10) + unit.name
		}
	}
	return "0B"
}

// MarshalText writes s as [Size.String] does.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what [ParseSize] does.
func (s *Size) UnmarshalText(text []byte) error {
	n, err := ParseSize(string(text))
	*s = n
	return err
}

// Load parses the file at path.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, err
	}
	c, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return c, nil
}

// Parse reads Occlum.json. Missing and malformed fields are all named at once.
func Parse(b []byte) (*Config, error) {
	if len(b) > MaxFile {
		return nil, fmt.Errorf("the file is larger than %d bytes", MaxFile)
	}
	if missing := missingFields(b); len(missing) > 0 {
		return nil, fmt.Errorf("missing %s", strings.Join(missing, ", "))
	}
	var c Config
	if err := strictjson.Decode(b, &c); err != nil {
		return nil, err
	}
	return &c, c.validate()
}

// required lists what gen_internal_conf does not do without.
var required = map[string][]string{
	"": {"resource_limits", "process", "entry_points", "env", "metadata", "feature", "mount"},
	"resource_limits": {"kernel_space_heap_size", "kernel_space_stack_size", "user_space_size",
		"max_num_of_threads"},
	"process":  {"default_stack_size", "default_heap_size", "default_mmap_size"},
	"env":      {"default", "untrusted"},
	"metadata": {"product_id", "version_number", "debuggable", "enable_kss", "family_id", "ext_prod_id"},
}

// missingFields names the required fields that are not there. What is malformed is left to the decoder.
func missingFields(b []byte) []string {
	var top map[string]json.RawMessage
	if json.Unmarshal(b, &top) != nil {
		return nil
	}
	var missing []string
	for _, name := range required[""] {
		if _, ok := top[name]; !ok {
			missing = append(missing, name)
			continue
		}
		var section map[string]json.RawMessage
		if len(required[name]) == 0 || json.Unmarshal(top[name], &section) != nil {
			continue
		}
		for _, field := range required[name] {
			if _, ok := section[field]; !ok {
				missing = append(missing, name+"."+field)
			}
		}
	}
	return missing
}

// validate checks what types cannot say.
func (c *Config) validate() error {
	var failures []error
	for _, id := range []struct{ name, digits string }{
		{"family_id.high", c.Metadata.FamilyID.High}, {"family_id.low", c.Metadata.FamilyID.Low},
		{"ext_prod_id.high", c.Metadata.ExtProdID.High}, {"ext_prod_id.low", c.Metadata.ExtProdID.Low},
	} {
		if _, err := strconv.ParseUint(strings.TrimPrefix(id.digits, "0x"), 16, 64); err != nil {
			failures = append(failures, fmt.Errorf("metadata.%s: %q is not a hex number of 64 bits, such as "+
				"0x1234567812345678", id.name, id.digits))
		}
	}
	for _, e := range c.Env.Default {
		if name, _, ok := strings.Cut(e, "="); !ok || name == "" {
			failures = append(failures, fmt.Errorf("env.default: %q is not NAME=value", e))
		}
	}
	root, image, _ := c.Root()
	switch {
	case root == nil:
		failures = append(failures, errors.New(`mount: no entry of type unionfs for target "/"`))
	case image == nil:
		failures = append(failures, errors.New(`mount: the union at "/" has no sefs layer with the option MAC`))
	}
	return errors.Join(failures...)
}
