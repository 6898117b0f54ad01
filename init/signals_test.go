package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/init/internal/handover"
)

// held is a run of init whose standard error is a pipe that holds one line: init goes on from one line to the next only
// as far as the test reads.
type held struct {
	*linuxRun
	pipe *os.File
	said strings.Builder
}

func (b *linuxBoot) startHeld() *held {
	b.t.Helper()
	b.enrol(b.write())
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_DIRECT); err != nil { // each line is a packet
		b.t.Fatal(err)
	}
	h := &held{linuxRun: &linuxRun{t: b.t, dir: b.dir, out: &safeBuffer{}}, pipe: os.NewFile(uintptr(ends[0]), "pipe")}
	b.t.Cleanup(func() { _ = h.pipe.Close() })
	write := os.NewFile(uintptr(ends[1]), "pipe")
	defer write.Close()
	if size, err := unix.FcntlInt(uintptr(ends[1]), unix.F_SETPIPE_SZ, os.Getpagesize()); err != nil || size != os.Getpagesize() {
		b.t.Fatalf("the pipe holds %d bytes, %v", size, err)
	}
	h.cmd = exec.Command(filepath.Join(linuxBuild.dir, "init-linux"), "--config", filepath.Join(b.dir, "init.json"))
	h.cmd.Stdout, h.cmd.Stderr, h.cmd.WaitDelay = h.out, write, 30*time.Second
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := h.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = h.cmd.Process.Kill(); _ = h.cmd.Wait() })
	return h
}

// line is the next line, "" at the end.
func (h *held) line() string {
	h.t.Helper()
	h.wait()
	buffer := make([]byte, os.Getpagesize())
	n, err := unix.Read(int(h.pipe.Fd()), buffer)
	if err != nil {
		h.t.Fatal(err)
	}
	h.said.Write(buffer[:n])
	return string(buffer[:n])
}

// wait waits until there is a line, or the end.
func (h *held) wait() {
	h.t.Helper()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(h.pipe.Fd()), Events: unix.POLLIN}}, 60_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 1 {
			h.t.Fatalf("init says no more: %v\n%s", err, &h.said)
		}
		return
	}
}

// terminate sends SIGTERM to init, and returns when the boot has it. A supervised boot is stopped until its supervisor
// has passed the signal on: the test's next read would set it free to go on to its end.
func (h *held) terminate(supervised bool) {
	h.t.Helper()
	boot := h.cmd.Process.Pid
	if supervised {
		if boot = children(h.t, boot)[handover.BootName]; boot == 0 {
			h.t.Fatal("the supervisor has no boot")
		}
		if err := unix.Kill(boot, unix.SIGSTOP); err != nil {
			h.t.Fatal(err)
		}
		defer func() { _ = unix.Kill(boot, unix.SIGCONT) }()
		eventually(h.t, "the boot is stopped", func() bool { return strings.HasPrefix(status(boot, "State"), "T") })
	}
	if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		h.t.Fatal(err)
	}
	if supervised {
		eventually(h.t, "the boot has the signal", func() bool { return pending(boot, unix.SIGTERM) })
	}
}

// pending reports whether a signal waits for a process that is stopped.
func pending(pid int, s syscall.Signal) bool {
	set, _ := strconv.ParseUint(status(pid, "ShdPnd"), 16, 64)
	return set&(1<<(s-1)) != 0
}

// status is a line of what the kernel says of a process.
func status(pid int, key string) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(text), "\n"+key+":\t")
	line, _, _ := strings.Cut(rest, "\n")
	return line
}

// finish reads to the end and returns the exit status.
func (h *held) finish() int {
	h.t.Helper()
	for h.line() != "" {
	}
	return h.status()
}

