package sefs

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
)

// Extract writes everything in the volume to the new directory dst, with types, permission bits and link targets;
// not with owners, times, setuid, setgid and sticky bits, and without sockets. A file that has several names becomes
// several files. As in [Create], dst appears complete and on disk or not at all, and so not with content that turned
// out to be a lie. Nothing is written outside of it, whatever names and links the volume has.
func (v *Volume) Extract(ctx context.Context, dst string, progress func(done, total int64)) error {
	info, err := v.Info()
	if err != nil {
		return &fs.PathError{Op: "reading", Path: metadataName, Err: err}
	}
	m := &meter{total: info.ContentBytes, report: progress}
	return publish(dst, func(dir *os.Root) error {
		var modes []func() error // of directories, which may forbid to write into them
		err := v.Walk(ctx, func(path string, in *Inode) error {
			switch in.Mode.Type() {
			case fs.ModeDir:
				modes = append(modes, func() error { return dir.Chmod(path, in.Mode.Perm()) })
				if path == "." {
					return nil
				}
				return dir.Mkdir(path, 0o700)
			case fs.ModeSymlink:
				target, err := v.Target(in.Number)
				if err != nil {
					return err
				}
				return dir.Symlink(target, path)
			case fs.ModeSocket:
				return nil
			}
			return v.extractFile(ctx, dir, path, in, m)
		})
		if err != nil {
			return err
		}
		for i := range modes {
			if err := modes[len(modes)-1-i](); err != nil {
				return err
			}
		}
		return nil
	})
}

func (v *Volume) extractFile(ctx context.Context, dir *os.Root, path string, in *Inode, m *meter) (err error) {
	src, err := v.OpenInode(in.Number)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := dir.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	buf := make([]byte, max(1, min(copySize, in.Size)))
	for stored := min(in.Size, src.content.Size()); src.offset < stored; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := src.Read(buf[:min(int64(len(buf)), stored-src.offset)])
		if err != nil && err != io.EOF {
			return err
		}
		if _, err := dst.Write(buf[:n]); err != nil {
			return err
		}
		m.add(int64(n))
	}
	if in.Size > src.content.Size() { // a hole at the end
		if err := dst.Truncate(in.Size); err != nil {
			return err
		}
	}
	return dst.Chmod(in.Mode.Perm())
}
