// Command volumebench measures volumes against what bounds them, side by side in one run: AES-128-GCM with a fresh
// key for each 4 KiB over the same bytes, a FUSE file system that serves zeros of the same sizes through the same
// code, and gocryptfs (left out, by name, if it is not installed). It prints a Markdown table with the goals.
//
// The figures of one run compare with each other only. Everything lies in memory (a tmpfs) if there is room for
// it, so that no disk is measured; what is measured takes turns, and the best of the rounds counts.
// Time on the wall says little if others use the machine; so the table has, beside the ratio of rates, that of the
// time spent on the cores, by reader and server together. Writing and
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

// garbageHeadroom is that of the volume commands of sesame, so that what is measured is what they do.
const garbageHeadroom = 8 << 20

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	headroom := make([]byte, garbageHeadroom)
	defer runtime.KeepAlive(headroom)
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
			return createVolume(ctx, args[1:])
		case childMount, childNull:
			return serve(ctx, args[0] == childNull, args[1:])
		}
	}
	flags := flag.NewFlagSet("volumebench", flag.ContinueOnError)
	size := flags.String("size", "1GiB", "bytes in the tree, as 64MiB or 1GiB")
	dir := flags.String("dir", "", "directory for five times the size (default: /dev/shm if that has room, or the temporary directory)")
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

// workDirectory is the directory asked for, or a tmpfs with room for the tree, the sealed file, the volume and two
// copies, or the system's temporary directory.
func workDirectory(asked string, size int64) string {
	const memory = "/dev/shm"
	var st unix.Statfs_t
	if asked == "" && unix.Statfs(memory, &st) == nil && st.Type == unix.TMPFS_MAGIC &&
		int64(st.Bavail)*st.Bsize > 6*size {
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

// bench is a run and its results: the lowest cost of each measurement.
type bench struct {
	dir   string
	size  int64
	seed  uint64
	cores int

	tree                    *tree
	key                     sefs.Key
	mac                     sefs.MAC
	haveGocryptfs           bool
	gcm                     gcmCosts
	sealed                  *sealedFile
	plainRead, plainCopy    cost
	sealedRead, sealedCores cost
	create, gocryptfsCreate cost
	readFS, readFSCores     cost
	volume, null, gocryptfs readCosts
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
	if b.sealed, err = makeSealedFile(b.path("sealed"), os.DirFS(b.tree.dir), b.tree.files()); err != nil {
		return fmt.Errorf("sealing the tree: %w", err)
	}
	defer b.sealed.file.Close()
	steps := []func(context.Context) error{
		b.measureGCM, b.measurePlain, b.measureCreate, b.measureFS, b.measureNull, b.measureVolume,
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

func (b *bench) measureGCM(context.Context) error {
	m, err := measureGCM(os.DirFS(b.tree.dir), b.tree.files(), b.cores)
	b.gcm.best(m)
	return err
}

// measurePlain reads the tree, and copies it, without a cipher; and reads it from one sealed file.
func (b *bench) measurePlain(context.Context) error {
	tree := os.DirFS(b.tree.dir)
	read, err := measure(0, func() error { return readAll(tree, b.tree.files(), make([]byte, 1<<20)) })
	if err != nil {
		return err
	}
	b.plainRead.best(read)
	for _, m := range []struct {
		cores int
		kept  *cost
	}{{1, &b.sealedRead}, {b.cores, &b.sealedCores}} {
		c, err := measure(0, func() error { return b.sealed.read(m.cores) })
		if err != nil {
			return err
		}
		m.kept.best(c)
	}
	copied, err := measure(0, func() error {
		return copyAll(b.path("copy"), tree, b.tree.files(), make([]byte, 1<<20))
	})
	b.plainCopy.best(copied)
	return errors.Join(err, os.RemoveAll(b.path("copy")))
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
	b.create.best(cost{took, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()})
	b.createPeak = max(b.createPeak, peak)
	b.mac, err = sefs.ParseMAC(mac)
	return err
}

// createVolume is the child process of measureCreate.
func createVolume(ctx context.Context, args []string) error {
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
		kept  *cost
	}{{1, &b.readFS}, {b.cores, &b.readFSCores}} {
		runtime.GOMAXPROCS(m.cores)
		c, err := measure(0, func() error { return readAll(v, b.tree.files(), make([]byte, 1<<20)) })
		if err != nil {
			return err
		}
		m.kept.best(c)
	}
	return nil
}

func (b *bench) measureVolume(context.Context) error {
	return b.measureChild(childMount, &b.volume, &b.mountPeak)
}

func (b *bench) measureNull(context.Context) error {
	return b.measureChild(childNull, &b.null, new(int64))
}

// measureChild reads through a mount of a child process.
func (b *bench) measureChild(name string, kept *readCosts, peak *int64) error {
	costs, err := readMount(b.path("mount"), b.tree, func() (server, error) {
		return startChild(peak, name, b.path("volume"), b.path("mount"), hex.EncodeToString(b.key[:]), b.mac.String())
	})
	if err != nil {
		return err
	}
	kept.best(costs)
	return nil
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
		s, err = fuse.MountVolume(ctx, zeros{v}, args[1], fuse.Options{Apart: true})
	} else {
		s, err = fuse.Mount(ctx, v, args[1], fuse.Options{Apart: true})
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

// measureGocryptfs copies the tree into a new gocryptfs, and reads it there.
func (b *bench) measureGocryptfs(context.Context) error {
	cipher, dir := b.path("gocryptfs"), b.path("mount")
	if err := errors.Join(os.RemoveAll(cipher), initGocryptfs(cipher)); err != nil {
		return err
	}
	err := withServer(
		func() (server, error) { return startGocryptfs(cipher, dir) },
		func(pid int) error {
			c, err := measure(pid, func() error {
				return copyAll(filepath.Join(dir, "tree"), os.DirFS(b.tree.dir), b.tree.files(), make([]byte, 1<<20))
			})
			b.gocryptfsCreate.best(c)
			return err
		})
	if err != nil {
		return err
	}
	costs, err := readMount(filepath.Join(dir, "tree"), b.tree, func() (server, error) {
		return startGocryptfs(cipher, dir, "-ro")
	})
	if err != nil {
		return err
	}
	b.gocryptfs.best(costs)
	return nil
}
