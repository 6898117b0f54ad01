// Command volumebench measures volumes against what bounds them, side by side in one run: AES-128-GCM with a fresh
// key for each 4 KiB over the same bytes, a FUSE file system that serves zeros of the same sizes through the same
// code, and gocryptfs (left out, by name, where it is not installed). It prints a Markdown table with the goals.
//
// The figures of one run compare with each other only. Everything lies in memory (a tmpfs) where there is room for
// it, so that no disk is measured; what is measured takes turns, and the best of the rounds counts. Writing and
// mounting happen in processes of their own, whose peak of resident memory is in the table.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/fs/fuse"
	"github.com/sesame-init/sesame/fs/sefs"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := start(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "volumebench:", err)
		stop()
		os.Exit(1)
	}
}

// start is the program or, under the name of a child, one of its child processes.
func start(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case childCreate:
			return create(ctx, args[1:])
		case childMount, childNull:
			return serve(ctx, args[0] == childNull, args[1:])
		}
	}
	flags := flag.NewFlagSet("volumebench", flag.ContinueOnError)
	size := flags.String("size", "1GiB", "bytes in the tree, as 64MiB or 1GiB")
	dir := flags.String("dir", "", "directory for three times the size (default: /dev/shm if that has room, or the temporary directory)")
	rounds := flags.Int("rounds", 3, "how often everything is measured; the best counts")
	seed := flags.Uint64("seed", 1, "of the tree")
	if err := flags.Parse(args); err != nil {
		return err
	}
	bytes, err := parseSize(*size)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(workDirectory(*dir, bytes), "volumebench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	b := &bench{dir: work, size: bytes, seed: *seed, cores: runtime.GOMAXPROCS(0)}
	if err := b.run(ctx, *rounds); err != nil {
		return err
	}
	b.print(os.Stdout)
	return nil
}

func parseSize(s string) (int64, error) {
	for suffix, shift := range map[string]int{"MiB": 20, "GiB": 30} {
		if digits, ok := strings.CutSuffix(s, suffix); ok {
			n, err := strconv.ParseInt(digits, 10, 32)
			if err != nil || n < 1 {
				return 0, fmt.Errorf("size %q: not a number above 0", s)
			}
			return n << shift, nil
		}
	}
	return 0, fmt.Errorf("size %q does not end with MiB or GiB", s)
}

// workDirectory is the directory asked for, or a tmpfs with room for the tree, the volume and gocryptfs's copy, or
// the system's temporary directory.
func workDirectory(asked string, size int64) string {
	const memory = "/dev/shm"
	var st unix.Statfs_t
	if asked == "" && unix.Statfs(memory, &st) == nil && st.Type == unix.TMPFS_MAGIC &&
		int64(st.Bavail)*st.Bsize > 4*size {
		return memory
	}
	return asked
}

// Names of the child processes.
const (
	childCreate = "child-create"
	childMount  = "child-mount"
	childNull   = "child-null"
)

