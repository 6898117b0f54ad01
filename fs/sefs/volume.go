// Package sefs reads, checks and writes volumes in Occlum's SEFS format: a flat directory of protected files
// (package [github.com/sesame-init/sesame/fs/sefs/internal/pfs]), one per inode and one named "metadata" with the inode
// table. Occlum's LibOS mounts the very same directories.
//
// A volume is either encrypted, under a 128-bit user key, or integrity-only. Its root MAC, made anew at each write,
// stands for every name, mode, link and content. Opening an encrypted volume with key and MAC promises that what is
// read is what was written under that MAC, in whole: nothing changed, exchanged, cut or older. A reader learns of a
// lie when it comes to it, not before; [Volume.Verify] comes to all of them. With the key alone
// ([OpenOptions.Unverified]) an older state of the volume, or another volume made with the same key, goes unnoticed.
//
// An integrity-only volume is no protection at all against an attacker who chooses its content, since its MAC is made
// with a public key. It finds accidents.
//
// What the host can always see: the number of files and, to 4 KiB, their sizes. It can also refuse to serve them.
//
// There are two generations of the format ([Layout031], [Layout030]); reading finds out which one. Volumes written
// at once (by [Create] or Occlum's build) are held to the strict rules of that writer; those written through a
// running Occlum, which have random file names, may also have times, owners, hard links, sockets and files with
// holes at their end.
//
// Sections named in comments are those of the format's description in docs/volumes.md.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning. Every volume
// that [Create] has ever written can be opened by all later releases.
package sefs

import (
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/fs/sefs/internal/pfs"
)

// Layout is the generation of the on-disk format.
type Layout = pfs.Layout

// The two generations of the on-disk format.
const (
	Layout031 = pfs.Layout031 // Occlum 0.31
	Layout030 = pfs.Layout030 // Occlum up to 0.30
)

// ParseLayout reads "0.31" or "0.30".
func ParseLayout(s string) (Layout, error) { return pfs.ParseLayout(s) }

// The reasons why a volume, or a file in it, is refused. Errors wrap one of them.
var (
	// ErrTampered: bytes were changed, or the key or the MAC is that of another volume.
	ErrTampered = pfs.ErrTampered
	// ErrMalformed: the structure is not one that a correct writer makes.
	ErrMalformed = pfs.ErrMalformed
	// ErrMode: the volume is encrypted and was opened without a key, or the other way round.
	ErrMode = pfs.ErrMode
)

// OpenOptions say what is known about a volume.
type OpenOptions struct {
	// Key is the user key; nil for an integrity-only volume.
	Key *Key
	// MAC is the root MAC that the volume must have.
	MAC *MAC
	// Unverified allows opening without a MAC. It gives up the promise that the volume is the one that was meant.
	Unverified bool
	// CachedNodes bounds the cache of verified tree nodes; each takes 4 KiB and serves 384 KiB of content.
	// 0 means 2048.
	CachedNodes int
}

// Volume is an open volume. It implements [fs.FS], [fs.ReadDirFS], [fs.StatFS] and [fs.ReadLinkFS]; symbolic links
// are followed inside the volume only, an absolute one from its root. It is safe for concurrent use.
//
// Inodes can also be reached by number, from [RootInode] on through [Volume.Lookup]. Only numbers learnt that way
// are known to be part of the tree.
type Volume struct {
	dir      *os.Root
	reader   *pfs.Reader
	host     *os.File
	metadata *pfs.File
	free     []byte // free maps of all groups, 128 bytes each
	zipped   bool   // written at once, with host names that follow from the inode numbers
	pinned   bool   // opened with the root MAC

	mu   sync.Mutex
	dirs directoryCache
}

const (
	blockSize   = 128
	inodeSize   = 112
	groupBlocks = 1024
	magic       = 0x2f8dbe2a

	metadataName = "metadata"

	// RootInode is the number of the root directory.
	RootInode uint32 = 2
)

// Open opens the volume in the host directory dir. It reads the metadata file's outer parts only.
func Open(dir string, o OpenOptions) (*Volume, error) {
	const step = "opening volume"
	if o.MAC == nil && !o.Unverified {
		return nil, attest.Errorf(attest.CodeConfig, step,
			"Give the MAC that was printed when the volume was made.",
			"%s: without a MAC an older or exchanged volume would go unnoticed", dir)
	}
	v, err := open(dir, o)
	if err == nil {
		return v, nil
	}
	var hint string
	switch {
	case errors.Is(err, ErrMode) && o.Key == nil:
		hint = "The volume is encrypted: give its key."
	case errors.Is(err, ErrMode):
		hint = "The volume is not encrypted with a user key: open it without one."
	case errors.Is(err, errRootMAC):
		hint = "Either the MAC is that of another version of the volume, or the volume was exchanged."
	case errors.Is(err, ErrTampered):
		hint = "Either the key is that of another volume, or the volume was changed."
	case errors.Is(err, fs.ErrNotExist):
		hint = "A volume is a directory with a file \"metadata\" in it."
	}
	return nil, &attest.Error{Code: attest.CodeMount, Step: step, Err: fmt.Errorf("%s: %w", dir, err), Hint: hint}
}

