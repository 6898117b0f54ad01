//go:build vm

// Package vmtest boots a Debian kernel in QEMU with a TPM, and runs init-linux there, as process 1 and under systemd:
// "make test-vm".
package vmtest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/privatefile"
	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/swtpm"
)

// The folder into which make test-vm has unpacked Debian's kernel package.
const kernelDir = "../../build/vm/kernel"

const (
	keyText  = "11-12-13-14-15-16-17-18-19-1a-1b-1c-1d-1e-1f-20"
	token    = "canary-77d0"
	patience = 8 * time.Minute // a virtual machine without hardware support, on a busy computer
)

// machine is what a virtual machine is made of.
type machine struct {
	t    *testing.T
	dir  string // work
	root string // of the initramfs
}

// newMachine is one that starts with preinit of testdata, and with the project's programs and the probe in the directory
// bin of the initramfs.
func newMachine(t *testing.T, preinit, bin string, dirs ...string) *machine {
	t.Helper()
	for _, program := range []string{"qemu-system-x86_64", "busybox", swtpm.Program} {
		testenv.Program(t, "vm", program, "qemu-system-x86 busybox-static swtpm swtpm-tools")
	}
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	m := &machine{t: t, dir: dir, root: filepath.Join(dir, "initramfs")}
	for _, sub := range append(dirs, "bin", "proc", "sys", "dev", "run", "tmp", "lib/modules", bin) {
		if err := os.MkdirAll(filepath.Join(m.root, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.copy("testdata/"+preinit, "init")
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	m.copy(busybox, "bin/busybox")
	for _, name := range []string{"init-linux", "sesame", "keybroker"} {
		m.copy("../../bin/"+name, filepath.Join(bin, name))
	}
	build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(m.root, bin, "probe"), "../../init/testdata/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, module := range []string{"fuse", "overlay"} {
		m.copy(m.find("lib/modules/*/kernel/fs/"+module+"*/"+module+".ko"), "lib/modules/"+module+".ko")
	}
	return m
}

// find is the one file of the kernel's package that matches.
func (m *machine) find(pattern string) string {
	m.t.Helper()
	found, err := filepath.Glob(filepath.Join(kernelDir, pattern))
	if err != nil || len(found) != 1 {
		testenv.Missing(m.t, "vm", fmt.Sprintf("%s is not in %s: run make test-vm", pattern, kernelDir))
	}
	return found[0]
}

func (m *machine) copy(from, to string) {
	m.t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		m.t.Fatal(err)
	}
	m.write(to, content)
}

func (m *machine) write(name string, content []byte) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.root, name), content, 0o755); err != nil {
		m.t.Fatal(err)
	}
}

// volume makes an encrypted volume in the initramfs.
func (m *machine) volume(name string, files fstest.MapFS) (mac string) {
	m.t.Helper()
	key, err := sefs.ParseKey([]byte(keyText))
	if err != nil {
		m.t.Fatal(err)
	}
	made, err := sefs.Create(m.t.Context(), filepath.Join(m.root, name), files, sefs.CreateOptions{Key: &key})
	if err != nil {
		m.t.Fatal(err)
	}
	return made.String()
}

// model makes the volume that the application reads.
func (m *machine) model(name string) (mac string) {
	m.t.Helper()
	return m.volume(name, fstest.MapFS{"hello": {Data: []byte("from the volume"), Mode: 0o444}})
}

// appRoot makes a volume that is the application's root.
func (m *machine) appRoot(name, probe string) (mac string) {
	m.t.Helper()
	program, err := os.ReadFile(filepath.Join(m.root, probe))
	if err != nil {
		m.t.Fatal(err)
	}
	return m.volume(name, fstest.MapFS{
		"bin/probe": {Data: program, Mode: 0o555}, "models": {Mode: 0o755 | os.ModeDir}, "etc/only-here": {Mode: 0o444},
	})
}

// brokerKey makes the broker's key and returns what init has to know of it.
func (m *machine) brokerKey(name string) (pin string) {
	m.t.Helper()
	identity, err := broker.OpenBareIdentity(filepath.Join(m.root, name), privatefile.Rule{})
	if err != nil {
		m.t.Fatal(err)
	}
	return fmt.Sprintf("%x", identity.Pin())
}

func (m *machine) writeJSON(name string, content any) {
	m.t.Helper()
	text, err := json.Marshal(content)
	if err != nil {
		m.t.Fatal(err)
	}
	m.write(name, text)
}

