package occlumcheck

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/internal/occlum/goruntime/overlay"
	"github.com/sesame-init/sesame/internal/occlum/occlumconf"
	"github.com/sesame-init/sesame/internal/testenv"
)

const loader = "/lib/ld-musl-x86_64.so.1"

// builds are made once for all tests.
var builds struct {
	sync.Mutex
	dir     string
	overlay string
	done    map[string]string
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "occlumcheck")
	if err != nil {
		panic(err)
	}
	builds.dir, builds.done = dir, make(map[string]string)
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// build compiles testdata/hello with flags and returns the program's path.
func build(t *testing.T, env string, flags ...string) string {
	t.Helper()
	builds.Lock()
	defer builds.Unlock()
	key := env + strings.Join(flags, " ")
	if path := builds.done[key]; path != "" {
		return path
	}
	if builds.overlay == "" {
		goroot, err := exec.Command("go", "env", "GOROOT").Output()
		if err != nil {
			t.Fatal(err)
		}
		builds.overlay, err = overlay.Write(filepath.Join(builds.dir, "overlay"), strings.TrimSpace(string(goroot)),
			overlay.Hunks())
		if err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(builds.dir, hex.EncodeToString([]byte{byte(len(builds.done))}))
	args := []string{"build", "-o", path}
	for _, f := range flags {
		args = append(args, strings.ReplaceAll(f, "OVERLAY", builds.overlay))
	}
	cmd := exec.Command("go", append(args, "./testdata/hello")...)
	cmd.Env = append(os.Environ(), "GOARCH=amd64", "GOFLAGS=", env) // the flags are what is tested
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %v: %v\n%s", flags, err, out)
	}
	builds.done[key] = path
	return path
}

var good = []string{"-trimpath", "-overlay=OVERLAY", "-buildmode=pie", "-ldflags=-s -w -I " + loader}

func without(flag string) []string {
	return slices.DeleteFunc(slices.Clone(good), func(f string) bool { return strings.HasPrefix(f, flag) })
}

func TestProgramBuiltForOcclumPasses(t *testing.T) {
	found, err := Program(build(t, "CGO_ENABLED=0", good...),
		ProgramOptions{Interpreter: loader, MaxSize: InitBudget, Forbidden: Development()})
	if err != nil || len(found) > 0 {
		t.Errorf("found %v, error %v", found, err)
	}
}

func TestProgramNamesTheMissingFlag(t *testing.T) {
	options := ProgramOptions{Interpreter: loader, MaxSize: InitBudget}
	for _, c := range []struct {
		name  string
		env   string
		flags []string
		o     ProgramOptions
		want  []string // in what to write
	}{
		{"a static program", "CGO_ENABLED=0", without("-buildmode"), options, []string{"-buildmode=pie"}},
		{"another loader", "CGO_ENABLED=0", append(without("-ldflags"), "-ldflags=-s -w"), options,
			[]string{`-ldflags "-I ` + loader + `"`}},
		{"symbols", "CGO_ENABLED=0", append(without("-ldflags"), "-ldflags=-I "+loader), options, []string{"-s -w"}},
		{"the stock runtime", "CGO_ENABLED=0", without("-overlay"), options, []string{"-overlay"}},
		{"paths of the machine", "CGO_ENABLED=0", without("-trimpath"), options, []string{"-trimpath"}},
		{"too large", "CGO_ENABLED=0", good, ProgramOptions{MaxSize: 1000}, []string{"new dependency"}},
		{"a forbidden package", "CGO_ENABLED=0", good, ProgramOptions{Forbidden: []string{"internal/runtime/maps."}},
			[]string{"go list -deps"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			found, err := Program(build(t, c.env, c.flags...), c.o)
			if err != nil {
				t.Fatal(err)
			}
			var writes []string
			for _, f := range found {
				writes = append(writes, f.Write)
			}
			for _, want := range c.want {
				if !strings.Contains(strings.Join(writes, "\n"), want) {
					t.Errorf("%q is not in %q", want, writes)
				}
			}
		})
	}
}

