package ociimage

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

var created = time.Unix(1700000000, 123)

// files makes a directory with a file, an executable and a link.
func files(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "b/c"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{"a": 0o644, "b/c/run": 0o755} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("c/run", filepath.Join(dir, "b/link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func build(t *testing.T, dir string) v1.Image {
	t.Helper()
	entries, err := Tree(dir, "/opt/app", 7, 8)
	if err != nil {
		t.Fatal(err)
	}
	layer, err := Layer(entries, created)
	if err != nil {
		t.Fatal(err)
	}
	image, err := New(nil, Config{Entrypoint: []string{"/opt/app/b/c/run"}, WorkingDir: "/opt/app", User: "7:8",
		Created: created,
		Labels:  map[string]string{"x": "1", "a": "2"}, Ports: []string{"1/tcp"}}, layer)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func TestTheSameFilesGiveTheSameDigest(t *testing.T) {
	first, second := files(t), files(t)
	old := time.Unix(1, 0)
	if err := os.Chtimes(filepath.Join(second, "a"), old, old); err != nil {
		t.Fatal(err)
	}
	a, err := build(t, first).Digest()
	if err != nil {
		t.Fatal(err)
	}
	b, err := build(t, second).Digest()
	if err != nil || a != b {
		t.Errorf("%v and %v, %v", a, b, err)
	}
	if err := os.Chmod(filepath.Join(second, "a"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := build(t, second).Digest(); err != nil || c == a {
		t.Errorf("another mode gives the same digest %v, %v", c, err)
	}
}

func TestAnImageComesBackFromLayoutAndRegistryAsItWas(t *testing.T) {
	image := build(t, files(t))
	want, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	layout := filepath.Join(t.TempDir(), "layout")
	for range 2 { // the second replaces the first
		if err := WriteLayout(layout, "demo/app:1", image); err != nil {
			t.Fatal(err)
		}
	}
	server := httptest.NewServer(registry.New())
	defer server.Close()
	ref := strings.TrimPrefix(server.URL, "http://") + "/demo/app:1"
	pushed, err := Push(t.Context(), ref, image)
	if err != nil || !strings.HasSuffix(pushed, want.String()) {
		t.Fatalf("pushed %s, %v", pushed, err)
	}
	for _, from := range []string{"oci:" + layout, ref, pushed} {
		got, err := Open(t.Context(), from)
		if err != nil {
			t.Fatal(err)
		}
		if digest, err := got.Digest(); err != nil || digest != want {
			t.Errorf("%s: digest %v, %v, want %v", from, digest, err, want)
		}
		dir := filepath.Join(t.TempDir(), "root")
		if err := Unpack(got, dir); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(dir, "opt/app/b/link"))
		if err != nil || string(text) != "b/c/run" {
			t.Errorf("%s: the link leads to %q, %v", from, text, err)
		}
		info, err := os.Stat(filepath.Join(dir, "opt/app/b/c/run"))
		if err != nil || info.Mode() != 0o755 {
			t.Errorf("%s: mode %v, %v", from, info.Mode(), err)
		}
	}
}

func TestLayersAreRefused(t *testing.T) {
	for name, entries := range map[string][]Entry{
		"twice":    {{Path: "/a"}, {Path: "/a"}},
		"relative": {{Path: "a"}},
		"unclean":  {{Path: "/a/../b"}},
		"device":   {{Path: "/a", Mode: fs.ModeDevice}},
		"missing":  {{Path: "/a", From: "/nonexistent/file"}},
	} {
		if _, err := Layer(entries, created); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// hostile is an archive whose entries want to leave the directory.
func hostile(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		h.Mode = 0o644
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestUnpackingStaysInItsDirectory(t *testing.T) {
	outside := t.TempDir()
	for name, archive := range map[string][]byte{
		"dots": hostile(t, tar.Header{Typeflag: tar.TypeReg, Name: "../../../../" + outside + "/x", Size: 1}),
		"link": hostile(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "out", Linkname: outside},
			tar.Header{Typeflag: tar.TypeReg, Name: "out/x", Size: 1}),
		"hard link": hostile(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "out", Linkname: "../.."},
			tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "out/etc/passwd"}),
	} {
		_ = UnpackTar(bytes.NewReader(archive), t.TempDir()) // an error is fine, a file outside is not
		if found, _ := os.ReadDir(outside); len(found) > 0 {
			t.Fatalf("%s: wrote %v", name, found)
		}
	}
}

func FuzzUnpackTar(f *testing.F) {
	f.Add(hostile(f, tar.Header{Typeflag: tar.TypeReg, Name: "a/b", Size: 3}, tar.Header{Typeflag: tar.TypeLink,
		Name: "c", Linkname: "a/b"}))
	f.Add(hostile(f, tar.Header{Typeflag: tar.TypeSymlink, Name: "out", Linkname: ".."},
		tar.Header{Typeflag: tar.TypeReg, Name: "out/x", Size: 1}))
	f.Fuzz(func(t *testing.T, archive []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "root")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_ = UnpackTar(bytes.NewReader(archive), dir)
		if found, err := os.ReadDir(parent); err != nil || len(found) != 1 {
			t.Fatalf("beside the directory: %v, %v", found, err)
		}
	})
}

func TestSparseFilesAreRefused(t *testing.T) {
	archive := hostile(t, tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: 512,
		PAXRecords: map[string]string{"VENDOR.note": "1"}})
	if err := UnpackTar(bytes.NewReader(archive), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{"GNU.sparse.major": "1", "GNU.sparse.realsize": "1099511627776"} {
		header := &tar.Header{PAXRecords: map[string]string{key: value}}
		if !sparse(header) {
			t.Errorf("%s is not seen", key)
		}
	}
	if !sparse(&tar.Header{Typeflag: tar.TypeGNUSparse}) {
		t.Error("the old form is not seen")
	}
}
