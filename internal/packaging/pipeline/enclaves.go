package pipeline

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/config"
	"github.com/sesame-init/sesame/internal/occlum/occlumconf"
	"github.com/sesame-init/sesame/internal/occlum/sizing"
	"github.com/sesame-init/sesame/internal/packaging/keyring"
)

// bootTimeout is how long init tries to get its secrets before the pod is started anew.
const bootTimeout = 5 * time.Minute

// workload builds the inference server's enclave.
func (p *Pipeline) workload(ctx context.Context) error {
	ring, err := p.ring()
	if err != nil {
		return err
	}
	mac, err := p.mac()
	if err != nil {
		return err
	}
	signer, err := ring.MRSigner(keyring.BrokerSigner)
	if err != nil {
		return err
	}
	dir := p.path("instances", "tf_demo")
	packed := p.path("packed", "tf_demo")
	in := input{
		words: []string{p.o.Mode, p.o.Backend, p.address(), p.o.PCCS, mac.String(), signer, p.o.ModelName, fmt.Sprint(p.o.CPUs),
			p.tool.Program, p.o.ServerTLS, strings.Join(p.o.Names, ",")},
		files: append(p.commonFiles(), p.path("root"), p.path("model.volume"), p.o.Template, p.o.Service,
			ring.Path(keyring.WorkloadSigner), ring.Path(keyring.ImageKey)),
	}
	initFS := p.trusted()
	for path, file := range p.o.InitFS {
		initFS[path] = file
	}
	for _, path := range slices.Sorted(maps.Keys(p.o.InitFS)) {
		in.words, in.files = append(in.words, path), append(in.files, p.o.InitFS[path])
	}
	return p.once("workload", in, []string{packed, p.path("workload.json")}, func() error {
		conf, err := p.workloadConf()
		if err != nil {
			return err
		}
		initConf, err := p.workloadInit(signer, mac)
		if err != nil {
			return err
		}
		// The launcher has the path that the host asks for; the server has the path of its own image.
		root := map[string]string{"/": p.path("root"), serverEntry: p.program("init")}
		return p.build(ctx, "workload", packed, instanceSpec{
			Dir: dir, Init: p.program("init"), Root: root, InitFS: initFS,
			Dirs: []string{initConf.Volumes[0].Target},
			Conf: conf, InitConf: initConf,
			SignKey: ring.Path(keyring.WorkloadSigner), ImageKey: ring.Path(keyring.ImageKey),
			OcclumLibc: p.o.OcclumRoot,
		})
	})
}

// commonFiles go into both enclaves.
func (p *Pipeline) commonFiles() []string {
	files := []string{p.program("init")}
	if p.simulated() {
		files = append(files, p.tool.Program, p.path("platform", "root_ca.pem"))
	}
	return files
}

// trusted are the files of the initfs beside init and its config.
func (p *Pipeline) trusted() map[string]string {
	files := make(map[string]string)
	if p.simulated() {
		files[rootCAPath] = p.path("platform", "root_ca.pem")
	}
	return files
}

// workloadConf is the template with the computed limits. In hardware mode the template's limits are kept if they
// are higher: the template is what was tried.
func (p *Pipeline) workloadConf() (*occlumconf.Config, error) {
	conf, err := occlumconf.Load(p.o.Template)
	if err != nil {
		return nil, attest.Errorf(attest.CodeConfig, "reading the template", "Name one with --template.", "%w", err)
	}
	var in sizing.Input
	in.CPUs = p.o.CPUs
	if in.Files, err = treeSize(p.path("root")); err != nil {
		return nil, err
	}
	if in.Program, err = largestFile(p.path("root")); err != nil {
		return nil, err
	}
	if in.Model, err = treeSize(p.path("model.volume")); err != nil {
		return nil, err
	}
	p.limit(conf, "workload", sizing.For(in))
	return conf, nil
}

// limit puts computed limits into conf, and says what they are made of.
func (p *Pipeline) limit(conf *occlumconf.Config, step string, computed sizing.Limits) {
	limits := &conf.ResourceLimits
	if p.simulated() {
		limits.UserSpace, limits.KernelHeap, limits.MaxThreads = computed.UserSpace, computed.KernelHeap, computed.Threads
	} else {
		limits.UserSpace = max(limits.UserSpace, computed.UserSpace)
		limits.KernelHeap = max(limits.KernelHeap, computed.KernelHeap)
		limits.MaxThreads = max(limits.MaxThreads, computed.Threads)
	}
	for _, line := range computed.Explanation {
		p.say(step, "%s", line)
	}
	_, why := sizing.EPC(conf)
	p.say(step, "%s", why)
}

func (p *Pipeline) collateral() config.Collateral {
	c := config.Collateral{PCCSURL: p.o.PCCS}
	if p.simulated() {
		c.AllowHTTP, c.RootCA = true, rootCAPath
	}
	return c
}

func (p *Pipeline) workloadInit(brokerSigner string, mac sefs.MAC) (*config.Config, error) {
	models := "/models/" + p.o.ModelName
	c := &config.Config{
		Backend: p.o.Backend, Timeout: config.Duration(bootTimeout),
		Root: config.Root{Key: keyring.ImageKey, Upper: "temporary"},
		App: &config.App{
			EntryPoint: serverEntry, Path: p.o.Program,
			Args: []string{"--model_name=" + p.o.ModelName, "--model_base_path=" + models, "--port=9001",
				"--ssl_config_file=" + sslPath},
		},
		Volumes:    []config.Volume{{Source: "./model", Target: models, Key: keyring.ModelKey, MAC: mac}},
		Collateral: p.collateral(),
	}
	if err := p.service(c, brokerSigner); err != nil {
		return nil, err
	}
	if p.o.ServerTLS == InEnclave {
		c.AppTLS = &config.AppTLS{Format: "tf-serving", Path: sslPath, Attested: true, Names: p.o.Names}
	} else {
		c.Secrets = []config.SecretFile{{Name: keyring.SSLConfig, Path: sslPath, Mode: 0o400}}
	}
	// What init would refuse at its boot is refused here.
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	if _, err := config.Parse(text); err != nil {
		return nil, attest.Errorf(attest.CodeConfig, "writing init's config", attest.HintOf(err), "%w", err)
	}
	return c, nil
}