// leftovers is what a boot that was taken back must not leave.
func (b *linuxBoot) leftovers() (found []string) {
	b.t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		b.t.Fatal(err)
	}
	if bytes.Contains(mounts, []byte(b.dir)) {
		found = append(found, "a mount")
	}
	if _, err := os.Lstat(filepath.Join(b.dir, "mnt")); err == nil {
		found = append(found, "the directory of a mount")
	}
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range commands {
		line, _ := os.ReadFile(name)
		if bytes.Contains(line, []byte(b.dir)) && !bytes.Contains(line, []byte("swtpm")) {
			found = append(found, fmt.Sprintf("%s: %q", name, line))
		}
	}
	return found
}

// TestSignalInEveryPhaseOnLinux: from the first line of a boot to the last, SIGTERM ends it before the application is
// started, and nothing is left.
func TestSignalInEveryPhaseOnLinux(t *testing.T) {
	for _, mode := range []string{"exec", "supervise"} {
		t.Run(mode, func(t *testing.T) {
			b := newLinuxBoot(t, "wait")
			b.config["linux"].(map[string]any)["mode"] = mode
			secrets, secretsErr := os.ReadDir("/run/secrets")
			for phase := 0; ; phase++ {
				h := b.startHeld()
				line := ""
				for range phase {
					line = h.line()
				}
				if strings.Contains(line, "volume mounted") { // then nothing holds init any more
					if phase < 3 {
						t.Errorf("only %d phases", phase)
					}
					return
				}
				h.wait() // the next one is there, and init waits with the one after it
				h.terminate(mode == "supervise")
				if status := h.finish(); status != exitCodes[attest.CodeStopped] || h.out.String() != "" ||
					!strings.Contains(h.said.String(), "init: refused [stopped] booting: ended by signal: terminated\ninit: to do: ") {
					t.Errorf("after %q: exit status %d:\n%s%s", line, status, &h.said, h.out)
				}
				if left := b.leftovers(); len(left) > 0 {
					t.Errorf("after %q it leaves %q", line, left)
				}
				if now, err := os.ReadDir("/run/secrets"); len(now) != len(secrets) || (err == nil) != (secretsErr == nil) {
					t.Errorf("after %q it leaves /run/secrets with %v, %v; it was %v, %v", line, now, err, secrets, secretsErr)
				}
			}
		})
	}
}

// TestSignalWhileAVolumeIsRead: the process behind a volume that its storage keeps waiting is ended, too.
func TestSignalWhileAVolumeIsRead(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT} {
		t.Run(s.String(), func(t *testing.T) { signalWhileAVolumeIsRead(t, s) })
	}
}

func signalWhileAVolumeIsRead(t *testing.T, s syscall.Signal) {
	b := newLinuxBoot(t, "wait")
	forget := silentStorage(t, filepath.Join(b.dir, "volume"))
	r := b.start()
	eventually(t, "the volume is read", func() bool {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", children(t, r.cmd.Process.Pid)["sesame-volume"]))
		for _, name := range threads {
			if state, err := os.ReadFile(name); err == nil && strings.Contains(string(state), ") D ") {
				return true
			}
		}
		return false
	})
	if err := r.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
	if status := r.status(); status != exitCodes[attest.CodeStopped] {
		t.Errorf("exit status %d:\n%s", status, r.out)
	}
	forget()
	if left := b.leftovers(); len(left) > 0 {
		t.Errorf("it leaves %q", left)
	}
}

// silentStorage puts a file system on a directory that never answers: one of FUSE, without a server.
func silentStorage(t *testing.T, dir string) (forget func()) {
	t.Helper()
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device.Fd())
	if err := unix.Mount("silent", dir, "fuse", 0, options); err != nil {
		t.Fatal(err)
	}
	forget = sync.OnceFunc(func() {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		_ = device.Close()
	})
	t.Cleanup(forget)
	return forget
}

// TestSignalWhileTheBrokerIsSilent: nothing that answers is waited for.
func TestSignalWhileTheBrokerIsSilent(t *testing.T) {
	b := newLinuxBoot(t, "wait")
	b.config["grpc_ratls"].(map[string]any)["servers"] = []string{"127.0.0.1:1"}
	h := b.startHeld()
	for !strings.Contains(h.line(), "chosen by the config") {
	}
	if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := h.finish(); status != exitCodes[attest.CodeStopped] {
		t.Errorf("exit status %d:\n%s", status, &h.said)
	}
}

