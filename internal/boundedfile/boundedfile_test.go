package boundedfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/internal/boundedfile"
)

func TestReadTakesFilesUpToTheLimit(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	for size, want := range map[int]bool{0: true, 99: true, 100: true, 101: false, 5000: false} {
		if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		content, err := boundedfile.Read(name, 100)
		if (err == nil) != want || err == nil && len(content) != size {
			t.Errorf("%d bytes: %d read, error %v", size, len(content), err)
		}
		if err != nil && (!strings.Contains(err.Error(), name) || content != nil) {
			t.Errorf("%d bytes: error %v does not name the file, or comes with content", size, err)
		}
	}
}

func TestReadSaysThatAFileIsNotThere(t *testing.T) {
	if _, err := boundedfile.Read(filepath.Join(t.TempDir(), "none"), 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error is %v", err)
	}
}
