package sefs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/testenv"
)

var testKey = sefs.Key{0x5e, 0x5a, 0x3e}

// tree is a source of everything that a volume can hold.
func tree() fstest.MapFS {
	random := rand.New(rand.NewPCG(1, 2))
	content := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	m := fstest.MapFS{
		"empty":              {Mode: 0o400},
		"dir/empty":          {Mode: fs.ModeDir | 0o700},
		"dir/link":           {Mode: fs.ModeSymlink | 0o777, Data: []byte("../large")},
		"dir/deep/er/file":   {Mode: 0o755, Data: []byte("deep")},
		"absolute":           {Mode: fs.ModeSymlink | 0o777, Data: []byte("/dir/deep")},
		"dangling":           {Mode: fs.ModeSymlink | 0o777, Data: []byte("no/where")},
		"outside":            {Mode: fs.ModeSymlink | 0o777, Data: []byte("../../../dir/deep/er/file")},
		"loop":               {Mode: fs.ModeSymlink | 0o777, Data: []byte("loop")},
		"large":              {Mode: 0o644, Data: content(3<<20 + 17)},
		"names/new\nline":    {Mode: 0o644, Data: []byte("1")},
		"names/日本語":          {Mode: 0o644, Data: []byte("2")},
		"names/metadata":     {Mode: 0o644, Data: []byte("3")},
		"names/" + long(255): {Mode: 0o644, Data: []byte("4")},
	}
	for _, n := range []int{1, 3071, 3072, 3073, 7168, 7169, 396288, 396289} {
		m[fmt.Sprintf("sizes/%d", n)] = &fstest.MapFile{Mode: 0o640, Data: content(n)}
	}
	for i := range 300 {
		m[fmt.Sprintf("many/%03d", i)] = &fstest.MapFile{Mode: 0o600, Data: content(i)}
	}
	return m
}

func long(n int) string { return strings.Repeat("n", n) }

// create makes a volume in a new directory.
func create(t testing.TB, src fs.FS, o sefs.CreateOptions) (dir string, mac sefs.MAC) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "volume")
	mac, err := sefs.Create(t.Context(), dir, src, o)
	if err != nil {
		t.Fatal(err)
	}
	return dir, mac
}

func openVolume(t testing.TB, dir string, key *sefs.Key, mac sefs.MAC) *sefs.Volume {
	t.Helper()
	v, err := sefs.Open(dir, sefs.OpenOptions{Key: key, MAC: &mac})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

// snapshot is everything in a file system that a volume keeps: a line for each entry.
func snapshot(t testing.TB, fsys fs.FS) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		mode := info.Mode() & (fs.ModeType | fs.ModePerm)
		switch {
		case path == ".":
			mode = fs.ModeDir | 0o755
		case mode.IsRegular():
			b, err := fs.ReadFile(fsys, path)
			if err != nil {
				return err
			}
			all[path] = fmt.Sprintf("%v %x", mode, b)
			return nil
		case mode.Type() == fs.ModeSymlink:
			target, err := fs.ReadLink(fsys, path)
			if err != nil {
				return err
			}
			all[path] = mode.String() + " " + target
			return nil
		}
		all[path] = mode.String()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func compareSnapshots(t *testing.T, got, want map[string]string) {
	t.Helper()
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if got[path] != want[path] {
			t.Errorf("%q: got %.60q, want %.60q", path, got[path], want[path])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d entries, want %d", len(got), len(want))
	}
}

// inodeSnapshot is snapshot by way of inode numbers.
func inodeSnapshot(t *testing.T, v *sefs.Volume) map[string]string {
	t.Helper()
	all := make(map[string]string)
	var visit func(path string, in *sefs.Inode)
	visit = func(path string, in *sefs.Inode) {
		line := in.Mode.String()
		switch in.Mode.Type() {
		case 0:
			f, err := v.OpenInode(in.Number)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(io.NewSectionReader(f, 0, in.Size))
			if err != nil {
				t.Fatal(err)
			}
			line += fmt.Sprintf(" %x", b)
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		case fs.ModeSymlink:
			target, err := v.Target(in.Number)
			if err != nil {
				t.Fatal(err)
			}
			line += " " + target
		case fs.ModeDir:
			entries, err := v.Entries(in.Number)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				child, err := v.Lookup(in.Number, e.Name)
				if err != nil || child.Number != e.Inode || child.Mode.Type() != e.Type {
					t.Fatalf("%s: %+v, %v", e.Name, child, err)
				}
				visit(filepath.Join(path, e.Name), child)
			}
		}
		all[path] = line
	}
	root, err := v.Inode(sefs.RootInode)
	if err != nil {
		t.Fatal(err)
	}
	visit(".", root)
	return all
}

