package sefs

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/sesame-init/sesame/fs/sefs/internal/pfs"
)

const (
	direntSize  = 264
	direntBatch = 248 // read at a time: 64 KiB
	maxName     = 255
	maxTarget   = 4095 // PATH_MAX of Linux

	cachedEntries = 1 << 16
)

// Entry is a directory entry.
type Entry struct {
	Name  string
	Inode uint32
	// Type is the type bits of the mode.
	Type fs.FileMode
}

// directory is a checked directory.
type directory struct {
	parent  uint32
	entries []Entry // sorted by name, without "." and ".."
}

// directoryCache keeps directories until they have too many entries together; then it starts anew.
type directoryCache struct {
	byInode map[uint32]*directory
	entries int
}

// openInode opens the protected file of an inode and checks that it is the one that the inode table means.
func (v *Volume) openInode(in *Inode) (*os.File, *pfs.File, error) {
	host, f, err := v.openHost(in.hostName())
	if errors.Is(err, fs.ErrNotExist) {
		// Not to be taken for a name that is not in the volume.
		err = fmt.Errorf("%w: its file %s is missing", ErrTampered, in.hostName())
	}
	if err != nil {
		return nil, nil, fmt.Errorf("inode %d: %w", in.Number, err)
	}
	mac := f.MAC()
	size := in.Size
	if in.Mode.IsDir() {
		size = direntSize * int64(in.blocks)
	}
	switch {
	case (v.zipped || v.pinned) && subtle.ConstantTimeCompare(mac[:], in.mac[:]) != 1:
		err = fmt.Errorf("inode %d: %w: the file belongs to another state of the volume", in.Number, ErrTampered)
	case v.zipped && f.Size() != size:
		err = fmt.Errorf("inode %d: %w", in.Number, malformed("%d bytes where %d should be", f.Size(), size))
	}
	if err != nil {
		_ = host.Close()
		return nil, nil, err
	}
	return host, f, nil
}