// TestSupervisorKnowsNothingOfTheBoot: what has been in init's memory is not in that of the process that stays.
func TestSupervisorKnowsNothingOfTheBoot(t *testing.T) {
	r := supervised(t, "wait")
	r.waitFor("waiting")
	var canaries [][]byte
	for _, text := range []string{secretCanary, volumeKeyText, strings.ReplaceAll(volumeKeyText, "-", "")} {
		canaries = append(canaries, []byte(text))
	}
	key, err := hex.DecodeString(strings.ReplaceAll(volumeKeyText, "-", ""))
	if err != nil {
		t.Fatal(err)
	}
	canaries = append(canaries, key)
	if found := memoryHas(t, r.cmd.Process.Pid, []byte("sesame-boot")); !found { // so the scan sees something
		t.Error("the name that it gives the boot is not in its memory")
	}
	for _, canary := range canaries {
		if memoryHas(t, r.cmd.Process.Pid, canary) {
			t.Errorf("%q is in the supervisor's memory", canary)
		}
	}
}

// memoryHas reports whether bytes are in a process's memory.
func memoryHas(t *testing.T, pid int, what []byte) bool {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var access string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &access); err != nil || access[0] != 'r' || strings.Contains(line, "[v") ||
			access[1] != 'w' && strings.Contains(line, "/") { // what the program's file holds is no secret
			continue
		}
		part := make([]byte, 1<<20)
		for at := from; at < to; at += uint64(len(part) - len(what)) {
			n, _ := memory.ReadAt(part[:min(uint64(len(part)), to-at)], int64(at)) // what was never touched cannot be read
			if bytes.Contains(part[:n], what) {
				return true
			}
		}
	}
	return false
}

