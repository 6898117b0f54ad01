// Package probe tests the simulator from inside: a C program that asks it, call by call, for the answers of the real
// LibOS, and a Go program that boots in it again and again.
package probe

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/occlum/occlumconf"
	"github.com/sesame-init/sesame/internal/testenv"
	_ "github.com/sesame-init/sesame/lab/occlumsim/libos" // is in the programs under test: a change of it makes the tests run
)

// tools are the programs that the tests build once.
var tools struct{ dir, occlum string }

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "probe")
	if err != nil {
		panic(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // for other users, too
		panic(err)
	}
	tools.dir, tools.occlum = dir, filepath.Join(dir, "occlum")
	out, err := exec.Command("go", "build", "-o", tools.occlum, "../../occlum").CombinedOutput()
	if err != nil {
		panic(fmt.Sprintf("building the simulator: %v\n%s", err, out))
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// needSimulator makes sure that the machine can run the simulator.
func needSimulator(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		testenv.UserNamespaces(t)
	}
}

// compile builds the probe against musl, as the initfs holds it.
func compile(t *testing.T, flags ...string) string {
	t.Helper()
	cc := testenv.Program(t, "musl", "musl-gcc", "musl-tools")
	program := filepath.Join(t.TempDir(), "probe")
	args := append([]string{"-O1", "-Wall", "-Wextra", "-Werror", "-o", program, "testdata/probe.c"}, flags...)
	if out, err := exec.Command(cc, args...).CombinedOutput(); err != nil {
		t.Fatalf("compiling the probe: %v\n%s", err, out)
	}
	return program
}

// instance is an instance directory with an encrypted image and, in models, a volume with a key of its own.
type instance struct {
	dir                   string
	key, wrong, volumeKey sefs.Key
	mac                   sefs.MAC

	credential *syscall.Credential // who runs it, nil: who runs the test
	state      string              // that user's state directory
}

func newInstance(t *testing.T, program string) *instance {
	t.Helper()
	needSimulator(t)
	in := &instance{
		dir: filepath.Join(t.TempDir(), "instance"),
		key: sefs.Key{1}, wrong: sefs.Key{2}, volumeKey: sefs.Key{3}, state: filepath.Join(tools.dir, "state"),
	}
	in.occlum(t, ".", "new", "--init", program, in.dir)

	path := filepath.Join(in.dir, "Occlum.json")
	conf, err := occlumconf.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	conf.EntryPoints = []string{"/bin/app"}
	conf.Env.Default = []string{"PROBE_DEFAULT=trusted", "PROBE_BOTH=trusted", "PROBE_SECOND=default"}
	conf.Env.Untrusted = []string{"PROBE_BOTH", "PROBE_UNTRUSTED"}
	conf.Mount = conf.Mount[:1] // the root; no directory of the host
	in.configure(t, conf)

	if err := os.Symlink("/proc/mounts", filepath.Join(in.dir, "initfs/etc/mtab")); err != nil {
		t.Fatal(err)
	}
	in.install(t, program, "image/bin/app")
	in.install(t, program, "image/bin/other")
	in.write(t, "image/etc/image", "the image")
	in.write(t, "image/mnt/.keep", "")
	in.write(t, "image/run/secrets/.keep", "")
	in.write(t, "weights/weights", strings.Repeat("weights ", 10000))
	if in.mac, err = sefs.Create(context.Background(), filepath.Join(in.dir, "models"),
		os.DirFS(filepath.Join(in.dir, "weights")), sefs.CreateOptions{Key: &in.volumeKey}); err != nil {
		t.Fatal(err)
	}
	in.write(t, "image.key", keyText(in.key)+"\n")
	return in
}

// configure writes Occlum.json.
func (in *instance) configure(t *testing.T, conf *occlumconf.Config) {
	t.Helper()
	text, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	in.write(t, "Occlum.json", string(text))
}

// limits changes the resource limits of Occlum.json.
func (in *instance) limits(t *testing.T, change func(*occlumconf.ResourceLimits)) {
	t.Helper()
	conf, err := occlumconf.Load(filepath.Join(in.dir, "Occlum.json"))
	if err != nil {
		t.Fatal(err)
	}
	change(&conf.ResourceLimits)
	in.configure(t, conf)
}

// keyText is a key in the form of key files and mount options.
func keyText(k sefs.Key) string { return string(sefs.EncodeKey(k).Expose()) }

func (in *instance) write(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join(in.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (in *instance) install(t *testing.T, program, name string) {
	t.Helper()
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(in.dir, name), b, 0o755); err != nil {
		t.Fatal(err)
	}
}

// build writes what the probe is to do and builds the instance.
func (in *instance) build(t *testing.T, mode string) {
	t.Helper()
	in.write(t, "initfs/etc/probe", fmt.Sprintf("mode %s\nkey %s\nwrong %s\ndir ./models\nvolume_key %s\nmac %s\n",
		mode, keyText(in.key), keyText(in.wrong), keyText(in.volumeKey), in.mac))
	in.occlum(t, in.dir, "build", "--image-key", "image.key")
}

func (in *instance) occlum(t *testing.T, dir string, args ...string) {
	t.Helper()
	if status, _, stderr := in.run(t, dir, args...); status != 0 {
		t.Fatalf("occlum %v: exit status %d\n%s", args, status, stderr)
	}
}

// limit is more than any run of the probe takes, on a busy machine, too.
const limit = 3 * time.Minute

// command is the simulator's.
func (in *instance) command(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, tools.occlum, args...)
	cmd.WaitDelay = time.Second
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+in.state,
		"PROBE_BOTH=host", "PROBE_UNTRUSTED=host", "PROBE_UNLISTED=host")
	if in.credential != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: in.credential}
	}
	return cmd
}