// directory returns a checked directory. Its inode must come from its parent's entries, or be the root.
func (v *Volume) directory(n uint32) (*directory, error) {
	v.mu.Lock()
	d := v.dirs.byInode[n]
	v.mu.Unlock()
	if d != nil {
		return d, nil
	}
	in, err := v.Inode(n)
	if err != nil {
		return nil, err
	}
	if !in.Mode.IsDir() {
		return nil, syscall.ENOTDIR
	}
	host, f, err := v.openInode(in)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	if d, err = v.readDirectory(in, f); err != nil {
		return nil, fmt.Errorf("directory %d: %w", n, err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.dirs.entries += len(d.entries); v.dirs.byInode == nil || v.dirs.entries > cachedEntries {
		v.dirs = directoryCache{byInode: make(map[uint32]*directory), entries: len(d.entries)}
	}
	v.dirs.byInode[n] = d
	return d, nil
}

func (v *Volume) readDirectory(in *Inode, f *pfs.File) (*directory, error) {
	count := int64(in.blocks)
	if f.Size() < direntSize*count {
		return nil, malformed("%d entries in %d bytes", count, f.Size())
	}
	d := new(directory)
	subdirs := make(map[uint32]bool)
	buf := make([]byte, direntSize*min(direntBatch, count))
	for i := int64(0); i < count; i++ {
		at := direntSize * (i % direntBatch)
		if at == 0 {
			buf = buf[:direntSize*min(direntBatch, count-i)]
			if err := readFull(f, buf, direntSize*i); err != nil {
				return nil, err
			}
		}
		e, err := v.parseEntry(buf[at:][:direntSize])
		if err != nil {
			return nil, err
		}
		switch {
		case i == 0 && (e.Name != "." || e.Inode != in.Number || !e.Type.IsDir()):
			return nil, malformed("first entry is not \".\"")
		case i == 1 && (e.Name != ".." || !e.Type.IsDir() || (e.Inode == in.Number) != (in.Number == RootInode)):
			return nil, malformed("second entry is not \"..\"")
		case i == 1:
			d.parent = e.Inode
		case i > 1:
			if err := v.checkEntry(e, subdirs); err != nil {
				return nil, fmt.Errorf("entry %q: %w", e.Name, err)
			}
			d.entries = append(d.entries, e)
		}
	}
	slices.SortFunc(d.entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	for i := 1; i < len(d.entries); i++ {
		if d.entries[i].Name == d.entries[i-1].Name {
			return nil, malformed("two entries %q", d.entries[i].Name)
		}
	}
	if v.zipped && in.NLink != uint16(2+len(subdirs)) {
		return nil, malformed("%d links to a directory with %d subdirectories", in.NLink, len(subdirs))
	}
	return d, nil
}

func (v *Volume) parseEntry(b []byte) (Entry, error) {
	name, rest, terminated := bytes.Cut(b[4:260], []byte{0})
	t, known := fileType(binary.LittleEndian.Uint32(b[260:]))
	switch {
	case !terminated || v.zipped && !isZero(rest):
		return Entry{}, malformed("name is not terminated")
	case !known:
		return Entry{}, malformed("entry %q of unknown type", name)
	}
	return Entry{Name: string(name), Inode: binary.LittleEndian.Uint32(b), Type: t}, nil
}

// checkEntry checks an entry other than the first two. That a directory is entered once only follows from this and
// from the comparison with its ".." in Lookup.
func (v *Volume) checkEntry(e Entry, subdirs map[uint32]bool) error {
	if !validName(e.Name) {
		return malformed("bad name")
	}
	in, err := v.Inode(e.Inode)
	if err != nil {
		return err
	}
	if in.Mode.Type() != e.Type {
		return malformed("type %v where the inode says %v", e.Type, in.Mode.Type())
	}
	if e.Type.IsDir() {
		if e.Inode == RootInode || subdirs[e.Inode] {
			return malformed("directory %d is linked twice", e.Inode)
		}
		subdirs[e.Inode] = true
	}
	return nil
}

func validName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= maxName && utf8.ValidString(name) &&
		!strings.ContainsAny(name, "/\x00")
}

// Entries lists a directory, sorted by name, without "." and "..". The result must not be changed.
func (v *Volume) Entries(dir uint32) ([]Entry, error) {
	d, err := v.directory(dir)
	if err != nil {
		return nil, err
	}
	return d.entries, nil
}

// Lookup finds a name in a directory. The error is [fs.ErrNotExist] if there is none.
func (v *Volume) Lookup(dir uint32, name string) (*Inode, error) {
	d, err := v.directory(dir)
	if err != nil {
		return nil, err
	}
	i, found := slices.BinarySearchFunc(d.entries, name, func(e Entry, name string) int {
		return strings.Compare(e.Name, name)
	})
	if !found {
		return nil, fs.ErrNotExist
	}
	return v.enter(dir, d.entries[i])
}

// enter returns the inode of an entry of dir. The ".." of a directory names its parent: one that is linked
// twice, which every cycle needs, lies in one of the places.
func (v *Volume) enter(dir uint32, e Entry) (*Inode, error) {
	if e.Type.IsDir() {
		child, err := v.directory(e.Inode)
		if err != nil {
			return nil, err
		}
		if child.parent != dir {
			return nil, malformed("directory %d is linked from %d and from %d", e.Inode, child.parent, dir)
		}
	}
	return v.Inode(e.Inode)
}

// Target is the target of the symbolic link n.
func (v *Volume) Target(n uint32) (string, error) {
	in, err := v.Inode(n)
	if err != nil {
		return "", err
	}
	if in.Mode.Type() != fs.ModeSymlink {
		return "", fs.ErrInvalid
	}
	host, f, err := v.openInode(in)
	if err != nil {
		return "", err
	}
	defer host.Close()
	if in.Size == 0 || in.Size > maxTarget || f.Size() < in.Size {
		return "", fmt.Errorf("inode %d: %w", n, malformed("link target of %d bytes", in.Size))
	}
	b := make([]byte, in.Size)
	if err := readFull(f, b, 0); err != nil {
		return "", fmt.Errorf("inode %d: %w", n, err)
	}
	if !utf8.Valid(b) || bytes.IndexByte(b, 0) >= 0 {
		return "", fmt.Errorf("inode %d: %w", n, malformed("link target is not text"))
	}
	return string(b), nil
}

// OpenInode opens the regular file n.
func (v *Volume) OpenInode(n uint32) (*File, error) {
	in, err := v.Inode(n)
	if err != nil {
		return nil, err
	}
	if !in.Mode.IsRegular() {
		return nil, fs.ErrInvalid
	}
	host, f, err := v.openInode(in)
	if err != nil {
		return nil, err
	}
	return &File{inode: in, host: host, content: f}, nil
}

// File is an open regular file. Besides [fs.File] it implements [io.ReaderAt], which is safe for concurrent use,
// [io.Seeker] and [io.WriterTo]. Large reads are decrypted on all cores.
type File struct {
	inode   *Inode
	name    string
	host    *os.File
	content *pfs.File
	offset  int64
}

// Inode is the file's inode.
func (f *File) Inode() *Inode { return f.inode }

// Stat implements [fs.File].
func (f *File) Stat() (fs.FileInfo, error) { return fileInfo{f.name, f.inode}, nil }

// Close implements [fs.File].
func (f *File) Close() error { return f.host.Close() }

// ReadAt implements [io.ReaderAt].
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	size := f.inode.Size
	if off < 0 {
		return 0, fs.ErrInvalid
	}
	if off >= size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > size-off {
		p, eof = p[:size-off], io.EOF
	}
	// A file that was made longer at run time has no content there: it reads as zeros.
	stored := max(0, min(int64(len(p)), f.content.Size()-off))
	clear(p[stored:])
	if n, err := f.content.ReadAt(p[:stored], off); int64(n) < stored {
		return n, fmt.Errorf("inode %d: %w", f.inode.Number, err)
	}
	return len(p), eof
}

// Read implements [fs.File].
func (f *File) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := f.ReadAt(p, f.offset)
	f.offset += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// Seek implements [io.Seeker].
func (f *File) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += f.offset
	case io.SeekEnd:
		offset += f.inode.Size
	default:
		return 0, fs.ErrInvalid
	}
	if offset < 0 {
		return 0, fs.ErrInvalid
	}
	f.offset = offset
	return offset, nil
}

// copySize is what whole files are read in: enough for all cores.
const copySize = 1 << 20

// WriteTo implements [io.WriterTo].
func (f *File) WriteTo(w io.Writer) (int64, error) {
	return io.CopyBuffer(w, struct{ io.Reader }{f}, make([]byte, max(1, min(copySize, f.inode.Size-f.offset))))
}
