package occlumcheck

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// libcName matches C libraries, their loaders and the libraries that make threads or system calls for them.
var libcName = regexp.MustCompile(`^(ld-musl-x86_64|ld-linux-x86-64|ld-[0-9.]+|libc|libc-[0-9.]+|libpthread(-[0-9.]+)?)\.so(\.[0-9]+)*$`)

// IsLibc reports whether a file of this base name is a C library, a loader, or a library that makes threads or system
// calls for them.
func IsLibc(name string) bool { return libcName.MatchString(name) }

// How a new thread begins, as machine code; ?? is any byte. A library that starts threads has one of these.
var (
	// In Occlum's musl and glibc (src/thread/occlum/clone.s, sysdeps/unix/sysv/linux/x86_64/clone.S) the LibOS enters
	// the child at the address on top of its stack, and function and argument are above that:
	// mov 16(%rsp),%rdi; mov 8(%rsp),%rcx; [and $-16,%rsp;] call *%rcx.
	occlumThreads = []code{
		newCode("48 8b 7c 24 10 48 8b 4c 24 08 ff d1"),
		newCode("48 8b 7c 24 10 48 8b 4c 24 08 48 83 e4 f0 ff d1"),
	}
	// In theirs, the child returns from the system call with its parent's registers.
	stockThreads = []code{
		newCode("0f 05 85 c0 75 ?? 31 ed 5f 41 ff d1"),             // musl: syscall; test; jnz; xor; pop %rdi; call *%r9
		newCode("0f 05 48 85 c0 7c ?? 74 ?? c3 31 ed 58 5f ff d0"), // glibc: syscall; …; pop %rax; pop %rdi; call *%rax
	}
)

// Words that stand in libraries which start no threads, such as glibc's loader.
var (
	occlumWords = []string{"__occlum_entry", "__occlum_syscall", "occlum"}
	stockWords  = regexp.MustCompile(`\((Debian|Ubuntu|GNU libc)[^)]*\) (stable|release|version)|\((Debian|Ubuntu) E?GLIBC `)
)

// origin is who built a C library.
type origin int

const (
	unknownOrigin origin = iota
	occlumBuild
	stockBuild
)

// originOf tells it by the code that starts threads, which decides whether the library works in the LibOS, and where
// there is none by the words in it. Occlum's glibc has the stock code, too, for use outside of the LibOS.
func originOf(text []byte) origin {
	has := func(list []code) bool {
		for _, c := range list {
			if c.in(text) {
				return true
			}
		}
		return false
	}
	switch {
	case has(occlumThreads):
		return occlumBuild
	case has(stockThreads):
		return stockBuild
	}
	for _, word := range occlumWords {
		if bytes.Contains(text, []byte(word)) {
			return occlumBuild
		}
	}
	if stockWords.Match(text) {
		return stockBuild
	}
	return unknownOrigin
}

// code is a piece of machine code.
type code struct {
	bytes, mask []byte
	fixed       []byte // its beginning, up to the first byte that may be any
}

func newCode(text string) code {
	var c code
	for _, digits := range strings.Fields(text) {
		b, err := hex.DecodeString(digits)
		if err != nil {
			if len(c.fixed) == 0 {
				c.fixed = c.bytes
			}
			c.bytes, c.mask = append(c.bytes, 0), append(c.mask, 0)
			continue
		}
		c.bytes, c.mask = append(c.bytes, b[0]), append(c.mask, 0xff)
	}
	if len(c.fixed) == 0 {
		c.fixed = c.bytes
	}
	c.fixed = bytes.Clone(c.fixed)
	return c
}

func (c code) in(text []byte) bool {
	for {
		i := bytes.Index(text, c.fixed)
		if i < 0 || len(text)-i < len(c.bytes) {
			return false
		}
		if equalMasked(text[i:], c.bytes, c.mask) {
			return true
		}
		text = text[i+1:]
	}
}

func equalMasked(text, want, mask []byte) bool {
	for i := range want {
		if text[i]&mask[i] != want[i] {
			return false
		}
	}
	return true
}

// libraries looks for C libraries that are not Occlum's: their clone and system calls are not the LibOS's.
func (i *inspection) libraries() error {
	known, err := i.knownLibraries()
	if err != nil {
		return err
	}
	report := i.error
	if mode, err := i.read(".sgx_mode", 64); err == nil && strings.TrimSpace(string(mode)) == "SIM" {
		report = i.warn // where stock libraries work for programs that run natively
	}
	for _, root := range []string{"initfs", "image"} {
		base := filepath.Join(i.dir, root)
		if !i.exists(root) {
			continue
		}
		err := eachLibc(base, func(name string, text []byte) {
			field := root + strings.TrimPrefix(name, base)
			const consequence = ", whose threads and system calls are not those of the LibOS"
			const write = "copy the file that Occlum ships (copy_bom does)"
			if known != nil {
				if !known[sha256.Sum256(text)] {
					report(field, "is not one of Occlum's C libraries"+consequence, write)
				}
				return
			}
			switch originOf(text) {
			case stockBuild:
				report(field, "is a stock C library"+consequence, write)
			case unknownOrigin:
				i.warn(field, "has no sign of being Occlum's build of the C library",
					"compare it with Occlum's own files by --occlum-libc")
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// maxHashes bounds a file of hashes, in bytes.
const maxHashes = 1 << 20

// knownLibraries are the hashes of Occlum's own files, nil if none were given: those of the files in a directory,
// or those that a file lists as sha256sum prints them.
func (i *inspection) knownLibraries() (map[[32]byte]bool, error) {
	if i.o.OcclumLibc == "" {
		return nil, nil
	}
	known := make(map[[32]byte]bool)
	info, err := os.Stat(i.o.OcclumLibc)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		err = eachLibc(i.o.OcclumLibc, func(_ string, text []byte) { known[sha256.Sum256(text)] = true })
	} else {
		err = readHashes(i.o.OcclumLibc, known)
	}
	if err == nil && len(known) == 0 {
		err = fmt.Errorf("%s holds no C library", i.o.OcclumLibc)
	}
	return known, err
}

func readHashes(name string, known map[[32]byte]bool) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if len(text) > maxHashes {
		return fmt.Errorf("%s is larger than %d bytes", name, maxHashes)
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		b, err := hex.DecodeString(fields[0])
		if err != nil || len(b) != sha256.Size {
			return fmt.Errorf("%s: %q is no SHA-256; write what sha256sum prints", name, fields[0])
		}
		known[[32]byte(b)] = true
	}
	return nil
}

func eachLibc(dir string, see func(name string, text []byte)) error {
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !IsLibc(path.Base(name)) {
			return err
		}
		text, err := readProgram(name)
		if err == nil && bytes.HasPrefix(text, []byte(elf.ELFMAG)) {
			see(name, text)
		}
		return err
	})
}
