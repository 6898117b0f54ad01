// Package pipeline goes the whole way from a model and a program to container images and manifests of an attested
// inference service, in steps that can be run alone and again.
//
// # Steps
//
// All results stand in one work directory. A step that was done with the same input is not done again: its record is
// a hash over the options that it uses and the content of the files that it reads. Keys are the exception: they are
// made once and never again (package keyring).
//
// # No circle of measurements
//
// Init pins the broker by its signer, product id and least SVN, which are known before anything is built. The broker
// pins the inference server by MRENCLAVE, which comes to it after the build, as policy. So the order is: keys,
// inference server, policy.
//
// # Secrets
//
// No image, manifest or instance holds a secret. The broker starts empty; "sesame secret put" brings it the files of
// the key folder when it runs and has been verified.
package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/config"
	"github.com/sesame-init/sesame/internal/packaging/keyring"
)

// The kinds of enclave that are built.
const (
	Simulated = "sim" // the simulator's: no SGX, no protection
	Hardware  = "hw"  // Occlum's
)

// OwnBackend is the backend of the key broker that the deployment has.
const OwnBackend = "grpc-ratls"

// Sources of the inference server's TLS key.
const (
	// FromBroker: one key and certificate for all replicas, a secret of the broker's.
	FromBroker = "broker"
	// InEnclave: each enclave makes a key of its own, with a certificate that carries its evidence.
	InEnclave = "enclave"
)

// Options of a deployment.
type Options struct {
	Work     string // directory of all results
	Registry string // of the images' names
	Tag      string
	Mode     string            // Simulated or Hardware
	Backend  string            // where init gets its secrets from: [OwnBackend] or another one of [config.Backends]
	Service  string            // file with the block of init's config for another one: {"maa": {…}}
	InitFS   map[string]string // further files of the initfs by their paths in it: certificates that Service names

	BrokerHost string // where init finds the broker
	BrokerPort int
	PCCS       string // address of the collateral service

	Model     string   // directory of version folders
	ModelName string   // as requests name it
	Names     []string // of the server's certificate
	ServerTLS string   // where the server's TLS key comes from: FromBroker or InEnclave
	CPUs      int      // processors for the inference server

	AppImage string   // image of the inference server, see [ociimage.Open]
	Program  string   // its path in that image
	Files    []string // further files and directories of that image that the application needs

	Template   string // Occlum.json of the inference server
	Programs   string // directory of the built programs
	Dockerfile string // directory of the Dockerfiles
	Manifests  string // directory of the manifests
	Client     string // directory of the client's scripts
	Occlum     string // the occlum command; empty for the simulator in Programs
	OcclumLibc string // directory of Occlum's build of the C library that the application has, for Hardware
	OcclumRoot string // directory of all that Occlum installed, or a list of hashes: every C library must be of it
	Base       string // image below the enclaves' images: Occlum's and Intel's run-time parts, for Hardware
	Python     string // image or directory with python3 for the client; empty for Debian's, by mmdebstrap
	Picture    string // the client's cat.jpg
	Writer     string // "oci", or one of docker, podman and buildah
	Withdraw   bool   // the policy names this build's measurement alone

	Created time.Time // time of everything in the images
	Now     time.Time // for the lifetime of the certificate
	Output  io.Writer
}

// The identities of the two enclaves. They have different product ids, so that neither can stand in for the other
// even under one signer.
const (
	BrokerProduct = 100
	BrokerSVN     = 1
)

// Paths.
const (
	// AdminPort is that of the broker's admin channel.
	AdminPort = 5001

	brokerAddress = "0.0.0.0:5000"

	serverEntry = "/bin/tensorflow_model_server" // what the host asks for: the launcher
	brokerEntry = "/bin/server"
	brokerPath  = "/opt/sesame/bin/keybroker"
	rootCAPath  = "/etc/sesame/root_ca.pem"
	sslPath     = "/etc/tf_ssl.cfg"
	storeDir    = "/var/lib/sesame" // of the broker, in the writable layer of its root

	instancesInImage = "/opt/sesame"
)

// Pipeline is one work directory.
type Pipeline struct {
	o    Options
	tool occlumTool
}

// New checks the options.
func New(o Options) (*Pipeline, error) {
	usage := func(hint, format string, args ...any) error {
		return attest.Errorf(attest.CodeUsage, "reading the options", hint, format, args...)
	}
	switch {
	case o.Mode != Simulated && o.Mode != Hardware:
		return nil, usage("Write sim or hw.", "there is no mode %q", o.Mode)
	case !slices.Contains(config.BackendNames(), o.Backend):
		return nil, usage("Write one of "+strings.Join(config.BackendNames(), ", ")+".", "there is no backend %q", o.Backend)
	case (o.Service != "") != (o.Backend != OwnBackend):
		return nil, usage("It holds the block of init's config that names the services, as {\"maa\": {…}}.",
			"backend "+OwnBackend+" has no --backend-config, and every other one needs it")
	case o.Registry == "" || o.Tag == "":
		return nil, usage("Give both, as -r registry.example/team -g v1.", "the images need a registry and a tag")
	case o.Program == serverEntry:
		return nil, usage("Let its image have it elsewhere.", "the launcher is at %s", serverEntry)
	case o.ServerTLS != FromBroker && o.ServerTLS != InEnclave:
		return nil, usage("Write broker or enclave.", "the server's TLS key cannot come from %q", o.ServerTLS)
	case o.CPUs < 1:
		return nil, usage("Write 1 or more.", "%d processors", o.CPUs)
	case o.BrokerPort < 1 || o.BrokerPort > 65535:
		return nil, usage("", "port %d", o.BrokerPort)
	}
	var err error
	for _, dir := range []*string{&o.Work, &o.Template, &o.Programs, &o.Manifests, &o.Client, &o.Dockerfile, &o.Model} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return nil, err
		}
	}
	p := &Pipeline{o: o, tool: occlumTool{Program: o.Occlum, Simulated: o.Mode == Simulated}}
	if p.tool.Program == "" {
		p.tool.Program = "occlum"
		if o.Mode == Simulated {
			p.tool.Program = filepath.Join(o.Programs, "occlum")
		}
	}
	return p, nil
}

