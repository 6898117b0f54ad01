package probe

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/internal/occlum/goruntime/overlay"
	"github.com/sesame-init/sesame/internal/occlum/occlumconf"
	"github.com/sesame-init/sesame/internal/raconfig"
	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/occlumsim"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// namespaceVariable is set in a test's own process in namespaces of its own.
const namespaceVariable = "SESAME_TEST_NAMESPACE"

// inNamespace runs the calling test once more, in a mount and a network namespace, in which it may have its own name
// server. It reports whether the caller is that second run.
func inNamespace(t *testing.T, args ...string) bool {
	t.Helper()
	if os.Getenv(namespaceVariable) != "" {
		return true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], append([]string{"-test.run=^" + t.Name() + "$", "-test.v"}, args...)...)
	cmd.Env = append(os.Environ(), namespaceVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	if os.Geteuid() != 0 {
		testenv.UserNamespaces(t)
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in namespaces of its own: %v", err)
	}
	t.Logf("%s", out)
	return false
}

// nameServer answers every question for an IPv4 address with 127.0.0.1, and is the one of /etc/resolv.conf. It
// returns how many names were asked for.
func nameServer(t *testing.T) *atomic.Int64 {
	t.Helper()
	control, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(control)
	loopback, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	loopback.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(control, unix.SIOCSIFFLAGS, loopback); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver 127.0.0.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(file, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	server, err := net.ListenPacket("udp", "127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	asked := new(atomic.Int64)
	go func() {
		query := make([]byte, 512)
		for {
			n, from, err := server.ReadFrom(query)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(query[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.Additionals = true, nil
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				asked.Add(1)
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1},
					Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
				}}
			}
			if answer, err := m.Pack(); err == nil {
				_, _ = server.WriteTo(answer, from)
			}
		}
	}()
	return asked
}

// buildInit builds init as make does, with the load in it if loaded is set, and with some of the hunks.
func buildInit(t *testing.T, loaded bool, hunks ...overlay.Hunk) string {
	t.Helper()
	dir := t.TempDir()
	file, err := overlay.Write(dir, goroot(t), hunks)
	if err != nil {
		t.Fatal(err)
	}
	if loaded {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var replaced struct{ Replace map[string]string }
		if err := json.Unmarshal(text, &replaced); err != nil {
			t.Fatal(err)
		}
		added, _ := filepath.Abs("../../../init/load.go")
		replaced.Replace[added], _ = filepath.Abs("testdata/load/load.go")
		if text, err = json.Marshal(replaced); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(dir, "init")
	cmd := exec.Command("go", "build", "-trimpath", "-overlay", file, "-buildmode=pie", "-ldflags",
		"-s -w -I "+occlumsim.MuslLoader+" -X runtime.godebugDefault=asyncpreemptoff=1", "-o", program, "../../../init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building init: %v\n%s", err, out)
	}
	return program
}

// Addresses of the test's services, in its own network namespace.
const (
	pccsAddress   = "127.0.0.1:8081"
	pccsURL       = "http://pccs.sesame.test:8081/sgx/certification/v4/"
	brokerAddress = "127.0.0.1:5000"
	brokerName    = "broker.sesame.test:5000"
)

// servePCCS gives out a platform's collateral.
func servePCCS(t *testing.T, p *softsgx.Platform) {
	t.Helper()
	listener, err := net.Listen("tcp", pccsAddress)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: p.PCCS(), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Close() })
}

// serveSecrets is a broker that gives them to the workload with a measurement.
func serveSecrets(t *testing.T, p *softsgx.Platform, mrEnclave string, secrets map[string][]byte) {
	t.Helper()
	identity, err := ratls.NewIdentity(p.Attester(brokertest.Broker()), ratls.Options{})
	if err != nil {
		t.Fatal(err)
	}
	peers, err := raconfig.Parse([]byte(`{"verify_mr_enclave": "on", "verify_mr_signer": "off", "verify_isv_prod_id": "off",
		"verify_isv_svn": "off", "verify_config_svn": "off", "verify_enclave_debuggable": "on",
		"sgx_mrs": [{"mr_enclave": "` + mrEnclave + `", "mr_signer": "", "isv_prod_id": 0, "isv_svn": 0, "config_svn": 0,
			"debuggable": false}]}`))
	if err != nil {
		t.Fatal(err)
	}
	keeper, log := brokertest.Secrets(t, secrets), brokertest.Logger(io.Discard)
	policies, err := broker.NewPolicies(t.Context(), broker.PoliciesConfig{
		Trust:  func(policy.Trust) (*broker.Trust, error) { return brokertest.Trust(t, p), nil },
		Keeper: keeper, Now: time.Now, Logger: log,
	}, policy.Occlum("workload", peers), "test")
	if err != nil {
		t.Fatal(err)
	}
	server, err := broker.New(broker.Config{Identity: identity, Policies: policies, Keeper: keeper,
		Quoter: brokertest.Quoter(p, brokertest.Broker()), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", brokerAddress)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the broker ended with: %v", err)
		}
	})
}

// otherKey is that of the second volume.
var otherKey = sefs.Key{4}

