package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/tpm"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
	"github.com/sesame-init/sesame/lab/swtpm"
)

// linuxBuild is init-linux and the probe, built once, and a software TPM.
var linuxBuild struct {
	once    sync.Once
	dir     string
	machine *swtpm.Machine
	err     error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if linuxBuild.dir != "" {
		_ = os.RemoveAll(linuxBuild.dir)
	}
	os.Exit(code)
}

func buildLinux(t *testing.T) {
	t.Helper()
	testenv.Root(t)
	testenv.FUSE(t)
	testenv.Program(t, "swtpm", swtpm.Program, "swtpm swtpm-tools")
	linuxBuild.once.Do(func() {
		linuxBuild.err = func() (err error) {
			if linuxBuild.dir, err = os.MkdirTemp("", "init-linux"); err != nil {
				return err
			}
			if err := os.Chmod(linuxBuild.dir, 0o755); err != nil { // the application has a user of its own
				return err
			}
			for name, args := range map[string][]string{
				"init-linux": {"-tags", "plainlinux", "."}, "probe": {"./testdata/probe"},
			} {
				cmd := exec.Command("go", append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o",
					filepath.Join(linuxBuild.dir, name)}, args...)...)
				cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
				if out, err := cmd.CombinedOutput(); err != nil {
					return fmt.Errorf("building %s: %w\n%s", name, err, out)
				}
			}
			linuxBuild.machine, err = swtpm.New(context.Background(), filepath.Join(linuxBuild.dir, "tpm"))
			return err
		}()
	})
	if linuxBuild.err != nil {
		t.Fatal(linuxBuild.err)
	}
}

const (
	configRegister = 12
	secretCanary   = "canary-91c4"
	volumeKeyText  = "5e-a1-0d-c4-93-7b-f2-68-1c-e0-b5-4a-d7-29-86-3f"
)

// linuxBoot is a machine with a TPM, a broker that knows it, and a config for init-linux.
type linuxBoot struct {
	t        *testing.T
	program  string // init-linux
	dir      string
	config   map[string]any
	device   *tpm.Device
	socket   string
	log      *safeBuffer
	policies *broker.Policies
	version  int
}

// safeBuffer is output that tells when it grows.
type safeBuffer struct {
	mu   sync.Mutex
	b    bytes.Buffer
	more chan struct{} // closed at the next write; nil if no one waits
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.more != nil {
		close(s.more)
		s.more = nil
	}
	return s.b.Write(p)
}

// grown returns the output, and what is closed when there is more.
func (s *safeBuffer) grown() (string, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.more == nil {
		s.more = make(chan struct{})
	}
	return s.b.String(), s.more
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newLinuxBoot(t *testing.T, app ...string) *linuxBoot {
	t.Helper()
	buildLinux(t)
	dir, err := os.MkdirTemp("", "boot")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	running, err := linuxBuild.machine.Start(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = running.Stop() })
	device, err := tpm.Open(tpm.Options{Path: running.Socket})
	if err != nil {
		t.Fatal(err)
	}
	b := &linuxBoot{t: t, program: filepath.Join(linuxBuild.dir, "init-linux"), dir: dir, device: device, socket: running.Socket, log: &safeBuffer{}, version: 1}
	mac := b.volume("volume", fstest.MapFS{
		"hello": {Data: []byte("from the volume"), Mode: 0o400}, "another": {Data: []byte("as well"), Mode: 0o400},
	})
	platform, address := b.broker()
	server := httptest.NewServer(platform.PCCS())
	t.Cleanup(server.Close)
	root := filepath.Join(dir, "root.pem")
	if err := os.WriteFile(root, pemOf(platform.RootCA()), 0o644); err != nil {
		t.Fatal(err)
	}
	broker := brokertest.Broker()
	b.config = map[string]any{
		"platform": "linux", "attester": "tpm", "backend": "grpc-ratls", "timeout": "60s",
		"grpc_ratls": map[string]any{
			"servers": []string{address}, "protocol": "session",
			"broker_policy": map[string]any{"sgx": []any{map[string]any{
				"mr_signer": fmt.Sprintf("%x", broker.MRSigner), "product_id": broker.ProductID, "min_svn": broker.SVN,
			}}},
		},
		"tpm":  map[string]any{"device": running.Socket, "config_pcr": configRegister},
		"root": map[string]any{},
		"app":  map[string]any{"path": filepath.Join(linuxBuild.dir, "probe"), "args": app},
		"volumes": []any{map[string]any{
			"source": filepath.Join(dir, "volume"), "target": filepath.Join(dir, "mnt"), "key": "volume_key", "mac": mac,
		}},
		"secrets": []any{map[string]any{"name": "token", "path": "/run/secrets/token", "mode": "0400", "uid": 1234, "gid": 1235}},
		"linux": map[string]any{
			"uid": 1234, "gid": 1235, "groups": []int{1236}, "capabilities": []string{"CAP_NET_BIND_SERVICE"},
			"environment": []string{"GIVEN", "SET=1"},
		},
		"collateral": map[string]any{
			"pccs_url": server.URL + "/sgx/certification/v4/", "allow_http": true, "root_ca": root,
		},
	}
	return b
}