// TestDevelopmentPackagesAreFoundInPrograms looks for them where they are: in the simulator, and in this test.
func TestDevelopmentPackagesAreFoundInPrograms(t *testing.T) {
	simulator := filepath.Join(t.TempDir(), "occlum")
	if out, err := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", simulator,
		"../../../lab/occlum").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for program, names := range map[string][]string{
		simulator: {"lab/softsgx", "lab/occlumsim"}, os.Args[0]: {"testing.(*common)"},
	} {
		found, err := Program(program, ProgramOptions{Forbidden: Development()})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if !slices.ContainsFunc(found, func(f Finding) bool {
				return strings.HasSuffix(f.Field, ": packages") &&
					strings.Contains(f.Problem, name+", which must not run in an enclave")
			}) {
				t.Errorf("%s: %s is not in %v", program, name, found)
			}
		}
	}
}

func TestDynamicLibrariesAndRaceDetectorAreRefused(t *testing.T) {
	testenv.Program(t, "cc", "cc", "gcc")
	dir := t.TempDir()
	source := filepath.Join(dir, "main.c")
	program := filepath.Join(dir, "main")
	write(t, source, "int main(void) { return 0; }\n")
	if out, err := exec.Command("cc", "-fPIE", "-pie", "-o", program, source).CombinedOutput(); err != nil {
		t.Fatalf("cc: %v\n%s", err, out)
	}
	f, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var found []string
	info := &debug.BuildInfo{Settings: []debug.BuildSetting{{Key: "-race", Value: "true"}}}
	goProgram(f, nil, info, ProgramOptions{}, func(property, _, _ string) { found = append(found, property) })
	for _, want := range []string{"DT_NEEDED", "race detector"} {
		if !slices.Contains(found, want) {
			t.Errorf("found %q, not %q", found, want)
		}
	}

	// The same file is fine as a C program, which may have libraries.
	findings, err := Program(program, ProgramOptions{})
	if err != nil || len(findings) > 0 {
		t.Errorf("found %v, error %v", findings, err)
	}
}

func TestProgramThatTheLoaderMisreadsIsRefused(t *testing.T) {
	text, err := os.ReadFile(build(t, "CGO_ENABLED=0", good...))
	if err != nil {
		t.Fatal(err)
	}
	moved := slices.Clone(text)
	binary.LittleEndian.PutUint64(moved[32:], uint64(len(moved)))
	moved = append(moved, text[64:64+56*int(binary.LittleEndian.Uint16(text[56:]))]...)
	arm := slices.Clone(text)
	binary.LittleEndian.PutUint16(arm[18:], uint16(elf.EM_AARCH64))
	for _, c := range []struct {
		name string
		text []byte
		want string
	}{
		{"program headers elsewhere", moved, "e_phoff"},
		{"another machine", arm, "machine"},
		{"a script", []byte("#!/bin/sh\n"), "format"},
		{"nothing", nil, "format"},
		{"half a header", text[:40], "format"},
	} {
		path := filepath.Join(t.TempDir(), "program")
		write(t, path, string(c.text))
		found, err := Program(path, ProgramOptions{})
		if err != nil || len(found) == 0 || !strings.HasSuffix(found[0].Field, c.want) {
			t.Errorf("%s: found %v, error %v", c.name, found, err)
		}
	}
}

const occlumJSON = `{
	"resource_limits": {
		"kernel_space_heap_size": "64MB", "kernel_space_stack_size": "1MB", "user_space_size": "2GB",
		"max_num_of_threads": 64
	},
	"process": {"default_stack_size": "4MB", "default_heap_size": "32MB", "default_mmap_size": "100MB"},
	"entry_points": ["/bin/tensorflow_model_server"],
	"env": {"default": ["OCCLUM=yes", "GOMAXPROCS=2"], "untrusted": ["OCCLUM_INIT_RA_KMS_SERVER"]},
	"metadata": {
		"product_id": 3, "version_number": 7, "debuggable": false, "enable_kss": false,
		"family_id": {"high": "0x0", "low": "0x0"}, "ext_prod_id": {"high": "0x0", "low": "0x0"}
	},
	"feature": {"amx": 0, "pkru": 0, "enable_edmm": false, "enable_posix_shm": false},
	"mount": [
		{"target": "/", "type": "unionfs", "options": {"layers": [
			{"target": "/", "type": "sefs", "source": "./build/mount/__ROOT", "options": {"MAC": ""}},
			{"target": "/", "type": "sefs", "source": "./run/mount/__ROOT", "options": {"temporary": true}}
		]}}
	]
}`