// initInstance is an instance with init, two volumes with keys of their own, a secret in memory, and the launcher at
// the entry point. Its config names the broker by a name that has to be looked up.
func initInstance(t *testing.T, program string, root []byte) *instance {
	t.Helper()
	in := newInstance(t, program)
	in.install(t, program, "image/bin/app")
	in.install(t, compile(t, "-fPIE", "-pie"), "image/opt/app")
	in.write(t, "image/mnt2/.keep", "")
	in.write(t, "other/weights", "other weights")
	otherMAC, err := sefs.Create(t.Context(), filepath.Join(in.dir, "models2"), os.DirFS(filepath.Join(in.dir, "other")),
		sefs.CreateOptions{Key: &otherKey})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(in.dir, "Occlum.json")
	conf, err := occlumconf.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	conf.Mount[0].Options.Layers[1].Options = &occlumconf.MountOptions{Temporary: true}
	conf.Metadata.Debuggable = false
	conf.ResourceLimits.MaxThreads = threadsForAll
	in.configure(t, conf)
	brokerBody := brokertest.Broker()
	text, err := json.Marshal(map[string]any{
		"backend": "grpc-ratls", "timeout": "50s",
		"grpc_ratls": map[string]any{
			"servers": []string{brokerName}, "protocol": "legacy",
			"broker_policy": map[string]any{"sgx": []any{map[string]any{"mr_enclave": hex.EncodeToString(brokerBody.MREnclave[:])}}},
		},
		"root": map[string]any{"key": "image_key", "upper": "temporary"},
		"app":  map[string]any{"entry_point": "/bin/app", "path": "/opt/app", "args": []string{"pinned"}},
		"volumes": []any{
			map[string]any{"source": "./models", "target": "/mnt", "key": "model_key", "mac": in.mac.String()},
			map[string]any{"source": "./models2", "target": "/mnt2", "key": "other_key", "mac": otherMAC.String()},
		},
		"secrets":    []any{map[string]any{"name": "token", "path": "/run/secrets/made"}},
		"collateral": map[string]any{"pccs_url": pccsURL, "allow_http": true, "root_ca": "/etc/root_ca.pem"},
	})
	if err != nil {
		t.Fatal(err)
	}
	in.write(t, "init_ra_conf.json", string(text))
	in.write(t, "initfs/etc/root_ca.pem", string(root))
	in.occlum(t, in.dir, "build", "--image-key", "image.key")
	return in
}

// TestInitBootsThroughGRPCRATLSEveryTime is the whole of it: init, built with the overlay and with 64 goroutines and a
// restless collector beside it, looks the broker up, attests over TLS, mounts the root and two volumes, writes a secret
// and hands over to the launcher, again and again.
func TestInitBootsThroughGRPCRATLSEveryTime(t *testing.T) {
	needSimulator(t)
	count := bootsWanted()
	if !inNamespace(t, fmt.Sprint("-boots=", count)) {
		return
	}
	asked := nameServer(t)
	dir := filepath.Join(t.TempDir(), "platform")
	if err := occlumsim.NewMachine(dir); err != nil {
		t.Fatal(err)
	}
	machine, err := occlumsim.LoadMachine(dir)
	if err != nil {
		t.Fatal(err)
	}
	platform := machine.Platform
	in := initInstance(t, buildInit(t, true, overlay.Hunks()...),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: platform.RootCA().Raw}))
	_, printed, _ := in.run(t, in.dir, "print", "mrenclave")
	mrEnclave := strings.TrimSpace(printed)
	servePCCS(t, platform)
	serveSecrets(t, platform, mrEnclave, map[string][]byte{
		"image_key": []byte(keyText(in.key)), "model_key": []byte(keyText(in.volumeKey)),
		"other_key": []byte(keyText(otherKey)), "token": []byte("secret"),
	})
	start := time.Now()
	for n := range count {
		status, stdout, stderr := in.run(t, in.dir, "run", "--platform", dir, "/bin/app")
		ok := status == 0 && strings.Contains(stderr, "mrenclave="+mrEnclave)
		for _, want := range []string{"app\t/\t2\n", "arg\tpinned\n", "file\t/mnt/weights\t0\n", "file\t/run/secrets/made\t0\n"} {
			ok = ok && strings.Contains(stdout, want)
		}
		if !ok {
			t.Fatalf("boot %d of %d: exit status %d\n%s\n%s", n+1, count, status, stdout, stderr)
		}
	}
	t.Logf("%d boots, %s each", count, (time.Since(start) / time.Duration(count)).Round(time.Millisecond))
	if n := asked.Load(); n < int64(count) {
		t.Errorf("the name server was asked %d times in %d boots", n, count)
	}
	if status, stdout, stderr := in.run(t, in.dir, "run", "--platform", dir, "/bin/app", "other"); status == 0 ||
		strings.Contains(stdout, "app\t") {
		t.Errorf("other arguments than the measured ones were taken: exit status %d\n%s\n%s", status, stdout, stderr)
	}
	if status, stdout, stderr := in.run(t, in.dir, "run", "--platform", dir, "--quote-failure", "/bin/app"); status != 1 ||
		!strings.Contains(stderr, "refused [attester]") || strings.Contains(stdout, "app\t") {
		t.Errorf("without quotes: exit status %d\n%s\n%s", status, stdout, stderr)
	}
}

// TestInitWithoutTheOverlayDiesAtOnceAndSaysWhy builds the same source with the stock runtime.
func TestInitWithoutTheOverlayDiesAtOnceAndSaysWhy(t *testing.T) {
	testenv.Long(t, "builds init once more")
	needSimulator(t)
	in := newInstance(t, buildInit(t, false))
	in.occlum(t, in.dir, "build", "--image-key", "image.key")
	start := time.Now()
	status, stdout, stderr := in.run(t, in.dir, "run", "/bin/app")
	if status != 1 || stdout != "" || !strings.Contains(stderr, "starts a thread as Linux does") ||
		!strings.Contains(stderr, "built with the runtime overlay") {
		t.Errorf("exit status %d after %s\n%s\n%s", status, time.Since(start), stdout, stderr)
	}
}
