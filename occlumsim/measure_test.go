package occlumsim

import (
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"math/big"
	"testing"
	"testing/fstest"
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
