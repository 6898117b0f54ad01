package sefs_test

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/testenv"
)

var layouts = []string{"occlum-0.31", "occlum-0.30"}

// eachRoot runs a test on the vectors in the repository and on the full set.
func eachRoot(t *testing.T, test func(t *testing.T, root string)) {
	t.Run("some", func(t *testing.T) { test(t, filepath.Join("testdata", "vectors")) })
	t.Run("all", func(t *testing.T) {
		testenv.LongSweep(t, "the images are many")
		test(t, testenv.Vectors(t, "sefs"))
	})
}

// manifest describes an image of the vectors.
type manifest struct {
	Layout  string            `json:"layout"`
	Mode    string            `json:"mode"`
	Key     string            `json:"key"`
	RootMAC string            `json:"root_mac"`
	Entries []manifestEntry   `json:"entries"`
	Files   map[string]string `json:"files"`
}

type manifestEntry struct {
	Path    string   `json:"path"`
	Inode   uint32   `json:"inode"`
	Type    string   `json:"type"`
	Mode    string   `json:"mode"`
	NLink   uint16   `json:"nlink"`
	UID     uint32   `json:"uid"`
	GID     uint32   `json:"gid"`
	Mtime   [2]int64 `json:"mtime"`
	Entries int      `json:"entries"`
	Size    int64    `json:"size"`
	SHA256  string   `json:"sha256"`
	Target  string   `json:"target"`
	Content string   `json:"content"`
}