// volume makes a volume in the boot's directory.
func (b *linuxBoot) volume(name string, files fstest.MapFS) (mac string) {
	b.t.Helper()
	key, err := sefs.ParseKey([]byte(volumeKeyText))
	if err != nil {
		b.t.Fatal(err)
	}
	m, err := sefs.Create(b.t.Context(), filepath.Join(b.dir, name), files, sefs.CreateOptions{Key: &key})
	if err != nil {
		b.t.Fatal(err)
	}
	return m.String()
}

// broker starts a key broker on a software platform. enrol says whom it knows.
func (b *linuxBoot) broker() (*softsgx.Platform, string) {
	b.t.Helper()
	platform := brokertest.Platform(b.t, softsgx.Options{Now: time.Now().Add(-time.Hour)})
	identity, err := ratls.NewIdentity(platform.Attester(brokertest.Broker()), ratls.Options{})
	if err != nil {
		b.t.Fatal(err)
	}
	keeper := brokertest.Secrets(b.t, map[string][]byte{"volume_key": []byte(volumeKeyText), "token": []byte(secretCanary)})
	log := brokertest.Logger(b.log)
	first := brokertest.Policy(b.t, policyOf(make([]byte, 32), make([]byte, 32)))
	b.policies = brokertest.Policies(b.t, brokertest.Trust(b.t, platform), first, keeper, log)
	return platform, brokertest.Listen(b.t, broker.Config{
		Identity: identity, Policies: b.policies, Keeper: keeper, Quoter: brokertest.Quoter(platform, brokertest.Broker()),
		Now: time.Now, Logger: log,
	})
}

// policyOf returns a policy that releases everything to one machine with one config.
func policyOf(ak, config []byte) string {
	return fmt.Sprintf(`workloads:
  app:
    versions:
      - tpm: [{ak: %x, pcrs: {0: %x, %d: %x}}]
secrets:
  volume_key: {workloads: [app]}
  token: {workloads: [app]}
`, ak, make([]byte, 32), configRegister, config)
}

// start enrols the machine with the present config, and starts init.
func (b *linuxBoot) start(args ...string) *linuxRun {
	b.t.Helper()
	text := b.write()
	b.enrol(text)
	return b.startOnly(args...)
}

func (b *linuxBoot) write() []byte {
	b.t.Helper()
	text, err := json.Marshal(b.config)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "init.json"), text, 0o644); err != nil {
		b.t.Fatal(err)
	}
	return text
}

func (b *linuxBoot) enrol(text []byte) {
	b.t.Helper()
	e, err := b.device.Evidence(b.t.Context(), attest.ReportData{})
	if err != nil {
		b.t.Fatal(err)
	}
	c, err := new(tpm.Verifier).Verify(b.t.Context(), e, time.Now())
	if err != nil {
		b.t.Fatal(err)
	}
	want := tpm.Measured(sha256.Sum256(text))
	b.version++
	text = []byte(brokertest.PolicyText(b.version, policyOf(c.TPM.AK[:], want[:])))
	if err := b.policies.Replace(b.t.Context(), text, "test"); err != nil {
		b.t.Fatal(err)
	}
}

// linuxRun is a started init.
type linuxRun struct {
	t   *testing.T
	dir string // of the boot
	cmd *exec.Cmd
	out *safeBuffer
}

