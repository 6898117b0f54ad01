package sefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	"github.com/sesame-init/sesame/fs/sefs/internal/pfs"
)

// maxDepth bounds how deep directories are nested: no deeper path can be named on Linux.
const maxDepth = 2048

// Info is a summary of a volume. It comes from the inode table alone.
type Info struct {
	Layout    string `json:"layout"`
	Encrypted bool   `json:"encrypted"`
	MAC       MAC    `json:"mac"`
	// RunTime says that the volume was written through a running Occlum, not at once.
	RunTime     bool `json:"run_time"`
	Files       int  `json:"files"`
	Directories int  `json:"directories"`
	Symlinks    int  `json:"symlinks"`
	Sockets     int  `json:"sockets"`
	// ContentBytes is the sum of the sizes of files and link targets, StoredBytes what they take on the host.
	// Holes that a run-time volume does not store are counted in both.
	ContentBytes int64 `json:"content_bytes"`
	StoredBytes  int64 `json:"stored_bytes"`
}

// Info reads the inode table.
func (v *Volume) Info() (Info, error) {
	info := Info{
		Layout:      v.Layout().String(),
		Encrypted:   v.Encrypted(),
		MAC:         v.MAC(),
		RunTime:     !v.zipped,
		StoredBytes: pfs.StoredSize(v.metadata.Size()),
	}
	err := v.eachInode(func(in *Inode) error {
		size := in.Size
		switch in.Mode.Type() {
		case 0:
			info.Files++
		case fs.ModeSymlink:
			info.Symlinks++
		case fs.ModeSocket:
			info.Sockets++
		case fs.ModeDir:
			info.Directories++
			size = direntSize * int64(in.blocks)
		}
		info.ContentBytes = saturate(info.ContentBytes, in.Size)
		info.StoredBytes = saturate(info.StoredBytes, pfs.StoredSize(size))
		return nil
	})
	return info, err
}

// saturate adds sizes, which a hostile volume may make up.
func saturate(a, b int64) int64 {
	if a+b < 0 {
		return 1<<63 - 1
	}
	return a + b
}

func (v *Volume) eachInode(visit func(*Inode) error) error {
	for n := range uint32(len(v.free) * 8) {
		if n == 0 || n%groupBlocks == 1 || v.free[n/8]>>(n%8)&1 == 1 {
			continue
		}
		in, err := v.Inode(n)
		if err == nil {
			err = visit(in)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Walk calls visit for everything in the volume, the root with the path "." first, each directory before what is in
// it, siblings by name. It stops at the first lie of the structure or error of visit, an [*fs.PathError].
func (v *Volume) Walk(ctx context.Context, visit func(path string, in *Inode) error) error {
	in, err := v.Inode(RootInode)
	if err != nil {
		return &fs.PathError{Op: "reading", Path: ".", Err: err}
	}
	return v.walk(ctx, ".", in, 0, visit)
}

func (v *Volume) walk(ctx context.Context, at string, in *Inode, depth int, visit func(string, *Inode) error) error {
	fail := func(at string, err error) error {
		var p *fs.PathError
		if errors.As(err, &p) && p.Path == at {
			return err
		}
		return &fs.PathError{Op: "reading", Path: at, Err: err}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := visit(at, in); err != nil {
		return fail(at, err)
	}
	if !in.Mode.IsDir() {
		return nil
	}
	d, err := v.directory(in.Number)
	if err == nil && depth == maxDepth {
		err = malformed("directories are nested too deep")
	}
	if err != nil {
		return fail(at, err)
	}
	for _, e := range d.entries {
		child, err := v.enter(in.Number, e)
		name := path.Join(at, e.Name)
		if err != nil {
			return fail(name, err)
		}
		if err := v.walk(ctx, name, child, depth+1, visit); err != nil {
			return err
		}
	}
	return nil
}

// Verify reads everything in the volume and returns the first lie that it finds, an [*fs.PathError]. Besides
// contents it checks that each inode is linked as often as it says and, in a volume written at once, that none is
// left over. progress, which may be nil, is called now and then with the bytes read and those to read.
func (v *Volume) Verify(ctx context.Context, progress func(done, total int64)) error {
	info, err := v.Info()
	if err != nil {
		return &fs.PathError{Op: "reading", Path: metadataName, Err: err}
	}
	meter := &meter{total: info.ContentBytes, report: progress}
	links := make(map[uint32]uint16)
	inodes := make(map[[16]byte]uint32)
	buf := make([]byte, copySize)
	err = v.Walk(ctx, func(_ string, in *Inode) error {
		links[in.Number]++
		if n, used := inodes[in.file]; used && n != in.Number {
			return malformed("inodes %d and %d name the same file", n, in.Number)
		}
		inodes[in.file] = in.Number
		if in.Mode.IsDir() || links[in.Number] > 1 {
			return nil
		}
		if in.Mode.Type() == fs.ModeSymlink {
			_, err := v.Target(in.Number)
			return err
		}
		host, f, err := v.openInode(in)
		if err != nil {
			return err
		}
		defer host.Close()
		for off := int64(0); off < f.Size(); off += int64(len(buf)) {
			n, err := f.ReadAt(buf, off)
			if err != nil && err != io.EOF {
				return err
			}
			meter.add(int64(n))
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = v.eachInode(func(in *Inode) error {
		switch n, linked := links[in.Number]; {
		case linked && !in.Mode.IsDir() && n != in.NLink:
			return fmt.Errorf("inode %d: %w", in.Number, malformed("%d links where the inode says %d", n, in.NLink))
		case !linked && v.zipped:
			return fmt.Errorf("inode %d: %w", in.Number, malformed("is in no directory"))
		}
		return nil
	})
	if err != nil {
		return &fs.PathError{Op: "reading", Path: metadataName, Err: err}
	}
	return nil
}
