package occlum

import (
	"errors"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/fs"
	"github.com/sesame-init/sesame/fs/sefs"
)

func TestConfigHasTheLayoutOfTheLibOS(t *testing.T) {
	var c rootFSConfig
	if got := unsafe.Sizeof(c); got != 56 {
		t.Errorf("struct has %d bytes, the LibOS wants 56", got)
	}
	for name, at := range map[string][2]uintptr{
		"entry_point":   {unsafe.Offsetof(c.entryPoint), 24},
		"hostfs_source": {unsafe.Offsetof(c.hostFSSource), 32},
		"envp":          {unsafe.Offsetof(c.environment), 48},
	} {
		if at[0] != at[1] {
			t.Errorf("%s stands at %d, want %d", name, at[0], at[1])
		}
	}
}

func TestOutsideTheLibOSTheCallSaysSo(t *testing.T) {
	err := Mounter{}.MountRoot(t.Context(), fs.Root{Key: new(sefs.Key), EntryPoint: "/bin/app", Environment: []string{"A=b"}})
	if !errors.Is(err, unix.ENOSYS) || attest.CodeOf(err) != attest.CodeMount {
		t.Fatalf("mounting a root on plain Linux gives %v", err)
	}
	if hint := attest.HintOf(err); !strings.Contains(hint, "Occlum") {
		t.Errorf("the hint is %q", hint)
	}
}

func TestWhatIsIncompleteNeverReachesTheLibOS(t *testing.T) {
	for what, v := range map[string]fs.Volume{
		"no MAC": {Source: "v", Target: "/nowhere", Key: &sefs.Key{1}},
		"no key": {Source: "v", Target: "/nowhere", MAC: sefs.MAC{1}},
	} {
		if err := (Mounter{}).MountVolume(t.Context(), v); attest.CodeOf(err) != attest.CodeConfig {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := (Mounter{}).MountRoot(t.Context(), fs.Root{EntryPoint: "a\x00b"}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("entry point with NUL: %v", err)
	}
}