// occlumLibc is how a thread begins in Occlum's musl.
const occlumLibc = "\x48\x8b\x7c\x24\x10\x48\x8b\x4c\x24\x08\xff\xd1"

const initJSON = `{
	"backend": "grpc-ratls",
	"grpc_ratls": {
		"servers": ["broker:5000"], "protocol": "legacy",
		"broker_policy": {"sgx": [{"mr_enclave": "5f35d29b8f2e3b3f0e8b5a4d3c2b1a09f8e7d6c5b4a39281706f5e4d3c2b1a09"}]}
	},
	"root": {"key": "image_key", "upper": "temporary"},
	"app": {"path": "/opt/tensorflow_model_server", "args": ["--port=9001"], "entry_point": "/bin/tensorflow_model_server"},
	"volumes": [{"source": "./models/resnet", "target": "/models", "key": "model_key",
		"mac": "00-11-22-33-44-55-66-77-88-99-aa-bb-cc-dd-ee-ff"}],
	"secrets": [{"name": "ssl_config", "path": "/etc/tf_ssl.cfg"}, {"name": "token", "path": "/run/secrets/token"}],
	"collateral": {"pccs_url": "https://pccs:8081/sgx/certification/v4/"}
}`

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// volume is the plain beginning of a protected file with a MAC of 00-11-…-ff.
func volume(integrityOnly byte) string {
	b := make([]byte, 4096)
	copy(b, "ELIF_XGS")
	for k := range 16 {
		b[77+k] = byte(k * 0x11)
	}
	b[94] = integrityOnly
	return string(b)
}

// sigstruct is an enclave file with a signature.
func sigstruct(productID, svn uint16, debug bool) string {
	b := make([]byte, 1808)
	copy(b, "\x06\x00\x00\x00\xe1\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00")
	copy(b[24:], "\x01\x01\x00\x00\x60\x00\x00\x00\x60\x00\x00\x00\x01\x00\x00\x00")
	if !debug {
		b[944] = 2
	}
	binary.LittleEndian.PutUint16(b[1024:], productID)
	binary.LittleEndian.PutUint16(b[1026:], svn)
	return "\x7fELF\x06\x00\x00\x00\xe1\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00" + string(b) + "rest"
}

