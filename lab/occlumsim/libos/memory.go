package libos

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Bounds of what is read from a program's memory.
const (
	maxPath     = 4096
	maxEnvBytes = 1 << 20
	pageSize    = 4096
)

// readMemory fills b from the memory of pid; anything less is EFAULT.
func readMemory(pid int, addr uint64, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	local := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
	n, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(addr), Len: len(b)}}, 0)
	if err != nil || n != len(b) {
		return unix.EFAULT
	}
	return nil
}

func writeMemory(pid int, addr uint64, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	local := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
	n, err := unix.ProcessVMWritev(pid, local, []unix.RemoteIovec{{Base: uintptr(addr), Len: len(b)}}, 0)
	if err != nil || n != len(b) {
		return unix.EFAULT
	}
	return nil
}

func readWord(pid int, addr uint64) (uint64, error) {
	var b [8]byte
	err := readMemory(pid, addr, b[:])
	return binary.LittleEndian.Uint64(b[:]), err
}

// readString reads a NUL-terminated string of at most limit bytes, page by page: what follows the page that
// ends it may not be mapped.
func readString(pid int, addr uint64, limit int) (string, error) {
	var text []byte
	for len(text) <= limit {
		chunk := make([]byte, pageSize-int(addr%pageSize))
		if err := readMemory(pid, addr, chunk); err != nil {
			return "", err
		}
		if end := bytes.IndexByte(chunk, 0); end >= 0 {
			text = append(text, chunk[:end]...)
			if len(text) > limit {
				break
			}
			return string(text), nil
		}
		text = append(text, chunk...)
		addr += uint64(len(chunk))
	}
	return "", unix.ENAMETOOLONG
}

// readStrings reads a NULL-terminated array of strings.
func readStrings(pid int, addr uint64) ([]string, error) {
	var list []string
	total := 0
	for {
		p, err := readWord(pid, addr)
		if err != nil || p == 0 {
			return list, err
		}
		s, err := readString(pid, p, maxEnvBytes)
		if err != nil {
			return nil, err
		}
		if total += len(s) + 9; total > maxEnvBytes {
			return nil, unix.E2BIG
		}
		list = append(list, s)
		addr += 8
	}
}