func TestWhatIsWrittenIsReadThroughEveryInterface(t *testing.T) {
	src := tree()
	want := snapshot(t, src)
	for _, layout := range []sefs.Layout{sefs.Layout031, sefs.Layout030} {
		for _, key := range []*sefs.Key{&testKey, nil} {
			t.Run(fmt.Sprintf("%v/encrypted=%v", layout, key != nil), func(t *testing.T) {
				dir, mac := create(t, src, sefs.CreateOptions{Key: key, Layout: layout})
				v := openVolume(t, dir, key, mac)
				if v.Layout() != layout || v.Encrypted() != (key != nil) || v.MAC() != mac {
					t.Errorf("layout %v, encrypted %v, MAC %v", v.Layout(), v.Encrypted(), v.MAC())
				}
				if err := v.Verify(t.Context(), nil); err != nil {
					t.Fatal(err)
				}
				t.Run("fs.FS", func(t *testing.T) { compareSnapshots(t, snapshot(t, v), want) })
				t.Run("inodes", func(t *testing.T) { compareSnapshots(t, inodeSnapshot(t, v), want) })
				t.Run("extract", func(t *testing.T) {
					out := filepath.Join(t.TempDir(), "out")
					if err := v.Extract(t.Context(), out, nil); err != nil {
						t.Fatal(err)
					}
					compareSnapshots(t, snapshot(t, os.DirFS(out)), want)
				})
				t.Run("again", func(t *testing.T) {
					dir, mac := create(t, v, sefs.CreateOptions{Key: key, Layout: layout})
					compareSnapshots(t, snapshot(t, openVolume(t, dir, key, mac)), want)
				})
			})
		}
	}
}

func TestAVolumeIsAProperFS(t *testing.T) {
	src := tree()
	delete(src, "dangling") // fstest opens every link
	delete(src, "loop")
	dir, mac := create(t, src, sefs.CreateOptions{Key: &testKey})
	if err := fstest.TestFS(openVolume(t, dir, &testKey, mac), slices.Collect(maps.Keys(src))...); err != nil {
		t.Error(err)
	}
}