// newInstance makes an instance with nothing to find fault with.
func newInstance(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	program, err := os.ReadFile(build(t, "CGO_ENABLED=0", good...))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"Occlum.json":                              occlumJSON,
		".sgx_mode":                                "HW\n",
		"init_ra_conf.json":                        initJSON,
		"initfs/etc/init_ra_conf.json":             initJSON,
		"initfs/bin/init":                          string(program),
		"initfs" + loader:                          string(program) + occlumLibc,
		"initfs/etc/ssl/certs/ca-certificates.crt": "-----BEGIN CERTIFICATE-----\n",
		"initfs/etc/image_config.json":             `{"image_type":"encrypted"}`,
		"image/bin/tensorflow_model_server":        string(program),
		"image" + loader:                           string(program) + occlumLibc,
		"image/opt/tensorflow_model_server":        string(program) + " the real one",
		"models/resnet/metadata":                   volume(0),
		"build/mount/__ROOT/metadata":              volume(0),
		"build/lib/libocclum-libos.signed.so":      sigstruct(3, 7, false),
	} {
		write(t, filepath.Join(dir, name), text)
	}
	for _, name := range []string{"proc", "dev", "etc", "models", "run/secrets"} {
		if err := os.MkdirAll(filepath.Join(dir, "image", name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestSoundInstanceHasNoFindings(t *testing.T) {
	found, err := Instance(newInstance(t), Options{})
	if err != nil || len(found) > 0 {
		t.Errorf("found %v, error %v", found, err)
	}
}

func TestScriptIsAnApplicationToo(t *testing.T) {
	dir := newInstance(t)
	write(t, filepath.Join(dir, "image/opt/tensorflow_model_server"), "#!/bin/interpreter\n")
	if found, err := Instance(dir, Options{}); err != nil || len(found) > 0 {
		t.Errorf("found %v, error %v", found, err)
	}
}

// in replaces old by new in every file that has it.
func in(file, old, new string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		for _, name := range strings.Fields(file) {
			path := filepath.Join(dir, name)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			text := strings.Replace(string(b), old, new, 1)
			if text == string(b) {
				t.Fatalf("%s has no %q", name, old)
			}
			write(t, path, text)
		}
	}
}

func file(name, text string) func(*testing.T, string) {
	return func(t *testing.T, dir string) { write(t, filepath.Join(dir, name), text) }
}

func gone(name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestInstanceNamesEveryBadSetting(t *testing.T) {
	const conf, configs = "Occlum.json", "init_ra_conf.json initfs/etc/init_ra_conf.json"
	useAECS := func(t *testing.T, dir string) {
		in(configs, `"grpc-ratls",`, `"aecs", "aecs": {"servers": ["aecs:1"], "generation": "a", "service": "s",
		  "tls": {"ca": "/etc/aecs/ca.pem", "certificate": "/etc/aecs/client.pem", "key": "/etc/aecs/client.key"},
		  "server_policy": {"sgx": [{"mr_enclave": "`+strings.Repeat("aa", 32)+`"}]}},`)(t, dir)
	}
	for _, c := range []struct {
		name     string
		change   func(*testing.T, string)
		severity Severity
		field    string
		problem  string
	}{
		{"an unknown field", in(conf, "temporary", "temporay"), Error, "Occlum.json", "temporay"},
		{"too little user space", in(conf, "2GB", "300MB"), Error, "user_space_size", "1225 MiB"},
		{"a kernel heap smaller than the program", in(conf, "64MB", "32MB"), Error, "kernel_space_heap_size", "32MB"},
		{"too few threads", in(conf, `"max_num_of_threads": 64`, `"max_num_of_threads": 8`), Error, "max_num_of_threads", "8"},
		{"as many threads as the host has CPUs", in(conf, `, "GOMAXPROCS=2"`, ``), Warning, "env.default", "GOMAXPROCS"},
		{"a mount of the host", in(conf, "\n\t]\n", `, {"target": "/host", "type": "hostfs", "source": "."}]`), Error,
			"mount: /host", "host"},
		{"a cache that is too small", in(conf, "\n\t]\n",
			`, {"target": "/etc", "type": "sefs", "options": {"cache_size": "4KB"}}]`), Error, "cache_size", "4KB"},
		{"a disk that is too small", in(conf, "\n\t]\n",
			`, {"target": "/etc", "type": "ext2", "options": {"disk_size": "1GB"}}]`), Error, "disk_size", "1GB"},
		{"a mount on nothing", in(conf, "\n\t]\n", `, {"target": "/data", "type": "ramfs"}]`), Error, "image/data", "missing"},
		{"no /proc", gone("image/proc"), Error, "image/proc", "missing"},
		{"no mount point of a volume", gone("image/models"), Error, "image/models", "volume"},
		{"no directory for a secret", gone("image/run/secrets"), Error, "image/run/secrets", "secret token"},
		{"secrets that persist", in(conf, `"options": {"temporary": true}`, `"options": {}`), Error, "writable layer",
			"/etc/tf_ssl.cfg"},
		{"a secret in a volume", in(configs, "/run/secrets/token", "/models/token"), Error, "secrets: token", "volume"},
		{"no writable layer", in(conf, `"options": {"temporary": true}`, `"options": {"MAC": ""}`), Error,
			"writable layer", "missing"},
		{"a directory as entry point", in(conf, `["/bin/tensorflow_model_server"]`, `["/bin"]`), Error, "entry_points",
			"directory"},
		{"a relative entry point", in(conf, `["/bin/tensorflow_model_server"]`, `["bin/x"]`), Error, "entry_points", "EINVAL"},
		{"no entry point", in(conf, `["/bin/tensorflow_model_server"]`, `[]`), Error, "entry_points", "empty"},
		{"a missing entry point", gone("image/bin/tensorflow_model_server"), Error, "entry_points", "not in the image"},
		{"an entry point that is not the launcher", file("image/bin/tensorflow_model_server", "other"), Error,
			"entry_points", "not the launcher"},
		{"a shell as entry point", func(t *testing.T, dir string) {
			in(conf, `["/bin/tensorflow_model_server"]`, `["/bin/sh"]`)(t, dir)
			write(t, filepath.Join(dir, "image/bin/sh"), "shell")
		}, Error, "entry_points", "arguments"},
		{"a link to a shell as entry point", func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "image/bin/busybox"), "shell")
			gone("image/bin/tensorflow_model_server")(t, dir)
			if err := os.Symlink("/bin/busybox", filepath.Join(dir, "image/bin/tensorflow_model_server")); err != nil {
				t.Fatal(err)
			}
		}, Error, "entry_points", "arguments"},
		{"arguments that are not pinned", in(configs, `"app"`, `"volumes": [], "application"`), Error, "application", ""},
		{"no application", func(t *testing.T, dir string) {
			for _, name := range strings.Fields(configs) {
				text := initJSON[:strings.Index(initJSON, `"app"`)] + initJSON[strings.Index(initJSON, `"volumes"`):]
				write(t, filepath.Join(dir, name), text)
			}
		}, Error, "app", "host chooses"},
		{"an application that is not there", gone("image/opt/tensorflow_model_server"), Error, "app.path", "not in the image"},
		{"an application that is not executable", func(t *testing.T, dir string) {
			if err := os.Chmod(filepath.Join(dir, "image/opt/tensorflow_model_server"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, Error, "image/opt/tensorflow_model_server", "EACCES"},
		{"a static application", func(t *testing.T, dir string) {
			b, err := os.ReadFile(build(t, "CGO_ENABLED=0", without("-buildmode")...))
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, "image/opt/tensorflow_model_server"), string(b))
		}, Error, "image/opt/tensorflow_model_server: PT_INTERP", "static"},
		{"no loader for the application", gone("image" + loader), Error, "image" + loader, "ENOENT"},
		{"a loader that is not executable", func(t *testing.T, dir string) {
			if err := os.Chmod(filepath.Join(dir, "image"+loader), 0o644); err != nil {
				t.Fatal(err)
			}
		}, Error, "image" + loader, "EACCES"},
		{"a debuggable enclave", in(conf, `"debuggable": false`, `"debuggable": true`), Error, "debuggable", "host"},
		{"a log", in(conf, `"debuggable": false`, `"debuggable": false, "disable_log": false`), Error, "disable_log", "keys"},
		{"identities without KSS", in(conf, `"low": "0x0"`, `"low": "0x7"`), Error, "enable_kss", "family_id"},
		{"no product id", in(conf, `"product_id": 3`, `"product_id": 0`), Warning, "product_id", "0"},
		{"GODEBUG", in(conf, `["OCCLUM_INIT`, `["GODEBUG", "OCCLUM_INIT`), Error, "env.untrusted", "GODEBUG"},
		{"SSL_CERT_FILE", in(conf, `["OCCLUM_INIT`, `["SSL_CERT_FILE", "OCCLUM_INIT`), Error, "env.untrusted", "TLS trusts"},
		{"LD_PRELOAD", in(conf, `["OCCLUM_INIT`, `["LD_PRELOAD", "OCCLUM_INIT`), Error, "env.untrusted", "loads code"},
		{"the launcher's variable", in(conf, `["OCCLUM_INIT`, `["SESAME_APP", "OCCLUM_INIT`), Error, "env.untrusted", "launcher"},
		{"the launcher's variable by default", in(conf, `"OCCLUM=yes"`, `"SESAME_APP={}"`), Error, "env.default", "SESAME_APP"},
		{"any other variable", in(conf, `["OCCLUM_INIT`, `["MODEL", "OCCLUM_INIT`), Warning, "env.untrusted", "MODEL"},
		{"an environment that does not fit", in(conf, `"OCCLUM=yes"`, `"BIG=`+strings.Repeat("x", 17000)+`"`), Error,
			"default_stack_size", "ENOMEM"},
		{"no init", gone("initfs/bin/init"), Error, "initfs/bin/init", "missing"},
		{"an init that is not executable", func(t *testing.T, dir string) {
			if err := os.Chmod(filepath.Join(dir, "initfs/bin/init"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, Error, "initfs/bin/init", "EACCES"},
		{"an init that does not load", file("initfs/bin/init", "#!/bin/sh"), Error, "initfs/bin/init: format", "ELF"},
		{"no loader", gone("initfs" + loader), Error, "initfs" + loader, "ENOENT"},
		{"no config", func(t *testing.T, dir string) {
			gone("init_ra_conf.json")(t, dir)
			gone("initfs/etc/init_ra_conf.json")(t, dir)
		}, Error, "initfs/etc/init_ra_conf.json", "missing"},
		{"a wrong config", in(configs, `"grpc-ratls",`, `"carrier pigeon",`), Error, "init_ra_conf.json: backend", "pigeon"},
		{"a stale config", in("init_ra_conf.json", "broker:5000", "broker:5001"), Error, "initfs/etc/init_ra_conf.json", "stale"},
		{"a built-in image key", file("initfs/etc/image_key", "00-11"), Error, "initfs/etc/image_key", "image key"},
		{"a key under another name", file("initfs/etc/k", "00-11-22-33-44-55-66-77-88-99-aa-bb-cc-dd-ee-ff\n"), Error,
			"initfs/etc/k", "looks like a key"},
		{"a private key", file("initfs/etc/tls.pem", privateKey(t)), Error, "initfs/etc/tls.pem", "private"},
		{"no CA certificates", gone("initfs/etc/ssl"), Error, "ca-certificates.crt", "PCCS"},
		{"no file with the PCCS's CA", in(configs, `"pccs_url"`, `"pccs_ca": "/etc/pccs.pem", "pccs_url"`), Error,
			"pccs_ca", "/etc/pccs.pem"},
		{"no file with Azure's roots", in(configs, `"grpc-ratls",`, `"maa", "maa": {
		  "endpoint": "https://test.uks.attest.azure.net", "vault": "https://test.vault.azure.net", "aad": {"mode": "managed-identity"},
		  "keys": {"image_key": {"name": "image"}, "model_key": {"name": "model"}, "ssl_config": {"name": "kek"}, "token": {"name": "kek"}},
		  "tls_roots": "/etc/sesame/azure_roots.pem"},`), Error, "maa.tls_roots", "/etc/sesame/azure_roots.pem"},
		{"no file with the AECS's CA", useAECS, Error, "aecs.tls.ca", "/etc/aecs/ca.pem"},
		{"the key for an AECS", func(t *testing.T, dir string) {
			useAECS(t, dir)
			for _, name := range []string{"ca.pem", "client.pem"} {
				file("initfs/etc/aecs/"+name, "-----BEGIN CERTIFICATE-----\n")(t, dir)
			}
			file("initfs/etc/aecs/client.key", privateKey(t))(t, dir)
		}, Warning, "initfs/etc/aecs/client.key", "keeps no one out"},
		{"another trust root", in(configs, `"pccs_url"`, `"root_ca": "/etc/ssl/certs/ca-certificates.crt", "pccs_url"`),
			Warning, "root_ca", "Intel"},
		{"another volume", in(configs, "-ee-ff", "-ee-fe"), Error, "volumes[0].mac", "EIO"},
		{"a volume without encryption", file("models/resnet/metadata", volume(1)), Error, "volumes[0].source", "not encrypted"},
		{"no volume", gone("models"), Warning, "volumes[0].source", "no volume"},
		{"a distribution's libc", file("image/lib/libc.so.6", "\x7fELF GNU C Library (Debian GLIBC 2.36-9)"), Error,
			"image/lib/libc.so.6", "stock"},
		{"a musl that anybody built", file("image"+loader, "\x7fELF \x0f\x05\x85\xc0\x75\x0a\x31\xed\x5f\x41\xff\xd1"), Error,
			"image" + loader, "stock"},
		{"a stock libc in a simulated instance", func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, ".sgx_mode"), "SIM\n")
			write(t, filepath.Join(dir, "image/lib/libc.so.6"), "\x7fELF GNU C Library (Debian GLIBC 2.36-9)")
		}, Warning, "image/lib/libc.so.6", "stock"},
		{"a libc of unknown origin", file("image"+loader, "\x7fELF musl libc"), Warning, "image" + loader, "no sign"},
		{"a stale image type", file("initfs/etc/image_config.json", `{"image_type":"integrity-only"}`), Error,
			"image_config.json", "stale"},
		{"an image type with more behind it", file("initfs/etc/image_config.json", `{"image_type":"encrypted"} {}`), Error,
			"image_config.json", "not what Occlum's build writes"},
		{"an unknown image type", file("initfs/etc/image_config.json", `{"image_type":"none"}`), Error, "image_config.json", ""},
		{"an image type against the config, before the build", func(t *testing.T, dir string) {
			gone("build")(t, dir)
			write(t, filepath.Join(dir, "initfs/etc/image_config.json"), `{"image_type":"integrity-only"}`)
		}, Error, "root.key", "integrity-only"},
		{"an image without encryption", file("build/mount/__ROOT/metadata", volume(1)), Error, "root.key", "integrity-only"},
		{"an encrypted image without a key", in(configs, `"key": "image_key", `, ``), Error, "root.key", "encrypted"},
		{"simulation", file(".sgx_mode", "SIM\n"), Warning, ".sgx_mode", "SIM"},
		{"an unsigned enclave", file("build/lib/libocclum-libos.signed.so", "\x7fELF"), Error, "signed.so", "no enclave signature"},
		{"an enclave of an older version", file("build/lib/libocclum-libos.signed.so", sigstruct(3, 6, false)), Error,
			"signed.so", "stale"},
		{"an enclave that was debuggable", file("build/lib/libocclum-libos.signed.so", sigstruct(3, 7, true)), Error,
			"signed.so", "stale"},
		{"a package without the image", gone("image"), Warning, "image", "not checked"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := newInstance(t)
			c.change(t, dir)
			found, err := Instance(dir, Options{})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range found {
				if f.Severity == c.severity && strings.Contains(f.Field, c.field) && strings.Contains(f.Problem, c.problem) {
					if f.Write == "" {
						t.Errorf("nothing is said to write in %v", f)
					}
					return
				}
			}
			t.Errorf("no %s on %q with %q in %v", c.severity, c.field, c.problem, found)
		})
	}
}

