//go:build vm

package vmtest

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/internal/testenv"
)

// The Debian with systemd that make test-vm has made: a file system for a disk.
const debianImage = "../../build/vm/debian.ext2"

// operator starts testdata/operate once the machine is up; its end is the machine's.
const operator = `[Unit]
After=multi-user.target
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStart=/usr/local/bin/operate
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
`

// units is the directory of an administrator's units.
const units = "files/etc/systemd/system"

func readUnit(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func (m *machine) unit(name, text string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.root, units, name), []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// sections cuts what testdata/operate prints.
func sections(console string) map[string]string {
	out := map[string]string{}
	for _, part := range strings.Split(console, "\n== ")[1:] {
		name, text, _ := strings.Cut(part, "\n")
		out[name] = text
	}
	return out
}

// properties are the lines of a section in the form NAME=value.
func properties(section string) map[string]string {
	out := map[string]string{}
	for _, line := range strings.Split(section, "\n") {
		if name, value, ok := strings.Cut(line, "="); ok && !strings.ContainsAny(name, ` {"`) {
			out[name] = value
		}
	}
	return out
}

func TestUnitsUnderSystemdOfDebianWithATPM(t *testing.T) {
	image, err := filepath.Abs(debianImage)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(image); err != nil {
		testenv.Missing(t, "vm", "run make test-vm: "+err.Error())
	}
	const etc, bin, state = "files/etc/sesame", "files/usr/local/bin", "files/var/lib/sesame"
	m := newMachine(t, "preinit-systemd", bin, etc, state, "files/usr/lib/sesame", units+"/keybroker.service.d")
	if err := os.Rename(filepath.Join(m.root, bin, "init-linux"), filepath.Join(m.root, "files/usr/lib/sesame/init")); err != nil {
		t.Fatal(err)
	}
	m.copy("testdata/operate", bin+"/operate")
	m.unit("sesame-app.service", readUnit(t, "../../examples/sesame-app.service"))
	keeper := readUnit(t, "../../packaging/systemd/keybroker.service")
	m.unit("keybroker.service", keeper)
	// A drop-in for the only difference: secrets are in a file, not in a store that a person unlocks.
	_, start, _ := strings.Cut(keeper, "\nExecStart=")
	start, _, _ = strings.Cut(start, "\n")
	m.unit("keybroker.service.d/secrets.conf", "[Service]\nExecStart=\nExecStart="+start+" --secrets secrets.json\n")
	m.unit("operator.service", operator)

	pin, model := m.brokerKey(state+"/broker.key"), m.model(etc+"/model")
	m.secrets(state + "/secrets.json")
	supervised := config(pin, model, 12, "/usr/local/bin/probe", "stay")
	supervised["linux"] = map[string]any{"uid": 1000, "gid": 1000, "mode": "supervise"}
	m.writeJSON(etc+"/supervise.json", supervised)
	replaced := config(pin, model, 13, "/bin/probe", "stay")
	replaced["root"] = rootFrom(m.appRoot(etc+"/root", bin+"/probe"))
	m.writeJSON(etc+"/exec.json", replaced)
	m.writeJSON(etc+"/stranger.json", config(m.brokerKey("stranger.key"), model, 14, "/usr/local/bin/probe", "stay"))

	console := m.boot("systemd.wants=operator.service systemd.show_status=0 systemd.getty_auto=0 loglevel=1 systemd.default_timeout_start_sec=300",
		"-drive", "file="+image+",if=none,id=disk,format=raw,snapshot=on", "-device", "nvme,drive=disk,serial=debian")
	section := sections(console)
	if _, ok := section["end"]; !ok {
		t.Fatalf("the operator did not come to the end:\n%s", console)
	}
	defer func() {
		if t.Failed() {
			t.Log(console)
		}
	}()

	// The application was started three times; the same is true for it under both modes.
	for name, root := range map[string]bool{"supervise": false, "lost": false, "exec": true} {
		saw := seen(t, after(section[name]))
		saw.check(t)
		if got := strings.Join(saw.Env, " "); !strings.HasPrefix(got, "PATH=") || len(saw.Env) != 1 {
			t.Errorf("%s: its environment is %s", name, got)
		}
		if got := slices.Sorted(maps.Keys(saw.Descriptors)); strings.Join(got, " ") != "0 1 2" {
			t.Errorf("%s: its descriptors are %v", name, saw.Descriptors)
		}
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
			if saw.Status[set] != "0000000000000000" {
				t.Errorf("%s: %s is %s", name, set, saw.Status[set])
			}
		}
		if slices.Contains(saw.Root, "usr") == root {
			t.Errorf("%s: its root has %v", name, saw.Root)
		}
	}

	running := map[string]string{"ActiveState": "active", "SubState": "running", "Result": "success", "NRestarts": "0"}
	stopped := map[string]string{"ActiveState": "inactive", "SubState": "dead", "Result": "success",
		"processes": "0", "volumes": "0", "mounts": "0"}
	for name, want := range map[string]map[string]string{
		"broker":         running,
		"supervise":      with(running, "processes", "3", "volumes", "1"), // init, the volume's, the application
		"lost":           with(running, "NRestarts", "1", "processes", "3", "volumes", "1"),
		"supervise-stop": stopped,
		"exec":           with(running, "processes", "3", "volumes", "2"), // the root is a volume, too
		"exec-stop":      stopped,
		"refused": {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "15",
			"processes": "0", "volumes": "0", "mounts": "0"},
		"broker-reload": running,
		"broker-stop":   {"ActiveState": "inactive", "SubState": "dead", "Result": "success"},
	} {
		got := properties(section[name])
		for property, value := range want {
			if got[property] != value {
				t.Errorf("%s: %s is %q, want %q", name, property, got[property], value)
			}
		}
		if mounts := got["mounts"]; strings.HasPrefix(want["processes"], "3") && (mounts == "" || mounts == "0") {
			t.Errorf("%s: no volume is mounted", name)
		}
	}
	if got := properties(section["exec"])["application"]; !strings.HasPrefix(got, "/bin/probe stay ") {
		t.Errorf("the unit's main process is %q", got)
	}

	for _, want := range []string{
		"the volume at /models is lost: the process behind it has ended (signal: killed); the application is ended",
		"init: refused [mount] ",
		"Main process exited, code=exited, status=18/",
		"restart counter is at 1.",
		"init: refused [policy] fetching secrets: ",
		"Main process exited, code=exited, status=15/",
	} {
		if !strings.Contains(section["journal"], want) {
			t.Errorf("the journal does not say %q", want)
		}
	}
	noSecrets(t, console, 3)
}

// after is a section from the application's words on.
func after(section string) string {
	_, rest, _ := strings.Cut(section, `{"PID"`)
	return `{"PID"` + rest
}

func with(base map[string]string, pairs ...string) map[string]string {
	out := maps.Clone(base)
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i]] = pairs[i+1]
	}
	return out
}
