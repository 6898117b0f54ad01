package main

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/occlum/goruntime/overlay"
	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/occlumsim"
	"github.com/sesame-init/sesame/lab/occlumsim/libos"
)

func TestMain(m *testing.M) {
	if status, reexecuted := libos.Reexec(); reexecuted {
		os.Exit(status)
	}
	testscript.Main(cleaning{m}, map[string]func(){"occlum": func() { os.Exit(run()) }})
}

// cleaning removes what the tests have built.
type cleaning struct{ *testing.M }

func (c cleaning) Run() int {
	code := c.M.Run()
	if dir, _ := programs(); dir != "" {
		_ = os.RemoveAll(dir)
	}
	return code
}

// programs builds the probe once for all tests: with the runtime overlay, with half of it, and without.
var programs = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "occlum-test-"); err != nil {
		return "", err
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return dir, err
	}
	full, err := overlay.Write(filepath.Join(dir, "overlay"), strings.TrimSpace(string(goroot)), overlay.Hunks())
	if err != nil {
		return dir, err
	}
	for _, p := range []struct {
		name  string
		flags []string
	}{
		{"probe", []string{"-buildmode=pie", "-overlay", full}},
		{"stock", []string{"-buildmode=pie"}},
		{"static", nil},
	} {
		args := append([]string{"build", "-trimpath", "-ldflags", "-s -w -I " + occlumsim.MuslLoader,
			"-o", filepath.Join(dir, p.name)}, p.flags...)
		cmd := exec.Command("go", append(args, "../occlumsim/libos/testdata/probe")...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return dir, errors.Join(err, errors.New(string(out)))
		}
	}
	return dir, nil
})

// built is the directory of the programs; it makes sure that the machine can run them.
func built(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat(occlumsim.MuslLoader); err != nil {
		testenv.Missing(t, "musl", err.Error()+" (Debian package musl)")
	}
	if os.Geteuid() != 0 {
		testenv.UserNamespaces(t)
	}
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestScripts(t *testing.T) {
	dir := built(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("XDG_STATE_HOME", filepath.Join(env.WorkDir, "state"))
			env.Setenv("BIN", dir)
			env.Setenv("LONG", strings.Repeat("x", 16<<10))
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"volume": makeVolume,
			"setenv": setFromFile,
			"append": appendText,
			"flip":   flip,
		},
	})
}

// makeVolume is "volume KEYFILE SRC DST": it makes an encrypted volume, and sets $MAC.
func makeVolume(ts *testscript.TestScript, _ bool, args []string) {
	key, err := sefs.ParseKey([]byte(ts.ReadFile(args[0])))
	ts.Check(err)
	mac, err := sefs.Create(context.Background(), ts.MkAbs(args[2]), os.DirFS(ts.MkAbs(args[1])),
		sefs.CreateOptions{Key: &key})
	ts.Check(err)
	ts.Setenv("MAC", mac.String())
}

// setFromFile is "setenv NAME FILE".
func setFromFile(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile(args[1])))
}

// appendText is "append FILE TEXT".
func appendText(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o644)
	ts.Check(err)
	_, err = f.WriteString(args[1])
	ts.Check(errors.Join(err, f.Close()))
}

// flip is "flip FILE": it changes one bit in the middle of a file.
func flip(ts *testscript.TestScript, _ bool, args []string) {
	name := ts.MkAbs(args[0])
	text, err := os.ReadFile(name)
	ts.Check(err)
	text[len(text)/2] ^= 1
	ts.Check(os.WriteFile(name, text, 0o644))
}

// instance builds an instance whose init does what script says, and whose application is the probe.
func instance(t *testing.T, script string) string {
	t.Helper()
	bin := built(t)
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	dir := filepath.Join(t.TempDir(), "instance")
	if err := occlumsim.New(dir, occlumsim.NewOptions{Init: filepath.Join(bin, "probe"),
		Libc: occlumsim.MuslLoader}); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(filepath.Join(bin, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"image/bin/app": program, "initfs/etc/probe": []byte(script)} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := occlum(t, dir, "build").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return dir
}

// occlum is the command in an instance.
func occlum(t *testing.T, dir string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Args = append([]string{"occlum"}, args...)
	cmd.Dir = dir
	return cmd
}

// waiting starts an application that waits for a signal, and returns when it waits.
func waiting(t *testing.T, dir string, command ...string) *exec.Cmd {
	t.Helper()
	cmd := occlum(t, dir, append(command, "/bin/app", "wait")...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the application says %q, want ready: %v", line, err)
	}
	return cmd
}

func TestRunPassesSignalsToTheApplication(t *testing.T) {
	dir := instance(t, "root - 0")
	for _, flags := range [][]string{nil, {"--strict-app"}, {"--isolate-app"}, {"--isolate-app", "--strict-app"}} {
		for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGUSR1} {
			cmd := waiting(t, dir, append([]string{"run"}, flags...)...)
			if err := cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != int(s) {
				t.Errorf("%v: after %v the exit status is %d, want %d", flags, s, got, int(s))
			}
		}
	}
}

