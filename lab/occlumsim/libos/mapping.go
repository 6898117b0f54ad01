package libos

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// mapping is a shared mapping of a file as the LibOS makes it: a copy, made at mmap, written back as a whole at msync,
// fsync and munmap. Neither side sees the other's changes in between.
type mapping struct {
	addr, size uint64
	file       *os.File
	offset     int64
	writable   bool
}

// mapTypes are the bits of mmap's flags that say how a mapping is shared.
const mapTypes = 0xf

// mapFile turns the mmap of a file, at whose entry a thread is stopped, into one of anonymous memory, and lets it run
// to its exit; there [tracer.fill] does the rest.
func (t *tracer) mapFile(pid int, regs *unix.PtraceRegs) error {
	file, flags, err := t.file(int(int32(regs.R8)))
	if err != nil {
		return t.refuse(pid, regs, unix.EBADF)
	}
	writable := regs.Rdx&unix.PROT_WRITE != 0
	var st unix.Stat_t
	switch access := flags & unix.O_ACCMODE; {
	case access == unix.O_WRONLY, writable && access != unix.O_RDWR:
		return errors.Join(file.Close(), t.refuse(pid, regs, unix.EACCES))
	case unix.Fstat(int(file.Fd()), &st) != nil, st.Mode&unix.S_IFMT != unix.S_IFREG:
		return errors.Join(file.Close(), t.refuse(pid, regs, unix.ENODEV))
	}
	m := &mapping{size: regs.Rsi, file: file, offset: int64(regs.R9), writable: writable}
	t.exits[pid] = func() error { return t.fill(pid, m) }
	regs.R10 = regs.R10&^mapTypes | unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	regs.R8, regs.R9 = ^uint64(0), 0
	return unix.PtraceSetRegs(pid, regs)
}

// file is a descriptor of the program, and how it is open.
func (t *tracer) file(fd int) (*os.File, int, error) {
	process, err := unix.PidfdOpen(t.p.pid, 0)
	if err != nil {
		return nil, 0, err
	}
	defer unix.Close(process)
	own, err := unix.PidfdGetfd(process, fd, 0)
	if err != nil {
		return nil, 0, err
	}
	flags, err := unix.FcntlInt(uintptr(own), unix.F_GETFL, 0)
	return os.NewFile(uintptr(own), "mapped file"), flags, err
}

// fill copies the file into the memory that a thread has just mapped for it.
func (t *tracer) fill(pid int, m *mapping) error {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &regs); err != nil {
		return errors.Join(err, m.file.Close())
	}
	if int64(regs.Rax) < 0 && int64(regs.Rax) > -pageSize {
		return m.file.Close()
	}
	m.addr = regs.Rax
	t.copies = append(t.copies, m)
	return t.transfer(m, m.addr, m.size, false)
}

// transfer copies a part of a mapping from its file, or back to it, as far as the file reaches.
func (t *tracer) transfer(m *mapping, addr, size uint64, back bool) error {
	info, err := m.file.Stat()
	if err != nil {
		return err
	}
	offset := m.offset + int64(addr-m.addr)
	length := min(int64(size), info.Size()-offset)
	if length <= 0 {
		return nil
	}
	// The program's memory may be read-only to itself.
	memory, err := os.OpenFile(procPath(t.p.pid, "mem"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer memory.Close()
	in, out := io.NewSectionReader(m.file, offset, length), io.NewOffsetWriter(memory, int64(addr))
	if back {
		in, out = io.NewSectionReader(memory, int64(addr), length), io.NewOffsetWriter(m.file, offset)
	}
	_, err = io.Copy(out, in)
	return err
}

// sync writes back what lies in a range of memory.
func (t *tracer) sync(addr, size uint64) error {
	for _, m := range t.copies {
		first, last := max(addr, m.addr), min(addr+size, m.addr+m.size)
		if m.writable && first < last {
			if err := t.transfer(m, first, last-first, true); err != nil {
				return err
			}
		}
	}
	return nil
}

// syncFile writes back all mappings of the file behind a descriptor.
func (t *tracer) syncFile(fd int) error {
	var want, have unix.Stat_t
	if unix.Stat(procPath(t.p.pid, "fd/"+itoa(fd)), &want) != nil {
		return nil // the call itself says EBADF
	}
	for _, m := range t.copies {
		if unix.Fstat(int(m.file.Fd()), &have) == nil && have.Dev == want.Dev && have.Ino == want.Ino {
			if err := t.sync(m.addr, m.size); err != nil {
				return err
			}
		}
	}
	return nil
}

// unmap writes back a range and forgets it.
func (t *tracer) unmap(addr, size uint64) error {
	err := t.sync(addr, size)
	var kept []*mapping
	for _, m := range t.copies {
		end := m.addr + m.size
		if addr >= end || addr+size <= m.addr {
			kept = append(kept, m)
			continue
		}
		// What is left below and above the range shares the file.
		if m.addr < addr {
			below := *m
			below.size = addr - m.addr
			kept = append(kept, &below)
		}
		if addr+size < end {
			above := *m
			above.addr = addr + size
			above.offset += int64(above.addr - m.addr)
			above.size = end - above.addr
			kept = append(kept, &above)
		}
	}
	t.copies = kept
	return err
}
