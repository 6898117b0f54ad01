package libos

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/lab/occlumsim"
)

func TestEnvironmentIsTheTrustedOneAndTheHostsUntrustedNames(t *testing.T) {
	for name, c := range map[string]struct{ trusted, untrusted, host, want []string }{
		"the host's value wins for a listed name": {[]string{"A=1", "B=1"}, []string{"B"}, []string{"B=2", "C=2"},
			[]string{"A=1", "B=2"}},
		"a listed name needs no default": {nil, []string{"B"}, []string{"B=2"}, []string{"B=2"}},
		"nothing is listed":              {[]string{"A=1"}, nil, []string{"A=2"}, []string{"A=1"}},
		"names are compared whole":       {[]string{"AB=1"}, []string{"A"}, []string{"AB=2"}, []string{"AB=1"}},
		"an entry without =":             {nil, []string{"A"}, []string{"A"}, nil},
	} {
		if got := environment(c.trusted, c.untrusted, c.host); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if got := mergeEnv([]string{"A=2"}, []string{"A=1", "B=1"}); !slices.Equal(got, []string{"A=2", "B=1"}) {
		t.Errorf("merged: %q", got)
	}
}

func TestEntryPointsAreWholePathComponents(t *testing.T) {
	for _, c := range []struct {
		program, entry string
		want           bool
	}{
		{"/bin/app", "/bin", true}, {"/bin", "/bin", true}, {"/bin/app", "/bin/", true}, {"/bin/app", "/bin/app", true},
		{"/binary", "/bin", false}, {"/bin/application", "/bin/app", false}, {"/usr/bin/app", "/bin", false},
		{"/anything", "/", true},
	} {
		if got := permitted(c.program, []string{c.entry}); got != c.want {
			t.Errorf("%s below %s: %v, want %v", c.program, c.entry, got, c.want)
		}
	}
}

func TestHostFilesAreCheckedForSyntax(t *testing.T) {
	for text, want := range map[string]bool{
		"127.0.0.1 localhost\n::1 a b # comment\n\n": true, "localhost 127.0.0.1\n": false, "127.0.0.1\n": false,
		"10.0.0.1 bad/name\n": false,
	} {
		if validHosts(text) != want {
			t.Errorf("hosts %q: want %v", text, want)
		}
	}
	for text, want := range map[string]bool{
		"nameserver 10.0.0.1\nsearch a.b\noptions ndots:5\n; comment\n": true, "nameserver x\n": false, "hello world\n": false,
	} {
		if validResolvConf(text) != want {
			t.Errorf("resolv.conf %q: want %v", text, want)
		}
	}
}

func TestHostFilesTakeThePlaceOfTheImages(t *testing.T) {
	root, outside := t.TempDir(), filepath.Join(t.TempDir(), "target")
	for name, text := range map[string]string{
		filepath.Join(root, "etc/hosts"): "what the image had, which is longer than what the host has\n", outside: "untouched",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	l := &LibOS{hostFiles: map[string][]byte{"/etc/hosts": []byte("::1 host\n"), "/etc/hostname": []byte("name\n")}}
	if err := l.writeHostFiles(root); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"hosts": "::1 host\n", "hostname": "name\n"} {
		if text, err := os.ReadFile(filepath.Join(root, "etc", name)); err != nil || string(text) != want {
			t.Errorf("%s is %q, %v", name, text, err)
		}
	}
	// An image without /etc is an error of 363, and a link in it leads nowhere else.
	if err := l.writeHostFiles(t.TempDir()); !errors.Is(err, unix.ENOENT) {
		t.Errorf("without /etc: %v", err)
	}
	if err := errors.Join(os.Remove(filepath.Join(root, "etc/hosts")), os.Symlink(outside, filepath.Join(root, "etc/hosts"))); err != nil {
		t.Fatal(err)
	}
	if err := l.writeHostFiles(root); err == nil {
		t.Error("a link was followed")
	}
	if text, err := os.ReadFile(outside); err != nil || string(text) != "untouched" {
		t.Errorf("the link's target is %q, %v", text, err)
	}
}

func TestProcfsHasTheLibOSsNames(t *testing.T) {
	for name, want := range map[string]bool{
		"cpuinfo": true, "self": true, "17": true, "self/fd/3": true, "17/maps": true, "self/stat": true,
		"mounts": false, "sys/kernel": false, "self/status": false, "self/task/17/maps": false, "net": false, "version": false,
	} {
		if inLibOSProc(name) != want {
			t.Errorf("%s: want %v", name, want)
		}
	}
}

func TestListingsLoseEntriesAndNothingElse(t *testing.T) {
	entry := func(name string) []byte {
		b := make([]byte, (19+len(name)+1+7)&^7)
		b[16] = byte(len(b))
		copy(b[19:], name)
		return b
	}
	listing := slices.Concat(entry("."), entry("stat"), entry("version"), entry("cpuinfo"))
	kept := keepEntries(listing, func(name string) bool { return name != "version" })
	if want := slices.Concat(entry("."), entry("stat"), entry("cpuinfo")); !slices.Equal(kept, want) {
		t.Errorf("kept %q", kept)
	}
	for _, broken := range [][]byte{nil, entry("x")[:18], append(entry("x")[:16], 3, 0, 0, 0, 0), append(entry("x")[:16], 200, 0, 0, 0, 0)} {
		if got := keepEntries(broken, func(string) bool { return true }); len(got) > 0 {
			t.Errorf("%x: kept %x", broken, got)
		}
	}
}

func TestMountOptionsTakeTheFirstOfAName(t *testing.T) {
	o := parseOptions("dir=./a,key=x,dir=./b,unknown,mac=a=b")
	if o["dir"] != "./a" || o["key"] != "x" || o["mac"] != "a=b" {
		t.Errorf("options are %q", o)
	}
}

func TestFirstFailureOfTheQuoteGeneratorStays(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "platform")
	d := &device{platform: dir}
	if err := d.openGenerator(); err == nil {
		t.Fatal("a platform that does not exist makes quotes")
	}
	if err := occlumsim.NewMachine(dir); err != nil {
		t.Fatal(err)
	}
	if err := d.openGenerator(); err == nil {
		t.Error("the generator recovered")
	}
	if err := (&device{platform: dir}).openGenerator(); err != nil {
		t.Errorf("another enclave: %v", err)
	}
	failing := &device{platform: dir, failing: true}
	for range 2 {
		if err := failing.openGenerator(); err == nil {
			t.Error("a generator that was to fail made quotes")
		}
	}
	if err := failing.open(); err != nil {
		t.Errorf("reports and keys fail with it: %v", err)
	}
}

