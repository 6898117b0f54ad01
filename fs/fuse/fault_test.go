package fuse_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/fs/fuse"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/testenv"
)

// broken is a volume with a fault in its code: it cannot read links.
type broken struct{ *sefs.Volume }

func (b broken) OpenInode(file uint32) (fuse.File, error) { return b.Volume.OpenInode(file) }

func (broken) Target(uint32) (string, error) { panic("it broke") }

func TestAPanicBehindARequestIsToldAndTheRequestFails(t *testing.T) {
	testenv.FUSE(t)
	v, _ := newVolume(t)
	dir, told := t.TempDir(), make(chan error, 1)
	s, err := fuse.MountVolume(t.Context(), broken{v}, dir, fuse.Options{Panicked: func(err error) { told <- err }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Unmount(); err != nil {
			t.Error(err)
		}
		s.Wait()
	}()
	if _, err := os.Readlink(filepath.Join(dir, "link")); !errors.Is(err, unix.EIO) {
		t.Errorf("the reader gets %v", err)
	}
	if err := <-told; attest.CodeOf(err) != attest.CodeInternal || !strings.Contains(err.Error(), "panic: it broke") {
		t.Errorf("it is told as %v", err)
	}
	if _, err := os.ReadFile(filepath.Join(dir, "dir/small")); err != nil {
		t.Errorf("another request: %v", err)
	}
}
