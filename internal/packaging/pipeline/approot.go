package pipeline

import (
	"bufio"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sesame-init/sesame/internal/occlum/occlumcheck"
	"github.com/sesame-init/sesame/internal/rootfs"
)

// selection says what to take out of an image.
type selection struct {
	// Programs are absolute paths in the file system. Their libraries come along.
	Programs []string
	// Files are further files and directories, absolute, that are copied as they are; programs and libraries among
	// them bring theirs.
	Files []string
	// Libc is a directory with Occlum's C libraries and loaders, at any depth.
	Libc string
}

// takenFile is one file of the result.
type takenFile struct {
	Path     string // absolute in the result
	Size     int64
	SHA256   string
	Replaced bool // comes from [selection.Libc]
}

// defaultDirs are searched last, by glibc of Debian and Red Hat and by musl.
var defaultDirs = []string{
	"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib",
}

// extract takes an application out of the file system of a container image: chosen programs and files, the loader and
// every library that the programs name, and nothing else. It is what copy_bom does in Occlum's build scripts. It copies
// from base to the directory dst, which it makes, and lists what it copied in the order of the paths.
//
// Libraries are searched as ld.so does: RPATH and RUNPATH of the file that names them ($ORIGIN known), then the
// directories of /etc/ld.so.conf and its includes, then the default ones. Links are followed inside of the file
// system, and a copied file is a regular one at the name under which it was asked for. What a program opens by
// dlopen is in no list: name it among the files.
//
// With [selection.Libc], the directory of a C library built for Occlum, each loader and each library that is also in
// there is taken from there: a distribution's C library makes system calls and threads that the LibOS does not have.
// A loader or a libc that is not there is an error.
func extract(base, dst string, s selection) ([]takenFile, error) {
	x := &extraction{base: base, dst: dst, taken: make(map[string]takenFile)}
	var err error
	if x.libc, err = libcFiles(s.Libc); err != nil {
		return nil, err
	}
	if x.dirs, err = configuredDirs(base); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dst, 0o755); err != nil {
		return nil, err
	}
	for _, p := range s.Programs {
		if err := x.program(p); err != nil {
			return nil, fmt.Errorf("taking %s: %w", p, err)
		}
	}
	for _, f := range s.Files {
		if err := x.tree(f); err != nil {
			return nil, fmt.Errorf("taking %s: %w", f, err)
		}
	}
	all := make([]takenFile, 0, len(x.taken))
	for _, t := range x.taken {
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b takenFile) int { return strings.Compare(a.Path, b.Path) })
	return all, nil
}

type extraction struct {
	base, dst string
	dirs      []string          // from ld.so.conf
	libc      map[string]string // base name → Occlum's file; nil where none was given
	taken     map[string]takenFile
}

// libcFiles lists the libraries and loaders in Occlum's directory by their names.
func libcFiles(dir string) (map[string]string, error) {
	if dir == "" {
		return nil, nil
	}
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(d.Name(), ".so") {
			return err
		}
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() {
			if _, have := files[d.Name()]; !have {
				files[d.Name()] = file
			}
		}
		return nil
	})
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("%s holds no C library", dir)
	}
	return files, err
}

// configuredDirs are the directories of /etc/ld.so.conf and of the files that it includes.
func configuredDirs(base string) ([]string, error) {
	var dirs []string
	var read func(name string, depth int) error
	read = func(name string, depth int) error {
		host := rootfs.Resolve(base, name)
		if host == "" || depth > 4 {
			return nil
		}
		f, err := os.Open(host)
		if err != nil {
			return err
		}
		defer f.Close()
		lines := bufio.NewScanner(io.LimitReader(f, 1<<20))
		for lines.Scan() {
			line, _, _ := strings.Cut(lines.Text(), "#")
			line = strings.TrimSpace(line)
			pattern, include := strings.CutPrefix(line, "include ")
			switch {
			case line == "":
			case include:
				pattern = strings.TrimSpace(pattern)
				if !path.IsAbs(pattern) {
					pattern = path.Join(path.Dir(name), pattern)
				}
				dir := rootfs.Resolve(base, path.Dir(pattern))
				if dir == "" {
					continue
				}
				matches, err := filepath.Glob(filepath.Join(dir, path.Base(pattern)))
				if err != nil {
					return err
				}
				for _, m := range matches {
					if err := read(path.Join(path.Dir(pattern), filepath.Base(m)), depth+1); err != nil {
						return err
					}
				}
			case path.IsAbs(line):
				dirs = append(dirs, path.Clean(line))
			}
		}
		return lines.Err()
	}
	return dirs, read("/etc/ld.so.conf", 0)
}

