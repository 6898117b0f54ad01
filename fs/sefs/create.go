package sefs

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/fs/sefs/internal/pfs"
	"github.com/sesame-init/sesame/internal/fault"
)

// CreateOptions say what kind of volume [Create] makes.
type CreateOptions struct {
	// Key encrypts the volume; without one it is integrity-only.
	Key *Key
	// Layout is the generation of the format; the zero value is that of Occlum 0.31.
	Layout Layout
	// Reproducible makes the same volume of the same input, key and layout. Who sees two such volumes of one key
	// learns which 4 KiB nodes they have in common at equal places. Integrity-only volumes always are reproducible.
	Reproducible bool
	// Rand is the source of keys; nil means [rand.Reader].
	Rand io.Reader
	// Workers is how many files are encrypted at a time; 0 means one for each core.
	Workers int
	// Progress is called now and then, never twice at a time, with the bytes of content read and those to read.
	Progress func(done, total int64)
	// Skipped is called for each device, FIFO and socket of the source: they are left out.
	Skipped func(path string, mode fs.FileMode)
}

// Create makes a volume of everything in src, in the new directory dst, and returns its root MAC.
//
// It keeps types, permission bits, contents and link targets; not owners, times, setuid, setgid and sticky bits,
// and hard links, which become separate files. The root's mode is always 0755. Names must be UTF-8, and not those
// that Occlum reserves (.ufs.mac, .ufs.wh.*, .ufs.opq.*). Symbolic links need a src that is a [fs.ReadLinkFS].
//
// The volume appears under its name complete and on disk, or not at all: it is built in a directory beside it whose
// name begins with a dot and ends with .tmp, which only a crash leaves behind. Memory is bounded whatever the sizes
// of files; it grows with their number by some 300 bytes each.
func Create(ctx context.Context, dst string, src fs.FS, o CreateOptions) (MAC, error) {
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	p := &plan{src: src, skipped: o.Skipped}
	if err := p.survey(ctx); err != nil {
		return MAC{}, err
	}
	w, err := pfs.NewWriter(pfs.NewCodec(o.Layout, (*[16]byte)(o.Key)), pfs.WriterOptions{
		Rand: o.Rand, Reproducible: o.Reproducible, Buffers: 2*o.Workers + 1,
	})
	if err != nil {
		return MAC{}, err
	}
	var mac MAC
	err = publish(dst, func(dir *os.Root) error {
		p.dir, p.writer, p.meter = dir, w, &meter{total: p.bytes, report: o.Progress}
		mac, err = p.write(ctx, o.Workers)
		return err
	})
	return mac, err
}

// plan is a volume that is being made.
type plan struct {
	src     fs.FS
	skipped func(string, fs.FileMode)
	inodes  []*plannedInode // the root first, in the order of their numbers
	bytes   int64

	dir    *os.Root
	writer *pfs.Writer
	meter  *meter
}

type plannedInode struct {
	number   uint32
	path     string
	mode     fs.FileMode
	parent   uint32
	children []*plannedInode
	subdirs  int
	size     int64
	mac      [16]byte
}

// survey walks the source and numbers the inodes as Occlum does: depth first, siblings by the bytes of their names.
func (p *plan) survey(ctx context.Context) error {
	root := &plannedInode{number: RootInode, path: ".", mode: fs.ModeDir | 0o755, parent: RootInode}
	p.inodes = append(p.inodes, root)
	return p.surveyDir(ctx, root, 0)
}

