package sefs_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/fs/sefs/internal/pfs"
)

const rootFile = "02000000000000000000000000000000" // the root directory's host file

// FuzzVolume opens volumes whose protected files are all authentic, as anyone who has the key can make them, but
// whose inode table and root directory hold anything.
func FuzzVolume(f *testing.F) {
	image := filepath.Join(f.TempDir(), "image")
	_, err := sefs.Create(f.Context(), image, fstest.MapFS{
		"a/b":  {Mode: 0o644, Data: []byte("content")},
		"link": {Mode: fs.ModeSymlink | 0o777, Data: []byte("a/b")},
	}, sefs.CreateOptions{})
	if err != nil {
		f.Fatal(err)
	}
	codec := pfs.NewCodec(sefs.Layout031, nil)
	f.Add(plain(f, codec, image, "metadata"), plain(f, codec, image, rootFile))
	f.Fuzz(func(t *testing.T, metadata, directory []byte) {
		if len(metadata) > 1<<18 || len(directory) > 1<<16 {
			return
		}
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(image)); err != nil {
			t.Fatal(err)
		}
		author(t, codec, dir, "metadata", metadata)
		author(t, codec, dir, rootFile, directory)
		v, err := sefs.Open(dir, sefs.OpenOptions{Unverified: true})
		if err != nil {
			return
		}
		defer v.Close()
		verified := v.Verify(t.Context(), nil)
		seen := 0
		err = fs.WalkDir(v, ".", func(path string, d fs.DirEntry, err error) error {
			if seen++; seen > 1<<16 {
				t.Fatal("the walk does not end")
			}
			if err == nil && !fs.ValidPath(path) {
				t.Errorf("path %q", path)
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			_, err = fs.ReadFile(v, path)
			return err
		})
		if verified == nil && err != nil {
			t.Errorf("Verify takes a volume that cannot be read: %v", err)
		}
	})
}

// plain is the content of a protected file.
func plain(t testing.TB, c *pfs.Codec, dir, name string) []byte {
	stored, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	file, err := pfs.NewReader(c, 1).Open(bytes.NewReader(stored), int64(len(stored)), name)
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, file.Size())
	if _, err := file.ReadAt(content, 0); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return content
}

// author writes an authentic protected file.
func author(t testing.TB, c *pfs.Codec, dir, name string, content []byte) {
	w, err := pfs.NewWriter(c, pfs.WriterOptions{Rand: bytes.NewReader(make([]byte, 96)), Buffers: 1})
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, _, err := w.Write(t.Context(), file, name, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}