// run runs the simulator and returns its exit status and what it printed.
func (in *instance) run(t *testing.T, dir string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := in.command(ctx, dir, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if ctx.Err() != nil || err != nil && !errors.As(err, &exit) {
		t.Fatalf("occlum %v: %v, %v\n%s\n%s", args, ctx.Err(), err, &out, &errs)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func TestEveryAnswerIsTheLibOSs(t *testing.T) {
	for name, flags := range map[string][]string{
		"with a shared C library": {"-fPIE", "-pie"},
		// All of it in one file, which names a loader as a Go program does: the LibOS runs none without.
		"with its C library in it": {"-fPIE", "-pie", "-Wl,-Bstatic"},
	} {
		t.Run(name, func(t *testing.T) {
			in := newInstance(t, compile(t, flags...))
			in.build(t, "table")
			in.checkTable(t)
		})
	}
}

// TestOrdinaryUserGetsTheSameAnswers runs the table as a user who has user namespaces and nothing else.
func TestOrdinaryUserGetsTheSameAnswers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("whoever runs this is one: the other test was enough")
	}
	testenv.UserNamespaces(t)
	const nobody = 65534
	in := newInstance(t, compile(t, "-fPIE", "-pie"))
	for dir := in.dir; dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	in.credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	in.state = filepath.Join(in.dir, "state")
	in.write(t, "initfs/etc/probe", "")
	if err := filepath.WalkDir(in.dir, func(name string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(name, nobody, nobody))
	}); err != nil {
		t.Fatal(err)
	}
	in.build(t, "table")
	in.checkTable(t)
}

