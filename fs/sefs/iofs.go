package sefs

import (
	"io"
	"io/fs"
	"path"
	"strings"
	"syscall"
	"time"
)

var (
	_ fs.ReadDirFS  = (*Volume)(nil)
	_ fs.StatFS     = (*Volume)(nil)
	_ fs.ReadLinkFS = (*Volume)(nil)
	_ io.ReaderAt   = (*File)(nil)
	_ io.Seeker     = (*File)(nil)
	_ io.WriterTo   = (*File)(nil)
)

// maxLinks is how many symbolic links one path may lead through, as on Linux.
const maxLinks = 40

// resolve walks a path from the root. The last element is followed if it is a symbolic link and follow is set.
func (v *Volume) resolve(op, name string, follow bool) (*Inode, error) {
	fail := func(err error) (*Inode, error) { return nil, &fs.PathError{Op: op, Path: name, Err: err} }
	if !fs.ValidPath(name) {
		return fail(fs.ErrInvalid)
	}
	at, err := v.Inode(RootInode)
	if err != nil {
		return fail(err)
	}
	links := 0
	for elems := strings.Split(name, "/"); len(elems) > 0; {
		elem := elems[0]
		elems = elems[1:]
		next := at
		switch elem {
		case "", ".":
		case "..":
			d, err := v.directory(at.Number)
			if err == nil {
				next, err = v.Inode(d.parent)
			}
			if err != nil {
				return fail(err)
			}
		default:
			if next, err = v.Lookup(at.Number, elem); err != nil {
				return fail(err)
			}
		}
		if next.Mode.Type() == fs.ModeSymlink && (follow || len(elems) > 0) {
			if links++; links > maxLinks {
				return fail(syscall.ELOOP)
			}
			target, err := v.Target(next.Number)
			if err != nil {
				return fail(err)
			}
			if path.IsAbs(target) {
				if at, err = v.Inode(RootInode); err != nil {
					return fail(err)
				}
			}
			elems = append(strings.Split(target, "/"), elems...)
			continue
		}
		at = next
	}
	return at, nil
}

// Open implements [fs.FS].
func (v *Volume) Open(name string) (fs.File, error) {
	in, err := v.resolve("open", name, true)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (fs.File, error) { return nil, &fs.PathError{Op: "open", Path: name, Err: err} }
	if in.Mode.IsDir() {
		entries, err := v.list(in.Number)
		if err != nil {
			return fail(err)
		}
		return &openDir{fileInfo{path.Base(name), in}, entries}, nil
	}
	f, err := v.OpenInode(in.Number)
	if err != nil {
		return fail(err)
	}
	f.name = path.Base(name)
	return f, nil
}

// Stat implements [fs.StatFS].
func (v *Volume) Stat(name string) (fs.FileInfo, error) {
	in, err := v.resolve("stat", name, true)
	if err != nil {
		return nil, err
	}
	return fileInfo{path.Base(name), in}, nil
}

// Lstat implements [fs.ReadLinkFS].
func (v *Volume) Lstat(name string) (fs.FileInfo, error) {
	in, err := v.resolve("lstat", name, false)
	if err != nil {
		return nil, err
	}
	return fileInfo{path.Base(name), in}, nil
}

// ReadLink implements [fs.ReadLinkFS].
func (v *Volume) ReadLink(name string) (string, error) {
	in, err := v.resolve("readlink", name, false)
	if err != nil {
		return "", err
	}
	target, err := v.Target(in.Number)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return target, nil
}

// ReadDir implements [fs.ReadDirFS].
func (v *Volume) ReadDir(name string) ([]fs.DirEntry, error) {
	in, err := v.resolve("readdir", name, true)
	if err != nil {
		return nil, err
	}
	entries, err := v.list(in.Number)
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	return entries, nil
}

func (v *Volume) list(dir uint32) ([]fs.DirEntry, error) {
	d, err := v.directory(dir)
	if err != nil {
		return nil, err
	}
	list := make([]fs.DirEntry, len(d.entries))
	for i, e := range d.entries {
		list[i] = dirEntry{v, dir, e}
	}
	return list, nil
}

type dirEntry struct {
	v   *Volume
	dir uint32
	e   Entry
}

func (d dirEntry) Name() string      { return d.e.Name }
func (d dirEntry) IsDir() bool       { return d.e.Type.IsDir() }
func (d dirEntry) Type() fs.FileMode { return d.e.Type }
func (d dirEntry) String() string    { return fs.FormatDirEntry(d) }

func (d dirEntry) Info() (fs.FileInfo, error) {
	in, err := d.v.enter(d.dir, d.e)
	if err != nil {
		return nil, err
	}
	return fileInfo{d.e.Name, in}, nil
}

type fileInfo struct {
	name string
	in   *Inode
}

func (i fileInfo) Name() string       { return i.name }
func (i fileInfo) Size() int64        { return i.in.Size }
func (i fileInfo) Mode() fs.FileMode  { return i.in.Mode }
func (i fileInfo) ModTime() time.Time { return i.in.Mtime }
func (i fileInfo) IsDir() bool        { return i.in.Mode.IsDir() }
func (i fileInfo) Sys() any           { return i.in }
func (i fileInfo) String() string     { return fs.FormatFileInfo(i) }

// openDir is an open directory: what of it has not been read yet.
type openDir struct {
	info fileInfo
	rest []fs.DirEntry
}

func (d *openDir) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *openDir) Close() error               { return nil }
func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.info.name, Err: syscall.EISDIR}
}

// ReadDir implements [fs.ReadDirFile].
func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 {
		n = len(d.rest)
	} else if len(d.rest) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(d.rest))
	list := d.rest[:n:n]
	d.rest = d.rest[n:]
	return list, nil
}
