package fuse_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/fs/fuse"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/testenv"
)

// mountOn mounts the volume on the directory until the end of the test, and makes sure that the mount is gone then.
func mountOn(t *testing.T, v *sefs.Volume, dir string, o fuse.Options) *fuse.Server {
	t.Helper()
	s, err := fuse.Mount(t.Context(), v, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Unmount(); err != nil {
			t.Error(err)
		}
		if mounted(t, dir) {
			t.Errorf("%s is still mounted", dir)
		}
	})
	return s
}

func mountVolume(t *testing.T, v *sefs.Volume, o fuse.Options) string {
	t.Helper()
	dir := t.TempDir()
	mountOn(t, v, dir, o)
	return dir
}

func mounted(t *testing.T, dir string) bool {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Contains(mounts, []byte(" "+dir+" "))
}

func openVolume(t *testing.T, dir string, o sefs.OpenOptions) *sefs.Volume {
	t.Helper()
	v, err := sefs.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

// manifest is manifest.json of an image among the vectors.
type manifest struct {
	RootMAC string `json:"root_mac"`
	Key     string
	Entries []struct {
		Path, Type, Mode, SHA256, Target string
		Inode                            uint64
		NLink                            uint64
		UID, GID                         uint32
		Size                             int64
		Mtime                            [2]int64
	}
}

// unpack opens an image of the vectors.
func unpack(t *testing.T, image string) (*sefs.Volume, manifest) {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Open(filepath.Join(image, "image.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for archive := tar.NewReader(z); ; {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(h.Name)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(filepath.Join(image, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	o := sefs.OpenOptions{Unverified: m.RootMAC == ""}
	if m.Key != "" {
		key, err := sefs.ParseKey([]byte(m.Key))
		if err != nil {
			t.Fatal(err)
		}
		o.Key = &key
	}
	if m.RootMAC != "" {
		mac, err := sefs.ParseMAC(m.RootMAC)
		if err != nil {
			t.Fatal(err)
		}
		o.MAC = &mac
	}
	return openVolume(t, dir, o), m
}

// TestVectorsReadThroughTheMountAsTheirManifestSays compares everything that stat(2), readlink(2), readdir(3) and
// read(2) say about images written by the upstream code.
func TestVectorsReadThroughTheMountAsTheirManifestSays(t *testing.T) {
	testenv.FUSE(t)
	images, err := filepath.Glob(filepath.Join(testenv.Vectors(t, "sefs"), "occlum-*", "images", "*"))
	if err != nil || len(images) < 20 {
		t.Fatalf("%d images, %v", len(images), err)
	}
	for _, image := range images {
		t.Run(filepath.Base(filepath.Dir(filepath.Dir(image)))+"/"+filepath.Base(image), func(t *testing.T) {
			v, want := unpack(t, image)
			dir := mountVolume(t, v, fuse.Options{})
			found := map[string]bool{}
			err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
				found[filepath.Join("/", strings.TrimPrefix(path, dir))] = true
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(found) != len(want.Entries) {
				t.Errorf("found %d paths, not %d", len(found), len(want.Entries))
			}
			types := map[string]uint32{
				"file": unix.S_IFREG, "dir": unix.S_IFDIR, "symlink": unix.S_IFLNK, "socket": unix.S_IFSOCK,
			}
			for _, e := range want.Entries {
				path := filepath.Join(dir, e.Path)
				var st unix.Stat_t
				if err := unix.Lstat(path, &st); err != nil || !found[e.Path] {
					t.Errorf("%s: found %v, %v", e.Path, found[e.Path], err)
					continue
				}
				mode, err := strconv.ParseUint(e.Mode, 8, 32)
				if err != nil {
					t.Fatal(err)
				}
				if got := fmt.Sprintf("inode %d mode %o links %d owner %d:%d size %d mtime %d.%09d",
					st.Ino, st.Mode, st.Nlink, st.Uid, st.Gid, st.Size, st.Mtim.Sec, st.Mtim.Nsec); got !=
					fmt.Sprintf("inode %d mode %o links %d owner %d:%d size %d mtime %d.%09d",
						e.Inode, types[e.Type]|uint32(mode), e.NLink, e.UID, e.GID, e.Size, e.Mtime[0], e.Mtime[1]) {
					t.Errorf("%s: %s, not %+v", e.Path, got, e)
				}
				switch e.Type {
				case "file":
					b, err := os.ReadFile(path)
					if sum := sha256.Sum256(b); err != nil || hex.EncodeToString(sum[:]) != e.SHA256 {
						t.Errorf("%s: content differs (%v)", e.Path, err)
					}
				case "symlink":
					if target, err := os.Readlink(path); err != nil || target != e.Target {
						t.Errorf("%s: links to %q, not %q (%v)", e.Path, target, e.Target, err)
					}
				}
			}
		})
	}
}

var _ = context.Background
var _ = errors.New
var _ = exec.Command
var _ sync.Mutex
var _ syscall.Errno
var _ = logrus.New
var _ = logtest.NewNullLogger
