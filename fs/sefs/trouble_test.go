package sefs_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/testenv"
)

// smallDisk is an empty file system of 2 MiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	testenv.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=2m"); err != nil {
		testenv.Missing(t, "root", "mounting a tmpfs: "+err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func TestAFullDiskLeavesNothing(t *testing.T) {
	disk := smallDisk(t)
	dst := filepath.Join(disk, "volume")
	if _, err := sefs.Create(t.Context(), dst, tree(), sefs.CreateOptions{Key: &testKey}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("create: %v", err)
	}
	wantEmpty(t, disk)
	image, mac := create(t, tree(), sefs.CreateOptions{Key: &testKey})
	v := openVolume(t, image, &testKey, mac)
	if err := v.Extract(t.Context(), filepath.Join(disk, "out"), nil); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("extract: %v", err)
	}
	wantEmpty(t, disk)
}

// TestOfManyCreatesOneWins has all of them write everything before the first publishes.
func TestOfManyCreatesOneWins(t *testing.T) {
	const creates = 4
	dir := t.TempDir()
	dst := filepath.Join(dir, "volume")
	var ready sync.WaitGroup
	ready.Add(creates)
	type result struct {
		content string
		mac     sefs.MAC
		err     error
	}
	results := make(chan result)
	for i := range creates {
		go func() {
			r := result{content: fmt.Sprint("content ", i)}
			var once sync.Once
			src := fstest.MapFS{"file": {Data: []byte(r.content)}}
			r.mac, r.err = sefs.Create(t.Context(), dst, src, sefs.CreateOptions{Key: &testKey, Progress: func(int64, int64) {
				once.Do(func() { ready.Done(); ready.Wait() })
			}})
			results <- r
		}()
	}
	var winners []result
	for range creates {
		if r := <-results; r.err == nil {
			winners = append(winners, r)
		} else if !errors.Is(r.err, fs.ErrExist) {
			t.Error(r.err)
		}
	}
	if len(winners) != 1 {
		t.Fatalf("%d creates of one volume succeeded", len(winners))
	}
	b, err := fs.ReadFile(openVolume(t, dst, &testKey, winners[0].mac), "file")
	if err != nil || string(b) != winners[0].content {
		t.Errorf("read %q, %v; the winner wrote %q", b, err, winners[0].content)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// stuck is a source whose last file says when it is read, and never gives anything.
type stuck struct{ fstest.MapFS }

type stuckFile struct{ fs.File }

func (stuckFile) Read([]byte) (int, error) {
	fmt.Println("half-way")
	_, err := io.Copy(io.Discard, os.Stdin) // until the end
	return 0, err
}

func (s stuck) Open(name string) (fs.File, error) {
	f, err := s.MapFS.Open(name)
	if err == nil && name == "z" {
		f = stuckFile{f}
	}
	return f, err
}

// TestMain is, with the argument "create", a program that never finishes a volume.
func TestMain(m *testing.M) {
	if len(os.Args) != 3 || os.Args[1] != "create" {
		os.Exit(m.Run())
	}
	src := tree()
	src["z"] = &fstest.MapFile{Data: []byte("z")}
	_, err := sefs.Create(context.Background(), os.Args[2], stuck{src}, sefs.CreateOptions{Key: &testKey})
	fmt.Println(err)
	os.Exit(1)
}

func TestAKilledCreateLeavesATemporaryDirectoryOnly(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	dst := filepath.Join(dir, "volume")
	cmd := exec.Command(self, "create", dst)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "half-way\n" {
		t.Errorf("printed %q, %v", line, err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || !regexp.MustCompile(`^\.volume\..+\.tmp$`).MatchString(left[0].Name()) {
		t.Fatalf("left behind: %v, %v", left, err)
	}
	// What is left is no volume, and not in the way of one.
	if _, err := sefs.Open(filepath.Join(dir, left[0].Name()), sefs.OpenOptions{Key: &testKey, Unverified: true}); err == nil {
		t.Error("half a volume was opened")
	}
	if _, err := sefs.Create(t.Context(), dst, tree(), sefs.CreateOptions{Key: &testKey}); err != nil {
		t.Error(err)
	}
}

// lying is a source of files that have other sizes than they say, as files have that are written meanwhile.
type lying struct {
	fstest.MapFS
	says int64
}

type lyingInfo struct {
	fs.FileInfo
	size int64
}

func (i lyingInfo) Size() int64 { return i.size }

type lyingEntry struct {
	fs.DirEntry
	size int64
}

func (e lyingEntry) Info() (fs.FileInfo, error) {
	info, err := e.DirEntry.Info()
	return lyingInfo{info, e.size}, err
}

func (l lying) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := l.MapFS.ReadDir(name)
	for i := range entries {
		entries[i] = lyingEntry{entries[i], l.says}
	}
	return entries, err
}

func TestSizesThatTheSourceSaysAreNotBelieved(t *testing.T) {
	content := make([]byte, 1<<20+5)
	_, _ = rand.NewChaCha8([32]byte{}).Read(content)
	for _, says := range []int64{-1, 0, 3073, 1 << 62} {
		t.Run(fmt.Sprint(says), func(t *testing.T) {
			src := fstest.MapFS{"a": {Data: content, Mode: 0o644}, "b": {Data: content[:1], Mode: 0o644}, "c": {Mode: 0o644}}
			for _, reproducible := range []bool{false, true} {
				o := sefs.CreateOptions{Key: &testKey, Reproducible: reproducible}
				o.Progress = func(done, total int64) {
					if done > total || total < 0 {
						t.Errorf("%d of %d", done, total)
					}
				}
				dir, mac := create(t, lying{src, says}, o)
				v := openVolume(t, dir, &testKey, mac)
				if err := v.Verify(t.Context(), nil); err != nil {
					t.Error(err)
				}
				compareSnapshots(t, snapshot(t, v), snapshot(t, src))
			}
		})
	}
}