func TestLibcIsComparedWithOcclumsOwn(t *testing.T) {
	dir, own := newInstance(t), t.TempDir()
	b, err := os.ReadFile(filepath.Join(dir, "initfs"+loader))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(own, "lib/libc.so"), string(b))
	if found, err := Instance(dir, Options{OcclumLibc: own}); err != nil || len(found) > 0 {
		t.Errorf("Occlum's own file: found %v, error %v", found, err)
	}
	write(t, filepath.Join(dir, "image"+loader), string(b)+"patched")
	if found, err := Instance(dir, Options{OcclumLibc: own}); err != nil || !found.Failed() {
		t.Errorf("another file: found %v, error %v", found, err)
	}
	// A list of hashes does as well.
	list := filepath.Join(t.TempDir(), "hashes")
	write(t, list, fmt.Sprintf("# Occlum's\n%x  lib/libc.so\n", sha256.Sum256(b)))
	found, err := Instance(dir, Options{OcclumLibc: list})
	if err != nil || len(found) != 1 || found[0].Field != "image"+loader {
		t.Errorf("a list of hashes: found %v, error %v", found, err)
	}
	write(t, list, "deadbeef  lib/libc.so\n")
	if _, err := Instance(dir, Options{OcclumLibc: list}); err == nil {
		t.Error("a malformed list was taken")
	}
	if _, err := Instance(dir, Options{OcclumLibc: t.TempDir()}); err == nil {
		t.Error("an empty directory was taken for Occlum's libraries")
	}
}

