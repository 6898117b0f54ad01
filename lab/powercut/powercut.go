// Package powercut is a file system (FUSE) that loses power on command. It keeps what was synced apart from what was only
// written: after [Disk.Cut] it fails every call, and a new mount of the same disk has what was synced and, of the rest,
// what chance lets through. So it shows a missing fsync, which a killed process does not: the kernel keeps its pages.
//
// Writes and truncations of a file wait for its fsync. Creations, renames and unlinks wait for the fsync of the folder.
// On a cut each waiting write survives or not by itself, at pages of 4,096 bytes, as a disk reorders; of the waiting
// changes of the folder the first ones survive, as a journal keeps their order. It has one folder.
package powercut

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

const page = 4096

// A Disk is what survives. Make it with [New].
type Disk struct {
	mu    sync.Mutex
	files map[string]*file // as they are
	kept  map[string]*file // names that were synced
	names []func(map[string]*file)
	next  uint64
	ids   map[uint64]*file
	dead  bool
	stats Stats
}

// Stats are what a disk has seen.
type Stats struct {
	Writes, Syncs int
	Lost          int // writes and changes of names that a cut has forgotten
}

// file is a file's content. waiting are the changes since its last fsync.
type file struct {
	id        uint64
	mode      uint32
	now, kept []byte
	waiting   []func([]byte) []byte
	changed   time.Time
}

// New makes an empty disk.
func New() *Disk {
	return &Disk{files: map[string]*file{}, kept: map[string]*file{}, ids: map[uint64]*file{}, next: 2}
}

// Cut ends the power: from now on every call fails. What was not synced survives by chance, with the probability
// survive from 0 to 1, and then the disk is as a new [Disk.Mount] will find it.
func (d *Disk) Cut(chance *rand.Rand, survive float64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
	for _, change := range d.names {
		if chance.Float64() >= survive {
			break
		}
		change(d.kept)
		d.names = d.names[1:]
	}
	d.stats.Lost += len(d.names)
	d.names = nil
	d.files = map[string]*file{}
	d.ids = map[uint64]*file{}
	for name, f := range d.kept {
		for _, change := range f.waiting {
			if chance.Float64() < survive {
				f.kept = change(f.kept)
			} else {
				d.stats.Lost++
			}
		}
		after := &file{id: d.next, mode: f.mode, now: clone(f.kept), kept: f.kept, changed: time.Now()}
		d.next++
		d.files[name], d.ids[after.id] = after, after
	}
	d.kept = map[string]*file{}
	for name, f := range d.files {
		d.kept[name] = f
	}
}

// Stats are what the disk has seen so far.
func (d *Disk) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

// Mount mounts the disk at a folder, and gives it power. Unmount before the next Mount.
func (d *Disk) Mount(at string) (unmount func() error, err error) {
	d.mu.Lock()
	d.dead = false
	d.mu.Unlock()
	server, err := fuse.NewServer(&system{fuse.NewDefaultRawFileSystem(), d}, at, &fuse.MountOptions{
		FsName: "powercut", Name: "powercut", DirectMount: true, MaxWrite: 128 << 10, DisableXAttrs: true,
	})
	if err != nil {
		return nil, fmt.Errorf("mounting powercut: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server.Serve()
	}()
	if err := server.WaitMount(); err != nil {
		return nil, errors.Join(fmt.Errorf("mounting powercut: %w", err), server.Unmount())
	}
	return func() error {
		if err := server.Unmount(); err != nil {
			// A program that the cut has ended may still be closing its files.
			if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
				return fmt.Errorf("unmounting powercut: %w", err)
			}
		}
		<-ended
		return nil
	}, nil
}

func clone(b []byte) []byte { return append([]byte(nil), b...) }

// change makes a change now and lets it wait for the sync.
func (f *file) change(by func([]byte) []byte) {
	f.now = by(f.now)
	f.waiting = append(f.waiting, by)
	f.changed = time.Now()
}

func writeAt(at uint64, data []byte) func([]byte) []byte {
	return func(b []byte) []byte {
		if need := int(at) + len(data); need > len(b) {
			b = append(b, make([]byte, need-len(b))...)
		}
		copy(b[at:], data)
		return b
	}
}

func truncateTo(size uint64) func([]byte) []byte {
	return func(b []byte) []byte {
		if int(size) <= len(b) {
			return b[:size:size]
		}
		return append(b, make([]byte, int(size)-len(b))...)
	}
}

// maxFile bounds a file in bytes.
const maxFile = 256 << 20

type system struct {
	fuse.RawFileSystem
	disk *Disk
}

func (s *system) locked(f func(d *Disk) fuse.Status) fuse.Status {
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	if s.disk.dead {
		return fuse.EIO
	}
	return f(s.disk)
}

func (f *file) attributes(a *fuse.Attr) {
	a.Ino, a.Mode, a.Nlink, a.Size = f.id, f.mode|syscall.S_IFREG, 1, uint64(len(f.now))
	a.Blksize, a.Blocks = page, (a.Size+511)/512
	a.SetTimes(&f.changed, &f.changed, &f.changed)
}

func rootAttributes(a *fuse.Attr) {
	a.Ino, a.Mode, a.Nlink = fuse.FUSE_ROOT_ID, syscall.S_IFDIR|0o700, 2
}

func entry(f *file, out *fuse.EntryOut) {
	out.NodeId, out.Generation = f.id, 1
	f.attributes(&out.Attr)
}

// Lookup implements [fuse.RawFileSystem].
func (s *system) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	return s.locked(func(d *Disk) fuse.Status {
		f := d.files[name]
		if h.NodeId != fuse.FUSE_ROOT_ID || f == nil {
			return fuse.ENOENT
		}
		entry(f, out)
		return fuse.OK
	})
}

