// Package privatefile opens files that hold a secret or a private key, and refuses those at which other users have rights.
//
// Refused is a file at which all users have any right, or its group may write. Its group may read it only if the file
// belongs to another user than this process's: that is how Kubernetes mounts a secret under fsGroup, and systemd a
// credential. Such a file is taken, and said. A POSIX access list shows in the group's rights (acl(5)), and so counts as
// them.
//
// What is judged is the open file, not its name: whatever happens to the name later, what is read is what was judged.
// Symbolic links are followed, as the files of a Kubernetes secret are such. Pipes, sockets and character devices (a
// terminal, /dev/stdin, the shell's <(...)) are no files at rest and are taken as they are.
//
// Nothing is mended: a file that was open to others may have been read, and only its owner knows what follows from that.
package privatefile

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/boundedfile"
)

const (
	mode = 0o600 // of the files that [Create] makes
	step = "opening a private file"
)

// Rule is what holds for private files. The zero Rule is the one of the package comment, and says nothing.
type Rule struct {
	// Unchecked takes every file as it is. It is for programs in an enclave: there is no other user there, and what its
	// LibOS tells of owners and rights is what packaging wrote, or what the host says.
	Unchecked bool
	// Remark is told of each file that its group may read and that is taken all the same. It may be nil.
	Remark func(string)
}

// Read returns the content of a private file of at most limit bytes. A refusal has the code [attest.CodeConfig] and the
// command that mends it as its hint; the error of a file that is not there is [fs.ErrNotExist].
func (r Rule) Read(path string, limit int64) ([]byte, error) {
	f, err := r.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return boundedfile.ReadFrom(f, path, limit)
}

// Open opens a private file for reading. Its errors are those of [Rule.Read].
func (r Rule) Open(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		err = r.Judge(path, info)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// Check judges a file without reading it, for which no right to read is needed. It is for telling early; a file that is
// read is judged again when it is opened. Its errors are those of [Rule.Read].
func (r Rule) Check(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return r.Judge(path, info)
}

// Judge judges what [os.File.Stat] says of an open file. The path is what the refusal and the remark call it.
func (r Rule) Judge(path string, info fs.FileInfo) error {
	if info.IsDir() {
		return attest.Errorf(attest.CodeConfig, step, "Name a file.", "%s is a folder", path)
	}
	if r.Unchecked || info.Mode()&(fs.ModeNamedPipe|fs.ModeSocket|fs.ModeCharDevice) != 0 {
		return nil
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return attest.Errorf(attest.CodeInternal, step, "", "%s: nothing is known of its owner", path)
	}
	self := user{id: os.Geteuid()}
	if groups, err := os.Getgroups(); err == nil {
		self.groups = append(groups, os.Getegid())
	}
	remark, err := self.judge(path, file{mode: info.Mode().Perm(), owner: int(stat.Uid), group: int(stat.Gid)})
	if remark != "" && r.Remark != nil {
		r.Remark(remark)
	}
	return err
}

// KeyPair reads a certificate (PEM), which is public, and its private key (PEM).
func (r Rule) KeyPair(certificate, key string) (tls.Certificate, error) {
	const limit = 1 << 20
	public, err := boundedfile.Read(certificate, limit)
	if err != nil {
		return tls.Certificate{}, err
	}
	private, err := r.Read(key, limit)
	if err != nil {
		return tls.Certificate{}, err
	}
	defer clear(private)
	return tls.X509KeyPair(public, private)
}

// Create makes a file that only its owner may read and write, and whose content survives a power cut. The error of a name
// that is taken is [fs.ErrExist]. If it fails there is no file.
func Create(path string, content []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// user is this process, to the kernel.
type user struct {
	id     int
	groups []int
}

// file is what a refusal depends on.
type file struct {
	mode         fs.FileMode
	owner, group int
}

func (u user) judge(path string, f file) (remark string, err error) {
	others, group := f.mode&0o007, f.mode&0o070
	var why string
	switch {
	case others != 0:
		why = "every user has rights at it"
	case group&0o020 != 0:
		why = "its group may write it"
	case group != 0 && f.owner == u.id:
		why = "its group has rights at it"
	case group != 0:
		return fmt.Sprintf("%s has mode %04o and belongs to user %d: every member of group %d can read it, too",
			path, f.mode, f.owner, f.group), nil
	default:
		return "", nil
	}
	return "", attest.Errorf(attest.CodeConfig, step,
		`Run "`+u.mend(path, f)+`", and replace what is in the file if others may have read or changed it.`,
		"%s has mode %04o: %s", path, f.mode, why)
}

// mend is the command after which the file is taken. Another user's file, which this one reads by its group, stays so.
func (u user) mend(path string, f file) string {
	switch name := word(path); {
	case u.id == f.owner || u.id == 0:
		return "chmod 600 " + name
	case slices.Contains(u.groups, f.group):
		return "chmod 640 " + name
	default:
		return fmt.Sprintf("chown %d %s && chmod 600 %s", u.id, name, name)
	}
}

// word is a path as one word of a shell.
func word(path string) string {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("/._-+@%:,=", c)
	}
	if path != "" && path[0] != '-' && !strings.ContainsFunc(path, func(c rune) bool { return !plain(c) }) {
		return path
	}
	if strings.HasPrefix(path, "-") {
		path = "./" + path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
