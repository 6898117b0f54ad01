package pipeline

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	peer "github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/internal/config"
	"github.com/sesame-init/sesame/internal/occlum/occlumcheck"
	"github.com/sesame-init/sesame/internal/occlum/occlumconf"
	"github.com/sesame-init/sesame/internal/occlum/sizing"
	"github.com/sesame-init/sesame/internal/packaging/copytree"
	"github.com/sesame-init/sesame/internal/packaging/keyring"
	"github.com/sesame-init/sesame/internal/packaging/ociimage"
	"github.com/sesame-init/sesame/internal/testenv"
)

const repository = "../../.."

// options are those of a small simulated deployment in a directory of the test's own. Model, Python and the programs are
// small stand-ins: nothing looks into the former here, and nothing runs the latter. The simulator that builds is real.
func options(t *testing.T) (Options, *bytes.Buffer) {
	t.Helper()
	o, out := realOptions(t)
	testenv.Program(t, "cc", "gcc", "gcc")
	dir, err := small()
	if err != nil {
		t.Fatal(err)
	}
	if o.Occlum, err = filepath.Abs(filepath.Join(o.Programs, "occlum")); err != nil {
		t.Fatal(err)
	}
	o.Programs = dir
	return o, out
}

// realOptions are the same with the programs of make build.
func realOptions(t *testing.T) (Options, *bytes.Buffer) {
	t.Helper()
	for _, program := range []string{"init", "sesame", "occlum", "libos/keybroker", "libos/tensorflow_model_server"} {
		if _, err := os.Stat(filepath.Join(repository, "bin", program)); err != nil {
			testenv.Missing(t, "bin", "run make build first: "+err.Error())
		}
	}
	if _, err := os.Stat(muslLoader); err != nil {
		testenv.Missing(t, "musl", err.Error())
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "model/1/model.safetensors"), strings.Repeat("weights ", 1000), 0o644)
	write(t, filepath.Join(dir, "python/usr/bin/python3"), "#!/bin/false\n", 0o755)
	write(t, filepath.Join(dir, "python/usr/lib/python3.11/os.py"), "", 0o644)
	write(t, filepath.Join(dir, "cat.jpg"), "picture", 0o644)
	var out bytes.Buffer
	return Options{
		Work: filepath.Join(dir, "work"), Registry: "registry.example/team", Tag: "v1", Mode: Simulated, Backend: "grpc-ratls",
		BrokerHost: "init-ra-server-svc", BrokerPort: 5000, PCCS: "http://sim-pccs:8081/sgx/certification/v4/",
		Model: filepath.Join(dir, "model"), ModelName: "resnet", Names: []string{"localhost"}, CPUs: 4, ServerTLS: FromBroker,
		AppImage: standIn, Program: "/usr/bin/tensorflow_model_server",
		Template: filepath.Join(repository, "Occlum.json"), Programs: filepath.Join(repository, "bin"),
		Manifests: filepath.Join(repository, "packaging/kubernetes"), Client: filepath.Join(repository,
			"packaging/clientscripts"),
		Dockerfile: filepath.Join(repository, "docker"), Python: filepath.Join(dir, "python"), Picture: filepath.Join(dir,
			"cat.jpg"),
		Writer: "oci", Created: time.Unix(1700000000, 0), Now: time.Now(), Output: &out,
	}, &out
}

func write(t *testing.T, file, text string, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// shared is a folder for what is made once for all tests; TestMain removes it.
var shared string

// ring has the keys of a deployment, which take their time.
var ring = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(shared, "ring")
	_, _, err := keyring.Make(filepath.Join(dir, "keys"), keyring.Options{Names: []string{"localhost"},
		Lifetime: time.Hour, Now: time.Now()})
	return dir, err
})