func TestLinksAreFollowedInsideTheVolumeOnly(t *testing.T) {
	dir, mac := create(t, tree(), sefs.CreateOptions{Key: &testKey})
	v := openVolume(t, dir, &testKey, mac)
	for path, want := range map[string]string{
		"absolute/er/file": "deep", // from the volume's root, not the host's
		"outside":          "deep", // ".." of the root is the root
	} {
		if b, err := fs.ReadFile(v, path); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	for path, want := range map[string]error{
		"loop":             syscall.ELOOP,
		"loop/x":           syscall.ELOOP,
		"dangling":         fs.ErrNotExist,
		"empty/x":          syscall.ENOTDIR,
		"dir/nothing":      fs.ErrNotExist,
		"../etc/passwd":    fs.ErrInvalid,
		"dir/../dir":       fs.ErrInvalid,
		"names/" + long(9): fs.ErrNotExist,
	} {
		if _, err := v.Stat(path); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
	if info, err := v.Lstat("loop"); err != nil || info.Mode() != fs.ModeSymlink|0o777 {
		t.Errorf("loop: %v, %v", info, err)
	}
	if _, err := v.OpenInode(sefs.RootInode); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("opening a directory as a file: %v", err)
	}
}

func TestEncryptedVolumesDifferFromIntegrityOnlyOnesInSecretsOnly(t *testing.T) {
	src := tree()
	plain, plainMAC := create(t, src, sefs.CreateOptions{})
	for i := range 2 {
		dir, mac := create(t, src, sefs.CreateOptions{Key: &testKey})
		if mac == plainMAC {
			t.Error("the MAC needs no key")
		}
		want, err := os.ReadDir(plain)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadDir(dir)
		if err != nil || len(got) != len(want) {
			t.Fatalf("%d files, want %d: %v", len(got), len(want), err)
		}
		for k := range got {
			a, err := got[k].Info()
			if err != nil {
				t.Fatal(err)
			}
			b, err := want[k].Info()
			if err != nil {
				t.Fatal(err)
			}
			if a.Name() != b.Name() || a.Size() != b.Size() {
				t.Errorf("run %d: %s of %d bytes, want %s of %d", i, a.Name(), a.Size(), b.Name(), b.Size())
			}
		}
	}
}

func TestReproducibleVolumesAreTheSame(t *testing.T) {
	src := tree()
	first, firstMAC := create(t, src, sefs.CreateOptions{Key: &testKey, Reproducible: true, Workers: 1})
	second, secondMAC := create(t, src, sefs.CreateOptions{Key: &testKey, Reproducible: true, Workers: 4})
	_, otherKey := create(t, src, sefs.CreateOptions{Key: &sefs.Key{9}, Reproducible: true})
	_, otherLayout := create(t, src, sefs.CreateOptions{Key: &testKey, Reproducible: true, Layout: sefs.Layout030})
	_, fresh := create(t, src, sefs.CreateOptions{Key: &testKey})
	if firstMAC != secondMAC || firstMAC == otherKey || firstMAC == otherLayout || firstMAC == fresh {
		t.Errorf("MACs %v, %v; %v, %v, %v", firstMAC, secondMAC, otherKey, otherLayout, fresh)
	}
	compareSnapshots(t, snapshot(t, os.DirFS(second)), snapshot(t, os.DirFS(first)))
	if err := readAll(first, sefs.OpenOptions{Key: &testKey, MAC: &firstMAC}); err != nil {
		t.Error(err)
	}
}

func TestInfoCounts(t *testing.T) {
	dir, mac := create(t, fstest.MapFS{
		"d/a": {Mode: 0o644, Data: make([]byte, 5000)},
		"d/b": {Mode: 0o644},
		"l":   {Mode: fs.ModeSymlink, Data: []byte("d/a")},
	}, sefs.CreateOptions{Key: &testKey})
	got, err := openVolume(t, dir, &testKey, mac).Info()
	want := sefs.Info{
		Layout: "0.31", Encrypted: true, MAC: mac, Files: 2, Directories: 2, Symlinks: 1,
		ContentBytes: 5003, StoredBytes: (1 + 1 + 1 + 1 + 3 + 1) * 4096,
	}
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	var stored int64
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		stored += info.Size()
	}
	if stored != got.StoredBytes {
		t.Errorf("%d bytes on the host, want %d", stored, got.StoredBytes)
	}
}

// small is a tree whose volume has few bytes to flip, but all kinds of nodes.
func small() fstest.MapFS {
	return fstest.MapFS{
		"d/file": {Mode: 0o644, Data: bytes.Repeat([]byte("0123456789abcdef"), 200)},
		"link":   {Mode: fs.ModeSymlink, Data: []byte("d/file")},
	}
}

