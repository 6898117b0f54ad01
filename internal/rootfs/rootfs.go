// Package rootfs finds files in a directory that is to become a root: links in it lead to where they would
// lead there, never out of the directory.
package rootfs

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// maxLinks is how many links a name may lead over, as in the kernel.
const maxLinks = 40

// Resolve is the file of this machine at name in the file system below base, with every link followed
// inside of it; "" if there is none.
func Resolve(base, name string) string {
	if name == "" {
		return ""
	}
	at, rest := "/", strings.Split(path.Clean("/"+name), "/")
	for links := 0; len(rest) > 0; {
		next := path.Join(at, rest[0])
		rest = rest[1:]
		f, err := os.Lstat(filepath.Join(base, next))
		if err != nil {
			return ""
		}
		if f.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		target, err := os.Readlink(filepath.Join(base, next))
		if links++; err != nil || links > maxLinks {
			return ""
		}
		if path.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return filepath.Join(base, at)
}
