package libos

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/internal/occlum/occlumconf"
)

// elfHeaderSize is that of a 64-bit ELF header, which the LibOS wants the program headers to follow at once.
const elfHeaderSize = 64

// checkELF applies the rules of the LibOS's loader to a program and its interpreter (L/process/elf_file.rs), both of
// which it reads into its own heap. A script is not looked into.
func checkELF(root, name string, heap occlumconf.Size) error {
	f, err := openIn(root, name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("%s: %w: not a regular file with an exec bit", name, unix.EACCES)
	}
	var start [elfHeaderSize]byte
	if _, err := io.ReadFull(f, start[:]); err == nil && start[0] == '#' && start[1] == '!' {
		return nil
	}
	program, err := elf.NewFile(f)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", name, unix.ENOEXEC, err)
	}
	if program.Type != elf.ET_DYN {
		return fmt.Errorf("%s: %w: %s is not position-independent: build it with -buildmode=pie", name, unix.ENOEXEC,
			program.Type)
	}
	if offset := binary.LittleEndian.Uint64(start[32:]); offset != elfHeaderSize {
		return fmt.Errorf("%s: %w: program headers at %d, not at %d", name, unix.ENOEXEC, offset, elfHeaderSize)
	}
	for _, p := range program.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		text := make([]byte, min(p.Filesz, maxPath))
		if _, err := p.ReadAt(text, 0); err != nil || len(text) < 2 {
			return fmt.Errorf("%s: %w: unreadable interpreter segment", name, unix.EINVAL)
		}
		interpreter := string(text[:len(text)-1])
		loader, err := openIn(root, interpreter)
		if err != nil {
			return fmt.Errorf("%s: its interpreter %s: %w", name, interpreter, err)
		}
		defer loader.Close()
		loaderInfo, err := loader.Stat()
		if err != nil {
			return err
		}
		if size := info.Size() + loaderInfo.Size(); uint64(size) > uint64(heap) {
			return fmt.Errorf("%s: %w: it and its interpreter have %d bytes, more than the LibOS's own heap, %v "+
				"(resource_limits.kernel_space_heap_size)", name, unix.ENOMEM, size, heap)
		}
		return nil
	}
	return fmt.Errorf("%s: %w: cannot find the interpreter segment: static programs do not run in the LibOS", name,
		unix.EINVAL)
}

// openIn opens a file inside a root for reading.
func openIn(root, name string) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
