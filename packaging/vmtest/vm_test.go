//go:build vm

// Package vmtest boots a Debian kernel in QEMU with a TPM, and runs init-linux there as process 1: "make test-vm".
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

	"github.com/sesame-init/sesame/attest/tpm/swtpm"
	"github.com/sesame-init/sesame/broker"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/testenv"
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

func newMachine(t *testing.T) *machine {
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
	for _, sub := range []string{"bin", "proc", "sys", "dev", "run", "tmp", "lib/modules", "etc/sesame"} {
		if err := os.MkdirAll(filepath.Join(m.root, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.copy("testdata/preinit", "preinit")
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	m.copy(busybox, "bin/busybox")
	for _, name := range []string{"init-linux", "sesame", "keybroker"} {
		m.copy("../../bin/"+name, "bin/"+name)
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
	made, err := sefs.Create(m.t.Context(), filepath.Join(m.root, "etc/sesame", name), files, sefs.CreateOptions{Key: &key})
	if err != nil {
		m.t.Fatal(err)
	}
	return made.String()
}

// configure writes init's config and the broker's secrets.
func (m *machine) configure(rootMAC, modelMAC string) {
	m.t.Helper()
	identity, err := broker.OpenBareIdentity(filepath.Join(m.root, "etc/sesame/broker.key"))
	if err != nil {
		m.t.Fatal(err)
	}
	config, err := json.Marshal(map[string]any{
		"platform": "linux", "attester": "tpm", "backend": "grpc-ratls", "timeout": "5m",
		"grpc_ratls": map[string]any{
			"servers": []string{"127.0.0.1:5000"}, "protocol": "session", "broker_key": fmt.Sprintf("%x", identity.Pin()),
		},
		"tpm":        map[string]any{"config_pcr": 12, "event_log": "/sys/kernel/security/tpm0/binary_bios_measurements"},
		"root":       map[string]any{"source": "/etc/sesame/root", "key": "volume_key", "mac": rootMAC, "upper": "temporary"},
		"app":        map[string]any{"path": "/bin/probe", "args": []string{"see", "/models/hello", "/run/secrets/token"}},
		"volumes":    []any{map[string]any{"source": "/etc/sesame/model", "target": "/models", "key": "volume_key", "mac": modelMAC}},
		"secrets":    []any{map[string]any{"name": "token", "path": "/run/secrets/token", "uid": 1000}},
		"linux":      map[string]any{"uid": 1000, "gid": 1000},
		"collateral": map[string]any{},
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.write("etc/sesame/init.json", config)
	secrets, err := json.Marshal(map[string]string{
		"volume_key": base64.StdEncoding.EncodeToString([]byte(keyText)), "token": base64.StdEncoding.EncodeToString([]byte(token)),
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.write("etc/sesame/secrets.json", secrets)
}

// boot boots and returns the console's output once the machine is off.
func (m *machine) boot() string {
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
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "1536", "-nographic", "-no-reboot", "-nic", "none",
		"-kernel", m.find("boot/vmlinuz-*"), "-initrd", initrd, "-append", "console=ttyS0 rdinit=/preinit panic=-1 quiet",
		"-chardev", "socket,id=tpm,path="+running.Socket, "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-tis,tpmdev=tpm0")
	var console bytes.Buffer
	qemu.Stdout, qemu.Stderr = &console, &console
	start := time.Now()
	if err := qemu.Run(); err != nil {
		m.t.Fatalf("%v\n%s", err, &console)
	}
	m.t.Logf("the machine ran %.0f s", time.Since(start).Seconds())
	return strings.ReplaceAll(console.String(), "\r", "")
}

func TestProcessOneOfADebianKernelWithATPM(t *testing.T) {
	m := newMachine(t)
	probe := filepath.Join(m.dir, "probe")
	build := exec.Command("go", "build", "-trimpath", "-o", probe, "../../init/testdata/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	program, err := os.ReadFile(probe)
	if err != nil {
		t.Fatal(err)
	}
	root := m.volume("root", fstest.MapFS{
		"bin/probe": {Data: program, Mode: 0o555}, "models": {Mode: 0o755 | os.ModeDir}, "etc/only-here": {Mode: 0o444},
	})
	m.configure(root, m.volume("model", fstest.MapFS{"hello": {Data: []byte("from the volume"), Mode: 0o444}}))
	console := m.boot()
	at := strings.Index(console, `{"PID"`)
	if at < 0 {
		t.Fatalf("the application was not started:\n%s", console)
	}
	var saw struct {
		PID, UID int
		Files    map[string]string
		Root     []string
	}
	if err := json.NewDecoder(strings.NewReader(console[at:])).Decode(&saw); err != nil {
		t.Fatalf("%v in:\n%s", err, console)
	}
	if saw.PID == 1 || saw.UID != 1000 || saw.Files["/models/hello"] != "from the volume" || saw.Files["/run/secrets/token"] != token {
		t.Errorf("the application sees %+v", saw)
	}
	if got := strings.Join(saw.Root, " "); got != "bin dev etc models proc run sys" {
		t.Errorf("its root has %s", got)
	}
	// The end of process 1 is the end of the machine, with its exit status.
	if !strings.Contains(console, "Attempted to kill init! exitcode=0x00000000") {
		t.Errorf("process 1 did not end with status 0:\n%s", console)
	}
	for _, secret := range []string{keyText, token} {
		if strings.Count(console, secret) > strings.Count(console[at:], secret) {
			t.Errorf("%s is on the console", secret)
		}
	}
}