func TestExecPassesSignalsAndEndsWithItsCaller(t *testing.T) {
	dir := instance(t, "root - 0")
	if out, err := occlum(t, dir, "start").CombinedOutput(); err != nil {
		t.Fatalf("start: %v\n%s", err, out)
	}
	cmd := waiting(t, dir, "exec")
	if err := cmd.Process.Signal(unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != int(unix.SIGUSR1) {
		t.Errorf("after SIGUSR1 the exit status is %d, want %d", got, int(unix.SIGUSR1))
	}
	// The application holds the write end of the pipe: it is gone when the pipe ends.
	killed := occlum(t, dir, "exec", "/bin/app", "wait")
	out, err := killed.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := killed.Start(); err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(out)
	if line, err := reader.ReadString('\n'); line != "ready\n" {
		t.Fatalf("the application says %q: %v", line, err)
	}
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(reader); err != nil || len(rest) > 0 {
		t.Errorf("after its caller the application says %q: %v", rest, err)
	}
	_ = killed.Wait()
	if out, err := occlum(t, dir, "stop").CombinedOutput(); err != nil {
		t.Fatalf("stop: %v\n%s", err, out)
	}
}

func TestQuoteSaysWhatTheEnclaveIsAndVerifies(t *testing.T) {
	dir := instance(t, "root - 0")
	config, err := os.ReadFile(filepath.Join(dir, "Occlum.json"))
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.NewReplacer(`"enable_kss": false`, `"enable_kss": true`, `"product_id": 0`, `"product_id": 7`,
		`"version_number": 0`, `"version_number": 3`, `"debuggable": true`, `"debuggable": false`).Replace(string(config))
	if err := os.WriteFile(filepath.Join(dir, "Occlum.json"), []byte(edited), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := occlum(t, dir, "build").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	platform := filepath.Join(t.TempDir(), "platform")
	id := [64]byte{0: 1, 63: 2}
	cmd := occlum(t, dir, "run", "--platform", platform, "--config-id", base64.StdEncoding.EncodeToString(id[:]),
		"--config-svn", "9", "/bin/app", "quote")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	quote, err := hex.DecodeString(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	machine, err := occlumsim.LoadMachine(platform)
	if err != nil {
		t.Fatal(err)
	}
	verifier := dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{machine.Platform.RootCA()},
		Source: pccs.Stapled(machine.Platform.Collateral())})
	claims, err := verifier.Verify(t.Context(), attest.Evidence{Type: attest.SGX, Raw: quote}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	enclave, err := (&occlumsim.Instance{Dir: dir}).LoadEnclave()
	if err != nil {
		t.Fatal(err)
	}
	got := claims.SGX
	if hex.EncodeToString(got.MREnclave[:]) != enclave.MREnclave || got.ProductID != 7 || got.SVN != 3 || got.Debug() ||
		got.ConfigID != id || got.ConfigSVN != 9 || got.MRSigner == [32]byte{} {
		t.Errorf("the quote says %+v", got)
	}
	if claims.ReportData != (attest.ReportData{0: 7, 63: 7}) {
		t.Errorf("the quote binds %x", claims.ReportData)
	}

	// A platform that lacks a file makes none.
	if err := os.Remove(filepath.Join(platform, "attestation.key")); err != nil {
		t.Fatal(err)
	}
	if out, err := occlum(t, dir, "run", "--platform", platform, "/bin/app", "quote").CombinedOutput(); err == nil {
		t.Errorf("a broken platform makes a quote:\n%s", out)
	}
}

func TestSecondRunOfAnInstanceIsRefusedWhileTheFirstRuns(t *testing.T) {
	dir := instance(t, "root - 0")
	first := waiting(t, dir, "run")
	out, err := occlum(t, dir, "run", "/bin/app", "env").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another running instance holds the volume") {
		t.Errorf("the second run ends with %v and says:\n%s", err, out)
	}
	_ = first.Process.Signal(unix.SIGTERM)
	_ = first.Wait()
	if out, err := occlum(t, dir, "run", "/bin/app", "env").CombinedOutput(); err != nil {
		t.Errorf("after the first run the next one ends with %v:\n%s", err, out)
	}
}

func TestKilledRunLeavesNeitherProcessesNorMountsNorLocks(t *testing.T) {
	dir := instance(t, "root - 0")
	cmd := waiting(t, dir, "run")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	// The lock goes when the last process is gone: the kernel ends them one after the other.
	lock, err := os.Open(filepath.Join(dir, occlumsim.InitFSVolume, "metadata"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	alarm := time.AfterFunc(20*time.Second, func() { panic("the killed run still holds its lock") })
	defer alarm.Stop()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), dir) {
		t.Errorf("mounts are left:\n%s", mounts)
	}
}