func readJSON(t testing.TB, path string, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// unpack extracts the flat image archive of a vector.
func unpack(t testing.TB, archive string) string {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		out, err := os.Create(filepath.Join(dir, filepath.Base(h.Name)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(out, r); err != nil {
			t.Fatal(err)
		}
		if err := out.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// options are those that a vector's key and MAC ask for.
func options(t testing.TB, key, mac string) sefs.OpenOptions {
	t.Helper()
	o := sefs.OpenOptions{Unverified: mac == ""}
	if key != "" {
		k, err := sefs.ParseKey([]byte(key))
		if err != nil {
			t.Fatal(err)
		}
		o.Key = &k
	}
	if mac != "" {
		m, err := sefs.ParseMAC(mac)
		if err != nil {
			t.Fatal(err)
		}
		o.MAC = &m
	}
	return o
}

// recipe makes the content that a vector's recipe describes.
func recipe(t testing.TB, s string) []byte {
	t.Helper()
	kind, rest, _ := strings.Cut(s, ":")
	if kind == "str" {
		return []byte(rest)
	}
	if kind == "hex" {
		b, err := hex.DecodeString(rest)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	at := strings.LastIndex(rest, ":")
	label := rest[:at]
	n, err := strconv.Atoi(rest[at+1:])
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 0, n+64)
	for i := uint64(0); len(b) < n; i++ {
		switch kind {
		case "rnd":
			sum := sha256.Sum256(binary.LittleEndian.AppendUint64([]byte(label), i))
			b = append(b, sum[:]...)
		case "txt":
			b = append(b, label+" line "+leftPad(i)+"\n"...)
		case "zero":
			b = b[:n]
		default:
			t.Fatalf("unknown recipe %q", s)
		}
	}
	return b[:n]
}

func leftPad(i uint64) string {
	s := strconv.FormatUint(i, 10)
	return strings.Repeat("0", max(0, 8-len(s))) + s
}

func TestGoodImagesReadBackExactly(t *testing.T) {
	eachRoot(t, func(t *testing.T, root string) {
		images, err := filepath.Glob(filepath.Join(root, "occlum-*", "images", "*"))
		if err != nil || len(images) == 0 {
			t.Fatal(err, len(images))
		}
		for _, dir := range images {
			var m manifest
			readJSON(t, filepath.Join(dir, "manifest.json"), &m)
			t.Run(m.Layout+"/"+filepath.Base(dir), func(t *testing.T) {
				v, err := sefs.Open(unpack(t, filepath.Join(dir, "image.tar.gz")), options(t, m.Key, m.RootMAC))
				if err != nil {
					t.Fatal(err)
				}
				defer v.Close()
				if got := "occlum-" + v.Layout().String(); got != m.Layout {
					t.Errorf("layout %s, want %s", got, m.Layout)
				}
				compareWithManifest(t, v, m)
				if err := v.Verify(t.Context(), nil); err != nil {
					t.Error(err)
				}
			})
		}
	})
}

func compareWithManifest(t *testing.T, v *sefs.Volume, m manifest) {
	t.Helper()
	seen := make(map[string]*sefs.Inode)
	err := v.Walk(context.Background(), func(path string, in *sefs.Inode) error {
		seen[path] = in
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(seen) != len(m.Entries) {
		t.Errorf("%d entries, want %d", len(seen), len(m.Entries))
	}
	types := map[string]fs.FileMode{"file": 0, "dir": fs.ModeDir, "symlink": fs.ModeSymlink, "socket": fs.ModeSocket}
	for _, e := range m.Entries {
		path := strings.TrimPrefix(e.Path, "/")
		if path == "" {
			path = "."
		}
		in := seen[path]
		if in == nil {
			t.Errorf("%s is missing", e.Path)
			continue
		}
		perm, err := strconv.ParseUint(e.Mode, 8, 32)
		if err != nil {
			t.Fatal(err)
		}
		mode := types[e.Type] | fs.FileMode(perm)
		if in.Number != e.Inode || in.Mode != mode || in.NLink != e.NLink || in.UID != e.UID || in.GID != e.GID ||
			in.Size != e.Size || in.Mtime.Unix() != e.Mtime[0] || int64(in.Mtime.Nanosecond()) != e.Mtime[1] {
			t.Errorf("%s: got %+v, want %+v", e.Path, in, e)
		}
		switch e.Type {
		case "file":
			b, err := fs.ReadFile(v, path)
			if err != nil {
				t.Error(err)
			}
			if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != e.SHA256 {
				t.Errorf("%s: content differs", e.Path)
			}
		case "symlink":
			if target, err := v.ReadLink(path); err != nil || target != e.Target {
				t.Errorf("%s: target %q (%v), want %q", e.Path, target, err, e.Target)
			}
		case "dir":
			if list, err := v.ReadDir(path); err != nil || len(list)+2 != e.Entries {
				t.Errorf("%s: %d entries (%v), want %d", e.Path, len(list)+2, err, e.Entries)
			}
		}
	}
}

// readAll opens a volume and reads everything in it, twice over: as Verify does and through fs.FS.
func readAll(dir string, o sefs.OpenOptions) error {
	v, err := sefs.Open(dir, o)
	if err != nil {
		return err
	}
	defer v.Close()
	verified := v.Verify(context.Background(), nil)
	read := fs.WalkDir(v, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if _, err := d.Info(); err != nil {
			return err
		}
		switch d.Type() {
		case 0:
			_, err = fs.ReadFile(v, path)
		case fs.ModeSymlink:
			_, err = v.ReadLink(path)
		}
		return err
	})
	if read != nil && verified == nil {
		return errors.Join(errors.New("Verify accepts what cannot be read"), read)
	}
	return verified
}

func wantRefusal(t *testing.T, must string, err error) {
	t.Helper()
	switch must {
	case "reject":
		if err == nil {
			t.Error("accepted")
		}
	case "accept", "may-accept":
		if err != nil {
			t.Errorf("refused: %v", err)
		}
	case "may-reject", "cannot-be-detected", "reject-or-detect":
	default:
		t.Fatalf("the index asks for %q", must)
	}
	if err != nil && !errors.Is(err, sefs.ErrTampered) && !errors.Is(err, sefs.ErrMalformed) &&
		!errors.Is(err, sefs.ErrMode) && !strings.HasSuffix(t.Name(), "/metadata-missing") {
		t.Errorf("error of no known kind: %v", err)
	}
}

func TestMalformedImagesAreRefused(t *testing.T) {
	eachRoot(t, func(t *testing.T, root string) {
		for _, layout := range layouts {
			var index struct {
				Vectors []struct {
					Name    string `json:"name"`
					Dir     string `json:"dir"`
					RootMAC string `json:"root_mac"`
					Must    string `json:"must"`
				} `json:"vectors"`
			}
			readJSON(t, filepath.Join(root, layout, "malformed", "index.json"), &index)
			for _, vector := range index.Vectors {
				t.Run(layout+"/"+vector.Name, func(t *testing.T) {
					dir := unpack(t, filepath.Join(root, layout, vector.Dir, "image.tar.gz"))
					wantRefusal(t, vector.Must, readAll(dir, options(t, "", vector.RootMAC)))
				})
			}
		}
	})
}

// change is an operation of the negative vectors on the files of an image.
type change struct {
	Op        string `json:"op"`
	File      string `json:"file"`
	Offset    int64  `json:"offset"`
	Hex       string `json:"hex"`
	Size      int64  `json:"size"`
	Count     int64  `json:"count"`
	A         string `json:"a"`
	B         string `json:"b"`
	Image     string `json:"image"`
	Src       string `json:"src"`
	Dst       string `json:"dst"`
	SrcOffset int64  `json:"src_offset"`
	Length    int64  `json:"length"`
}

func (c change) apply(t *testing.T, dir string, pristine func(image string) string) {
	t.Helper()
	read := func(dir, name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	write := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	data, err := hex.DecodeString(c.Hex)
	if err != nil {
		t.Fatal(err)
	}
	switch c.Op {
	case "xor", "set":
		b := read(dir, c.File)
		for i, x := range data {
			if c.Op == "xor" {
				x ^= b[c.Offset+int64(i)]
			}
			b[c.Offset+int64(i)] = x
		}
		write(c.File, b)
	case "truncate":
		err = os.Truncate(filepath.Join(dir, c.File), c.Size)
	case "append_zeros":
		write(c.File, append(read(dir, c.File), make([]byte, c.Count)...))
	case "delete":
		err = os.Remove(filepath.Join(dir, c.File))
	case "write":
		write(c.File, data)
	case "swap_files":
		a, b := read(dir, c.A), read(dir, c.B)
		write(c.A, b)
		write(c.B, a)
	case "copy_from":
		write(c.Dst, read(pristine(c.Image), c.Src))
	case "copy_range":
		b := read(dir, c.File)
		copy(b[c.Offset:], read(pristine(c.Image), c.Src)[c.SrcOffset:][:c.Length])
		write(c.File, b)
	default:
		t.Fatalf("unknown operation %q", c.Op)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestTamperedImagesAreRefused(t *testing.T) {
	for _, layout := range layouts {
		var index struct {
			Vectors []struct {
				Name    string             `json:"name"`
				Base    string             `json:"base"`
				Ops     []change           `json:"ops"`
				Changed map[string]*string `json:"changed_files"`
				Key     string             `json:"key"`
				RootMAC string             `json:"root_mac"`
				Must    string             `json:"must"`
			} `json:"image_vectors"`
		}
		readJSON(t, testenv.Vectors(t, "sefs", layout, "negative", "index.json"), &index)
		for _, vector := range index.Vectors {
			t.Run(layout+"/"+vector.Name, func(t *testing.T) {
				image := func(name string) string {
					return unpack(t, testenv.Vectors(t, "sefs", layout, "images", name, "image.tar.gz"))
				}
				dir := image(vector.Base)
				for _, op := range vector.Ops {
					op.apply(t, dir, image)
				}
				for name, sum := range vector.Changed {
					b, err := os.ReadFile(filepath.Join(dir, name))
					got := sha256.Sum256(b)
					if (sum == nil) != errors.Is(err, fs.ErrNotExist) || sum != nil && hex.EncodeToString(got[:]) != *sum {
						t.Fatalf("%s is not what the vector describes", name)
					}
				}
				err := readAll(dir, options(t, vector.Key, vector.RootMAC))
				wantRefusal(t, vector.Must, err)
			})
		}
	}
}

// sourceTree makes the tree that a manifest describes.
func sourceTree(t *testing.T, m manifest) string {
	t.Helper()
	dir := t.TempDir()
	modes := make(map[string]fs.FileMode)
	for _, e := range m.Entries {
		path := filepath.Join(dir, e.Path)
		perm, err := strconv.ParseUint(e.Mode, 8, 32)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case e.Path == "/":
			continue
		case e.Type == "dir":
			err = os.Mkdir(path, 0o700)
		case e.Type == "symlink":
			err = os.Symlink(e.Target, path)
		default:
			content := e.Content
			if content == "" { // the other name of a hard link
				for _, same := range m.Entries {
					if same.SHA256 == e.SHA256 && same.Content != "" {
						content = same.Content
					}
				}
			}
			err = os.WriteFile(path, recipe(t, content), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if e.Type != "symlink" {
			modes[path] = fs.FileMode(perm)
		}
	}
	for path, mode := range modes {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestIntegrityOnlyOutputIsUpstreamsByteForByte(t *testing.T) {
	eachRoot(t, func(t *testing.T, root string) {
		images, err := filepath.Glob(filepath.Join(root, "occlum-*", "images", "*-int*"))
		if err != nil || len(images) == 0 {
			t.Fatal(err, len(images))
		}
		for _, image := range images {
			var m manifest
			readJSON(t, filepath.Join(image, "manifest.json"), &m)
			t.Run(m.Layout+"/"+filepath.Base(image), func(t *testing.T) {
				layout, err := sefs.ParseLayout(strings.TrimPrefix(m.Layout, "occlum-"))
				if err != nil {
					t.Fatal(err)
				}
				dst := filepath.Join(t.TempDir(), "image")
				mac, err := sefs.Create(t.Context(), dst, os.DirFS(sourceTree(t, m)), sefs.CreateOptions{Layout: layout})
				if err != nil {
					t.Fatal(err)
				}
				if mac.String() != m.RootMAC {
					t.Errorf("MAC %v, want %v", mac, m.RootMAC)
				}
				compareFiles(t, dst, m.Files)
			})
		}
	})
}

func compareFiles(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(want) {
		t.Errorf("%d files, want %d", len(entries), len(want))
	}
	for name, sum := range want {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if got := sha256.Sum256(b); err != nil || hex.EncodeToString(got[:]) != sum {
			t.Errorf("%s differs (%v)", name, err)
		}
	}
}