func (b *linuxBoot) startOnly(args ...string) *linuxRun {
	b.t.Helper()
	r := &linuxRun{t: b.t, dir: b.dir, out: &safeBuffer{}}
	args = append([]string{"--config", filepath.Join(b.dir, "init.json")}, args...)
	r.cmd = exec.Command(b.program, args...)
	r.cmd.Stdout, r.cmd.Stderr, r.cmd.WaitDelay = r.out, r.out, 30*time.Second
	r.cmd.Env = append(os.Environ(), "GIVEN=by the host", "NOT_GIVEN=x")
	leaked, err := os.Open(filepath.Join(b.dir, "init.json"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer leaked.Close()
	r.cmd.ExtraFiles = []*os.File{leaked} // something that init inherits and must not pass on
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = r.cmd.Process.Kill(); _ = r.cmd.Wait() })
	return r
}

// waitFor waits until the output holds a text.
func (r *linuxRun) waitFor(text string) {
	r.t.Helper()
	late := time.After(60 * time.Second)
	for {
		said, more := r.out.grown()
		if strings.Contains(said, text) {
			return
		}
		select {
		case <-more:
		case <-late:
			state, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.cmd.Process.Pid))
			r.t.Fatalf("no %q in:\n%s\ninit is %q, its children %v", text, said, state, children(r.t, r.cmd.Process.Pid))
		}
	}
}

// eventually polls for what only the kernel's tables show.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	late, tick := time.After(20*time.Second), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not so: %s", what)
		}
	}
}

func (r *linuxRun) status() int {
	r.t.Helper()
	err := r.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.t.Fatal(err)
	}
	return r.cmd.ProcessState.ExitCode()
}

// sight is what the probe prints.
type sight struct {
	PID, UID, GID  int
	Groups         []int
	Env, Args      []string
	Descriptors    map[string]string
	Status         map[string]string
	Core           [2]uint64
	Files, Owners  map[string]string
	Root, Writable []string
	Mounts         []string
	Directory      string
}

// noswap says whether the kernel knows this option of tmpfs, as from 6.4 on.
func noswap(t *testing.T) bool {
	t.Helper()
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(release), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return major > 6 || major == 6 && minor >= 4
}

// mount is the line of /proc/self/mountinfo about a directory.
func (s sight) mount(target string) string {
	for _, line := range s.Mounts {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == target {
			return line
		}
	}
	return ""
}

func (r *linuxRun) sight() (s sight) {
	r.t.Helper()
	if status := r.status(); status != 0 {
		r.t.Fatalf("exit status %d:\n%s", status, r.out)
	}
	text := r.out.String()
	if err := json.Unmarshal([]byte(text[strings.Index(text, `{"PID"`):]), &s); err != nil {
		r.t.Fatalf("%v in %s", err, text)
	}
	return s
}

