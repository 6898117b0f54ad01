package handover

import (
	"errors"
	"os/exec"
	"strings"
	"syscall"
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

func TestSupervisorKnowsAProcessThatEndedBeforeItsNameWasHere(t *testing.T) {
	w := watch{app: 10, ended: map[int]syscall.WaitStatus{11: syscall.WaitStatus(syscall.SIGKILL)}}
	w.take(report{Guard: 12, What: "volume at /a"})
	if w.lost != nil || len(w.guarded) != 1 {
		t.Errorf("lost %v, guarded %v", w.lost, w.guarded)
	}
	w.take(report{Guard: 11, What: "volume at /b"})
	if attest.CodeOf(w.lost) != attest.CodeMount || !strings.Contains(w.lost.Error(), "the volume at /b is lost") {
		t.Errorf("lost is %v", w.lost)
	}
}

// TestSignalsAreKeptUntilTheBootCanTakeThem: before, they would end it without a word.
func TestSignalsAreKeptUntilTheBootCanTakeThem(t *testing.T) {
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Process.Kill()
	w := watch{app: child.Process.Pid}
	w.forward(syscall.SIGTERM)
	w.forward(syscall.SIGCHLD)
	if len(w.held) != 1 || child.Process.Signal(syscall.Signal(0)) != nil {
		t.Fatalf("held are %v", w.held)
	}
	w.take(report{Begun: true})
	var exit *exec.ExitError
	if err := child.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("the boot ended by %v", err)
	}
}

func TestLinkIsOnlyForABootThatHasASupervisor(t *testing.T) {
	var none *Link
	if err := none.Begun(); err != nil {
		t.Errorf("without a supervisor: %v", err)
	}
	if err := none.Guard(2, "volume"); err != nil {
		t.Errorf("without a supervisor: %v", err)
	}
}