// Step is one part of the way.
type Step struct {
	Name, Short string
	run         func(*Pipeline, context.Context) error
}

// Steps are all steps in their order.
func Steps() []Step {
	return []Step{
		{"platform", "make the software platform (simulator only)", (*Pipeline).platform},
		{"keys", "make signing keys, volume keys and the TLS identity, once", (*Pipeline).keys},
		{"root", "take the application and its libraries out of a container image", (*Pipeline).root},
		{"volume", "encrypt the model with its own key", (*Pipeline).volume},
		{"workload", "build and measure the inference server's enclave", (*Pipeline).workload},
		{"policy", "write the broker's policy, which names the measurement", (*Pipeline).policyStep},
		{"broker", "build the key broker's enclave", (*Pipeline).broker},
		{"client", "put the client's files together", (*Pipeline).client},
		{"images", "write the three container images", (*Pipeline).images},
		{"manifests", "write the Kubernetes manifests with names, sizes and limits", (*Pipeline).manifests},
	}
}

// Run does steps in the order given. Each prints its lines.
func (p *Pipeline) Run(ctx context.Context, steps ...Step) error {
	if err := os.MkdirAll(p.path(stepsDir), 0o755); err != nil {
		return err
	}
	for _, s := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.run(p, ctx); err != nil {
			return fmt.Errorf("step %s: %w", s.Name, err)
		}
	}
	return nil
}

func (p *Pipeline) path(elem ...string) string {
	return filepath.Join(append([]string{p.o.Work}, elem...)...)
}

func (p *Pipeline) program(name string) string { return filepath.Join(p.o.Programs, name) }

// say prints one line of a step.
func (p *Pipeline) say(step, format string, args ...any) {
	fmt.Fprintf(p.o.Output, "%-10s %s\n", step, fmt.Sprintf(format, args...))
}

func (p *Pipeline) simulated() bool { return p.o.Mode == Simulated }

// platform makes the software platform of a simulated deployment, in place of the processors.
func (p *Pipeline) platform(ctx context.Context) error {
	if !p.simulated() {
		return nil
	}
	dir := p.path("platform")
	if _, err := os.Stat(filepath.Join(dir, "root_ca.pem")); err == nil {
		p.say("platform", "%s is there", dir)
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := p.tool.newPlatform(ctx, dir); err != nil {
		return err
	}
	p.say("platform", "made %s; its quotes chain to a root that no production policy trusts", dir)
	return nil
}

func (p *Pipeline) keys(context.Context) error {
	ring, made, err := keyring.Make(p.path("keys"), keyring.Options{
		Names: p.o.Names, Lifetime: 365 * 24 * time.Hour, Now: p.o.Now,
		Remark: func(remark string) { p.say("keys", "%s", remark) },
	})
	if err != nil {
		return err
	}
	if len(made) == 0 {
		p.say("keys", "%s is complete, nothing is made again", ring.Dir)
		return nil
	}
	p.say("keys", "made %s in %s: keep a backup, they are not made again", strings.Join(made, ", "), ring.Dir)
	return nil
}

func (p *Pipeline) ring() (*keyring.Ring, error) { return keyring.Open(p.path("keys")) }

// Measured is what the world must know of a built enclave. It is in the work directory as NAME.json.
type Measured struct {
	MREnclave string `json:"mr_enclave"`
	MRSigner  string `json:"mr_signer"`
	ProductID uint32 `json:"product_id"`
	SVN       uint32 `json:"svn"`
	EPC       string `json:"epc"`  // Kubernetes quantity
	CPUs      int    `json:"cpus"` // what the application may use at most
	Threads   uint32 `json:"threads"`
}

// Measurement reads what a step has written about an enclave: "workload" or "broker".
func (p *Pipeline) Measurement(name string) (*Measured, error) {
	text, err := os.ReadFile(p.path(name + ".json"))
	if err != nil {
		return nil, attest.Errorf(attest.CodeUsage, "reading measurements", "Run: sesame package "+name+".", "%w", err)
	}
	m := new(Measured)
	return m, json.Unmarshal(text, m)
}

func (p *Pipeline) writeJSON(name string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(p.path(name), append(text, '\n'), 0o644)
}

// address is the broker's, for init.
func (p *Pipeline) address() string { return p.o.BrokerHost + ":" + strconv.Itoa(p.o.BrokerPort) }