// service names the source of init's secrets: our key broker, pinned, or the services of a file.
func (p *Pipeline) service(c *config.Config, brokerSigner string) error {
	text, err := p.brokerBlock(brokerSigner)
	if p.o.Service != "" {
		text, err = os.ReadFile(p.o.Service)
	}
	if err != nil {
		return attest.Errorf(attest.CodeUsage, "reading --backend-config", "", "%w", err)
	}
	if c.Blocks, err = config.ReadBlocks(text); err != nil {
		return attest.Errorf(attest.CodeConfig, "reading --backend-config", "It holds one block, as {\"maa\": {…}}.", "%w",
			err)
	}
	return nil
}

// brokerBlock is the block of our key broker.
func (p *Pipeline) brokerBlock(signer string) ([]byte, error) {
	pinned := policy.SGX{Name: "key broker", ProductID: new(uint16), MinSVN: new(uint16)}
	*pinned.ProductID, *pinned.MinSVN = BrokerProduct, BrokerSVN
	if err := pinned.MRSigner.UnmarshalText([]byte(signer)); err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{grpcratls.Kind().Key(): map[string]any{
		"servers": []string{p.address()}, "protocol": grpcratls.SessionV1,
		"broker_policy": policy.Policy{SGX: []policy.SGX{pinned}},
	}})
}

// broker builds the key broker's enclave. It holds no secret, and the first policy: who administers it, and the first
// inference server. A later policy is no reason to build it again.
func (p *Pipeline) broker(ctx context.Context) error {
	ring, err := p.ring()
	if err != nil {
		return err
	}
	packed := p.path("packed", "init_ra_server")
	program := p.program("libos/keybroker")
	in := input{
		words: []string{p.o.Mode, p.o.PCCS, p.tool.Program},
		files: append(p.commonFiles(), program, p.o.Template, ring.Path(keyring.BrokerSigner)),
	}
	build := func() error {
		conf, err := p.brokerConf(program)
		if err != nil {
			return err
		}
		root := map[string]string{
			brokerEntry: p.program("init"), brokerPath: program, "/policy.yaml": p.path("policy.yaml"),
		}
		return p.build(ctx, "broker", packed, instanceSpec{
			Dir: p.path("instances", "init_ra_server"), Init: p.program("init"), Root: root, InitFS: p.trusted(),
			Dirs: []string{storeDir},
			Conf: conf, SignKey: ring.Path(keyring.BrokerSigner), OcclumLibc: p.o.OcclumRoot,
			InitConf: &config.Config{
				Backend: config.None, Root: config.Root{Upper: "persistent"},
				App:        &config.App{EntryPoint: brokerEntry, Path: brokerPath, Args: []string{"{name}:{number}"}},
				Collateral: p.collateral(),
			},
		})
	}
	if err := p.once("broker", in, []string{packed, p.path("broker.json")}, build); err != nil {
		return err
	}
	return p.link()
}

// brokerConf is the template for another program: its own entry point, identity and limits.
func (p *Pipeline) brokerConf(program string) (*occlumconf.Config, error) {
	conf, err := occlumconf.Load(p.o.Template)
	if err != nil {
		return nil, err
	}
	conf.EntryPoints = []string{brokerEntry}
	conf.Metadata.ProductID, conf.Metadata.VersionNumber = BrokerProduct, BrokerSVN
	conf.Env.Default = []string{"OCCLUM=yes", "GOMAXPROCS=2"}
	conf.Env.Untrusted = []string{"PCCS_URL"}
	conf.Process.Heap = 32 << 20
	// Its store outlives a boot: encrypted by the broker under a key that only this enclave can unseal.
	if _, _, upper := conf.Root(); upper != nil && upper.Options != nil {
		upper.Options.Temporary = false
	}
	size, err := treeSize(program)
	if err != nil {
		return nil, attest.Errorf(attest.CodeConfig, "packing the key broker", "Run make build.", "%w", err)
	}
	conf.ResourceLimits.UserSpace, conf.ResourceLimits.KernelHeap, conf.ResourceLimits.MaxThreads = 0, 0, 0
	p.limit(conf, "broker", sizing.For(sizing.Input{Program: size, Files: size, CPUs: 2}))
	return conf, nil
}

// build builds, measures and packs one enclave, and writes down what the world must know of it.
func (p *Pipeline) build(ctx context.Context, step, packed string, s instanceSpec) error {
	b, err := p.tool.build(ctx, s)
	if err != nil {
		return err
	}
	for _, w := range b.Warnings {
		p.say(step, "%s", w)
	}
	if err := p.tool.pack(ctx, s.Dir, packed); err != nil {
		return err
	}
	epc, _ := sizing.EPC(s.Conf)
	m := Measured{
		MREnclave: b.MREnclave, MRSigner: b.MRSigner, ProductID: s.Conf.Metadata.ProductID, SVN: s.Conf.Metadata.VersionNumber,
		EPC: sizing.Quantity(epc), CPUs: sizing.CPUs(s.Conf.Threads()), Threads: s.Conf.Threads(),
	}
	p.say(step, "%s: MRENCLAVE %s, product id %d, SVN %d", filepath.Base(s.Dir), m.MREnclave, m.ProductID, m.SVN)
	return p.writeJSON(step+".json", m)
}