// children are the direct children of a process, by argv[0]; of several of one name, as between fork and exec, the first.
func children(t *testing.T, pid int) map[string]int {
	t.Helper()
	found, started := map[string]int{}, map[string]uint64{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 20 || fields[1] != strconv.Itoa(pid) {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		name, _, _ := strings.Cut(string(line), "\x00")
		at, _ := strconv.ParseUint(fields[19], 10, 64)
		number, _ := strconv.Atoi(filepath.Base(dir))
		if first, taken := started[name]; !taken || at < first || at == first && number < found[name] {
			started[name], found[name] = at, number
		}
	}
	return found
}

// server is the process behind the volume.
func (r *linuxRun) server() int {
	r.t.Helper()
	all := children(r.t, r.cmd.Process.Pid)
	if all["sesame-volume"] == 0 { // which a signal must never be sent to: it is the test's own group
		r.t.Fatalf("no process behind a volume among %v", all)
	}
	return all["sesame-volume"]
}

func TestApplicationGetsWhatTheConfigNamesAndNothingElse(t *testing.T) {
	for _, mode := range []string{"exec", "supervise"} {
		t.Run(mode, func(t *testing.T) {
			b := newLinuxBoot(t)
			volume := filepath.Join(b.dir, "mnt", "hello")
			b.config["app"].(map[string]any)["args"] = []string{"see", volume, "/run/secrets/token"}
			b.config["linux"].(map[string]any)["mode"] = mode
			r := b.start()
			s := r.sight()
			if (s.PID == r.cmd.Process.Pid) != (mode == "exec") {
				t.Errorf("the application is process %d, init was %d", s.PID, r.cmd.Process.Pid)
			}
			if s.Files[volume] != "from the volume" || s.Files["/run/secrets/token"] != secretCanary || len(s.Writable) != 0 {
				t.Errorf("files are %q, writable %q", s.Files, s.Writable)
			}
			if s.Owners["/run/secrets/token"] != "-r-------- 1234 1235" || s.Owners[volume] != "-r-------- 1234 1235" {
				t.Errorf("owners are %q", s.Owners)
			}
			memory := s.mount("/run/secrets")
			if !strings.Contains(memory, "nosuid,nodev") || noswap(t) && !regexp.MustCompile(` - tmpfs .*,noswap`).MatchString(memory) {
				t.Errorf("secrets stand in %q", memory)
			}
			if s.UID != 1234 || s.GID != 1235 || fmt.Sprint(s.Groups) != "[1236]" || s.Directory != "/" {
				t.Errorf("user %d, group %d, groups %d, directory %s", s.UID, s.GID, s.Groups, s.Directory)
			}
			if got := strings.Join(s.Env[1:], " "); !strings.HasPrefix(s.Env[0], "PATH=") || got != "GIVEN=by the host SET=1" {
				t.Errorf("environment is %q", s.Env)
			}
			for _, text := range []string{secretCanary, volumeKeyText, strings.ReplaceAll(volumeKeyText, "-", "")} {
				if strings.Contains(strings.Join(append(s.Env, s.Args...), " "), text) {
					t.Errorf("a secret is in the environment or the command line: %q %q", s.Env, s.Args)
				}
				if log := strings.ReplaceAll(r.out.String(), `"/run/secrets/token":"`+secretCanary, ""); strings.Contains(log, text) {
					t.Errorf("a secret is in the log:\n%s", log)
				}
			}
			for fd, to := range s.Descriptors {
				// The probe's own: of its Go runtime, and of the listing itself.
				if fd > "2" && !strings.HasPrefix(to, "/proc/") && !strings.HasPrefix(to, "/sys/fs/cgroup/") {
					t.Errorf("descriptor %s is left over: %s", fd, to)
				}
			}
			const bind = "0000000000000400"
			for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
				if s.Status[set] != bind {
					t.Errorf("%s is %s, want %s", set, s.Status[set], bind)
				}
			}
			if s.Status["NoNewPrivs"] != "1" || s.Core != [2]uint64{1, 1} {
				t.Errorf("no_new_privs is %s, core limits %d", s.Status["NoNewPrivs"], s.Core)
			}
			if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), b.dir) {
				t.Errorf("the volume is mounted outside: %v\n%s", err, mounts)
			}
		})
	}
}

// TestApplicationMayGetALargeEnvironment: more than init has mapped by then, when it has no right to lock memory any more.
func TestApplicationMayGetALargeEnvironment(t *testing.T) {
	var stack syscall.Rlimit // a quarter of it is for arguments and environment
	if err := syscall.Getrlimit(syscall.RLIMIT_STACK, &stack); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_STACK, &syscall.Rlimit{Cur: min(64<<20, stack.Max), Max: stack.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Setrlimit(syscall.RLIMIT_STACK, &stack) })
	b := newLinuxBoot(t, "see")
	var names []string
	for i := range 40 {
		name := fmt.Sprintf("LARGE_%d", i)
		t.Setenv(name, strings.Repeat("x", 120<<10))
		names = append(names, name)
	}
	b.config["linux"].(map[string]any)["environment"] = names
	b.config["linux"].(map[string]any)["mode"] = "exec"
	if s := b.start().sight(); len(s.Env) != 1+len(names) || len(s.Env[1]) < 120<<10 {
		t.Errorf("the application has %d variables", len(s.Env))
	}
}

