package occlumcheck

import (
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// ProgramOptions say what a program must be beside what the LibOS demands.
type ProgramOptions struct {
	// Interpreter is the loader in the file system, such as /lib/ld-musl-x86_64.so.1. If it is empty, any loader is
	// accepted.
	Interpreter string
	// MaxSize bounds the file in bytes; 0 is no bound.
	MaxSize int64
	// Application leaves out what matters for programs of Sesame's own build only: symbols and paths.
	Application bool
	// Forbidden are prefixes of names of functions that a Go program must not hold, such as
	// "example.org/module/package.".
	Forbidden []string
}

// maxProgram bounds the files that are looked through: larger ones do not fit into any LibOS heap.
const maxProgram = 1 << 30

// Program checks the program at path: whether Occlum can load it, and whether a Go program is built as Occlum needs
// it. The findings' fields are path and the property; what to write are flags of the build.
func Program(path string, o ProgramOptions) (Findings, error) {
	text, err := readProgram(path)
	if err != nil {
		return nil, err
	}
	var fs Findings
	bad := func(property, problem, write string) {
		fs = append(fs, Finding{Error, path + ": " + property, problem, write})
	}
	f, err := elf.NewFile(bytes.NewReader(text))
	if err != nil {
		bad("format", "is not an ELF file: "+err.Error(), "build it with GOOS=linux GOARCH=amd64")
		return fs, nil
	}
	defer f.Close()

	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 {
		bad("machine", fmt.Sprintf("is for %v %v", f.Class, f.Machine), "build it with GOARCH=amd64")
		return fs, nil
	}
	if f.Type != elf.ET_DYN {
		bad("type", fmt.Sprintf("is %v, and the LibOS loads ET_DYN only (ENOEXEC)", f.Type),
			"build it with -buildmode=pie")
	}
	switch interpreter := Interpreter(f); {
	case interpreter == "":
		bad("PT_INTERP", "names no loader, and the LibOS runs no static program (EINVAL)",
			"build it with -buildmode=pie, neither -static nor -static-pie")
	case o.Interpreter != "" && interpreter != o.Interpreter:
		bad("PT_INTERP", fmt.Sprintf("names the loader %s, and the file system holds %s", interpreter, o.Interpreter),
			`build it with -ldflags "-I `+o.Interpreter+`"`)
	}
	if phoff := binary.LittleEndian.Uint64(text[32:]); phoff != 64 {
		bad("e_phoff", fmt.Sprintf("is %d, and the LibOS reads program headers at 64 only", phoff),
			"take the file as the linker wrote it; do not edit it with patchelf")
	}
	for i, p := range f.Progs {
		if p.Type == elf.PT_LOAD && (p.Memsz < p.Filesz || p.Align&(p.Align-1) != 0) {
			bad(fmt.Sprintf("program header %d", i), "is a segment that the LibOS refuses",
				"take the file as the linker wrote it")
		}
	}
	if o.MaxSize > 0 && int64(len(text)) > o.MaxSize {
		bad("size", fmt.Sprintf("is %d bytes, more than the budget of %d", len(text), o.MaxSize),
			`build it with -ldflags "-s -w", and look for a new dependency`)
	}
	if info, err := buildinfo.Read(bytes.NewReader(text)); err == nil {
		goProgram(f, text, info, o, bad)
	}
	return fs, nil
}

// goProgram checks what a Go program must be in addition.
func goProgram(f *elf.File, text []byte, info *buildinfo.BuildInfo, o ProgramOptions,
	bad func(property, problem, write string)) {
	if needed, err := f.ImportedLibraries(); err == nil && len(needed) > 0 && !o.Application {
		bad("DT_NEEDED", "wants the libraries "+quoted(needed), "build it with CGO_ENABLED=0")
	}
	stripped := f.Section(".symtab") == nil && f.Section(".debug_info") == nil && f.Section(".zdebug_info") == nil
	if !o.Application && !stripped {
		bad("symbols", "are not stripped, and the LibOS holds the whole file in its heap",
			`build it with -ldflags "-s -w"`)
	}
	for _, setting := range info.Settings {
		if setting.Key == "-race" && setting.Value == "true" {
			bad("race detector", "is built in, and wants the heap where Occlum has no memory", "build it without -race")
		}
	}
	if !o.Application && !trimmed(info) {
		bad("paths", "of the build machine are in it, so that another machine builds another measurement",
			"build it with -trimpath")
	}
	if !bytes.Contains(text, []byte("runtime.clonechild")) {
		bad("Go runtime", "is the stock one, which dies in Occlum at its second thread",
			`build it with -overlay, see "go run ./internal/occlum/goruntime -o DIR"`)
	}
	for _, name := range o.Forbidden {
		if bytes.Contains(text, []byte(name)) {
			bad("packages", "it holds "+strings.TrimSuffix(name, ".")+", which must not run in an enclave",
				"find who imports it with go list -deps")
		}
	}
}

func trimmed(info *buildinfo.BuildInfo) bool {
	for _, setting := range info.Settings {
		if setting.Key == "-trimpath" {
			return setting.Value == "true"
		}
	}
	return false
}

// Interpreter is the loader that a program names in PT_INTERP, "" if it names none.
func Interpreter(f *elf.File) string {
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP || p.Filesz > 4096 {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return ""
		}
		return strings.TrimRight(string(b), "\x00")
	}
	return ""
}

func readProgram(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxProgram+1))
	if err == nil && len(text) > maxProgram {
		err = errors.New("is larger than 1 GiB")
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return text, nil
}
