package handover

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
)

func TestNamesOfCapabilitiesStandAtTheirNumbers(t *testing.T) {
	for name, number := range map[string]int{
		"CAP_CHOWN": unix.CAP_CHOWN, "CAP_SETPCAP": unix.CAP_SETPCAP, "CAP_NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE,
		"CAP_IPC_LOCK": unix.CAP_IPC_LOCK, "CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN, "CAP_SYS_TIME": unix.CAP_SYS_TIME,
		"CAP_SETFCAP": unix.CAP_SETFCAP, "CAP_AUDIT_READ": unix.CAP_AUDIT_READ, "CAP_BPF": unix.CAP_BPF,
		"CAP_CHECKPOINT_RESTORE": unix.CAP_CHECKPOINT_RESTORE,
	} {
		if m, err := mask([]string{name}); err != nil || m != 1<<number {
			t.Errorf("%s is %#x, want bit %d: %v", name, m, number, err)
		}
	}
	if len(names) != unix.CAP_LAST_CAP+1 {
		t.Errorf("%d names, want %d", len(names), unix.CAP_LAST_CAP+1)
	}
}

func TestUnknownCapabilityIsRefusedBeforeAnythingIsGivenUp(t *testing.T) {
	for _, name := range []string{"CAP_EVERYTHING", "cap_chown", "CHOWN", ""} {
		if err := (App{Capabilities: []string{name}}).Check(); attest.CodeOf(err) != attest.CodeConfig {
			t.Errorf("%q: error is %v", name, err)
		}
	}
}

func TestStageWithoutADescriptionRefuses(t *testing.T) {
	for _, args := range [][]string{nil, {"{"}, {"{}", "{}"}} {
		if err := Stage(args); attest.CodeOf(err) != attest.CodeUsage {
			t.Errorf("%q: error is %v", args, err)
		}
	}
}
