package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// tree is a generated directory: nine tenths of its bytes in three large files, as a model's weights are, the
// rest in small files of up to 64 KiB, 256 to a directory.
type tree struct {
	dir          string
	large, small []file
	size         int64
}

type file struct {
	path string // slash-separated, as fs.FS wants it
	size int64
}

func (t *tree) files() []file { return append(append([]file(nil), t.large...), t.small...) }

const largeFiles = 3

// generate writes the tree of this seed and size; the same seed gives the same bytes.
func generate(dir string, size int64, seed uint64) (*tree, error) {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	content := rand.NewChaCha8(key)
	sizes := rand.New(rand.NewPCG(seed, 1))

	t := &tree{dir: dir}
	for i := range largeFiles {
		t.large = append(t.large, file{fmt.Sprintf("weights-%d.bin", i), size * 9 / 10 / largeFiles})
	}
	for total := size * 9 / 10; total < size; {
		n := min(1+sizes.Int64N(64<<10), size-total)
		t.small = append(t.small, file{fmt.Sprintf("assets/%03d/%05d", len(t.small)/256, len(t.small)), n})
		total += n
	}
	for _, f := range t.files() {
		if err := writeRandom(filepath.Join(dir, filepath.FromSlash(f.path)), content, f.size); err != nil {
			return nil, err
		}
		t.size += f.size
	}
	return t, nil
}

func writeRandom(name string, content io.Reader, size int64) error {
	f, err := create(name)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, io.LimitReader(content, size), make([]byte, 1<<20))
	return errors.Join(err, f.Close())
}

// copyAll copies the files into the new directory dir.
func copyAll(dir string, fsys fs.FS, files []file, buf []byte) error {
	for _, f := range files {
		if err := copyFile(filepath.Join(dir, filepath.FromSlash(f.path)), fsys, f.path, buf); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(dst string, fsys fs.FS, src string, buf []byte) error {
	in, err := fsys.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := create(dst)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{in}, buf)
	return errors.Join(err, out.Close())
}

// create makes a file that is not there, and the directories above it.
func create(name string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
}

// readAll reads the files one after the other with reads of 1 MiB, and fails if a size is not the expected.
func readAll(fsys fs.FS, files []file, buf []byte) error {
	for _, want := range files {
		f, err := fsys.Open(want.path)
		if err != nil {
			return err
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, buf)
		_ = f.Close()
		if err != nil {
			return err
		}
		if n != want.size {
			return fmt.Errorf("%s has %d bytes, not %d", want.path, n, want.size)
		}
	}
	return nil
}
