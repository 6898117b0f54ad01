package fuse

import (
	"container/list"
	"errors"
	"io"
	"path"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/fs/sefs"
)

// forever is how long the kernel may keep names and attributes: a volume never changes.
const forever = 365 * 24 * time.Hour

// blockSize is the unit of statfs and st_blksize: one node of a protected file.
const blockSize = 4096

// shownDepth is how much of a path a message shows. A malformed volume may have no end of it.
const shownDepth = 64

// openLimit is how many files of the host are open at most, but for those that are being read this moment.
const openLimit = 256

// fileSystem answers the kernel. A node id is the volume's inode number, except that FUSE calls the root 1. It
// means the same as long as the mount lives, so references need not be counted.
type fileSystem struct {
	fuse.RawFileSystem // refuses what is not here, which is all that changes a file
	volume             Volume
	owner              *Owner
	log                logrus.FieldLogger
	files              openFiles

	mu       sync.Mutex
	places   map[uint32]place    // of the inodes that the kernel knows, for messages
	reported map[uint32]struct{} // inodes whose failure has been logged
}

// place is a directory entry that led to an inode.
type place struct {
	dir  uint32
	name string
}

func newFileSystem(v Volume, o Options) *fileSystem {
	return &fileSystem{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		volume:        v,
		owner:         o.Owner,
		log:           o.Log,
		files:         openFiles{open: v.OpenInode, limit: openLimit, byInode: map[uint32]*list.Element{}},
		places:        map[uint32]place{},
		reported:      map[uint32]struct{}{},
	}
}

// String is what df shows as the file system's type, after "fuse.".
func (f *fileSystem) String() string { return "sefs" }

func (f *fileSystem) inode(node uint64) uint32 {
	if node == fuse.FUSE_ROOT_ID {
		return sefs.RootInode
	}
	return uint32(node)
}

// fail logs the first failure of an inode and says EIO. If the host is merely short of something the error is
// passed on instead, for the reader may well try again.
func (f *fileSystem) fail(inode uint32, doing string, err error) fuse.Status {
	for _, shortage := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		if errors.Is(err, shortage) {
			return fuse.Status(shortage)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, known := f.reported[inode]; known {
		return fuse.EIO
	}
	f.reported[inode] = struct{}{}
	f.log.WithField("inode", inode).WithError(err).Errorf("refused: %s %s", doing, f.path(inode))
	return fuse.EIO
}

// path is one path of the inode, with mu held; quoted if it would not stay on its line.
func (f *fileSystem) path(inode uint32) (p string) {
	defer func() {
		if q := strconv.Quote(p); q != `"`+p+`"` {
			p = q
		}
	}()
	for depth := 0; inode != sefs.RootInode; depth++ {
		at, ok := f.places[inode]
		if !ok || depth == shownDepth {
			return path.Join("…", p)
		}
		p = path.Join(at.name, p)
		inode = at.dir
	}
	return path.Join("/", p)
}

func (f *fileSystem) remember(inode uint32, at place) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.places[inode] = at
}

// Forget implements [fuse.RawFileSystem].
func (f *fileSystem) Forget(node, _ uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.places, uint32(node))
}

func (f *fileSystem) attributes(i *sefs.Inode, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino:     uint64(i.Number),
		Size:    uint64(i.Size),
		Blocks:  (uint64(i.Size) + 511) / 512,
		Mode:    unixMode(i.Mode),
		Nlink:   uint32(i.NLink),
		Owner:   fuse.Owner{Uid: i.UID, Gid: i.GID},
		Blksize: blockSize,
	}
	out.SetTimes(&i.Atime, &i.Mtime, &i.Ctime)
	if f.owner != nil {
		out.Owner = fuse.Owner{Uid: f.owner.UID, Gid: f.owner.GID}
	}
}

func (f *fileSystem) entry(dir uint32, name string, i *sefs.Inode, out *fuse.EntryOut) {
	out.NodeId = uint64(i.Number)
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	f.attributes(i, &out.Attr)
	f.remember(i.Number, place{dir, name})
}

// GetAttr implements [fuse.RawFileSystem].
func (f *fileSystem) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	inode, err := f.volume.Inode(f.inode(in.NodeId))
	if err != nil {
		return f.fail(f.inode(in.NodeId), "reading the inode of", err)
	}
	f.attributes(inode, &out.Attr)
	out.SetTimeout(forever)
	return fuse.OK
}

// Readlink implements [fuse.RawFileSystem].
func (f *fileSystem) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	target, err := f.volume.Target(f.inode(in.NodeId))
	if err != nil {
		return nil, f.fail(f.inode(in.NodeId), "reading the link", err)
	}
	return []byte(target), fuse.OK
}

// Open implements [fuse.RawFileSystem]. ENOSYS makes the kernel do without OPEN and RELEASE from then on.
func (f *fileSystem) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

// Flush implements [fuse.RawFileSystem]. ENOSYS makes the kernel do without, too.
func (f *fileSystem) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// Read implements [fuse.RawFileSystem]. A short answer would be taken for zeros up to the end of the page, so there
// is none but at the end of the file.
func (f *fileSystem) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	inode := f.inode(in.NodeId)
	err := f.files.use(inode, func(file File) error {
		size := file.Inode().Size
		buf = buf[:max(0, min(int64(len(buf)), size-int64(in.Offset)))]
		n, err := file.ReadAt(buf, int64(in.Offset))
		switch {
		case n == len(buf):
			return nil
		case err == nil || errors.Is(err, io.EOF):
			return io.ErrUnexpectedEOF
		}
		return err
	})
	if err != nil {
		return nil, f.fail(inode, "reading", err)
	}
	return fuse.ReadResultData(buf), fuse.OK
}

// StatFs implements [fuse.RawFileSystem]. How large a volume is only a walk through it could tell.
func (f *fileSystem) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: blockSize, Frsize: blockSize, NameLen: 255}
	return fuse.OK
}

// OnUnmount implements [fuse.RawFileSystem].
func (f *fileSystem) OnUnmount() { f.files.dropAll() }
