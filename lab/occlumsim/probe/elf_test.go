package probe

import (
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// edit writes a changed copy of a program.
func edit(t *testing.T, program string, change func(b []byte) []byte) string {
	t.Helper()
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "edited")
	if err := os.WriteFile(path, change(b), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

const headerSize = 56 // of a program header

// withoutInterpreter makes a program what -static-pie links: ET_DYN without PT_INTERP.
func withoutInterpreter(t *testing.T, program string) string {
	return edit(t, program, func(b []byte) []byte {
		for at := 64; at < 64+headerSize*int(binary.LittleEndian.Uint16(b[56:])); at += headerSize {
			if elf.ProgType(binary.LittleEndian.Uint32(b[at:])) == elf.PT_INTERP {
				binary.LittleEndian.PutUint32(b[at:], uint32(elf.PT_NULL))
			}
		}
		return b
	})
}

// headersElsewhere moves the program headers to the end of the file, as tools that edit programs do.
func headersElsewhere(t *testing.T, program string) string {
	return edit(t, program, func(b []byte) []byte {
		n := headerSize * int(binary.LittleEndian.Uint16(b[56:]))
		binary.LittleEndian.PutUint64(b[32:], uint64(len(b)))
		return append(b, b[64:64+n]...)
	})
}