// TestOriginOfLibrariesIsToldByHowTheyStartThreads looks at the libraries of this machine, which are only the
// distribution's, and at code as Occlum's sources assemble to it.
func TestOriginOfLibrariesIsToldByHowTheyStartThreads(t *testing.T) {
	for _, name := range []string{loader, "/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"} {
		text, err := os.ReadFile(name)
		if err != nil {
			testenv.Missing(t, "musl", err.Error())
		}
		if got := originOf(text); got != stockBuild {
			t.Errorf("%s: origin %d, want that of a stock library", name, got)
		}
		// A string says little: what starts threads as Linux does, does so under any name.
		if name != "/lib64/ld-linux-x86-64.so.2" && originOf(append(text, "occlum"...)) != stockBuild {
			t.Errorf("%s: a word made it Occlum's", name)
		}
		if originOf(append(text, occlumLibc...)) != occlumBuild {
			t.Errorf("%s with Occlum's own start of threads is not Occlum's", name)
		}
	}
	const glibc = "\x48\x8b\x7c\x24\x10\x48\x8b\x4c\x24\x08\x48\x83\xe4\xf0\xff\xd1"
	for text, want := range map[string]origin{
		glibc: occlumBuild, occlumLibc: occlumBuild, "\x7fELF __occlum_entry": occlumBuild, "\x7fELF": unknownOrigin,
		occlumLibc[:len(occlumLibc)-1]: unknownOrigin,
	} {
		if got := originOf([]byte(text)); got != want {
			t.Errorf("%x: origin %d, want %d", text, got, want)
		}
	}
}