// Access implements [fuse.RawFileSystem].
func (s *system) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.OK }

// GetAttr implements [fuse.RawFileSystem].
func (s *system) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return s.locked(func(d *Disk) fuse.Status {
		if in.NodeId == fuse.FUSE_ROOT_ID {
			rootAttributes(&out.Attr)
			return fuse.OK
		}
		f := d.ids[in.NodeId]
		if f == nil {
			return fuse.ENOENT
		}
		f.attributes(&out.Attr)
		return fuse.OK
	})
}

// SetAttr implements [fuse.RawFileSystem].
func (s *system) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	return s.locked(func(d *Disk) fuse.Status {
		f := d.ids[in.NodeId]
		if f == nil {
			return fuse.ENOENT
		}
		if size, ok := in.GetSize(); ok {
			if size > maxFile {
				return fuse.Status(syscall.EFBIG)
			}
			f.change(truncateTo(size))
		}
		if mode, ok := in.GetMode(); ok {
			f.mode = mode & 0o7777
		}
		f.attributes(&out.Attr)
		return fuse.OK
	})
}

// Create implements [fuse.RawFileSystem].
func (s *system) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	return s.locked(func(d *Disk) fuse.Status {
		f := d.files[name]
		if f == nil {
			f = &file{id: d.next, mode: in.Mode & 0o7777, changed: time.Now()}
			d.next++
			d.ids[f.id] = f
			d.rename(func(names map[string]*file) { names[name] = f })
		}
		entry(f, &out.EntryOut)
		out.OpenFlags = fuse.FOPEN_DIRECT_IO
		return fuse.OK
	})
}

// rename changes names now and lets the change wait for the sync of the folder.
func (d *Disk) rename(by func(map[string]*file)) {
	by(d.files)
	d.names = append(d.names, by)
}

// Open implements [fuse.RawFileSystem].
func (s *system) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return s.locked(func(d *Disk) fuse.Status {
		f := d.ids[in.NodeId]
		if f == nil {
			return fuse.ENOENT
		}
		if in.Flags&syscall.O_TRUNC != 0 {
			f.change(truncateTo(0))
		}
		out.OpenFlags = fuse.FOPEN_DIRECT_IO
		return fuse.OK
	})
}

// Read implements [fuse.RawFileSystem].
func (s *system) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n := 0
	status := s.locked(func(d *Disk) fuse.Status {
		f := d.ids[in.NodeId]
		if f == nil {
			return fuse.ENOENT
		}
		if in.Offset < uint64(len(f.now)) {
			n = copy(buf, f.now[in.Offset:])
		}
		return fuse.OK
	})
	return fuse.ReadResultData(buf[:n]), status
}

// Write implements [fuse.RawFileSystem].
func (s *system) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	status := s.locked(func(d *Disk) fuse.Status {
		f := d.ids[in.NodeId]
		if f == nil {
			return fuse.ENOENT
		}
		if in.Offset+uint64(len(data)) > maxFile {
			return fuse.Status(syscall.EFBIG)
		}
		for at, rest := in.Offset, clone(data); len(rest) > 0; {
			n := min(len(rest), page-int(at%page))
			f.change(writeAt(at, rest[:n]))
			at, rest = at+uint64(n), rest[n:]
			d.stats.Writes++
		}
		return fuse.OK
	})
	return uint32(len(data)), status
}

// Fsync implements [fuse.RawFileSystem].
func (s *system) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return s.locked(func(d *Disk) fuse.Status {
		f := d.ids[in.NodeId]
		if f == nil {
			return fuse.ENOENT
		}
		for _, change := range f.waiting {
			f.kept = change(f.kept)
		}
		f.waiting = nil
		d.stats.Syncs++
		return fuse.OK
	})
}

// FsyncDir implements [fuse.RawFileSystem].
func (s *system) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status {
	return s.locked(func(d *Disk) fuse.Status {
		for _, change := range d.names {
			change(d.kept)
		}
		d.names = nil
		d.stats.Syncs++
		return fuse.OK
	})
}

// Unlink implements [fuse.RawFileSystem].
func (s *system) Unlink(_ <-chan struct{}, _ *fuse.InHeader, name string) fuse.Status {
	return s.locked(func(d *Disk) fuse.Status {
		if d.files[name] == nil {
			return fuse.ENOENT
		}
		d.rename(func(names map[string]*file) { delete(names, name) })
		return fuse.OK
	})
}

// Rename implements [fuse.RawFileSystem].
func (s *system) Rename(_ <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	return s.locked(func(d *Disk) fuse.Status {
		f := d.files[from]
		if f == nil {
			return fuse.ENOENT
		}
		if in.Flags != 0 {
			return fuse.EINVAL
		}
		d.rename(func(names map[string]*file) {
			delete(names, from)
			names[to] = f
		})
		return fuse.OK
	})
}

// OpenDir implements [fuse.RawFileSystem].
func (s *system) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.OK }

// ReadDir implements [fuse.RawFileSystem].
func (s *system) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.locked(func(d *Disk) fuse.Status {
		at := uint64(0)
		for id := uint64(2); id < d.next; id++ {
			for name, f := range d.files {
				if f.id != id {
					continue
				}
				if at++; at > in.Offset && !out.AddDirEntry(fuse.DirEntry{Name: name, Mode: syscall.S_IFREG, Ino: id, Off: at}) {
					return fuse.OK
				}
			}
		}
		return fuse.OK
	})
}

// Flush implements [fuse.RawFileSystem].
func (s *system) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

// StatFs implements [fuse.RawFileSystem].
func (s *system) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.Blocks, out.Bfree, out.Bavail, out.NameLen = page, 1<<20, 1<<20, 1<<20, 255
	return fuse.OK
}