func (p *plan) surveyDir(ctx context.Context, dir *plannedInode, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fail := func(name string, err error) error { return &fs.PathError{Op: "adding", Path: name, Err: err} }
	if depth == maxDepth {
		return fail(dir.path, errors.New("directories are nested too deep"))
	}
	entries, err := fs.ReadDir(p.src, dir.path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := path.Join(dir.path, e.Name())
		if err := checkNewName(e.Name()); err != nil {
			return fail(name, err)
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		mode := info.Mode()
		switch mode.Type() {
		case 0:
			p.bytes = saturate(p.bytes, max(0, info.Size()))
		case fs.ModeSymlink:
			mode |= fs.ModePerm
		case fs.ModeDir:
			dir.subdirs++
		default:
			if p.skipped != nil {
				p.skipped(name, mode)
			}
			continue
		}
		child := &plannedInode{path: name, mode: mode & (fs.ModeType | fs.ModePerm), parent: dir.number}
		if child.number, err = p.next(); err != nil {
			return fail(name, err)
		}
		p.inodes = append(p.inodes, child)
		dir.children = append(dir.children, child)
		if mode.IsDir() {
			if err := p.surveyDir(ctx, child, depth+1); err != nil {
				return err
			}
		}
	}
	if dir.subdirs > math.MaxUint16-2 {
		return fail(dir.path, errors.New("more than 65533 subdirectories"))
	}
	return nil
}

// next is the lowest free inode number; those of the free maps are not.
func (p *plan) next() (uint32, error) {
	n := p.inodes[len(p.inodes)-1].number
	if n >= math.MaxUint32-2*groupBlocks {
		return 0, errors.New("too many inodes")
	}
	if n++; n%groupBlocks == 1 {
		n++
	}
	return n, nil
}

func checkNewName(name string) error {
	switch {
	case !utf8.ValidString(name):
		return errors.New("name is not UTF-8")
	case !validName(name):
		return errors.New("name cannot be stored")
	case name == ".ufs.mac" || strings.HasPrefix(name, ".ufs.wh.") || strings.HasPrefix(name, ".ufs.opq."):
		return errors.New("name is reserved by Occlum")
	}
	return nil
}

// write makes all files of the volume, metadata last.
func (p *plan) write(ctx context.Context, workers int) (MAC, error) {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	for _, in := range p.inodes {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error { return fault.Try(func() error { return p.add(gctx, in) }) })
	}
	if err := fault.Raise(g.Wait()); err != nil {
		return MAC{}, err
	}
	if err := ctx.Err(); err != nil {
		return MAC{}, err
	}
	_, mac, err := p.writeFile(ctx, metadataName, p.metadata())
	return mac, err
}

// add makes the file of an inode.
func (p *plan) add(ctx context.Context, in *plannedInode) error {
	content, err := p.open(in)
	if err != nil {
		return err
	}
	defer content.Close()
	host := (&Inode{file: zippedName(in.number)}).hostName()
	if in.size, in.mac, err = p.writeFile(ctx, host, content); err != nil {
		return &fs.PathError{Op: "adding", Path: in.path, Err: err}
	}
	return nil
}

func (p *plan) writeFile(ctx context.Context, name string, content io.Reader) (int64, [16]byte, error) {
	f, err := p.dir.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return 0, [16]byte{}, err
	}
	size, mac, err := p.writer.Write(ctx, f, name, content)
	return size, mac, errors.Join(err, f.Close())
}

// open returns the content of an inode's file.
func (p *plan) open(in *plannedInode) (io.ReadCloser, error) {
	switch in.mode.Type() {
	case fs.ModeDir:
		return io.NopCloser(in.entries()), nil
	case fs.ModeSymlink:
		target, err := fs.ReadLink(p.src, in.path)
		if err == nil && (target == "" || len(target) > maxTarget || strings.ContainsRune(target, 0) ||
			!utf8.ValidString(target)) {
			err = &fs.PathError{Op: "adding", Path: in.path, Err: errors.New("link target cannot be stored")}
		}
		return io.NopCloser(strings.NewReader(target)), err
	}
	f, err := p.src.Open(in.path)
	if err != nil {
		return nil, err
	}
	// The name may refer to something else by now, such as a FIFO that never ends.
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		_ = f.Close()
		return nil, &fs.PathError{Op: "adding", Path: in.path, Err: errors.Join(err, errors.New("is no longer a file"))}
	}
	return &meteredFile{f, p.meter}, nil
}

type meteredFile struct {
	fs.File
	meter *meter
}

func (m *meteredFile) Read(p []byte) (int, error) {
	n, err := m.File.Read(p)
	m.meter.add(int64(n))
	return n, err
}

// blockReader gives count blocks, each made when it is read.
type blockReader struct {
	block []byte
	rest  []byte // of block
	next  int
	count int
	fill  func(i int, block []byte)
}

func newBlockReader(size, count int, fill func(int, []byte)) *blockReader {
	return &blockReader{block: make([]byte, size), count: count, fill: fill}
}