func TestServerOfAVolumeHasItsOwnUserAndCannotBeLookedInto(t *testing.T) {
	b := newLinuxBoot(t, "wait")
	b.config["linux"].(map[string]any)["mode"] = "exec"
	r := b.start()
	r.waitFor("waiting")
	pid := r.server()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	for _, line := range strings.Split(string(text), "\n") {
		name, value, _ := strings.Cut(line, ":")
		status[name] = strings.Join(strings.Fields(value), " ")
	}
	if status["Uid"] != "65533 65533 65533 65533" || status["Gid"] != "65533 65533 65533 65533" || status["Groups"] != "" {
		t.Errorf("server runs as %s, %s, %s", status["Uid"], status["Gid"], status["Groups"])
	}
	if status["CapEff"] != "0000000000004004" || status["CapPrm"] != "0000000000004004" || status["CapAmb"] != "0000000000000000" {
		t.Errorf("server may %s of %s, ambient %s", status["CapEff"], status["CapPrm"], status["CapAmb"])
	}
	if kb, _, _ := strings.Cut(status["VmLck"], " "); kb == "0" || kb == "" {
		t.Errorf("locked memory is %q", status["VmLck"])
	}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, task := range tasks {
		if text, err := os.ReadFile(task); err == nil && !strings.Contains(string(text), "CapEff:\t0000000000004004") {
			t.Errorf("a thread of the server has more capabilities: %s", task)
		}
	}
	info, err := os.Stat(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 { // what belongs to root here is closed to the server's user: not dumpable
		t.Errorf("the server's memory is open to its user: %v", err)
	}
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if strings.Contains(string(line), "11-12-13") {
		t.Error("the key is on the command line")
	}
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := r.status(); got != 7 {
		t.Errorf("exit status %d", got)
	}
	eventually(t, "the server ends with the application", func() bool {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(state), ") Z ")
	})
}

func TestLostVolumeIsENOTCONNWhereNobodySupervises(t *testing.T) {
	b := newLinuxBoot(t)
	b.config["app"].(map[string]any)["args"] = []string{"later", filepath.Join(b.dir, "mnt", "hello"),
		filepath.Join(b.dir, "mnt", "another")} // the first one is in the kernel's cache by then
	b.config["linux"].(map[string]any)["mode"] = "exec"
	r := b.start()
	r.waitFor("waiting, <nil>")
	server := r.server()
	if err := syscall.Kill(server, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process behind the volume is dead", func() bool {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", server))
		return err == nil && strings.Contains(string(state), ") Z ") // and no one reaps it
	})
	if err := r.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if got := r.status(); got != 0 || !strings.Contains(r.out.String(), "another: "+syscall.ENOTCONN.Error()) {
		t.Errorf("exit status %d:\n%s", got, r.out)
	}
}

func TestSupervisorKeepsItsOwnMemoryToItself(t *testing.T) {
	r := supervised(t, "wait")
	r.waitFor("waiting")
	read := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", r.cmd.Process.Pid, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if status := read("status"); regexp.MustCompile(`VmLck:\s+0 kB`).MatchString(status) || !strings.Contains(status, "VmLck:") {
		t.Errorf("its memory is not locked:\n%s", status)
	}
	if limits := read("limits"); !regexp.MustCompile(`Max core file size +1 +1 `).MatchString(limits) {
		t.Errorf("it may write a core file:\n%s", limits)
	}
	for _, text := range []string{secretCanary, volumeKeyText, strings.ReplaceAll(volumeKeyText, "-", "")} {
		if strings.Contains(read("cmdline")+read("environ"), text) {
			t.Error("a secret is in its command line or environment")
		}
	}
}

// TestProcessBehindAVolumeHasNothingThatItDoesNotNeed: no capability that it could get back, and no descriptor of what
// started init.
func TestProcessBehindAVolumeHasNothingThatItDoesNotNeed(t *testing.T) {
	r := supervised(t, "wait")
	r.waitFor("waiting")
	server := r.server()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", server))
	if err != nil || len(threads) < 2 {
		t.Fatalf("%q, %v", threads, err)
	}
	for _, name := range threads {
		status, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"CapBnd:\t0000000000000000", "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1"} {
			if !strings.Contains(string(status), want) {
				t.Errorf("no %q in:\n%s", want, status)
			}
		}
	}
	descriptors, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", server))
	if err != nil || len(descriptors) < 4 {
		t.Fatalf("%q, %v", descriptors, err)
	}
	for _, name := range descriptors {
		to, err := os.Readlink(name)
		// The Go runtime keeps files of the cgroup open.
		known := strings.HasPrefix(to, "/sys/fs/cgroup/") || to == os.DevNull || to == "/dev/fuse" || strings.HasPrefix(to, "anon_inode:") || strings.HasPrefix(to, "pipe:") && path.Base(name) <= "2"
		if err != nil || !known && !strings.HasPrefix(to, filepath.Join(r.dir, "volume")) {
			t.Errorf("descriptor %s is %s, %v", path.Base(name), to, err)
		}
	}
}

