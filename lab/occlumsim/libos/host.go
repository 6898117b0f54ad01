package libos

import (
	"net/netip"
	"os"
	"path"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// maxHostFile bounds a file of the host that is copied into the root, in bytes.
const maxHostFile = 1 << 20

var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)

// hostFiles are the files that the LibOS takes from the host. It checks their syntax and nothing else.
var hostFiles = []struct {
	name  string
	valid func(string) bool
}{
	{"/etc/resolv.conf", validResolvConf},
	{"/etc/hostname", func(text string) bool { return hostName.MatchString(strings.TrimSpace(text)) }},
	{"/etc/hosts", validHosts},
}

// readHostFiles reads the host's files. What is missing or malformed is left out, with a warning.
func (l *LibOS) readHostFiles() {
	l.hostFiles = map[string][]byte{}
	for _, f := range hostFiles {
		info, err := os.Stat(f.name)
		if err != nil || info.Size() > maxHostFile {
			continue
		}
		text, err := os.ReadFile(f.name)
		if err != nil {
			continue
		}
		if !f.valid(string(text)) {
			l.log.Warnf("%s of the host is malformed and left out", f.name)
			continue
		}
		l.hostFiles[f.name] = text
	}
}

// writeHostFiles writes them into a root.
func (l *LibOS) writeHostFiles(root string) error {
	etc, err := resolveIn(root, "/etc")
	if err != nil {
		return err
	}
	defer unix.Close(etc)
	for name, text := range l.hostFiles {
		fd, err := unix.Openat(etc, path.Base(name),
			unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o666)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), name)
		_, err = f.Write(text)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func lines(text string, valid func(fields []string) bool) bool {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) > 0 && !valid(fields) {
			return false
		}
	}
	return true
}

func validHosts(text string) bool {
	return lines(text, func(fields []string) bool {
		if _, err := netip.ParseAddr(fields[0]); err != nil || len(fields) < 2 {
			return false
		}
		for _, name := range fields[1:] {
			if !hostName.MatchString(strings.ReplaceAll(name, "_", "-")) {
				return false
			}
		}
		return true
	})
}

func validResolvConf(text string) bool {
	return lines(text, func(fields []string) bool {
		switch {
		case strings.HasPrefix(fields[0], ";"):
			return true
		case fields[0] == "nameserver":
			_, err := netip.ParseAddr(strings.Join(fields[1:], ""))
			return err == nil
		}
		return strings.Contains(" domain search options sortlist lookup family ", " "+fields[0]+" ")
	})
}