func (r *blockReader) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if len(r.rest) == 0 {
			if r.next == r.count {
				if n == 0 {
					return 0, io.EOF
				}
				break
			}
			clear(r.block)
			r.fill(r.next, r.block)
			r.rest = r.block
			r.next++
		}
		k := copy(p[n:], r.rest)
		r.rest = r.rest[k:]
		n += k
	}
	return n, nil
}

// entries is the content of a directory's file (section 2.1).
func (in *plannedInode) entries() io.Reader {
	return newBlockReader(direntSize, 2+len(in.children), func(i int, b []byte) {
		number, name, mode := in.number, ".", fs.ModeDir
		switch {
		case i == 1:
			number, name = in.parent, ".."
		case i > 1:
			c := in.children[i-2]
			number, name, mode = c.number, path.Base(c.path), c.mode
		}
		binary.LittleEndian.PutUint32(b, number)
		copy(b[4:260], name)
		binary.LittleEndian.PutUint32(b[260:], diskType(mode))
	})
}

func diskType(mode fs.FileMode) uint32 {
	switch mode.Type() {
	case fs.ModeDir:
		return typeDir
	case fs.ModeSymlink:
		return typeSymlink
	}
	return typeFile
}

// metadata is the content of the metadata file: superblock, free maps and inode table (section 2.1). It ends with
// the last thing in it, which is the last inode or the free map of a group that has only that.
func (p *plan) metadata() io.Reader {
	last := p.inodes[len(p.inodes)-1].number
	groups := int(last/groupBlocks) + 1
	size := max(blockSize*int64(last)+inodeSize, blockSize*(groupBlocks*int64(groups-1)+2))
	next := 0
	blocks := newBlockReader(blockSize, groups*groupBlocks, func(i int, b []byte) {
		switch {
		case i == 0:
			binary.LittleEndian.PutUint32(b, magic)
			binary.LittleEndian.PutUint32(b[4:], uint32(groups*groupBlocks))
			binary.LittleEndian.PutUint32(b[8:], uint32(groups*groupBlocks-groups-1-len(p.inodes)))
			binary.LittleEndian.PutUint32(b[12:], uint32(groups))
		case i%groupBlocks == 1:
			for k := range groupBlocks {
				if n := i - 1 + k; n > int(last) && n%groupBlocks != 1 {
					b[k/8] |= 1 << (k % 8)
				}
			}
		case i <= int(last):
			p.inodes[next].encode(b)
			next++
		}
	})
	return io.LimitReader(blocks, size)
}

func (in *plannedInode) encode(b []byte) {
	le := binary.LittleEndian
	links := uint16(1)
	if in.mode.IsDir() {
		links = uint16(2 + in.subdirs)
		le.PutUint32(b[16:], uint32(2+len(in.children)))
	} else {
		le.PutUint64(b, uint64(in.size))
	}
	le.PutUint32(b[8:], diskType(in.mode))
	le.PutUint16(b[12:], uint16(in.mode.Perm()))
	le.PutUint16(b[14:], links)
	name := zippedName(in.number)
	copy(b[80:], name[:])
	copy(b[96:], in.mac[:])
}

// publish fills a new directory beside dst and, when it is complete and on disk, gives it the name dst.
func publish(dst string, fill func(dir *os.Root) error) (err error) {
	parent, base := filepath.Split(filepath.Clean(dst))
	if parent == "" {
		parent = "."
	}
	if _, err := os.Lstat(dst); err == nil {
		return &fs.PathError{Op: "creating", Path: dst, Err: fs.ErrExist}
	}
	tmp := filepath.Join(parent, "."+base+"."+rand.Text()[:8]+".tmp")
	if err := os.Mkdir(tmp, 0o777); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeAll(tmp))
		}
	}()
	dir, err := os.OpenRoot(tmp)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := fill(dir); err != nil {
		return err
	}
	if err := syncFileSystem(parent); err != nil {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, dst, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // not every file system can refuse
		err = os.Rename(tmp, dst)
	}
	if err != nil {
		return &fs.PathError{Op: "creating", Path: dst, Err: err}
	}
	return syncFileSystem(parent)
}

// removeAll is [os.RemoveAll] for directories that were already given modes that forbid it.
func removeAll(dir string) error {
	if err := os.RemoveAll(dir); err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// syncFileSystem waits until everything written to the file system of path is on disk: one wait, instead of one for
// each of many small files.
func syncFileSystem(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("syncing %s: %w", path, err)
	}
	return nil
}