// small has a program of a few kilobytes for each of make build. Those of the LibOS have its loader, the others none.
var small = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(shared, "programs")
	source := filepath.Join(shared, "main.c")
	err := errors.Join(os.MkdirAll(filepath.Join(dir, "libos"), 0o755),
		os.WriteFile(source, []byte("void _start(void) { for (;;); }\n"), 0o644))
	if err != nil {
		return "", err
	}
	for program, flags := range map[string][]string{
		"init": {"-pie", "-Wl,--dynamic-linker=" + muslLoader}, "sesame": {"-static"}, "occlum": {"-static"},
	} {
		cmd := exec.Command("gcc", append(flags, "-nostdlib", "-fPIE", "-o", filepath.Join(dir, program), source)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%w\n%s", err, out)
		}
	}
	for _, program := range []string{"libos/keybroker", "libos/tensorflow_model_server"} {
		if err := copytree.Copy(filepath.Join(dir, "init"), filepath.Join(dir, program)); err != nil {
			return "", err
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	var err error
	if shared, err = os.MkdirTemp("", "pipeline-test-"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(shared)
	os.Exit(code)
}

// all does all steps, or those that are named.
func all(t *testing.T, o Options, names ...string) *Pipeline {
	t.Helper()
	if _, err := os.Stat(filepath.Join(o.Work, "keys")); err != nil {
		dir, err := ring()
		if err != nil {
			t.Fatal(err)
		}
		if err := copytree.Copy(dir, o.Work); err != nil {
			t.Fatal(err)
		}
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	steps := Steps()
	if len(names) > 0 {
		steps = slices.DeleteFunc(steps, func(s Step) bool { return !slices.Contains(names, s.Name) })
	}
	if err := p.Run(t.Context(), steps...); err != nil {
		t.Fatal(err)
	}
	return p
}

func digest(t *testing.T, p *Pipeline, name string) string {
	t.Helper()
	image, err := ociimage.Open(t.Context(), "oci:"+p.layout(name))
	if err != nil {
		t.Fatal(err)
	}
	d, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

func TestOneInputGivesOneDigestAndNoImageHoldsASecret(t *testing.T) {
	o, _ := options(t)
	first := all(t, o)
	if !testing.Short() {
		sameDigests(t, first, o)
	}
	noSecrets(t, first)
}

// sameDigests builds once more, elsewhere. The inputs are what a clean checkout of a deployment has: keys, platform, and
// which builds are allowed.
func sameDigests(t *testing.T, first *Pipeline, o Options) {
	t.Helper()
	again := o
	again.Work = filepath.Join(t.TempDir(), "other", "work")
	for _, input := range []string{"keys", "platform"} {
		if err := copytree.Copy(first.path(input), filepath.Join(again.Work, input)); err != nil {
			t.Fatal(err)
		}
	}
	second := all(t, again)
	for _, name := range Images() {
		if a, b := digest(t, first, name), digest(t, second, name); a != b {
			t.Errorf("%s: %s and %s", name, a, b)
		}
	}
}

// noSecrets looks for secrets in the images, and in the manifests and what is pushed to the broker.
func noSecrets(t *testing.T, first *Pipeline) {
	t.Helper()
	keys, err := first.ring()
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{keyring.BrokerSigner, keyring.WorkloadSigner, keyring.AdminKey}
	for _, s := range keyring.Secrets() {
		secrets = append(secrets, s.Name)
	}
	values := map[string][]byte{}
	for _, secret := range secrets {
		text, err := os.ReadFile(keys.Path(secret))
		if err != nil {
			t.Fatal(err)
		}
		for form, value := range written(canary(text)) {
			values[secret+form] = value
		}
	}
	searchFor(t, first.path("kubernetes"), "a manifest", values)
	searchFor(t, first.path("policy.yaml"), "the policy", values)
	for _, name := range Images() {
		image, err := ociimage.Open(t.Context(), "oci:"+first.layout(name))
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(t.TempDir(), "root")
		if err := ociimage.Unpack(image, dir); err != nil {
			t.Fatal(err)
		}
		searchFor(t, dir, name, values)
	}
}

// written are the ways in which a value may stand in a file. Base64 depends on what stands before the value.
func written(value []byte) map[string][]byte {
	forms := map[string][]byte{"": value, " in hex": []byte(hex.EncodeToString(value))}
	for shift := range 3 {
		text := base64.StdEncoding.EncodeToString(append(make([]byte, shift), value...))
		forms[fmt.Sprint(" in base64 behind ", shift)] = []byte(text[4 : len(text)&^3-4])
	}
	return forms
}

// canary is a part of a key that occurs nowhere else.
func canary(secret []byte) []byte {
	lines := bytes.Split(bytes.TrimSpace(secret), []byte("\n"))
	line := bytes.ReplaceAll(lines[len(lines)/2], []byte(`server_key: "-----BEGIN PRIVATE KEY-----\n`), nil)
	return line[:min(len(line), 47)]
}

// searchFor looks for the values, which have names, in all files of dir.
func searchFor(t *testing.T, dir, what string, values map[string][]byte) {
	t.Helper()
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(file)
		for name, value := range values {
			if bytes.Contains(content, value) {
				t.Errorf("%s holds %s, in %s", what, name, file)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// enclaves are the steps up to the enclaves and the manifests, without the images.
var enclaves = []string{"platform", "keys", "root", "volume", "workload", "policy", "broker", "manifests"}

func TestAStepIsDoneOnceAndAKeyNeverTwice(t *testing.T) {
	o, out := options(t)
	p := all(t, o, enclaves...)
	out.Reset()
	all(t, o, enclaves...)
	for _, step := range []string{"root", "volume", "workload", "broker"} {
		if !strings.Contains(out.String(), fmt.Sprintf("%-10s done before", step)) {
			t.Errorf("step %s was done again:\n%s", step, out)
		}
	}
	if err := os.Remove(p.path("keys", keyring.ModelKey)); err != nil {
		t.Fatal(err)
	}
	err := p.Run(t.Context(), Steps()...)
	if attest.CodeOf(err) != attest.CodeConfig || !strings.Contains(err.Error(), keyring.ModelKey) {
		t.Errorf("without a key: %v", err)
	}
}

func TestARollOutAllowsBothMeasurementsUntilTheOldOneIsWithdrawn(t *testing.T) {
	testenv.Long(t, "builds four times")
	o, _ := options(t)
	p := all(t, o, enclaves...)
	old, err := p.Measurement("workload")
	if err != nil {
		t.Fatal(err)
	}
	brokerBefore, err := p.Measurement("broker")
	if err != nil {
		t.Fatal(err)
	}
	o.Tag, o.CPUs = "v2", 3
	p = all(t, o, enclaves...)
	now, err := p.Measurement("workload")
	if err != nil {
		t.Fatal(err)
	}
	if old.MREnclave == now.MREnclave {
		t.Fatal("a change of what is measured changes nothing")
	}
	if b, err := p.Measurement("broker"); err != nil || *b != *brokerBefore {
		t.Errorf("the broker was built anew: %+v, %v", b, err)
	}
	if got := allowedBy(t, p); !slices.Equal(got, []string{old.MREnclave, now.MREnclave}) {
		t.Errorf("the policy allows %v", got)
	}
	o.ServerTLS, o.Tag = InEnclave, "v3" // another measurement again
	p = all(t, o, enclaves...)
	if got := allowedBy(t, p); len(got) != 3 {
		t.Errorf("the policy allows %v", got)
	}
	o.Withdraw, o.ServerTLS, o.Tag = true, FromBroker, "v2"
	p = all(t, o, enclaves...)
	if got := allowedBy(t, p); !slices.Equal(got, []string{now.MREnclave}) {
		t.Errorf("after the withdrawal the policy allows %v", got)
	}
}

func allowedBy(t *testing.T, p *Pipeline) []string {
	t.Helper()
	text, err := os.ReadFile(p.path("policy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := policy.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	var measurements []string
	for _, v := range parsed.Workloads[workloadName].Versions {
		measurements = append(measurements, v.SGX[0].MREnclave.String())
	}
	return measurements
}

func TestInitPinsTheBrokerAndTheManifestsHaveTheNumbers(t *testing.T) {
	o, _ := realOptions(t)
	p := all(t, o, enclaves...)
	text, err := os.ReadFile(p.path("instances/tf_demo/init_ra_conf.json"))
	if err != nil {
		t.Fatal(err)
	}
	conf, err := config.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := p.ring()
	if err != nil {
		t.Fatal(err)
	}
	signer, err := keys.MRSigner(keyring.BrokerSigner)
	if err != nil {
		t.Fatal(err)
	}
	block, err := json.Marshal(conf.Block())
	if err != nil {
		t.Fatal(err)
	}
	var ours struct {
		Policy peer.Policy `json:"broker_policy"`
	}
	if err := json.Unmarshal(block, &ours); err != nil {
		t.Fatal(err)
	}
	pinned := ours.Policy.SGX
	if len(pinned) != 1 || pinned[0].MRSigner.String() != signer || *pinned[0].ProductID != BrokerProduct ||
		*pinned[0].MinSVN != BrokerSVN {
		t.Errorf("the broker is pinned by %+v", pinned)
	}
	m, err := p.Measurement("workload")
	if err != nil {
		t.Fatal(err)
	}
	if m.CPUs != o.CPUs || m.ProductID == BrokerProduct {
		t.Errorf("the inference server is %+v", m)
	}
	k, err := os.ReadFile(p.path("kubernetes/kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"newName: registry.example/team/tf_demo\n", "newTag: v1", "--cpus=4", m.MREnclave[:16],
		"kubernetes-sim"} {
		if !strings.Contains(string(k), want) {
			t.Errorf("the kustomization does not say %q:\n%s", want, k)
		}
	}
	for _, name := range []string{"tf_demo", "init_ra_server"} {
		findings, err := occlumcheck.Instance(p.path("instances", name), occlumcheck.Options{})
		if err != nil || findings.Failed() {
			t.Errorf("%s: %v, %v", name, findings, err)
		}
	}
}

// recorder is an occlum command that does only what a build needs, and records how it was called.
const recorder = `#!/bin/sh
set -e
echo "$@" >>"$RECORD"
case $1 in
new) mkdir -p "$2/image/dev" "$2/image/proc" "$2/image/etc" "$2/image/tmp" "$2/initfs/bin" "$2/initfs/lib" "$2/initfs/etc/ssl/certs"
  mkdir "$2/image/lib"; cp "$LIBC/ld-musl-x86_64.so.1" "$2/initfs/lib/"; cp "$LIBC/ld-musl-x86_64.so.1" "$2/image/lib/"; echo x >"$2/initfs/etc/ssl/certs/ca-certificates.crt" ;;
build) mkdir -p build/lib run; echo enclave >build/lib/signed ;;
print) echo "  $(printf %064d 7)" ;;
package) tar -czf "$2" -C .. "$(basename "$PWD")" ;;
*) exit 9 ;;
esac
`

func TestHardwareModeCallsOcclumsOwnCommandAndTakesItsLibraries(t *testing.T) {
	o, out := options(t)
	dir := t.TempDir()
	record, libc := filepath.Join(dir, "record"), filepath.Join(dir, "libc")
	t.Setenv("RECORD", record)
	t.Setenv("LIBC", libc)
	write(t, filepath.Join(dir, "bin/occlum"), recorder, 0o755)
	loader, err := os.ReadFile(muslLoader)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(libc, filepath.Base(muslLoader)), string(loader)+"occlum", 0o755)
	layer, err := ociimage.Layer([]ociimage.Entry{{Path: "/opt/occlum", Mode: fs.ModeDir | 0o755}}, o.Created)
	if err != nil {
		t.Fatal(err)
	}
	base, err := ociimage.New(nil, ociimage.Config{}, layer)
	if err != nil {
		t.Fatal(err)
	}
	if err := ociimage.WriteLayout(filepath.Join(dir, "base"), "base:1", base); err != nil {
		t.Fatal(err)
	}
	o.Mode, o.Occlum, o.OcclumLibc, o.OcclumRoot, o.Base = Hardware, filepath.Join(dir,
		"bin/occlum"), libc, libc, "oci:"+filepath.Join(dir, "base")
	o.PCCS = "https://pccs:8081/sgx/certification/v4/"
	p := all(t, o)

	text, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	calls := strings.Split(strings.TrimSpace(string(text)), "\n")
	keys := p.path("keys")
	want := []string{
		"new tf_demo",
		"build --sgx-mode HW --sign-key " + keys + "/workload-signer.pem --image-key " + keys + "/image_key",
		"print mrenclave", "print mrsigner", "package " + p.path("packed/tf_demo.tar.gz"),
		"new init_ra_server",
		"build --sgx-mode HW --sign-key " + keys + "/broker-signer.pem",
		"print mrenclave", "print mrsigner", "package " + p.path("packed/init_ra_server.tar.gz"),
	}
	if !slices.Equal(calls, want) {
		t.Errorf("occlum was called\n%s\nwant\n%s", strings.Join(calls, "\n"), strings.Join(want, "\n"))
	}
	if got, err := os.ReadFile(p.path("root", muslLoader)); err != nil || !bytes.HasSuffix(got, []byte("occlum")) {
		t.Errorf("the application's loader is not Occlum's: %v", err)
	}
	if !strings.Contains(out.String(), "1 loaders and libraries are Occlum's own") {
		t.Errorf("it said\n%s", out)
	}
	image, err := ociimage.Open(t.Context(), "oci:"+p.layout(WorkloadImage))
	if err != nil {
		t.Fatal(err)
	}
	file, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if file.Config.User != "65534:65534" || file.Config.Labels["sesame.mode"] != "hw" || len(file.RootFS.DiffIDs) != 4 {
		t.Errorf("the image says %+v", file.Config)
	}
	// A libc that is not Occlum's does not get into a real enclave.
	write(t, p.path("root/lib/libc.so.6"), "\x7fELFa distribution's", 0o755)
	steps := slices.DeleteFunc(Steps(), func(s Step) bool { return s.Name != "workload" })
	if err := p.Run(t.Context(), steps...); err == nil || !strings.Contains(err.Error(), "libc.so.6") {
		t.Errorf("with a distribution's libc: %v", err)
	}
}

func TestManifestsAndChartHaveTheTemplatesNumbers(t *testing.T) {
	conf, err := occlumconf.Load(filepath.Join(repository, "Occlum.json"))
	if err != nil {
		t.Fatal(err)
	}
	epc, _ := sizing.EPC(conf)
	cpus := fmt.Sprint(sizing.CPUs(conf.Threads()))
	for file, want := range map[string][]string{
		"packaging/kubernetes/occlum_tf_demo.yaml": {"sgx.intel.com/epc: " + sizing.Quantity(epc) + "\n",
			"--cpus=" + cpus + ","},
		"packaging/helm/sesame/values.yaml": {"epc: " + sizing.Quantity(epc) + "\n", "cpus: " + cpus + "\n"},
	} {
		text, err := os.ReadFile(filepath.Join(repository, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(string(text), w) {
				t.Errorf("%s does not say %q", file, w)
			}
		}
	}
}

func TestOptionsAreRefused(t *testing.T) {
	good := Options{Work: t.TempDir(), Registry: "r", Tag: "t", Mode: Simulated, Backend: "grpc-ratls", BrokerPort: 1,
		CPUs: 1, ServerTLS: FromBroker}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Options){
		"mode": func(o *Options) { o.Mode = "debug" }, "backend": func(o *Options) { o.Backend = "none" },
		"registry": func(o *Options) { o.Registry = "" }, "tag": func(o *Options) { o.Tag = "" },
		"tls": func(o *Options) { o.ServerTLS = "" }, "port": func(o *Options) { o.BrokerPort = 70000 }, "cpus": func(o *Options) { o.CPUs = 0 },
		"program": func(o *Options) { o.Program = serverEntry },
	} {
		o := good
		spoil(&o)
		if _, err := New(o); attest.CodeOf(err) != attest.CodeUsage {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBuildScriptIsSoundAndPassesEverythingOn(t *testing.T) {
	script := filepath.Join(repository, "packaging/build.sh")
	shellcheck := testenv.Program(t, "shellcheck", "shellcheck", "shellcheck")
	if out, err := exec.Command(shellcheck, script, filepath.Join(repository, "packaging/deps.sh")).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	out, err := exec.Command(script, "-h").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("-r REGISTRY -g TAG")) {
		t.Errorf("-h prints %q, %v", out, err)
	}
}

func TestAContainerEngineWritesTheSameFiles(t *testing.T) {
	testenv.Long(t, "builds all images with buildah")
	buildah := testenv.Program(t, "buildah", "buildah", "buildah")
	testenv.Root(t)
	o, _ := options(t)
	o.Writer = "buildah"
	settings := filepath.Join(t.TempDir(), "containers.conf")
	write(t, settings, "[containers]\ndefault_ulimits = [\"nofile=1024:1024\"]\n", 0o644)
	t.Setenv("CONTAINERS_CONF", settings)
	p := all(t, o)
	t.Cleanup(func() {
		for _, name := range Images() {
			_ = exec.Command(buildah, "rmi", "--force", p.Reference(name)).Run()
		}
	})
	archive := filepath.Join(t.TempDir(), "client.tar")
	if out, err := exec.Command(buildah, "push", p.Reference(ClientImage),
		"docker-archive:"+archive).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	image, err := ociimage.Open(t.Context(), "tar:"+archive)
	if err != nil {
		t.Fatal(err)
	}
	file, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c := file.Config
	if c.User != "65534:65534" || c.WorkingDir != "/opt/sesame/client" ||
		c.Labels["org.opencontainers.image.title"] != ClientImage {
		t.Errorf("the image says %+v", c)
	}
	dir := filepath.Join(t.TempDir(), "root")
	if err := ociimage.Unpack(image, dir); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "opt/sesame/client/cat.jpg")); err != nil || string(text) != "picture" {
		t.Errorf("cat.jpg: %q, %v", text, err)
	}
}

func TestInitGetsItsSecretsFromOtherServicesToo(t *testing.T) {
	for backend, block := range map[string]string{
		"aecs": `{"aecs": {"servers": ["aecs:19527"], "generation": "b", "service": "service1", "tls": {"ca": "/etc/sesame/aecs_ca.pem"},
			"server_policy": {"sgx": [{"mr_signer": "` + strings.Repeat("ab", 32) + `", "product_id": 1, "min_svn": 1}]}}}`,
		"maa": `{"maa": {"endpoint": "https://sharedweu.weu.attest.azure.net", "vault": "https://models.vault.azure.net",
			"tls_roots": "/etc/sesame/azure_roots.pem", "keys": {"image_key": {"name": "image"}, "model_key": {"name": "model"},
			"ssl_config": {"name": "kek", "blob": "AAAA"}}, "aad": {"mode": "workload-identity"}}}`,
	} {
		o := Options{Work: t.TempDir(), Registry: "r", Tag: "t", Mode: Simulated, Backend: backend, BrokerPort: 1, CPUs: 1,
			ServerTLS: FromBroker, ModelName: "resnet", Program: "/usr/bin/tensorflow_model_server",
			PCCS: "https://pccs:8081/sgx/certification/v4/", Service: filepath.Join(t.TempDir(), "service.json")}
		write(t, o.Service, block, 0o644)
		p, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		c, err := p.workloadInit(strings.Repeat("cd", 32), sefs.MAC{0xab})
		if err != nil {
			t.Errorf("%s: %v", backend, err)
			continue
		}
		if len(c.Blocks) != 1 || c.Blocks[backend] == nil {
			t.Errorf("%s: %+v", backend, c)
		}
		write(t, o.Service, strings.Replace(block, `"s`, `"x`, 1), 0o644)
		if _, err := p.workloadInit(strings.Repeat("cd", 32), sefs.MAC{0xab}); attest.CodeOf(err) != attest.CodeConfig {
			t.Errorf("%s, spoilt: %v", backend, err)
		}
		write(t, o.Service, block+" this is no JSON", 0o644)
		if _, err := p.workloadInit(strings.Repeat("cd", 32), sefs.MAC{0xab}); attest.CodeOf(err) != attest.CodeConfig {
			t.Errorf("%s, with more behind it: %v", backend, err)
		}
	}
}