// TestVolumeThatIsLostDuringTheHandOver: the supervisor learns of what ended before it knew its name.
func TestVolumeThatIsLostDuringTheHandOver(t *testing.T) {
	b := newLinuxBoot(t, "wait")
	b.config["linux"].(map[string]any)["mode"] = "supervise"
	h := b.startHeld()
	for !strings.Contains(h.line(), "volume mounted") {
	}
	if err := syscall.Kill(h.server(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status := h.finish(); status != exitCodes[attest.CodeMount] || !strings.Contains(h.said.String(), " is lost: ") {
		t.Errorf("exit status %d:\n%s%s", status, &h.said, h.out)
	}
}

// TestApplicationHasTheMaskThatInitWasGiven, but for signals that end a program: Go unblocks those.
func TestApplicationHasTheMaskThatInitWasGiven(t *testing.T) {
	for _, mode := range []string{"exec", "supervise"} {
		for blocked, want := range map[string]string{"": "0000000000000000", "USR2": "0000000000000800"} {
			t.Run(mode+" "+blocked, func(t *testing.T) {
				b := newLinuxBoot(t, "see")
				b.config["linux"].(map[string]any)["mode"] = mode
				b.enrol(b.write())
				cmd := exec.Command("env", "--block-signal="+blocked, filepath.Join(linuxBuild.dir, "init-linux"), "--config", filepath.Join(b.dir, "init.json"))
				if blocked == "" {
					cmd.Args = append(cmd.Args[:1], cmd.Args[2:]...)
				}
				r := &linuxRun{t: t, cmd: cmd, out: &safeBuffer{}}
				cmd.Stdout, cmd.Stderr = r.out, r.out
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				if s := r.sight(); s.Status["SigBlk"] != want || s.Status["SigPnd"] != "0000000000000000" || s.Status["ShdPnd"] != "0000000000000000" {
					t.Errorf("%s, %q blocked: the application has %s, pending %s %s", mode, blocked, s.Status["SigBlk"], s.Status["SigPnd"], s.Status["ShdPnd"])
				}
			})
		}
	}
}

// TestNoSignalIsLostOverTheHandOver boots many times (SESAME_HANDOVERS, default 50) and sends SIGTERM at a random moment:
// either init ends before the application is started, or the application gets it.
func TestNoSignalIsLostOverTheHandOver(t *testing.T) {
	buildLinux(t)
	times := 50
	if text := os.Getenv("SESAME_HANDOVERS"); text != "" {
		var err error
		if times, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	for _, processOne := range []bool{false, true} {
		for _, mode := range []string{"supervise", "exec"} {
			if processOne && mode == "exec" {
				continue // then the application is process 1, and the kernel drops what it does not catch
			}
			t.Run(fmt.Sprintf("process 1 %v, %s", processOne, mode), func(t *testing.T) { handOver(t, times, processOne, mode) })
		}
	}
}

func handOver(t *testing.T, times int, processOne bool, mode string) {
	dir := t.TempDir()
	config := filepath.Join(dir, "init.json")
	text := fmt.Sprintf(`{"platform": "linux", "backend": "none", "root": {}, "collateral": {},
		"linux": {"mode": %q, "uid": 0}, "app": {"path": %q, "args": ["wait"]}}`, mode, filepath.Join(linuxBuild.dir, "probe"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func() *linuxRun {
		args := []string{filepath.Join(linuxBuild.dir, "init-linux"), "--config", config}
		if processOne {
			args = append([]string{"unshare", "--pid", "--fork", "--mount-proc", "--kill-child"}, args...)
		}
		r := &linuxRun{t: t, cmd: exec.Command(args[0], args[1:]...), out: &safeBuffer{}}
		r.cmd.Stdout, r.cmd.Stderr = r.out, r.out
		r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := r.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return r
	}
	// pid of init once it takes signals. In mode exec one that comes before ends it, which is no loss.
	pid := func(r *linuxRun) (pid int) {
		eventually(t, "init has begun", func() bool {
			pid = r.cmd.Process.Pid
			if processOne {
				pid = 0
				for _, child := range children(t, r.cmd.Process.Pid) {
					pid = child
				}
			}
			return mode == "exec" || pid != 0 && len(children(t, pid)) > 0
		})
		return pid
	}
	boot := time.Hour // from there until the application waits, the shortest of three times: the first one is slow
	for range 3 {
		r := start()
		of := pid(r)
		begun := time.Now()
		r.waitFor("waiting")
		boot = min(boot, time.Since(begun))
		if err := syscall.Kill(of, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if status := r.status(); status != 7 {
			t.Fatalf("exit status %d:\n%s", status, r.out)
		}
	}
	boot = max(boot, time.Millisecond)
	random := rand.New(rand.NewPCG(14, 11))
	ends := map[string]int{}
	for range times {
		r := start()
		of := pid(r)
		moment := time.NewTimer(time.Duration(random.Int64N(int64(2 * boot))))
		<-moment.C
		if err := syscall.Kill(of, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		late := time.AfterFunc(30*time.Second, func() { _ = r.cmd.Process.Kill() })
		status := r.status()
		late.Stop()
		said := r.out.String()
		switch {
		case status == exitCodes[attest.CodeStopped] && !strings.Contains(said, "waiting"):
			ends["before the application"]++
		case status == 7 && strings.Contains(said, "got terminated"):
			ends["caught by the application"]++
		case (status == 128+15 || mode == "exec" && r.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGTERM) && !strings.Contains(said, "got"):
			ends["it ended the application that did not catch it yet"]++
		default:
			t.Fatalf("exit status %d, %v:\n%s", status, r.cmd.ProcessState, said)
		}
	}
	t.Logf("%d boots of %v: %v", times, boot, ends)
	if times >= 50 && len(ends) < 2 {
		t.Errorf("all ended in one way: %v", ends)
	}
}