// bench is a run and its results: the best time of each measurement.
type bench struct {
	dir   string
	size  int64
	seed  uint64
	cores int

	tree                    *tree
	key                     sefs.Key
	mac                     sefs.MAC
	haveGocryptfs           bool
	gcm                     gcmTimes
	create, gocryptfsCreate time.Duration
	readFS, readFSCores     time.Duration
	volume, null, gocryptfs readTimes
	createPeak, mountPeak   int64
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bench) run(ctx context.Context, rounds int) (err error) {
	if _, err := rand.Read(b.key[:]); err != nil {
		return err
	}
	_, err = exec.LookPath("gocryptfs")
	b.haveGocryptfs = err == nil
	if err := os.Mkdir(b.path("mount"), 0o755); err != nil {
		return err
	}
	if b.tree, err = generate(b.path("tree"), b.size, b.seed); err != nil {
		return fmt.Errorf("generating the tree: %w", err)
	}
	steps := []func(context.Context) error{
		b.measureGCM, b.measureCreate, b.measureFS, b.measureNull, b.measureVolume,
	}
	if b.haveGocryptfs {
		steps = append(steps, b.measureGocryptfs)
	}
	for range rounds {
		for _, step := range steps {
			if err := ctx.Err(); err != nil {
				return err
			}
			runtime.GC() // so that no step pays for the one before
			if err := step(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// best keeps the shorter of two times, of which 0 is none.
func best(kept *time.Duration, measured time.Duration) {
	if *kept == 0 || measured < *kept {
		*kept = measured
	}
}

func (r *readTimes) best(m readTimes) {
	best(&r.large, m.large)
	best(&r.small, m.small)
	best(&r.again, m.again)
	best(&r.random, m.random)
}

func (b *bench) measureGCM(context.Context) error {
	m, err := measureGCM(os.DirFS(b.tree.dir), b.tree.files(), b.cores)
	best(&b.gcm.seal, m.seal)
	best(&b.gcm.open, m.open)
	best(&b.gcm.sealCores, m.sealCores)
	best(&b.gcm.openCores, m.openCores)
	return err
}

// measureCreate writes the volume anew; its process says how long that took by itself, without its own start.
func (b *bench) measureCreate(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.RemoveAll(b.path("volume")); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, childCreate, b.path("volume"), b.tree.dir, hex.EncodeToString(b.key[:]))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("creating the volume: %w", err)
	}
	var mac string
	var took time.Duration
	var peak int64
	if _, err := fmt.Sscanf(string(out), "%s %d\npeak %d\n", &mac, &took, &peak); err != nil {
		return fmt.Errorf("creating the volume: %w", err)
	}
	best(&b.create, took)
	b.createPeak = max(b.createPeak, peak)
	b.mac, err = sefs.ParseMAC(mac)
	return err
}

// create is the child process of measureCreate.
func create(ctx context.Context, args []string) error {
	key, err := sefs.ParseKey([]byte(args[2]))
	if err != nil {
		return err
	}
	start := time.Now()
	mac, err := sefs.Create(ctx, args[0], os.DirFS(args[1]), sefs.CreateOptions{Key: &key})
	if err != nil {
		return err
	}
	fmt.Println(mac, int64(time.Since(start)))
	return printPeak(os.Stdout)
}

// measureFS reads through fs.FS on one core, and on all.
func (b *bench) measureFS(context.Context) error {
	v, err := sefs.Open(b.path("volume"), sefs.OpenOptions{Key: &b.key, MAC: &b.mac})
	if err != nil {
		return err
	}
	defer v.Close()
	defer runtime.GOMAXPROCS(b.cores)
	for _, m := range []struct {
		cores int
		kept  *time.Duration
	}{{1, &b.readFS}, {b.cores, &b.readFSCores}} {
		runtime.GOMAXPROCS(m.cores)
		start := time.Now()
		if err := readAll(v, b.tree.files(), make([]byte, 1<<20)); err != nil {
			return err
		}
		best(m.kept, time.Since(start))
	}
	return nil
}

func (b *bench) measureVolume(context.Context) error {
	peak, err := b.measureChild(childMount, &b.volume)
	b.mountPeak = max(b.mountPeak, peak)
	return err
}

func (b *bench) measureNull(context.Context) error {
	_, err := b.measureChild(childNull, &b.null)
	return err
}

// measureChild reads through a mount of a child process and returns the child's peak of memory.
func (b *bench) measureChild(child string, kept *readTimes) (peak int64, err error) {
	args := []string{child, b.path("volume"), b.path("mount"), hex.EncodeToString(b.key[:]), b.mac.String()}
	m, err := startMount(args...)
	if err != nil {
		return 0, err
	}
	stop := func() error {
		p, err := m.stop()
		peak = max(peak, p)
		return err
	}
	times, err := readMount(b.path("mount"), b.tree, func() error {
		if err := stop(); err != nil {
			return err
		}
		m, err = startMount(args...)
		return err
	})
	if m != nil {
		err = errors.Join(err, stop())
	}
	kept.best(times)
	return peak, err
}

// serve is the child process that mounts until its input ends.
func serve(ctx context.Context, null bool, args []string) error {
	key, err := sefs.ParseKey([]byte(args[2]))
	if err != nil {
		return err
	}
	mac, err := sefs.ParseMAC(args[3])
	if err != nil {
		return err
	}
	v, err := sefs.Open(args[0], sefs.OpenOptions{Key: &key, MAC: &mac})
	if err != nil {
		return err
	}
	defer v.Close()
	var s *fuse.Server
	if null {
		s, err = fuse.MountVolume(ctx, zeros{v}, args[1], fuse.Options{})
	} else {
		s, err = fuse.Mount(ctx, v, args[1], fuse.Options{})
	}
	if err != nil {
		return err
	}
	fmt.Println("mounted")
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, s.Unmount(), printPeak(os.Stdout))
}

// zeros is a volume's tree with files that do nothing to have content.
type zeros struct{ *sefs.Volume }

type zeroFile struct{ inode *sefs.Inode }

// OpenInode implements [fuse.Volume].
func (z zeros) OpenInode(n uint32) (fuse.File, error) {
	inode, err := z.Inode(n)
	if err != nil {
		return nil, err
	}
	return zeroFile{inode}, nil
}

func (z zeroFile) Inode() *sefs.Inode { return z.inode }
func (z zeroFile) Close() error       { return nil }

func (z zeroFile) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

// measureGocryptfs copies the tree into a new gocryptfs, mounts that anew, and reads.
func (b *bench) measureGocryptfs(context.Context) error {
	cipher, dir := b.path("gocryptfs"), b.path("mount")
	if err := os.RemoveAll(cipher); err != nil {
		return err
	}
	if err := initGocryptfs(cipher); err != nil {
		return err
	}
	if err := mountGocryptfs(cipher, dir); err != nil {
		return err
	}
	start := time.Now()
	err := os.CopyFS(filepath.Join(dir, "tree"), os.DirFS(b.tree.dir))
	best(&b.gocryptfsCreate, time.Since(start))
	if err := errors.Join(err, unmount(dir), mountGocryptfs(cipher, dir, "-ro")); err != nil {
		return err
	}
	times, err := readMount(filepath.Join(dir, "tree"), b.tree, func() error {
		return errors.Join(unmount(dir), mountGocryptfs(cipher, dir, "-ro"))
	})
	b.gocryptfs.best(times)
	return errors.Join(err, unmount(dir))
}