func TestLostVolumeEndsTheApplicationWithAClearMessage(t *testing.T) {
	for app, patience := range map[string]time.Duration{"wait": 0, "stubborn": 10 * time.Second} {
		t.Run(app, func(t *testing.T) {
			if patience > 0 {
				testenv.Long(t, fmt.Sprintf("init waits %v for the application", patience))
			}
			r := supervised(t, app)
			r.waitFor("waiting")
			if err := syscall.Kill(r.server(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if got := r.status(); got != exitCodes[attest.CodeMount] {
				t.Errorf("exit status %d", got)
			}
			if took := time.Since(start); took < patience {
				t.Errorf("it was ended after %v", took)
			}
			for _, want := range []string{"init: refused [mount] supervising the application: the volume at ",
				" is lost: the process behind it has ended (signal: killed)\ninit: to do: "} {
				if !strings.Contains(r.out.String(), want) {
					t.Errorf("no %q in:\n%s", want, r.out)
				}
			}
		})
	}
}

func supervised(t *testing.T, app string) *linuxRun {
	t.Helper()
	b := newLinuxBoot(t, app)
	b.config["linux"].(map[string]any)["mode"] = "supervise"
	return b.start()
}

func TestSupervisorForwardsSignals(t *testing.T) {
	r := supervised(t, "wait")
	r.waitFor("waiting")
	if err := r.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if got := r.status(); got != 7 || !strings.Contains(r.out.String(), "got user defined signal 1") {
		t.Errorf("exit status %d:\n%s", got, r.out)
	}
}

func TestSupervisorPassesTheSignalOn(t *testing.T) {
	if got := supervised(t, "kill").status(); got != 128+9 {
		t.Errorf("exit status %d", got)
	}
}

func TestSupervisorReapsOrphans(t *testing.T) {
	r := supervised(t, "orphan")
	r.waitFor("waiting")
	var orphan int
	text := r.out.String()
	if _, err := fmt.Sscanf(text[strings.Index(text, "orphan "):], "orphan %d", &orphan); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	eventually(t, "the orphan is reaped", func() bool { return syscall.Kill(orphan, 0) != nil })
}

func TestRootFromAVolumeIsEntered(t *testing.T) {
	buildLinux(t)
	probe, err := os.ReadFile(filepath.Join(linuxBuild.dir, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	for _, upper := range []string{"", "temporary"} {
		t.Run("upper "+upper, func(t *testing.T) {
			b := newLinuxBoot(t)
			mac := b.volume("root", fstest.MapFS{
				"bin/probe": {Data: probe, Mode: 0o555}, "etc/motd": {Data: []byte("inside"), Mode: 0o444},
				"proc": {Mode: 0o755 | os.ModeDir}, "sys": {Mode: 0o755 | os.ModeDir}, "dev": {Mode: 0o755 | os.ModeDir},
				"run/secrets": {Mode: 0o755 | os.ModeDir}, "models": {Mode: 0o755 | os.ModeDir},
			})
			b.config["root"] = map[string]any{"source": filepath.Join(b.dir, "root"), "key": "volume_key", "mac": mac, "upper": upper}
			b.config["app"] = map[string]any{"path": "/bin/probe", "args": []string{"see", "/etc/motd", "/models/hello", "/run/secrets/token"}}
			b.config["volumes"].([]any)[0].(map[string]any)["target"] = "/models"
			b.config["linux"].(map[string]any)["mode"] = "supervise"
			s := b.start().sight()
			if s.Files["/etc/motd"] != "inside" || s.Files["/models/hello"] != "from the volume" || s.Files["/run/secrets/token"] != secretCanary {
				t.Errorf("files are %q", s.Files)
			}
			if got := strings.Join(s.Root, " "); got != "bin dev etc models proc run sys" {
				t.Errorf("the root has %s", got)
			}
		})
	}
}

func TestMachineOrConfigThatIsNotEnrolledGetsNothing(t *testing.T) {
	b := newLinuxBoot(t, "see")
	b.enrol(b.write())
	b.config["timeout"] = "61s" // changed after the broker's policy was written
	b.write()
	r := b.startOnly()
	if got := r.status(); got != exitCodes[attest.CodeDenied] || strings.Contains(r.out.String(), `"PID"`) {
		t.Errorf("exit status %d:\n%s", got, r.out)
	}
	if !strings.Contains(r.out.String(), "tpm[0].pcrs.12") || !strings.Contains(b.log.String(), "tpm[0].pcrs.12") {
		t.Errorf("nobody names the register:\n%s\n%s", r.out, b.log)
	}
}

func TestAnotherConfigNeedsAnotherBoot(t *testing.T) {
	b := newLinuxBoot(t, "see")
	for range 2 { // the same config finds its own measurement
		if got := b.start().status(); got != 0 {
			t.Fatalf("exit status %d", got)
		}
	}
	b.config["timeout"] = "61s"
	b.write()
	r := b.startOnly()
	if got := r.status(); got != exitCodes[attest.CodeAttester] || !strings.Contains(r.out.String(), "register 12 has been used") {
		t.Errorf("exit status %d:\n%s", got, r.out)
	}
}

func TestHostChoosesNoOtherProgramThanTheMeasuredOne(t *testing.T) {
	b := newLinuxBoot(t, "see")
	path := filepath.Join(linuxBuild.dir, "probe")
	for name, c := range map[string]struct {
		args []string
		code attest.Code
	}{
		"another program":      {[]string{"--", "/bin/sh", "-c", "true"}, attest.CodeLaunch},
		"other arguments":      {[]string{"--", path, "wait"}, attest.CodeLaunch},
		"more arguments":       {[]string{"--", path, "see", "x"}, attest.CodeLaunch},
		"without --":           {[]string{path, "see"}, attest.CodeUsage},
		"config that is not":   {[]string{"--config", "/nonexistent"}, attest.CodeConfig},
		"the measured program": {[]string{"--", path, "see"}, ""},
	} {
		r := b.start(c.args...)
		if got := r.status(); got != exitCodes[c.code] {
			t.Errorf("%s: exit status %d:\n%s", name, got, r.out)
		}
	}
	delete(b.config, "app")
	if got := b.start().status(); got != exitCodes[attest.CodeLaunch] {
		t.Errorf("neither names a program: exit status %d", got)
	}
}

func TestKilledSupervisorTakesTheApplicationWithIt(t *testing.T) {
	r := supervised(t, "stubborn")
	r.waitFor("waiting")
	app := children(t, r.cmd.Process.Pid)[filepath.Join(linuxBuild.dir, "probe")]
	if app == 0 {
		t.Fatal("no application")
	}
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if got := r.status(); got != -1 { // its output ends only with the last process that has it
		t.Errorf("exit status %d", got)
	}
	if state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", app)); err == nil && !strings.Contains(string(state), ") Z ") {
		t.Error("the application lives")
	}
}

func TestProcessOneSupervises(t *testing.T) {
	b := newLinuxBoot(t, "see")
	b.enrol(b.write())
	cmd := exec.Command("unshare", "--pid", "--fork", "--mount-proc", "--kill-child",
		filepath.Join(linuxBuild.dir, "init-linux"), "--config", filepath.Join(b.dir, "init.json"))
	r := &linuxRun{t: t, cmd: cmd, out: &safeBuffer{}}
	cmd.Stdout, cmd.Stderr = r.out, r.out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if s := r.sight(); s.PID == 1 {
		t.Error("the application is process 1")
	}
}

func TestLinuxBuildIsWithinItsBudgetAndMakesNoEvidenceUp(t *testing.T) {
	buildLinux(t)
	const budget = 24 << 20
	info, err := os.Stat(filepath.Join(linuxBuild.dir, "init-linux"))
	if err != nil || info.Size() > budget {
		t.Errorf("init-linux has %d bytes of %d: %v", info.Size(), budget, err)
	}
	t.Logf("init-linux has %d bytes of %d", info.Size(), budget)
	out, err := exec.Command("go", "list", "-deps", "-tags", "plainlinux", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range strings.Fields(string(out)) {
		for _, bad := range []string{"sesame/lab/", "sesame/broker", "go-tpm-tools/simulator"} {
			if strings.Contains(p, bad) {
				t.Errorf("init-linux depends on %s", p)
			}
		}
	}
}

func TestWrappedReleaseOpensOnTheMachineItWasMeantFor(t *testing.T) {
	b := newLinuxBoot(t)
	b.config["app"].(map[string]any)["args"] = []string{"see", "/run/secrets/token"}
	b.config["tpm"].(map[string]any)["endorsement_key"] = true
	config := tpm.Measured(sha256.Sum256(b.write()))
	device, err := tpm.Open(tpm.Options{Path: b.socket, EK: true})
	if err != nil {
		t.Fatal(err)
	}
	e, err := device.Evidence(t.Context(), attest.ReportData{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := new(tpm.Verifier).Verify(t.Context(), e, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(policyOf(make([]byte, 32), config[:]), fmt.Sprintf("ak: %x", make([]byte, 32)),
		fmt.Sprintf("ek: %x, wrap: true", c.TPM.EK), 1)
	if err := b.policies.Replace(t.Context(), []byte(brokertest.PolicyText(2, text)), "test"); err != nil {
		t.Fatal(err)
	}
	if s := b.startOnly().sight(); s.Files["/run/secrets/token"] != secretCanary {
		t.Errorf("files are %q", s.Files)
	}
	// A secret may demand it, too; then the same machine gets it by no entry that does not wrap.
	only := strings.Replace(text, "token: {workloads: [app]}", "token: {workloads: [app], wrap: true}", 1)
	if err := b.policies.Replace(t.Context(), []byte(brokertest.PolicyText(3, only)), "test"); err != nil {
		t.Fatal(err)
	}
	if s := b.startOnly().sight(); s.Files["/run/secrets/token"] != secretCanary {
		t.Errorf("files are %q", s.Files)
	}
	open := strings.Replace(only, fmt.Sprintf("ek: %x, wrap: true", c.TPM.EK), fmt.Sprintf("ak: %x", c.TPM.AK), 1)
	if err := b.policies.Replace(t.Context(), []byte(brokertest.PolicyText(4, open)), "test"); err != nil {
		t.Fatal(err)
	}
	if r := b.startOnly(); r.status() == 0 || !strings.Contains(b.log.String(), "only encrypted to the peer's TPM") {
		t.Errorf("it left open:\n%s\n%s", r.out, b.log)
	}
	if !strings.Contains(b.log.String(), "secrets wrapped to the peer's TPM") {
		t.Errorf("nothing was wrapped:\n%s", b.log)
	}
}

// TestEntryPointOfAContainer runs init as docs/platforms.md says, in a container with a root of its own.
func TestEntryPointOfAContainer(t *testing.T) {
	podman := testenv.Program(t, "podman", "podman", "podman")
	b := newLinuxBoot(t, "see", "/models/hello", "/run/secrets/token")
	root := filepath.Join(b.dir, "rootfs")
	for _, name := range []string{"tmp", "proc", "dev", "sys", "etc", "run", "models", "volume"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"init-linux", "probe"} {
		program, err := os.ReadFile(filepath.Join(linuxBuild.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), program, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	rootCA, err := os.ReadFile(filepath.Join(b.dir, "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc", "root.pem"), rootCA, 0o644); err != nil {
		t.Fatal(err)
	}
	volume := b.config["volumes"].([]any)[0].(map[string]any)
	volume["source"], volume["target"] = "/volume", "/models"
	b.config["app"].(map[string]any)["path"] = "/probe"
	b.config["collateral"].(map[string]any)["root_ca"] = "/etc/root.pem"
	b.enrol(b.write())
	run := func(program ...string) *exec.Cmd {
		args := []string{"--root", filepath.Join(b.dir, "storage"), "--runroot", filepath.Join(b.dir, "podman"),
			"--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", "runc", "run", "--rm", "--network", "host",
			"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096",
			"--cap-add", "SYS_ADMIN", "--cap-add", "IPC_LOCK", "--cap-add", "DAC_READ_SEARCH", "--device", "/dev/fuse",
			"-v", b.socket + ":" + b.socket, "-v", filepath.Join(b.dir, "volume") + ":/volume:ro",
			"-v", filepath.Join(b.dir, "init.json") + ":/etc/init_ra_conf.json:ro", "--rootfs", root}
		return exec.Command(podman, append(args, program...)...)
	}
	if out, err := run("/init-linux", "-h").CombinedOutput(); err != nil {
		testenv.Missing(t, "podman", "it cannot run a container: "+err.Error()+" "+string(out))
	}
	r := &linuxRun{t: t, cmd: run("/init-linux", "--", "/probe", "see", "/models/hello", "/run/secrets/token"), out: &safeBuffer{}}
	r.cmd.Stdout, r.cmd.Stderr = r.out, r.out
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := r.sight()
	if s.PID == 1 || s.UID != 1234 || s.Files["/models/hello"] != "from the volume" || s.Files["/run/secrets/token"] != secretCanary {
		t.Errorf("the application sees %+v", s)
	}
}
