// Package boundedfile reads files whose size someone else decides: whole, but never more than the reader can use.
package boundedfile

import (
	"fmt"
	"io"
	"os"
)

// Read returns the content of a file of at most limit bytes. The error names the file; that of a file which is not
// there is [io/fs.ErrNotExist].
func Read(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ReadFrom(f, path, limit)
}

// ReadFrom is [Read] for what is open already and has this name.
func ReadFrom(r io.Reader, name string, limit int64) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) > limit {
		clear(content) // it may be a secret
		return nil, fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return content, nil
}