func TestOnlyErrorsFail(t *testing.T) {
	if (Findings{{Severity: Warning}}).Failed() || !(Findings{{Severity: Warning}, {Severity: Error}}).Failed() {
		t.Error("findings fail by something else than errors")
	}
}

func TestDirectoryThatIsNoInstanceIsAnError(t *testing.T) {
	if _, err := Instance(t.TempDir(), Options{}); err == nil {
		t.Error("an empty directory was checked")
	}
}

func TestDefaultSignerIsTheOneThatPoliciesRefuse(t *testing.T) {
	var signer policy.SGX
	if err := json.Unmarshal([]byte(`{"mr_signer": "`+defaultSigner+`", "product_id": 1, "min_svn": 1}`), &signer); err != nil {
		t.Fatal(err)
	}
	err := (&policy.Policy{SGX: []policy.SGX{signer}}).Validate()
	if err == nil || !strings.Contains(err.Error(), "default signer") {
		t.Errorf("error %v", err)
	}
}

func TestDefaultSigningKeyIsAnError(t *testing.T) {
	conf, err := occlumconf.Load(filepath.Join(newInstance(t), "Occlum.json"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(defaultSigner)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		signer [32]byte
		failed bool
	}{{[32]byte(b), true}, {[32]byte{1}, false}} {
		i := &inspection{conf: conf}
		i.checkSignature("signed.so", &signature{c.signer, 3, 7, false})
		if i.found.Failed() != c.failed {
			t.Errorf("signer %x: found %v", c.signer, i.found)
		}
	}
}

func TestSignatureIsReadFromBothForms(t *testing.T) {
	s := readSignature([]byte(sigstruct(3, 7, true)))
	if s == nil || s.productID != 3 || s.svn != 7 || !s.debug {
		t.Errorf("SIGSTRUCT: %+v", s)
	}
	if s := readSignature([]byte(sigstruct(3, 7, true)[:900])); s != nil {
		t.Errorf("half a SIGSTRUCT: %+v", s)
	}
	for _, text := range []string{`{}`, `{"signer":"AAAA"}`, ``} {
		if s := readSignature([]byte(text)); s != nil {
			t.Errorf("%s: %+v", text, s)
		}
	}
}

func FuzzReadSignature(f *testing.F) {
	f.Add([]byte(sigstruct(1, 2, false)))
	f.Add([]byte(`{"isv_prod_id":1,"signer":"MFkw"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s := readSignature(b); s != nil && !json.Valid(b) && !bytes.Contains(b, []byte("\x06\x00\x00\x00\xe1")) {
			t.Errorf("a signature was found in %x", b)
		}
	})
}

func TestTheTemplateOfTheRepositoryIsClean(t *testing.T) {
	found, err := File("../../../Occlum.json")
	if err != nil || len(found) != 0 {
		t.Errorf("%v, %v", found, err)
	}
	text, err := os.ReadFile("../../../Occlum.json")
	if err != nil {
		t.Fatal(err)
	}
	for setting, worse := range map[string][2]string{
		"debuggable": {`"debuggable": false`, `"debuggable": true`},
		"user_space": {`"7000MB"`, `"300MB"`},
		"temporary":  {`"temporary": true`, `"temporary": false`},
		"entry":      {`"/bin/tensorflow_model_server"`, `"/bin"`},
		"GOMAXPROCS": {`"GOMAXPROCS=2",`, ``},
	} {
		if !strings.Contains(string(text), worse[0]) {
			t.Fatalf("the template has no %s", worse[0])
		}
		file := filepath.Join(t.TempDir(), "Occlum.json")
		if err := os.WriteFile(file, []byte(strings.Replace(string(text), worse[0], worse[1], 1)), 0o644); err != nil {
			t.Fatal(err)
		}
		if found, err := File(file); err != nil || len(found) == 0 {
			t.Errorf("%s: %v, %v", setting, found, err)
		}
	}
}
