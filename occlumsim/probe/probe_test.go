// Package probe tests the simulator from inside: a C program that asks it, call by call, for the answers of the real
// LibOS, and a Go program that boots in it again and again.
package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/packaging/occlumconf"
)

// tools are the programs that the tests build once.
var tools struct{ dir, occlum string }

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "probe")
	if err != nil {
		panic(err)
	}
	tools.dir, tools.occlum = dir, filepath.Join(dir, "occlum")
	out, err := exec.Command("go", "build", "-o", tools.occlum, "../../cmd/occlum").CombinedOutput()
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
}

func newInstance(t *testing.T, program string) *instance {
	t.Helper()
	needSimulator(t)
	in := &instance{
		dir: filepath.Join(t.TempDir(), "instance"),
		key: sefs.Key{1}, wrong: sefs.Key{2}, volumeKey: sefs.Key{3},
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
	text, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	in.write(t, "Occlum.json", string(text))

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

// limit is more than any run of the probe takes.
const limit = time.Minute

// run runs the simulator and returns its exit status and what it printed.
func (in *instance) run(t *testing.T, dir string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, tools.occlum, args...)
	cmd.WaitDelay = time.Second
	var out, errs bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &errs
	cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+filepath.Join(tools.dir, "state"),
		"PROBE_BOTH=host", "PROBE_UNTRUSTED=host", "PROBE_UNLISTED=host")
	err := cmd.Run()
	var exit *exec.ExitError
	if ctx.Err() != nil || err != nil && !errors.As(err, &exit) {
		t.Fatalf("occlum %v: %v, %v\n%s\n%s", args, ctx.Err(), err, &out, &errs)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func TestEveryAnswerIsTheLibOSs(t *testing.T) {
	in := newInstance(t, compile(t, "-fPIE", "-pie"))
	in.build(t, "table")
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
	if rows < 400 {
		t.Errorf("only %d rows", rows)
	}

	for kind, want := range map[string][]string{
		"app": {"/\t3"},
		"arg": {"/bin/app", "one", "two"},
		// The probe's files stay open to the application: mounts outlive init.
		"file": {"/mnt/weights\t0", "/run/secrets/made\t0"},
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
		// The merge of a call to 363 holds even where the call then fails with EPERM.
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
		// Without 363 the application is looked up in the initfs, where there is none.
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
	// What stands in the initfs itself can be started then.
	in.install(t, filepath.Join(in.dir, "initfs/bin/init"), "initfs/bin/app")
	in.build(t, "exit:0")
	if status, stdout, stderr := in.run(t, in.dir, "run", "/bin/app"); status != 0 || !strings.Contains(stdout, "app\t") {
		t.Errorf("a program of the initfs: exit status %d\n%s\n%s", status, stdout, stderr)
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
