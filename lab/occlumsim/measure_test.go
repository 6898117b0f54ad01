package occlumsim

import (
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/sesame-init/sesame/internal/occlum/occlumconf"
)

func TestMRSignerIsTheHashOfTheLittleEndianModulus(t *testing.T) {
	modulus := make([]byte, 384) // big-endian
	modulus[0], modulus[383] = 0x80, 0x01
	reversed := make([]byte, 384)
	reversed[0], reversed[383] = 0x01, 0x80
	got, err := MRSigner(&rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: 3})
	if want := sha256.Sum256(reversed); err != nil || got != want {
		t.Errorf("%x, %v; want %x", got, err, want)
	}
	if _, err := MRSigner(&rsa.PublicKey{N: big.NewInt(1 << 40), E: 3}); err == nil {
		t.Error("a key of another size is taken")
	}
}

func TestAnIdentityWithMoreBehindItIsRefused(t *testing.T) {
	name := filepath.Join(t.TempDir(), "enclave.json")
	for text, fault := range map[string]string{
		`{}`: "", `{} {}`: "after its end", `{"mr_enclave": "", "mr_enclave": ""}`: "given twice", `{"MR_ENCLAVE": ""}`: "another case",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := readJSON[Enclave](name)
		if (err == nil) != (fault == "") || err != nil && !strings.Contains(err.Error(), fault) {
			t.Errorf("%s: error is %v, want %q", text, err, fault)
		}
	}
}

func TestMREnclaveCoversWhatOcclumMeasures(t *testing.T) {
	measure := func(change func(*occlumconf.Config), manifest, mac string) [32]byte {
		text, err := templates.ReadFile("template/Occlum.json")
		if err != nil {
			t.Fatal(err)
		}
		c, err := occlumconf.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		change(c)
		m, err := newSystem(c, manifest, mac).MREnclave()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	nothing := func(*occlumconf.Config) {}
	base := measure(nothing, "initfs", "mac")
	if measure(nothing, "initfs", "mac") != base {
		t.Error("the same input gives another value")
	}
	if measure(nothing, "other", "mac") == base || measure(nothing, "initfs", "other") == base {
		t.Error("the initfs or the image does not count")
	}
	for name, c := range map[string]struct {
		change func(*occlumconf.Config)
		same   bool
	}{
		"entry points":          {change: func(c *occlumconf.Config) { c.EntryPoints = []string{"/bin/app"} }},
		"default environment":   {change: func(c *occlumconf.Config) { c.Env.Default = append(c.Env.Default, "A=1") }},
		"untrusted environment": {change: func(c *occlumconf.Config) { c.Env.Untrusted = nil }},
		"user space":            {change: func(c *occlumconf.Config) { c.ResourceLimits.UserSpace++ }},
		"kernel heap":           {change: func(c *occlumconf.Config) { c.ResourceLimits.KernelHeap++ }},
		"threads":               {change: func(c *occlumconf.Config) { c.ResourceLimits.MaxThreads++ }},
		"stack":                 {change: func(c *occlumconf.Config) { c.Process.Stack++ }},
		"features":              {change: func(c *occlumconf.Config) { c.Feature.EnablePOSIXShm = !c.Feature.EnablePOSIXShm }},
		"mounts":                {change: func(c *occlumconf.Config) { c.Mount = c.Mount[:1] }},
		"a temporary layer": {change: func(c *occlumconf.Config) {
			c.Mount[0].Options.Layers[1].Options = &occlumconf.MountOptions{Temporary: true}
		}},
		"log":                         {change: func(c *occlumconf.Config) { disabled := c.Metadata.Debuggable; c.Metadata.DisableLog = &disabled }},
		"product id, which is signed": {same: true, change: func(c *occlumconf.Config) { c.Metadata.ProductID++ }},
		"SVN, which is signed":        {same: true, change: func(c *occlumconf.Config) { c.Metadata.VersionNumber++ }},
		"KSS, which is signed":        {same: true, change: func(c *occlumconf.Config) { c.Metadata.EnableKSS = true }},
	} {
		if got := measure(c.change, "initfs", "mac"); (got == base) != c.same {
			t.Errorf("%s: same is %v, want %v", name, got == base, c.same)
		}
	}
}

func TestManifestCoversNamesModesContentAndLinksAndNothingElse(t *testing.T) {
	tree := func(change func(fstest.MapFS)) fstest.MapFS {
		m := fstest.MapFS{
			"bin":      {Mode: fs.ModeDir | 0o755},
			"bin/init": {Data: []byte("program"), Mode: 0o755},
			"etc":      {Mode: fs.ModeDir | 0o755},
			"etc/link": {Data: []byte("target"), Mode: fs.ModeSymlink | 0o777},
		}
		change(m)
		return m
	}
	base, err := Manifest(tree(func(fstest.MapFS) {}))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := hex.DecodeString(base); err != nil || len(b) != sha256.Size {
		t.Fatalf("the manifest is %q", base)
	}
	for name, c := range map[string]struct {
		change func(fstest.MapFS)
		same   bool
	}{
		"content":             {change: func(m fstest.MapFS) { m["bin/init"].Data = []byte("Program") }},
		"mode":                {change: func(m fstest.MapFS) { m["bin/init"].Mode = 0o700 }},
		"mode of a directory": {change: func(m fstest.MapFS) { m["etc"].Mode = fs.ModeDir | 0o700 }},
		"target":              {change: func(m fstest.MapFS) { m["etc/link"].Data = []byte("other") }},
		"link's kind":         {change: func(m fstest.MapFS) { m["etc/link"].Mode = 0o777 }},
		"new file":            {change: func(m fstest.MapFS) { m["etc/new"] = &fstest.MapFile{Mode: 0o644} }},
		"name": {change: func(m fstest.MapFS) {
			m["etc/other"] = m["etc/link"]
			delete(m, "etc/link")
		}},
		"owner's id bits": {change: func(m fstest.MapFS) { m["bin/init"].Mode |= fs.ModeSetuid }, same: true},
	} {
		got, err := Manifest(tree(c.change))
		if err != nil || (got == base) != c.same {
			t.Errorf("%s: same is %v, want %v; %v", name, got == base, c.same, err)
		}
	}
}
