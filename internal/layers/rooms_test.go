package layers

import (
	"bytes"
	"io/fs"
	"os"
	"path"
	"strings"
	"testing"
)

// rooms says which package of the product alone may hold a text.
var rooms = []struct{ text, room string }{
	{"x509.CreateCertificate(", "internal/pki"},
	{"x509.MarshalPKCS8PrivateKey(", "internal/pki"},
	{"these are credentials of a client", "attest/session"},
	{"quote(\"server_cert\"", "internal/tfssl"},
	{"2*pause", "internal/retry"},
}

func TestEachThingHasOneRoom(t *testing.T) {
	found := map[string]bool{}
	root := os.DirFS("../..")
	err := fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if base := entry.Name(); name == "lab" || base == "testdata" || base != "." && strings.HasPrefix(base, ".") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		content, err := fs.ReadFile(root, name)
		for _, r := range rooms {
			switch {
			case !bytes.Contains(content, []byte(r.text)):
			case path.Dir(name) == r.room:
				found[r.text] = true
			default:
				t.Errorf("%s holds %q, which belongs into %s", name, r.text, r.room)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rooms {
		if !found[r.text] {
			t.Errorf("%s does not hold %q", r.room, r.text)
		}
	}
}
