package fuse_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
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

// unpack returns a directory with the files of an image of the vectors.
func unpack(t *testing.T, image string) string {
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
			return dir
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
}

func openVector(t *testing.T, image string) (*sefs.Volume, manifest) {
	t.Helper()
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
	return openVolume(t, unpack(t, image), o), m
}

// TestVectorsReadThroughTheMountAsTheirManifestSays compares everything that stat(2), readlink(2), readdir(3) and
// read(2) say about images written by the upstream code.
func TestVectorsReadThroughTheMountAsTheirManifestSays(t *testing.T) {
	testenv.FUSE(t)
	images, err := filepath.Glob(filepath.Join(testenv.Vectors(t, "sefs"), "occlum-*", "images", "*"))
	if err != nil || len(images) < 20 {
		t.Fatalf("%d images, %v", len(images), err)
	}
	for i, image := range images {
		if i%testenv.Sweep(1, 5) != 0 {
			continue
		}
		t.Run(filepath.Base(filepath.Dir(filepath.Dir(image)))+"/"+filepath.Base(image), func(t *testing.T) {
			v, want := openVector(t, image)
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

// TestMalformedVectorsEndWithErrors walks everything that authentic but malformed images show: it comes to an end, and
// to an error.
func TestMalformedVectorsEndWithErrors(t *testing.T) {
	testenv.FUSE(t)
	for _, layout := range []string{"occlum-0.30", "occlum-0.31"} {
		b, err := os.ReadFile(testenv.Vectors(t, "sefs", layout, "malformed", "index.json"))
		if err != nil {
			t.Fatal(err)
		}
		var index struct {
			Vectors []struct {
				Name, Dir, Must string
				RootMAC         string `json:"root_mac"`
			}
		}
		if err := json.Unmarshal(b, &index); err != nil || len(index.Vectors) == 0 {
			t.Fatalf("%d vectors, %v", len(index.Vectors), err)
		}
		for _, c := range index.Vectors {
			t.Run(layout+"/"+c.Name, func(t *testing.T) {
				mac, err := sefs.ParseMAC(c.RootMAC)
				if err != nil {
					t.Fatal(err)
				}
				v, err := sefs.Open(unpack(t, testenv.Vectors(t, "sefs", layout, c.Dir)), sefs.OpenOptions{MAC: &mac})
				var failures int
				if err != nil {
					failures++
				} else {
					defer v.Close()
					log, _ := logtest.NewNullLogger()
					failures = readEverything(t, mountVolume(t, v, fuse.Options{Log: log}))
				}
				if c.Must == "accept" && failures > 0 || c.Must == "reject" && failures == 0 {
					t.Errorf("must %s, but %d failures", c.Must, failures)
				}
			})
		}
	}
}

// readEverything returns how many entries below dir could not be read.
func readEverything(t *testing.T, dir string) (failures int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
		case d.Type() == fs.ModeSymlink:
			_, err = os.Readlink(path)
		case d.Type().IsRegular():
			err = readThrough(path)
		}
		if err != nil {
			failures++
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return failures
}

// readThrough reads a file whatever size it claims.
func readThrough(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(io.Discard, f)
	return err
}

// content is n bytes that differ from place to place and from name to name.
func content(name string, n int) []byte {
	var seed [32]byte
	copy(seed[:], name)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(seed).Read(b)
	return b
}

const bigSize = 5<<20 + 123

// newVolume makes an encrypted volume: a large file, small ones and a link. It returns the image's directory, too.
func newVolume(t *testing.T) (*sefs.Volume, string) {
	t.Helper()
	source := fstest.MapFS{
		"big":         {Data: content("big", bigSize), Mode: 0o644},
		"dir/empty":   {Mode: 0o600},
		"dir/inline":  {Data: content("dir/inline", 3072), Mode: 0o400},
		"dir/small":   {Data: content("dir/small", 10000), Mode: 0o755},
		"dir/sub/two": {Data: content("dir/sub/two", 2<<20), Mode: 0o644},
		"link":        {Data: []byte("dir/small"), Mode: fs.ModeSymlink | 0o777},
	}
	dir := filepath.Join(t.TempDir(), "image")
	key := sefs.Key(content("key", 16))
	mac, err := sefs.Create(t.Context(), dir, source, sefs.CreateOptions{Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	return openVolume(t, dir, sefs.OpenOptions{Key: &key, MAC: &mac}), dir
}

// hostFile is the protected file of an inode.
func hostFile(image string, v *sefs.Volume, t *testing.T, path string) string {
	t.Helper()
	info, err := v.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	var name [16]byte
	binary.LittleEndian.PutUint32(name[:], info.Sys().(*sefs.Inode).Number)
	return filepath.Join(image, hex.EncodeToString(name[:]))
}

// flip changes one bit of a file.
func flip(t *testing.T, file string, offset int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
}

func TestMountAndFSSayTheSame(t *testing.T) {
	testenv.FUSE(t)
	v, _ := newVolume(t)
	dir := mountVolume(t, v, fuse.Options{})
	var paths int
	err := fs.WalkDir(v, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		paths++
		want, err := d.Info()
		if err != nil {
			return err
		}
		got, err := os.Lstat(filepath.Join(dir, path))
		if err != nil {
			return err
		}
		if got.Mode() != want.Mode() || !d.IsDir() && got.Size() != want.Size() {
			t.Errorf("%s: %v, %d bytes, not %v, %d", path, got.Mode(), got.Size(), want.Mode(), want.Size())
		}
		if !want.Mode().IsRegular() {
			return nil
		}
		inVolume, err := fs.ReadFile(v, path)
		if err != nil {
			return err
		}
		inMount, err := os.ReadFile(filepath.Join(dir, path))
		if err == nil && (!bytes.Equal(inVolume, inMount) || !bytes.Equal(inMount, content(path, len(inMount)))) {
			t.Errorf("%s: content differs", path)
		}
		return err
	})
	if err != nil || paths != 9 {
		t.Errorf("%d paths, %v", paths, err)
	}
}

func TestMountIsReadOnly(t *testing.T) {
	testenv.FUSE(t)
	v, _ := newVolume(t)
	dir := mountVolume(t, v, fuse.Options{})
	for name, change := range map[string]func() error{
		"create": func() error { return os.WriteFile(filepath.Join(dir, "new"), nil, 0o644) },
		"write":  func() error { return os.WriteFile(filepath.Join(dir, "big"), nil, 0o644) },
		"mkdir":  func() error { return os.Mkdir(filepath.Join(dir, "new"), 0o755) },
		"remove": func() error { return os.Remove(filepath.Join(dir, "big")) },
		"chmod":  func() error { return os.Chmod(filepath.Join(dir, "big"), 0o777) },
	} {
		if err := change(); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Flags&unix.ST_NOSUID == 0 || st.Flags&unix.ST_NODEV == 0 ||
		st.Flags&unix.ST_RDONLY == 0 || st.Bavail != 0 {
		t.Errorf("statfs: %+v, %v", st, err)
	}
}

func TestNamesThatDoNotExistAreNotErrors(t *testing.T) {
	testenv.FUSE(t)
	v, _ := newVolume(t)
	log, lines := logtest.NewNullLogger()
	dir := mountVolume(t, v, fuse.Options{Log: log})
	for range 2 { // the second time the kernel knows by itself
		if _, err := os.Stat(filepath.Join(dir, "dir", "nothing")); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	if n := len(lines.AllEntries()); n != 0 {
		t.Errorf("%d lines were logged", n)
	}
}

func TestOwnerReplacesAllOwners(t *testing.T) {
	testenv.FUSE(t)
	v, _ := newVolume(t)
	dir := mountVolume(t, v, fuse.Options{Owner: &fuse.Owner{UID: 123, GID: 456}})
	for _, path := range []string{".", "big", "dir/small"} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, path), &st); err != nil || st.Uid != 123 || st.Gid != 456 {
			t.Errorf("%s: %d:%d, %v", path, st.Uid, st.Gid, err)
		}
	}
}

// TestTamperingIsEIOAndOneLine changes the image below a mount. Nothing of the changed part may be served, what is
// whole must be, and the log names each file once however often it is read.
func TestTamperingIsEIOAndOneLine(t *testing.T) {
	testenv.FUSE(t)
	for name, c := range map[string]struct {
		path   string
		tamper func(t *testing.T, file string)
		read   string // what is read, if not path
	}{
		"data node": {path: "dir/sub/two", tamper: func(t *testing.T, f string) { flip(t, f, 70*4096) }},
		"tree node": {path: "dir/sub/two", tamper: func(t *testing.T, f string) { flip(t, f, 98*4096) }},
		"root node": {path: "dir/small", tamper: func(t *testing.T, f string) { flip(t, f, 200) }},
		"cut": {path: "dir/small", tamper: func(t *testing.T, f string) {
			if err := os.Truncate(f, 8192); err != nil {
				t.Fatal(err)
			}
		}},
		"taken away": {path: "dir/small", tamper: func(t *testing.T, f string) {
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
		}},
		"link": {path: "link", tamper: func(t *testing.T, f string) { flip(t, f, 200) }},
		"directory": {path: "dir/sub", read: "dir/sub/two", tamper: func(t *testing.T, f string) {
			flip(t, f, 200)
		}},
		"directory taken away": {path: "dir/sub", read: "dir/sub/two", tamper: func(t *testing.T, f string) {
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			v, image := newVolume(t)
			file := hostFile(image, v, t, c.path)
			log, lines := logtest.NewNullLogger()
			// The volume is opened anew: this one has read the directories already.
			again, err := sefs.Open(image, sefs.OpenOptions{Key: ptr(sefs.Key(content("key", 16))), MAC: ptr(v.MAC())})
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			dir := mountVolume(t, again, fuse.Options{Log: log})
			c.tamper(t, file)
			read := c.path
			if c.read != "" {
				read = c.read
			}
			for range 3 {
				if b, err := os.ReadFile(filepath.Join(dir, read)); !errors.Is(err, unix.EIO) {
					t.Errorf("%d bytes, %v", len(b), err)
				}
			}
			if b, err := os.ReadFile(filepath.Join(dir, "big")); err != nil || !bytes.Equal(b, content("big", bigSize)) {
				t.Errorf("the rest of the volume: %v", err)
			}
			entries := lines.AllEntries()
			if len(entries) != 1 || entries[0].Level != logrus.ErrorLevel || !strings.HasSuffix(entries[0].Message, " /"+c.path) {
				t.Errorf("logged: %v", messages(entries))
			}
		})
	}
}

func ptr[T any](v T) *T { return &v }

func messages(entries []*logrus.Entry) (m []string) {
	for _, e := range entries {
		m = append(m, e.Message)
	}
	return m
}

// TestWhatIsWholeOfATamperedFileStaysReadable reads around one changed node.
func TestWhatIsWholeOfATamperedFileStaysReadable(t *testing.T) {
	testenv.FUSE(t)
	v, image := newVolume(t)
	log, _ := logtest.NewNullLogger()
	dir := mountVolume(t, v, fuse.Options{Log: log})
	const changed = 50 // data node 48: content from 3072+48*4096 on
	flip(t, hostFile(image, v, t, "big"), changed*4096+5)
	want := content("big", bigSize)
	f, err := os.Open(filepath.Join(dir, "big"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 4096)
	var refused []int64
	for off := int64(0); off+4096 <= bigSize; off += 4096 {
		_, err := f.ReadAt(b, off)
		switch {
		case errors.Is(err, unix.EIO):
			refused = append(refused, off/4096)
		case err != nil:
			t.Fatal(err)
		case !bytes.Equal(b, want[off:off+4096]):
			t.Fatalf("wrong content at %d", off)
		}
	}
	if len(refused) != 2 || refused[0] != 48 || refused[1] != 49 {
		t.Errorf("pages %v were refused, not the two with bytes of the node", refused)
	}
}

// TestMain is, under the name "map", a program that prints a file through a mapping. The process that serves a mount
// cannot map its files: a thread that waits for a page stops the Go runtime, which should deliver it.
func TestMain(m *testing.M) {
	if len(os.Args) != 3 || os.Args[1] != "map" {
		os.Exit(m.Run())
	}
	if err := printMapped(os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func printMapped(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(bytes.Clone(b)) // in user space first, where an error is a signal
	return err
}

func TestMappingReadsTheContent(t *testing.T) {
	testenv.FUSE(t)
	v, _ := newVolume(t)
	dir := mountVolume(t, v, fuse.Options{})
	b, err := exec.Command(os.Args[0], "map", filepath.Join(dir, "big")).Output()
	if err != nil || !bytes.Equal(b, content("big", bigSize)) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

func TestMappingOfWhatIsTamperedWithFaults(t *testing.T) {
	testenv.FUSE(t)
	v, image := newVolume(t)
	log, _ := logtest.NewNullLogger()
	dir := mountVolume(t, v, fuse.Options{Log: log})
	flip(t, hostFile(image, v, t, "big"), 50*4096)
	b, err := exec.Command(os.Args[0], "map", filepath.Join(dir, "big")).CombinedOutput()
	if err == nil || !bytes.Contains(b, []byte("SIGBUS")) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

func TestManyReadersAtOnce(t *testing.T) {
	testenv.FUSE(t)
	v, _ := newVolume(t)
	dir := mountVolume(t, v, fuse.Options{})
	want := content("big", bigSize)
	f, err := os.Open(filepath.Join(dir, "big"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 0))
			b := make([]byte, 70000)
			for range 40 {
				off := random.Int64N(bigSize - int64(len(b)))
				if _, err := f.ReadAt(b, off); err != nil || !bytes.Equal(b, want[off:off+int64(len(b))]) {
					t.Errorf("at %d: %v", off, err)
				}
				small, err := os.ReadFile(filepath.Join(dir, "dir", "small"))
				if err != nil || !bytes.Equal(small, content("dir/small", 10000)) {
					t.Errorf("small file: %v", err)
				}
			}
		})
	}
	wg.Wait()
}

func TestOneVolumeOnTwoMountpoints(t *testing.T) {
	testenv.FUSE(t)
	v, _ := newVolume(t)
	first, second := t.TempDir(), t.TempDir()
	s := mountOn(t, v, first, fuse.Options{})
	mountOn(t, v, second, fuse.Options{})
	if err := s.Unmount(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(second, "dir", "small"))
	if err != nil || !bytes.Equal(b, content("dir/small", 10000)) {
		t.Errorf("reading through the second: %v", err)
	}
}

func TestUnmountEndsTheServer(t *testing.T) {
	testenv.FUSE(t)
	v, _ := newVolume(t)
	dir := t.TempDir()
	s := mountOn(t, v, dir, fuse.Options{})
	if !mounted(t, dir) {
		t.Fatal("not mounted")
	}
	for range 2 { // the second time there is nothing to do
		if err := s.Unmount(); err != nil {
			t.Fatal(err)
		}
		s.Wait()
		if mounted(t, dir) {
			t.Fatal("still mounted")
		}
	}
}

func TestUnmountBySomebodyElseEndsTheServer(t *testing.T) {
	testenv.FUSE(t)
	testenv.Root(t)
	v, _ := newVolume(t)
	dir := t.TempDir()
	s := mountOn(t, v, dir, fuse.Options{})
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	s.Wait()
}

// TestUnmountDetachesWhatIsInUse keeps a file open: the mount disappears at once, the file stays readable, and the
// server ends with it.
func TestUnmountDetachesWhatIsInUse(t *testing.T) {
	testenv.FUSE(t)
	v, _ := newVolume(t)
	log, lines := logtest.NewNullLogger()
	dir := t.TempDir()
	s := mountOn(t, v, dir, fuse.Options{Log: log})
	f, err := os.Open(filepath.Join(dir, "big"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Unmount(); err != nil {
		t.Fatal(err)
	}
	if mounted(t, dir) {
		t.Error("still mounted")
	}
	if entries := lines.AllEntries(); len(entries) != 1 || !strings.Contains(entries[0].Message, "still in use") {
		t.Errorf("logged: %v", messages(entries))
	}
	b, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(b, content("big", bigSize)) {
		t.Errorf("reading the open file: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s.Wait()
}

func TestNothingStaysMountedWhenMountFails(t *testing.T) {
	testenv.FUSE(t)
	v, _ := newVolume(t)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		ctx        context.Context
		mountpoint string
		want       error
	}{
		"cancelled": {cancelled, dir, context.Canceled},
		"missing":   {t.Context(), filepath.Join(dir, "missing"), fs.ErrNotExist},
		"file":      {t.Context(), file, unix.ENOTDIR},
	} {
		_, err := fuse.Mount(c.ctx, v, c.mountpoint, fuse.Options{})
		if !errors.Is(err, c.want) || attest.CodeOf(err) != attest.CodeMount {
			t.Errorf("%s: %v", name, err)
		}
		if mounted(t, c.mountpoint) {
			t.Errorf("%s: mounted", name)
		}
	}
}

func TestMountedComesBeforeTheFirstRequest(t *testing.T) {
	testenv.FUSE(t)
	v, _ := newVolume(t)
	dir := t.TempDir()
	answered := make(chan error, 1)
	s, err := fuse.Mount(t.Context(), v, dir, fuse.Options{Mounted: func() error {
		if !mounted(t, dir) {
			t.Error("not mounted yet")
		}
		begun := make(chan struct{})
		go func() {
			close(begun)
			_, err := os.Lstat(filepath.Join(dir, "link"))
			answered <- err
		}()
		<-begun
		readers, _ := filepath.Glob("/proc/self/task/*/wchan")
		for _, name := range readers {
			if where, _ := os.ReadFile(name); strings.HasPrefix(string(where), "fuse_dev_do_read") {
				t.Error("a thread reads requests already")
			}
		}
		if len(answered) > 0 {
			t.Error("a request is answered already")
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
	if err := s.Unmount(); err != nil {
		t.Fatal(err)
	}
	refusal := attest.Errorf(attest.CodeInternal, "dropping", "a hint", "no")
	_, err = fuse.Mount(t.Context(), v, dir, fuse.Options{Mounted: func() error { return refusal }})
	if attest.CodeOf(err) != attest.CodeInternal || attest.HintOf(err) != "a hint" || mounted(t, dir) {
		t.Errorf("%v, mounted: %v", err, mounted(t, dir))
	}
}