func TestFlippingAnyByteIsRefusedOrLeavesTheViewUntouched(t *testing.T) {
	step := testenv.Sweep(1, 101)
	for _, o := range []sefs.CreateOptions{{Key: &testKey}, {Layout: sefs.Layout030}} {
		dir, mac := create(t, small(), o)
		open := sefs.OpenOptions{Key: o.Key, MAC: &mac, CachedNodes: 1}
		want, err := contents(dir, open)
		if err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i < len(content); i += step {
				if _, err := f.WriteAt([]byte{content[i] ^ 1<<(i%8)}, int64(i)); err != nil {
					t.Fatal(err)
				}
				if got, err := contents(dir, open); err == nil && got != want {
					t.Fatalf("%s, byte %d: the volume reads as %q", e.Name(), i, got)
				}
				if _, err := f.WriteAt(content[i:i+1], int64(i)); err != nil {
					t.Fatal(err)
				}
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := contents(dir, open); err != nil || got != want {
			t.Errorf("the volume was not put back as it was: %v", err)
		}
	}
}

// contents is everything in a volume in one string.
func contents(dir string, o sefs.OpenOptions) (string, error) {
	v, err := sefs.Open(dir, o)
	if err != nil {
		return "", err
	}
	defer v.Close()
	var all strings.Builder
	err = v.Walk(context.Background(), func(path string, in *sefs.Inode) error {
		fmt.Fprintf(&all, "%q %v %d\n", path, in.Mode, in.Size)
		switch in.Mode.Type() {
		case 0:
			f, err := v.OpenInode(in.Number)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.Copy(&all, f)
			return err
		case fs.ModeSymlink:
			target, err := v.Target(in.Number)
			all.WriteString(target)
			return err
		}
		return nil
	})
	return all.String(), err
}

func TestWhatTheHostDoesToFilesIsRefused(t *testing.T) {
	const file = "04000000000000000000000000000000" // d/file
	for name, do := range map[string]func(dir string) error{
		"deleted": func(dir string) error { return os.Remove(filepath.Join(dir, file)) },
		"fifo": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, file)), unix.Mkfifo(filepath.Join(dir, file), 0o600))
		},
		"directory": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, file)), os.Mkdir(filepath.Join(dir, file), 0o700))
		},
		"link out of the volume": func(dir string) error {
			path := filepath.Join(dir, file)
			return errors.Join(os.Rename(path, dir+"-file"), os.Symlink(dir+"-file", path))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, mac := create(t, small(), sefs.CreateOptions{Key: &testKey})
			if err := do(dir); err != nil {
				t.Fatal(err)
			}
			v := openVolume(t, dir, &testKey, mac)
			_, err := v.Open("d/file")
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("opening: %v", err)
			}
			var at *fs.PathError
			if err := v.Verify(t.Context(), nil); !errors.As(err, &at) || at.Path != "d/file" {
				t.Errorf("verifying: %v", err)
			}
			if err := v.Extract(t.Context(), filepath.Join(t.TempDir(), "out"), nil); err == nil {
				t.Error("extracted")
			}
		})
	}
}

func TestAReplacedFileIsNoticedEvenWithoutTheRootMAC(t *testing.T) {
	old, _ := create(t, small(), sefs.CreateOptions{Key: &testKey})
	dir, _ := create(t, small(), sefs.CreateOptions{Key: &testKey})
	const file = "04000000000000000000000000000000"
	content, err := os.ReadFile(filepath.Join(old, file))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, file), content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := readAll(dir, sefs.OpenOptions{Key: &testKey, Unverified: true}); !errors.Is(err, sefs.ErrTampered) {
		t.Error(err)
	}
}

func TestOpeningSaysWhatIsWrong(t *testing.T) {
	dir, mac := create(t, small(), sefs.CreateOptions{Key: &testKey})
	plain, plainMAC := create(t, small(), sefs.CreateOptions{})
	for name, c := range map[string]struct {
		dir  string
		o    sefs.OpenOptions
		is   error
		code attest.Code
		hint string
	}{
		"no MAC":     {dir, sefs.OpenOptions{Key: &testKey}, nil, attest.CodeConfig, "Give the MAC"},
		"wrong key":  {dir, sefs.OpenOptions{Key: &sefs.Key{}, MAC: &mac}, sefs.ErrTampered, attest.CodeMount, "Either the key"},
		"wrong MAC":  {dir, sefs.OpenOptions{Key: &testKey, MAC: &plainMAC}, sefs.ErrTampered, attest.CodeMount, "Either the MAC"},
		"no key":     {dir, sefs.OpenOptions{MAC: &mac}, sefs.ErrMode, attest.CodeMount, "The volume is encrypted"},
		"needless":   {plain, sefs.OpenOptions{Key: &testKey, MAC: &plainMAC}, sefs.ErrMode, attest.CodeMount, "The volume is not"},
		"no volume":  {t.TempDir(), sefs.OpenOptions{MAC: &mac}, fs.ErrNotExist, attest.CodeMount, "A volume is a directory"},
		"no such":    {dir + "x", sefs.OpenOptions{MAC: &mac}, fs.ErrNotExist, attest.CodeMount, "A volume is a directory"},
		"not a dir":  {filepath.Join(dir, "metadata"), sefs.OpenOptions{MAC: &mac}, nil, attest.CodeMount, ""},
		"unverified": {plain, sefs.OpenOptions{Key: &testKey, Unverified: true}, sefs.ErrMode, attest.CodeMount, "The volume is not"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := sefs.Open(c.dir, c.o)
			if err == nil || c.is != nil && !errors.Is(err, c.is) || attest.CodeOf(err) != c.code ||
				!strings.HasPrefix(attest.HintOf(err), c.hint) {
				t.Errorf("%v (%s), hint %q", err, attest.CodeOf(err), attest.HintOf(err))
			}
		})
	}
}