// secrets writes those that the broker holds.
func (m *machine) secrets(name string) {
	m.t.Helper()
	m.writeJSON(name, map[string]string{
		"volume_key": base64.StdEncoding.EncodeToString([]byte(keyText)), "token": base64.StdEncoding.EncodeToString([]byte(token)),
	})
	if err := os.Chmod(filepath.Join(m.root, name), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// config is init's, with the root that is there.
func config(brokerPin, modelMAC string, pcr int, program, does string) map[string]any {
	return map[string]any{
		"platform": "linux", "attester": "tpm", "backend": "grpc-ratls", "timeout": "5m",
		"grpc_ratls": map[string]any{
			"servers": []string{"127.0.0.1:5000"}, "protocol": "session", "broker_key": brokerPin,
		},
		"tpm":        map[string]any{"config_pcr": pcr, "event_log": "/sys/kernel/security/tpm0/binary_bios_measurements"},
		"root":       map[string]any{},
		"app":        map[string]any{"path": program, "args": []string{does, "/models/hello", "/run/secrets/token"}},
		"volumes":    []any{map[string]any{"source": "/etc/sesame/model", "target": "/models", "key": "volume_key", "mac": modelMAC}},
		"secrets":    []any{map[string]any{"name": "token", "path": "/run/secrets/token", "uid": 1000}},
		"linux":      map[string]any{"uid": 1000, "gid": 1000},
		"collateral": map[string]any{},
	}
}

// rootFrom is config's root if it is a volume, in memory as far as it is written.
func rootFrom(mac string) map[string]any {
	return map[string]any{"source": "/etc/sesame/root", "key": "volume_key", "mac": mac, "upper": "temporary"}
}

// boot boots and returns the console's output once the machine is off. The kernel's command line is given, and options of
// QEMU.
func (m *machine) boot(kernelOptions string, options ...string) string {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	initrd := filepath.Join(m.dir, "initrd")
	pack := exec.CommandContext(ctx, "sh", "-c", "busybox find . | busybox cpio -o -H newc >"+initrd)
	pack.Dir = m.root
	if out, err := pack.CombinedOutput(); err != nil {
		m.t.Fatalf("packing the initramfs: %v\n%s", err, out)
	}
	software, err := swtpm.New(ctx, filepath.Join(m.dir, "tpm"))
	if err != nil {
		m.t.Fatal(err)
	}
	running, err := software.StartForQEMU(ctx)
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = running.Stop() }()
	options = append([]string{"-accel", "tcg", "-cpu", "max", "-m", "1536", "-nographic", "-no-reboot", "-nic", "none",
		"-kernel", m.find("boot/vmlinuz-*"), "-initrd", initrd, "-append", "console=ttyS0 rdinit=/init panic=-1 quiet " + kernelOptions,
		"-chardev", "socket,id=tpm,path=" + running.Socket, "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-tis,tpmdev=tpm0"},
		options...)
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", options...)
	var console bytes.Buffer
	qemu.Stdout, qemu.Stderr = &console, &console
	start := time.Now()
	if err := qemu.Run(); err != nil {
		m.t.Fatalf("%v\n%s", err, &console)
	}
	m.t.Logf("the machine ran %.0f s", time.Since(start).Seconds())
	return strings.ReplaceAll(console.String(), "\r", "")
}

// sight is what the probe says of itself.
type sight struct {
	PID, UID    int
	Env         []string
	Descriptors map[string]string
	Status      map[string]string
	Files       map[string]string
	Root        []string
}

// seen is what the probe has printed at the start of a text.
func seen(t *testing.T, text string) (s sight) {
	t.Helper()
	if err := json.NewDecoder(strings.NewReader(text)).Decode(&s); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	return s
}

// check is true for an application of the machine: its own user, its volume and its secret.
func (s sight) check(t *testing.T) {
	t.Helper()
	if s.PID == 1 || s.UID != 1000 || s.Files["/models/hello"] != "from the volume" || s.Files["/run/secrets/token"] != token {
		t.Errorf("the application sees %+v", s)
	}
}

// noSecrets makes sure that nothing but the application, whose words do not count, has said a secret.
func noSecrets(t *testing.T, console string, words int) {
	t.Helper()
	if strings.Contains(console, keyText) || strings.Count(console, token) > words {
		t.Errorf("a secret is on the console:\n%s", console)
	}
}

func TestProcessOneOfADebianKernelWithATPM(t *testing.T) {
	m := newMachine(t, "preinit", "bin", "etc/sesame")
	c := config(m.brokerKey("etc/sesame/broker.key"), m.model("etc/sesame/model"), 12, "/bin/probe", "see")
	c["root"] = rootFrom(m.appRoot("etc/sesame/root", "bin/probe"))
	m.writeJSON("etc/sesame/init.json", c)
	m.secrets("etc/sesame/secrets.json")
	console := m.boot("")
	at := strings.Index(console, `{"PID"`)
	if at < 0 {
		t.Fatalf("the application was not started:\n%s", console)
	}
	saw := seen(t, console[at:])
	saw.check(t)
	if got := strings.Join(saw.Root, " "); got != "bin dev etc models proc run sys" {
		t.Errorf("its root has %s", got)
	}
	// The end of process 1 is the end of the machine, with its exit status.
	if !strings.Contains(console, "Attempted to kill init! exitcode=0x00000000") {
		t.Errorf("process 1 did not end with status 0:\n%s", console)
	}
	noSecrets(t, console, 1)
}