var errRootMAC = fmt.Errorf("%w: the root MAC is another one", ErrTampered)

func open(dir string, o OpenOptions) (_ *Volume, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	v := &Volume{dir: root, pinned: o.MAC != nil}
	defer func() {
		if err != nil {
			_ = v.Close()
		}
	}()
	if o.CachedNodes == 0 {
		o.CachedNodes = 2048
	}
	// Both layouts carry the same version numbers; only the tag tells them apart.
	for _, layout := range []Layout{Layout031, Layout030} {
		v.reader = pfs.NewReader(pfs.NewCodec(layout, (*[16]byte)(o.Key)), o.CachedNodes)
		v.host, v.metadata, err = v.openHost(metadataName)
		if !errors.Is(err, ErrTampered) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", metadataName, err)
	}
	if mac := v.metadata.MAC(); o.MAC != nil && subtle.ConstantTimeCompare(mac[:], o.MAC[:]) != 1 {
		return nil, fmt.Errorf("%s: %w", metadataName, errRootMAC)
	}
	if err := v.readSuperblock(); err != nil {
		return nil, fmt.Errorf("%s: %w", metadataName, err)
	}
	in, err := v.Inode(RootInode)
	if err == nil && !in.Mode.IsDir() {
		err = malformed("the root is not a directory")
	}
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", RootInode, err)
	}
	if v.zipped = in.file == zippedName(RootInode); v.zipped {
		err = in.checkZipped()
	}
	return v, err
}

// openHost opens and verifies a protected file of the image. O_NONBLOCK keeps a FIFO in its place from blocking.
func (v *Volume) openHost(name string) (*os.File, *pfs.File, error) {
	host, err := v.dir.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := host.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w: not a regular file on the host", ErrMalformed)
	}
	var f *pfs.File
	if err == nil {
		f, err = v.reader.Open(host, info.Size(), name)
	}
	if err != nil {
		_ = host.Close()
		return nil, nil, err
	}
	return host, f, nil
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
}

// readSuperblock checks block 0 and loads the free maps (section 2.1).
func (v *Volume) readSuperblock() error {
	var b [blockSize]byte
	if v.metadata.Size() < blockSize*int64(RootInode)+inodeSize {
		return malformed("%d bytes are too few for a root inode", v.metadata.Size())
	}
	if err := readFull(v.metadata, b[:], 0); err != nil {
		return err
	}
	le := binary.LittleEndian
	blocks, unused, groups := int64(le.Uint32(b[4:])), int64(le.Uint32(b[8:])), int64(le.Uint32(b[12:]))
	switch {
	case le.Uint32(b[:]) != magic:
		return malformed("not a SEFS superblock")
	case groups == 0 || blocks != groups*groupBlocks:
		return malformed("%d blocks in %d groups", blocks, groups)
	case v.metadata.Size() < blockSize*(groupBlocks*(groups-1)+2):
		return malformed("%d groups in %d bytes", groups, v.metadata.Size())
	case !isZero(b[16:]):
		return malformed("reserved part of the superblock is not zero")
	}
	v.free = make([]byte, groups*blockSize)
	for g := range groups {
		m := v.free[g*blockSize:][:blockSize]
		if err := readFull(v.metadata, m, blockSize*(groupBlocks*g+1)); err != nil {
			return err
		}
		if m[0]&2 != 0 || g == 0 && m[0]&1 != 0 {
			return malformed("free map %d gives away a reserved block", g)
		}
	}
	if n := popcount(v.free); n != unused {
		return malformed("superblock says %d unused blocks, the free maps %d", unused, n)
	}
	return nil
}

// MAC is the root MAC of the volume as it is, whether or not it was asked for.
func (v *Volume) MAC() MAC { return v.metadata.MAC() }

// Layout is the generation of the format.
func (v *Volume) Layout() Layout { return v.reader.Layout() }

// Encrypted says whether the volume is encrypted, not just authenticated.
func (v *Volume) Encrypted() bool { return v.reader.Encrypted() }

// Close closes the volume. Files that are still open stay readable.
func (v *Volume) Close() error {
	var err error
	if v.host != nil {
		err = v.host.Close()
	}
	return errors.Join(err, v.dir.Close())
}

// readFull reads what is known to be there.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	return err
}
