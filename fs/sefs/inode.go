package sefs

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io/fs"
	"math/bits"
	"time"
)

// Inode is what the volume records about a file, directory, symbolic link or socket. It is the Sys of the
// volume's [fs.FileInfo]s.
type Inode struct {
	Number uint32
	// Mode has the type and, of the bits below it, those that Unix has.
	Mode     fs.FileMode
	UID, GID uint32
	// Size is the length of the content in bytes: of the target for a link, 0 for a directory.
	Size                int64
	NLink               uint16
	Atime, Mtime, Ctime time.Time

	blocks   uint32 // entries of a directory, "." and ".." included
	file     [16]byte
	mac      [16]byte
	hasTimes bool
}

// Types on disk.
const (
	typeFile = 1 + iota
	typeDir
	typeSymlink
	typeSocket
)

func fileType(t uint32) (fs.FileMode, bool) {
	switch t {
	case typeFile:
		return 0, true
	case typeDir:
		return fs.ModeDir, true
	case typeSymlink:
		return fs.ModeSymlink, true
	case typeSocket:
		return fs.ModeSocket, true
	}
	return 0, false
}

// Inode returns the record of an inode. It fails for numbers that are free or not those of an inode.
func (v *Volume) Inode(n uint32) (*Inode, error) {
	if int64(n) >= int64(len(v.free))*8 || n == 0 || n%groupBlocks == 1 || v.free[n/8]>>(n%8)&1 == 1 {
		return nil, malformed("inode %d is not allocated", n)
	}
	var b [inodeSize]byte
	off := int64(n) * blockSize
	if off+inodeSize > v.metadata.Size() {
		return nil, malformed("inode %d lies behind the end of the table", n)
	}
	if err := readFull(v.metadata, b[:], off); err != nil {
		return nil, err
	}
	in, err := parseInode(n, b[:])
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", n, err)
	}
	if v.zipped {
		if err := in.checkZipped(); err != nil {
			return nil, fmt.Errorf("inode %d: %w", n, err)
		}
	}
	return in, nil
}

func parseInode(n uint32, b []byte) (*Inode, error) {
	le := binary.LittleEndian
	size, mode := le.Uint64(b), le.Uint16(b[12:])
	t, ok := fileType(le.Uint32(b[8:]))
	in := &Inode{
		Number: n,
		Mode:   t | unixMode(mode),
		UID:    le.Uint32(b[20:]),
		GID:    le.Uint32(b[24:]),
		Size:   int64(size),
		NLink:  le.Uint16(b[14:]),

		blocks:   le.Uint32(b[16:]),
		file:     [16]byte(b[80:]),
		mac:      [16]byte(b[96:]),
		hasTimes: !isZero(b[32:80]),
	}
	switch {
	case !ok:
		return nil, malformed("unknown type %d", le.Uint32(b[8:]))
	case mode > 0o7777:
		return nil, malformed("mode %#o", mode)
	case size > 1<<62:
		return nil, malformed("size %d", size)
	case !isZero(b[28:32]):
		return nil, malformed("reserved field is not zero")
	case in.Mode.IsDir() && (size != 0 || in.blocks < 2):
		return nil, malformed("directory of %d bytes and %d entries", size, in.blocks)
	case !in.Mode.IsDir() && in.blocks != 0:
		return nil, malformed("%d directory entries in a file", in.blocks)
	}
	for i, t := range []*time.Time{&in.Atime, &in.Mtime, &in.Ctime} {
		sec, nsec := int64(le.Uint64(b[32+16*i:])), int64(le.Uint64(b[40+16*i:]))
		if nsec < 0 || nsec >= 1e9 {
			return nil, malformed("time with %d nanoseconds", nsec)
		}
		*t = time.Unix(sec, nsec)
	}
	return in, nil
}

// checkZipped checks what holds in volumes that were written at once.
func (in *Inode) checkZipped() error {
	switch {
	case in.file != zippedName(in.Number):
		return malformed("names a file of another inode")
	case in.Mode&^(fs.ModeType|fs.ModePerm) != 0 || in.Mode&fs.ModeSocket != 0:
		return malformed("mode %v", in.Mode)
	case in.UID != 0 || in.GID != 0 || in.hasTimes:
		return malformed("has an owner or times")
	case !in.Mode.IsDir() && in.NLink != 1:
		return malformed("%d links to a file", in.NLink)
	}
	return nil
}

func unixMode(mode uint16) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for bit, flag := range map[uint16]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if mode&bit != 0 {
			m |= flag
		}
	}
	return m
}

// hostName is the name of the inode's protected file.
func (in *Inode) hostName() string { return hex.EncodeToString(in.file[:]) }

// zippedName is the name, undecoded, that the file of an inode has in volumes written at once.
func zippedName(n uint32) (name [16]byte) {
	binary.LittleEndian.PutUint32(name[:], n)
	return name
}

func popcount(b []byte) (n int64) {
	for _, x := range b {
		n += int64(bits.OnesCount8(x))
	}
	return n
}

func isZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}