// checkTable runs the instance and compares all answers, and then what the application was given.
func (in *instance) checkTable(t *testing.T) {
	t.Helper()
	status, stdout, stderr := in.run(t, in.dir, "run", "/bin/app", "one", "two")

	rows, ended := 0, false
	app := make(map[string][]string)
	for line := range strings.Lines(stdout) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		switch {
		case fields[0] == "row" && len(fields) == 4:
			rows++
			got, err := strconv.ParseInt(fields[2], 10, 64)
			want, err2 := strconv.ParseInt(fields[3], 10, 64)
			if strings.HasSuffix(fields[1], "to /dev/sgx") || strings.HasSuffix(fields[1], "from /dev/sgx") {
				if info, err := os.Stat("/dev/fuse"); err != nil || in.credential != nil && info.Mode().Perm()&0o006 != 6 {
					continue // where the user may not open that, see sgxNode in package libos
				}
			}
			if err != nil || err2 != nil || got != want {
				t.Errorf("%s: got %s, want %s", fields[1], fields[2], fields[3])
			}
		case fields[0] == "end":
			ended = true
		default:
			app[fields[0]] = append(app[fields[0]], strings.Join(fields[1:], "\t"))
		}
	}
	if !ended || status != 0 {
		t.Fatalf("after %d rows the probe did not come to its end; exit status %d\n%s\n%s", rows, status, stdout, stderr)
	}
	if rows < 700 {
		t.Errorf("only %d rows", rows)
	}

	for kind, want := range map[string][]string{
		"app": {"/\t3"},
		"arg": {"/bin/app", "one", "two"},
		// The probe's files stay open to the application: mounts outlive init.
		"file": {"/mnt/weights\t0", "/etc/kept\t1", "/run/secrets/made\t0"},
	} {
		if fmt.Sprint(app[kind]) != fmt.Sprint(want) {
			t.Errorf("the application has %s %q, want %q", kind, app[kind], want)
		}
	}
	env := make(map[string]string)
	for _, e := range app["env"] {
		name, value, _ := strings.Cut(e, "=")
		if _, twice := env[name]; twice {
			t.Errorf("the application has %s twice", name)
		}
		env[name] = value
	}
	for name, want := range map[string]string{
		"PROBE_DEFAULT": "trusted", "PROBE_BOTH": "host", "PROBE_UNTRUSTED": "host",
		// The merge of a call to 363 holds even if the call then fails with EPERM.
		"PROBE_SECOND": "2",
	} {
		if env[name] != want {
			t.Errorf("the application has %s=%q, want %q", name, env[name], want)
		}
	}
	for _, name := range []string{"PROBE_UNLISTED", "PATH", "PROBE_FIRST"} {
		if _, ok := env[name]; ok {
			t.Errorf("the application has %s", name)
		}
	}
	t.Logf("%d rows", rows)
}

