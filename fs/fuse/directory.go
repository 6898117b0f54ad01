package fuse

import (
	"io/fs"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Lookup implements [fuse.RawFileSystem].
func (f *fileSystem) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir := f.inode(in.NodeId)
	inode, err := f.volume.Lookup(dir, name)
	switch {
	case err == fs.ErrNotExist: // node id 0: the kernel remembers that there is none
		out.SetEntryTimeout(forever)
		return fuse.OK
	case err != nil:
		return f.failLookup(dir, name, err)
	}
	f.entry(dir, name, inode, out)
	return fuse.OK
}

// failLookup is fail for what the name refers to, or for the directory if that is not readable itself.
func (f *fileSystem) failLookup(dir uint32, name string, err error) fuse.Status {
	entries, _ := f.volume.Entries(dir)
	for _, e := range entries {
		if e.Name == name {
			f.remember(e.Inode, place{dir, name})
			return f.fail(e.Inode, "looking up", err)
		}
	}
	return f.fail(dir, "reading the directory", err)
}

// OpenDir implements [fuse.RawFileSystem]. ENOSYS makes the kernel do without OPENDIR and RELEASEDIR from then on.
func (f *fileSystem) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

// ReadDir implements [fuse.RawFileSystem].
func (f *fileSystem) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(in, func(e fuse.DirEntry) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus implements [fuse.RawFileSystem]: entries with their attributes, which spares the lookups. Directories
// come without, since a lookup of one checks it; so do entries whose lookup will fail.
func (f *fileSystem) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	dir := f.inode(in.NodeId)
	return f.list(in, func(e fuse.DirEntry) bool {
		attributes := out.AddDirLookupEntry(e)
		if attributes == nil {
			return false
		}
		if e.Mode == syscall.S_IFDIR {
			return true
		}
		if inode, err := f.volume.Inode(uint32(e.Ino)); err == nil {
			f.entry(dir, e.Name, inode, attributes)
		}
		return true
	})
}

// list adds the entries from the offset on until one does not fit. The offset of an entry is its number; . and ..
// are the first two.
func (f *fileSystem) list(in *fuse.ReadIn, add func(fuse.DirEntry) bool) fuse.Status {
	dir := f.inode(in.NodeId)
	entries, err := f.volume.Entries(dir)
	if err != nil {
		return f.fail(dir, "reading the directory", err)
	}
	for i := in.Offset; i < uint64(len(entries))+2; i++ {
		e := fuse.DirEntry{Off: i + 1, Mode: syscall.S_IFDIR}
		switch i {
		case 0:
			e.Name, e.Ino = ".", uint64(dir)
		case 1:
			e.Name = ".."
		default:
			entry := entries[i-2]
			e.Name, e.Ino, e.Mode = entry.Name, uint64(entry.Inode), unixMode(entry.Type)&syscall.S_IFMT
		}
		if !add(e) {
			break
		}
	}
	return fuse.OK
}

// unixMode is the mode as stat(2) has it. The set-user-ID bits are shown although the mount ignores them.
func unixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	switch m.Type() {
	case fs.ModeDir:
		mode |= syscall.S_IFDIR
	case fs.ModeSymlink:
		mode |= syscall.S_IFLNK
	case fs.ModeSocket:
		mode |= syscall.S_IFSOCK
	default:
		mode |= syscall.S_IFREG
	}
	if m&fs.ModeSetuid != 0 {
		mode |= syscall.S_ISUID
	}
	if m&fs.ModeSetgid != 0 {
		mode |= syscall.S_ISGID
	}
	if m&fs.ModeSticky != 0 {
		mode |= syscall.S_ISVTX
	}
	return mode
}
