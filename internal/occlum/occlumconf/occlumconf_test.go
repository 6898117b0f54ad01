package occlumconf

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// instance is a configuration with every field that Occlum wants and some that it only allows.
const instance = `{
	"resource_limits": {
		"kernel_space_heap_size": "32MB", "kernel_space_stack_size": "1MB", "user_space_size": "300MB",
		"user_space_max_size": "2GB", "max_num_of_threads": 32
	},
	"process": {"default_stack_size": "4MB", "default_heap_size": "32MB", "default_mmap_size": "100MB"},
	"entry_points": ["/bin"],
	"env": {"default": ["OCCLUM=yes"], "untrusted": ["EXAMPLE"]},
	"metadata": {
		"product_id": 3, "version_number": 7, "debuggable": true, "enable_kss": false,
		"family_id": {"high": "0x0", "low": "0x0"}, "ext_prod_id": {"high": "0x0", "low": "0x12ab"}
	},
	"feature": {"amx": 0, "pkru": 0, "enable_edmm": false, "enable_posix_shm": false},
	"mount": [
		{"target": "/", "type": "unionfs", "options": {"layers": [
			{"target": "/", "type": "sefs", "source": "./build/mount/__ROOT", "options": {"MAC": ""}},
			{"target": "/", "type": "sefs", "source": "./run/mount/__ROOT", "options": {"temporary": true}}
		]}},
		{"target": "/host", "type": "hostfs", "source": "."}
	]
}`

func TestParseReadsWhatTheFileSays(t *testing.T) {
	c, err := Parse([]byte(instance))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.ResourceLimits.UserSpace; got != 300<<20 {
		t.Errorf("user space %d", got)
	}
	if c.Metadata.ProductID != 3 || c.Metadata.VersionNumber != 7 || !c.Metadata.Debuggable {
		t.Errorf("metadata %+v", c.Metadata)
	}
	root, image, container := c.Root()
	if root != &c.Mount[0] || image.Source != "./build/mount/__ROOT" || container.Source != "./run/mount/__ROOT" {
		t.Errorf("root %+v, image %+v, container %+v", root, image, container)
	}
	if !container.Options.Temporary {
		t.Error("the container layer lost its option temporary")
	}
}

func TestWrittenFileReadsTheSame(t *testing.T) {
	c, err := Parse([]byte(instance))
	if err != nil {
		t.Fatal(err)
	}
	first, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	c, err = Parse(first)
	if err != nil {
		t.Fatal(err)
	}
	second, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Errorf("first  %s\nsecond %s", first, second)
	}
}

func TestParseNamesWhatIsWrong(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"an unknown field", `"temporary"`, `"temporay"`, "temporay is not a known key"},
		{"a field that Occlum drops silently", `"options": {"MAC": ""}`, `"options": {"MAC": "", "index": 1}`, "index is not a known key"},
		{"a missing section", `"process"`, `"processes"`, "missing process"},
		{"a missing field", `"debuggable": true,`, ``, "missing metadata.debuggable"},
		{"a size without a unit", `"32MB", "kernel`, `"32", "kernel`, `size "32"`},
		{"a size that is a number", `"300MB"`, `300`, "user_space_size"},
		{"a size beyond 64 bits", `"300MB"`, `"99999999TB"`, "99999999TB"},
		{"an identity that is not hex", `"0x12ab"`, `"0x12xy"`, "metadata.ext_prod_id.low"},
		{"an environment entry without a value", `"OCCLUM=yes"`, `"OCCLUM"`, "env.default"},
		{"no root", `"unionfs"`, `"sefs"`, `target "/"`},
		{"no image layer", `"options": {"MAC": ""}`, `"options": {}`, "option MAC"},
		{"a field twice", `"options": {"MAC": ""}`, `"options": {"MAC": "", "MAC": "x"}`, "MAC is given twice"},
		{"a second document", `"source": "."}` + "\n\t]\n}", `"source": "."}]} {}`, "has something after its end"},
		{"not JSON", `{`, `<`, "invalid character"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(instance, c.old, c.new, 1)
			if text == instance {
				t.Fatal("nothing was changed")
			}
			if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
	if _, err := Parse(bytes.Repeat([]byte{' '}, MaxFile+1)); err == nil {
		t.Error("a file beyond the bound was parsed")
	}
}

func TestOcclumFillsInWhatTheFileLeavesOut(t *testing.T) {
	for _, c := range []struct {
		name       string
		limits     ResourceLimits
		edmm       bool
		user, heap Size
		threads    uint32
	}{
		{"static sizes", ResourceLimits{UserSpace: 1 << 20, KernelHeap: 2 << 20, MaxThreads: 8}, false,
			1 << 20, 2 << 20, 8},
		{"a maximum is the static size", ResourceLimits{UserSpace: 1, UserSpaceMax: 5, KernelHeap: 1,
			KernelHeapMax: 6, MaxThreads: 8}, false, 5, 6, 8},
		{"EDMM grows to its defaults", ResourceLimits{UserSpace: 1, UserSpaceMax: 5, KernelHeap: 1, MaxThreads: 8},
			true, 16 << 30, 1 << 30, 4096},
		{"EDMM keeps what is larger", ResourceLimits{UserSpace: 20 << 30, KernelHeap: 2 << 30, MaxThreads: 5000},
			true, 20 << 30, 2 << 30, 5000},
	} {
		conf := Config{ResourceLimits: c.limits, Feature: Feature{EnableEDMM: c.edmm}}
		if u, h, n := conf.UserSpace(), conf.KernelHeap(), conf.Threads(); u != c.user || h != c.heap || n != c.threads {
			t.Errorf("%s: user space %v, kernel heap %v, threads %d", c.name, u, h, n)
		}
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Occlum.json")
	if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v does not name %s", err, path)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(instance))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(again); err != nil {
			t.Errorf("written back, the configuration is refused: %v", err)
		}
	})
}