// TestConfigOf363ChangesLayersEntryPointAndHostFS covers what a config may change about the root, and what that costs: an image that is named
// there is not compared with any MAC.
func TestConfigOf363ChangesLayersEntryPointAndHostFS(t *testing.T) {
	in := newInstance(t, compile(t, "-fPIE", "-pie"))
	path := filepath.Join(in.dir, "Occlum.json")
	conf, err := occlumconf.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	conf.Mount = append(conf.Mount, occlumconf.Mount{Type: "hostfs", Target: "/host", Source: "."})
	in.configure(t, conf)
	in.build(t, "layers")
	if err := os.MkdirAll(filepath.Join(in.dir, "other/upper/__ROOT"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"the other image", "the other image, changed"} {
		in.write(t, "image/etc/image", content)
		if err := os.RemoveAll(filepath.Join(in.dir, "other/lower")); err != nil {
			t.Fatal(err)
		}
		if _, err := sefs.Create(t.Context(), filepath.Join(in.dir, "other/lower"),
			os.DirFS(filepath.Join(in.dir, "image")), sefs.CreateOptions{Key: &in.volumeKey}); err != nil {
			t.Fatal(err)
		}
		status, stdout, stderr := in.run(t, in.dir, "run", "/bin/other")
		if status != 0 {
			t.Fatalf("exit status %d\n%s\n%s", status, stdout, stderr)
		}
		for line := range strings.Lines(stdout) {
			if f := strings.Split(strings.TrimSpace(line), "\t"); f[0] == "row" && f[2] != f[3] {
				t.Errorf("%s: got %s, want %s", f[1], f[2], f[3])
			}
		}
		for _, want := range []string{"row\t363: other layers\t0\t0\n", "file\t/mnt/weights\t0\n", "file\t/etc/kept\t0\n"} {
			if !strings.Contains(stdout, want) {
				t.Errorf("%q is not in\n%s", want, stdout)
			}
		}
	}
	if status, _, stderr := in.run(t, in.dir, "run", "/bin/app"); status != 127 || !strings.Contains(stderr, "/bin/other") {
		t.Errorf("the entry point of Occlum.json: exit status %d\n%s", status, stderr)
	}
}

func TestOnlyEntryPointsStart(t *testing.T) {
	in := newInstance(t, compile(t, "-fPIE", "-pie"))
	in.build(t, "table")
	for _, c := range []struct {
		program string
		status  int
	}{
		{"/bin/app", 0}, {"/bin/other", 127}, {"/bin/application", 127}, {"/bin", 127}, {"bin/app", 127},
		{"/bin/../bin/app", 127},
	} {
		status, _, stderr := in.run(t, in.dir, "run", c.program)
		if status != c.status {
			t.Errorf("%s: exit status %d, want %d\n%s", c.program, status, c.status, stderr)
		}
	}
	if status, _, stderr := in.run(t, in.dir, "run", "/bin/app", "exit", "7"); status != 7 {
		t.Errorf("the application's exit status 7 came out as %d\n%s", status, stderr)
	}
}

func TestExitStatusOfInitDecides(t *testing.T) {
	in := newInstance(t, compile(t, "-fPIE", "-pie"))
	for _, c := range []struct {
		mode   string
		code   string // in the LibOS's message; "" where init counts as successful
		status int
	}{
		{"exit:3", "code: 3", 1},
		{"exit:127", "code: 127", 1},
		{"exit:131", "code: 3", 1}, // & 0x7F
		{"abort", "code: 134", 1},
		// Without 363 the application is looked up in the initfs, which has none.
		{"exit:0", "", 127},
		{"exit:128", "", 127},
	} {
		t.Run(c.mode, func(t *testing.T) {
			in.build(t, c.mode)
			status, stdout, stderr := in.run(t, in.dir, "run", "/bin/app")
			if status != c.status || !strings.Contains(stderr, c.code) {
				t.Errorf("exit status %d, want %d; message %q, want %q", status, c.status, stderr, c.code)
			}
			if strings.Contains(stdout, "app\t") {
				t.Error("the application ran")
			}
			if c.code == "" && strings.Contains(stderr, "init process exit") {
				t.Errorf("init counts as failed: %q", stderr)
			}
		})
	}
	// What is in the initfs itself can be started then.
	in.install(t, filepath.Join(in.dir, "initfs/bin/init"), "initfs/bin/app")
	in.build(t, "exit:0")
	if status, stdout, stderr := in.run(t, in.dir, "run", "/bin/app"); status != 0 || !strings.Contains(stdout, "app\t") {
		t.Errorf("a program of the initfs: exit status %d\n%s\n%s", status, stdout, stderr)
	}
}

// TestSignalsEndApplicationsThatHandleNone covers all ways to run an application, as the first of its pid namespace, too.
func TestSignalsEndApplicationsThatHandleNone(t *testing.T) {
	in := newInstance(t, compile(t, "-fPIE", "-pie"))
	in.install(t, filepath.Join(in.dir, "initfs/bin/init"), "initfs/bin/app")
	in.build(t, "exit:0")
	for _, flags := range [][]string{nil, {"--strict-app"}, {"--isolate-app"}, {"--isolate-app", "--strict-app"}} {
		for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGUSR1} {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			cmd := in.command(ctx, in.dir, slices.Concat([]string{"run"}, flags, []string{"/bin/app", "rest", "resting"})...)
			var errs bytes.Buffer
			cmd.Stderr = &errs
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil || line != "resting\n" {
				t.Errorf("%v: the application says %q, %v", flags, line, err)
			}
			_ = cmd.Process.Signal(signal)
			_ = cmd.Wait()
			if got, want := cmd.ProcessState.ExitCode(), 128+int(signal); got != want {
				t.Errorf("%v: after %v the exit status is %d, want %d; %v\n%s", flags, signal, got, want, ctx.Err(), &errs)
			}
			cancel()
		}
	}
}