// program takes a file, and what it names if it is an ELF file.
func (x *extraction) program(name string) error {
	if !path.IsAbs(name) || path.Clean(name) != name {
		return errors.New("not a clean absolute path")
	}
	if _, done := x.taken[name]; done {
		return nil
	}
	host := rootfs.Resolve(x.base, name)
	if host == "" {
		return errors.New("it is not in the image")
	}
	replaced := false
	if own, ok := x.libc[path.Base(name)]; ok {
		host, replaced = own, true
	} else if x.libc != nil && occlumcheck.IsLibc(path.Base(name)) {
		return errors.New("no C library of this name is in Occlum's directory")
	}
	if err := x.copy(host, name, replaced); err != nil {
		return err
	}
	return x.needs(host, name)
}

// needs takes the loader and the libraries that the ELF file at host names. Its path in the image is name.
func (x *extraction) needs(host, name string) error {
	f, err := elf.Open(host)
	if err != nil {
		return nil // a script or data
	}
	defer f.Close()
	if loader := occlumcheck.Interpreter(f); loader != "" {
		if err := x.program(path.Clean(loader)); err != nil {
			return fmt.Errorf("taking its loader %s: %w", loader, err)
		}
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		return nil // no dynamic section
	}
	dirs := slices.Concat(runPaths(f, name), x.dirs, defaultDirs)
	for _, library := range libraries {
		at := x.find(library, dirs)
		if at == "" {
			return fmt.Errorf("%s names the library %s, which is not in %s", name, library, strings.Join(dirs, ", "))
		}
		if err := x.program(at); err != nil {
			return fmt.Errorf("taking its library %s: %w", at, err)
		}
	}
	return nil
}

func (x *extraction) find(library string, dirs []string) string {
	if strings.Contains(library, "/") {
		return path.Clean(library)
	}
	for _, dir := range dirs {
		if at := path.Join(dir, library); rootfs.Resolve(x.base, at) != "" {
			return at
		}
	}
	return ""
}

// runPaths are the search directories that an ELF file brings along.
func runPaths(f *elf.File, name string) []string {
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		values, err := f.DynString(tag)
		if err != nil {
			continue
		}
		for _, value := range values {
			for _, dir := range strings.Split(value, ":") {
				dir = strings.NewReplacer("$ORIGIN", path.Dir(name), "${ORIGIN}", path.Dir(name)).Replace(dir)
				if path.IsAbs(dir) {
					dirs = append(dirs, path.Clean(dir))
				}
			}
		}
	}
	return dirs
}

// tree takes a file or a whole directory.
func (x *extraction) tree(name string) error {
	host := rootfs.Resolve(x.base, name)
	if host == "" {
		return errors.New("it is not in the image")
	}
	info, err := os.Stat(host)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return x.program(name)
	}
	if err := os.MkdirAll(filepath.Join(x.dst, name), 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(host)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if mode := e.Type(); mode&(fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket) != 0 {
			continue
		}
		child := path.Join(name, e.Name())
		if rootfs.Resolve(x.base, child) == "" {
			continue // a link that leads nowhere
		}
		if err := x.tree(child); err != nil {
			return err
		}
	}
	return nil
}

func (x *extraction) copy(host, name string, replaced bool) error {
	in, err := os.Open(host)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("it is no regular file")
	}
	to := filepath.Join(x.dst, name)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode().Perm())
	if err != nil {
		return err
	}
	h := sha256.New()
	size, err := io.Copy(io.MultiWriter(out, h), in)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	x.taken[name] = takenFile{Path: name, Size: size, SHA256: hex.EncodeToString(h.Sum(nil)), Replaced: replaced}
	return nil
}