func TestCreateRefusesWhatCannotBeKept(t *testing.T) {
	for name, src := range map[string]fstest.MapFS{
		"reserved MAC":      {"d/.ufs.mac": {}},
		"reserved whiteout": {".ufs.wh.x": {}},
		"reserved opaque":   {"d/.ufs.opq.": {}},
		"long name":         {long(256): {}},
		"not UTF-8":         {"a\xff": {}},
		"empty link":        {"l": {Mode: fs.ModeSymlink}},
		"long link":         {"l": {Mode: fs.ModeSymlink, Data: make([]byte, 5000)}},
	} {
		t.Run(name, func(t *testing.T) {
			dst := filepath.Join(t.TempDir(), "volume")
			if _, err := sefs.Create(t.Context(), dst, src, sefs.CreateOptions{}); err == nil {
				t.Error("accepted")
			}
			wantEmpty(t, filepath.Dir(dst))
		})
	}
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// breaking is a source that one of its files cannot be read from.
type breaking struct{ fstest.MapFS }

type brokenFile struct{ fs.File }

var errBroken = errors.New("input/output error")

func (brokenFile) Read([]byte) (int, error) { return 0, errBroken }

func (b breaking) Open(name string) (fs.File, error) {
	f, err := b.MapFS.Open(name)
	if err == nil && name == "sizes/3073" {
		f = brokenFile{f}
	}
	return f, err
}

func TestAFailedCreateLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	dst := filepath.Join(dir, "volume")
	if _, err := sefs.Create(t.Context(), dst, breaking{tree()}, sefs.CreateOptions{Key: &testKey}); !errors.Is(err, errBroken) {
		t.Errorf("broken source: %v", err)
	}
	wantEmpty(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	o := sefs.CreateOptions{Key: &testKey, Progress: func(done, total int64) { cancel() }}
	if _, err := sefs.Create(ctx, dst, tree(), o); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	wantEmpty(t, dir)
	if err := os.Mkdir(dst, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := sefs.Create(t.Context(), dst, tree(), sefs.CreateOptions{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("existing target: %v", err)
	}
	wantEmpty(t, dst)
}

func TestExtractOfALieLeavesNothing(t *testing.T) {
	dir, mac := create(t, tree(), sefs.CreateOptions{Key: &testKey})
	v := openVolume(t, dir, &testKey, mac)
	in, err := v.Lstat("large")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, fmt.Sprintf("%02x%02x%028d", in.Sys().(*sefs.Inode).Number&255, in.Sys().(*sefs.Inode).Number>>8, 0))
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("lie"), 2<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	if err := v.Extract(t.Context(), out, nil); !errors.Is(err, sefs.ErrTampered) {
		t.Error(err)
	}
	wantEmpty(t, filepath.Dir(out))
}

func TestProgressEndsAtTheTotal(t *testing.T) {
	var mu sync.Mutex
	check := func(what string) (func(done, total int64), func()) {
		var last, end int64
		return func(done, total int64) {
				mu.Lock()
				defer mu.Unlock()
				if done < last || done > total {
					t.Errorf("%s: %d after %d of %d", what, done, last, total)
				}
				last, end = done, total
			}, func() {
				if last == 0 || last != end {
					t.Errorf("%s ends with %d of %d", what, last, end)
				}
			}
	}
	src := fstest.MapFS{"a": {Data: make([]byte, 3<<20)}, "b": {Data: make([]byte, 100)}}
	report, end := check("create")
	dir, mac := create(t, src, sefs.CreateOptions{Progress: report})
	end()
	v := openVolume(t, dir, nil, mac)
	report, end = check("verify")
	if err := v.Verify(t.Context(), report); err != nil {
		t.Fatal(err)
	}
	end()
	report, end = check("extract")
	if err := v.Extract(t.Context(), filepath.Join(t.TempDir(), "out"), report); err != nil {
		t.Fatal(err)
	}
	end()
}

func TestDevicesAreLeftOutAndSaid(t *testing.T) {
	var skipped []string
	src := fstest.MapFS{"fifo": {Mode: fs.ModeNamedPipe}, "null": {Mode: fs.ModeDevice | fs.ModeCharDevice}, "file": {}}
	dir, mac := create(t, src, sefs.CreateOptions{Skipped: func(path string, _ fs.FileMode) { skipped = append(skipped, path) }})
	if !slices.Equal(skipped, []string{"fifo", "null"}) {
		t.Errorf("skipped %v", skipped)
	}
	if got := snapshot(t, openVolume(t, dir, nil, mac)); len(got) != 2 {
		t.Errorf("volume has %v", got)
	}
}

func TestKeysAreReadInTheirFormsOnly(t *testing.T) {
	raw := "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\xff"
	key := sefs.Key([]byte(raw))
	const dashed = "00-01-02-03-04-05-06-07-08-09-0a-0b-0c-0d-0e-ff"
	for _, good := range []string{
		raw, dashed, dashed + "\n", dashed + "\r\n", strings.ToUpper(dashed), strings.ReplaceAll(dashed, "-", ""),
		strings.ReplaceAll(dashed, "-", "") + "\n",
	} {
		if got, err := sefs.ParseKey([]byte(good)); err != nil || got != key {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{
		"", "\n", raw[:15], raw + "\n", raw + raw, dashed[:46], dashed + "0", dashed + " ", " " + dashed,
		strings.ReplaceAll(dashed, "-", ":"), strings.ReplaceAll(dashed, "f", "g"), "0123456789abcdef", "correct horse ba",
		strings.Repeat("g", 32),
	} {
		if _, err := sefs.ParseKey([]byte(bad)); attest.CodeOf(err) != attest.CodeSecret {
			t.Errorf("%q: %v", bad, err)
		}
		if _, err := sefs.ParseMAC(bad); err == nil {
			t.Errorf("%q is a MAC", bad)
		}
	}
	if text := sefs.EncodeKey(key); string(text.Expose()) != dashed {
		t.Errorf("encoded as %q", text.Expose())
	}
	mac, err := sefs.ParseMAC(dashed)
	if err != nil || mac.String() != dashed {
		t.Errorf("MAC %v, %v", mac, err)
	}
	if b, err := json.Marshal(mac); err != nil || string(b) != `"`+dashed+`"` {
		t.Errorf("MAC in JSON: %s, %v", b, err)
	}
}

func TestKeysAreNotShown(t *testing.T) {
	key := sefs.Key([]byte("canary canary ca"))
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("opening", "key", key, "options", sefs.OpenOptions{Key: &key})
	shown := fmt.Sprintf("%v %+v %#v %x %s %d %v", key, key, key, key, key, &key, struct{ K sefs.Key }{key}) + log.String()
	if _, err := json.Marshal(key); err == nil {
		t.Error("marshalled")
	}
	if _, err := json.Marshal(sefs.CreateOptions{Key: &key}.Key); err == nil {
		t.Error("marshalled")
	}
	for _, leak := range []string{"canary", fmt.Sprintf("%x", "canary"), "99 97 110"} {
		if strings.Contains(shown, leak) {
			t.Errorf("shown: %s", shown)
		}
	}
}

func TestManyReadersOfOneVolume(t *testing.T) {
	dir, mac := create(t, tree(), sefs.CreateOptions{Key: &testKey})
	v := openVolume(t, dir, &testKey, mac)
	want := snapshot(t, v)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() { compareSnapshots(t, snapshot(t, v), want) })
	}
	group.Wait()
}

func TestTimesOfAFreshVolumeAreTheEpoch(t *testing.T) {
	dir, mac := create(t, small(), sefs.CreateOptions{})
	if info, err := openVolume(t, dir, nil, mac).Stat("d/file"); err != nil || !info.ModTime().Equal(time.Unix(0, 0)) {
		t.Errorf("%v, %v", info, err)
	}
}