func TestThreadTooManyEndsTheEnclave(t *testing.T) {
	in := newInstance(t, compile(t, "-fPIE", "-pie"))
	in.limits(t, func(l *occlumconf.ResourceLimits) { l.MaxThreads = 7 })
	in.build(t, "greedy")
	// The first thread is there already.
	status, stdout, stderr := in.run(t, in.dir, "run", "/bin/app")
	if status != 1 || !strings.HasSuffix(stdout, "threads\t6\nthreads\t7\n") ||
		!strings.Contains(stderr, "more threads than the enclave has, 7 (resource_limits.max_num_of_threads)") {
		t.Errorf("exit status %d\n%s\n%s", status, stdout, stderr)
	}
	in.limits(t, func(l *occlumconf.ResourceLimits) { l.MaxThreads = 65 })
	in.build(t, "greedy")
	if status, stdout, stderr := in.run(t, in.dir, "run", "/bin/app"); status != 127 ||
		!strings.Contains(stdout, "threads\t64\n") {
		t.Errorf("with threads enough: exit status %d\n%s\n%s", status, stdout, stderr)
	}
}

func TestProgramMustFitIntoTheLibOSsHeap(t *testing.T) {
	in := newInstance(t, compile(t, "-fPIE", "-pie"))
	in.limits(t, func(l *occlumconf.ResourceLimits) { l.KernelHeap = 100 << 10 })
	in.build(t, "exit:0")
	if status, stdout, stderr := in.run(t, in.dir, "run", "/bin/app"); status != 1 || stdout != "" ||
		!strings.Contains(stderr, "the LibOS's own heap, 100KB (resource_limits.kernel_space_heap_size)") {
		t.Errorf("exit status %d\n%s\n%s", status, stdout, stderr)
	}
}

func TestWhatInitLeavesRunningDelaysNoApplication(t *testing.T) {
	in := newInstance(t, compile(t, "-fPIE", "-pie"))
	in.install(t, filepath.Join(in.dir, "initfs/bin/init"), "initfs/bin/app")
	in.build(t, "leave")
	for _, flag := range []string{"", "--strict-app"} {
		status, stdout, stderr := in.run(t, in.dir, slices.DeleteFunc([]string{"run", flag, "/bin/app"},
			func(s string) bool { return s == "" })...)
		if status != 0 || !strings.HasPrefix(stdout, "app\t") {
			t.Errorf("%s: exit status %d\n%s\n%s", flag, status, stdout, stderr)
		}
	}
}

// TestStrictProgramExecutesWhatTheLibOSLoads is about execve, by which the launcher becomes the application.
func TestStrictProgramExecutesWhatTheLibOSLoads(t *testing.T) {
	in := newInstance(t, compile(t, "-fPIE", "-pie"))
	in.install(t, filepath.Join(in.dir, "initfs/bin/init"), "initfs/bin/app")
	in.install(t, compile(t, "-static"), "initfs/bin/static")
	in.build(t, "exit:0")
	for _, c := range []struct {
		program string
		status  int
	}{{"/bin/init", 0}, {"/bin/static", int(syscall.ENOEXEC)}, {"/bin/missing", int(syscall.ENOENT)}, {"/etc", int(syscall.EACCES)}} {
		status, stdout, stderr := in.run(t, in.dir, "run", "--strict-app", "/bin/app", "exec", c.program)
		if status != c.status {
			t.Errorf("%s: exit status %d, want %d\n%s\n%s", c.program, status, c.status, stdout, stderr)
		}
	}
	if status, stdout, stderr := in.run(t, in.dir, "run", "/bin/app", "exec", "/bin/static"); status != 0 {
		t.Errorf("without the LibOS's rules: exit status %d\n%s\n%s", status, stdout, stderr)
	}
}

func TestStaticProgramsAreRefused(t *testing.T) {
	dynamic := compile(t, "-fPIE", "-pie")
	for _, c := range []struct {
		name, program, want string
	}{
		{"static", compile(t, "-static"), "exec format error"},
		{"static, position-independent", withoutInterpreter(t, dynamic), "invalid argument"},
		{"program headers elsewhere", headersElsewhere(t, dynamic), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := newInstance(t, c.program)
			in.build(t, "exit:0")
			status, stdout, stderr := in.run(t, in.dir, "run", "/bin/app")
			if status != 1 || !strings.Contains(stderr, c.want) {
				t.Errorf("exit status %d\n%s\n%s", status, stdout, stderr)
			}
		})
	}
}