// TestFilterGivesOneAnswerForEveryNumber evaluates the filters for every number, with the kernel's rules for classic BPF.
func TestFilterGivesOneAnswerForEveryNumber(t *testing.T) {
	strict, native := strictFilter(), nativeFilter()
	for nr := uint32(0); nr < 600; nr++ {
		listed := slices.ContainsFunc(implemented, func(r [2]uint32) bool { return r[0] <= nr && nr <= r[1] })
		got := evaluate(t, strict, nr)
		switch {
		case listed && got == fail(unix.ENOSYS) && nr != unix.SYS_FUTEX, listed && got == fail(unix.EINVAL) && nr != unix.SYS_PRCTL:
			t.Errorf("%d is implemented, but the filter says %#x", nr, got)
		case !listed && nr <= lastLinuxNumber && got != fail(unix.ENOSYS):
			t.Errorf("%d is not implemented, but the filter says %#x", nr, got)
		case nr > lastLinuxNumber && (nr < sysSpawnGlibc || nr > sysMountRootFS) && got != fail(unix.EINVAL):
			t.Errorf("%d is unknown, but the filter says %#x", nr, got)
		}
		asks := nr == sysMountRootFS || nr == unix.SYS_MOUNT || nr == unix.SYS_UMOUNT2
		if got := evaluate(t, native, nr); (got == notify) != asks || !asks && got != allow {
			t.Errorf("%d: the native filter says %#x", nr, got)
		}
	}
}

// evaluate runs a filter on a call whose arguments are all zero.
func evaluate(t *testing.T, filter []unix.SockFilter, nr uint32) uint32 {
	t.Helper()
	data := map[uint32]uint32{0: nr, 4: unix.AUDIT_ARCH_X86_64}
	var a uint32
	for i := 0; i < len(filter); i++ {
		f := filter[i]
		taken := false
		switch f.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = data[f.K]
			continue
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= f.K
			continue
		case unix.BPF_RET | unix.BPF_K:
			return f.K
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			taken = a == f.K
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			taken = a > f.K
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			taken = a >= f.K
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			taken = a&f.K != 0
		default:
			t.Fatalf("instruction %d: code %#x", i, f.Code)
		}
		if taken {
			i += int(f.Jt)
		} else {
			i += int(f.Jf)
		}
	}
	t.Fatalf("number %d runs off the end", nr)
	return 0
}
