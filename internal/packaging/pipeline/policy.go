package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/goccy/go-yaml"

	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/internal/packaging/keyring"
)

// workloadName is what the broker's policy calls the inference server.
const workloadName = "inference"

// measurementRecord is the record of measurements that the policy names, in the order of their builds.
type measurementRecord struct {
	Version uint64           `json:"version"` // of the last policy that was written
	Builds  []allowedVersion `json:"builds"`
}

type allowedVersion struct {
	Name      string `json:"name"` // tag of the images
	MREnclave string `json:"mr_enclave"`
}

func (p *Pipeline) readAllowed() (a measurementRecord, err error) {
	text, err := os.ReadFile(p.path("allowed.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal(text, &a)
}

// policyStep writes the broker's policy: this build's measurement, and those of earlier builds, so that a roll-out has
// both for a while. With Withdraw only this build's stays.
func (p *Pipeline) policyStep(context.Context) error {
	m, err := p.Measurement("workload")
	if err != nil {
		return err
	}
	a, err := p.readAllowed()
	if err != nil {
		return err
	}
	before := slices.Clone(a.Builds)
	this := allowedVersion{Name: p.o.Tag, MREnclave: m.MREnclave}
	if p.o.Withdraw {
		a.Builds = []allowedVersion{this}
	} else if !slices.ContainsFunc(a.Builds, func(v allowedVersion) bool { return v.MREnclave == this.MREnclave }) {
		a.Builds = append(a.Builds, this)
	}
	file := p.path("policy.yaml")
	if _, err := os.Stat(file); err == nil && slices.Equal(before, a.Builds) {
		p.say("policy", "%s is as it was, version %d", file, a.Version)
		return p.writeServerPolicy(a)
	}
	a.Version++
	text, err := p.policyText(a)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, text, 0o644); err != nil {
		return err
	}
	if err := p.writeJSON("allowed.json", a); err != nil {
		return err
	}
	p.say("policy", "%s, version %d, allows %d measurements", file, a.Version, len(a.Builds))
	return p.writeServerPolicy(a)
}

// writeServerPolicy writes what clients of attested inference demand of the server: to be one of the builds.
func (p *Pipeline) writeServerPolicy(a measurementRecord) error {
	var file struct {
		SGX []policyEnclave `yaml:"sgx"`
	}
	for _, v := range a.Builds {
		file.SGX = append(file.SGX, policyEnclave{v.MREnclave})
	}
	text, err := yaml.Marshal(file)
	if err != nil {
		return err
	}
	return os.WriteFile(p.path("server-policy.yaml"), text, 0o644)
}

// The parts of the broker's policy file that are written here; package internal/broker/policy reads it.
type policyFile struct {
	Version   uint64                    `yaml:"version"`
	Trust     policyTrust               `yaml:"trust"`
	Workloads map[string]policyWorkload `yaml:"workloads"`
	Secrets   map[string]policySecret   `yaml:"secrets"`
	Broker    policyBroker              `yaml:"broker"`
}

type policyTrust struct {
	Roots      []string         `yaml:"roots,omitempty"`
	Collateral policyCollateral `yaml:"collateral"`
}

type policyCollateral struct {
	URL       string `yaml:"url"`
	AllowHTTP bool   `yaml:"allow_http,omitempty"`
}

type policyWorkload struct {
	Versions []policyVersion `yaml:"versions"`
}

type policyVersion struct {
	Name string          `yaml:"name"`
	SGX  []policyEnclave `yaml:"sgx"`
}

type policyEnclave struct {
	MREnclave string `yaml:"mr_enclave"`
}

type policySecret struct {
	Workloads []string `yaml:"workloads"`
}

type policyBroker struct {
	Store   policyStore   `yaml:"store"`
	RootKey policyRootKey `yaml:"root_key"`
	Admin   policyAdmin   `yaml:"admin"`
}

type policyStore struct {
	SQLite string `yaml:"sqlite"`
}

type policyRootKey struct {
	Sealed bool `yaml:"sealed"`
}

type policyAdmin struct {
	Listen string   `yaml:"listen"`
	Roots  []string `yaml:"roots"`
}

// policyText is the policy for measurements. What is written is read again as the broker will.
func (p *Pipeline) policyText(a measurementRecord) ([]byte, error) {
	file := policyFile{
		Version:   a.Version,
		Trust:     policyTrust{Collateral: policyCollateral{URL: p.o.PCCS, AllowHTTP: p.simulated()}},
		Workloads: make(map[string]policyWorkload), Secrets: make(map[string]policySecret),
	}
	if p.simulated() {
		root, err := os.ReadFile(p.path("platform", "root_ca.pem"))
		if err != nil {
			return nil, err
		}
		file.Trust.Roots = []string{string(root)}
	}
	keys, err := p.ring()
	if err != nil {
		return nil, err
	}
	admin, err := os.ReadFile(keys.Path(keyring.AdminCert))
	if err != nil {
		return nil, err
	}
	file.Broker = policyBroker{
		Store: policyStore{SQLite: storeDir + "/store.db"}, RootKey: policyRootKey{Sealed: true},
		Admin: policyAdmin{Listen: fmt.Sprintf("0.0.0.0:%d", AdminPort), Roots: []string{string(admin)}},
	}
	var w policyWorkload
	for _, v := range a.Builds {
		w.Versions = append(w.Versions, policyVersion{Name: v.Name, SGX: []policyEnclave{{v.MREnclave}}})
	}
	file.Workloads[workloadName] = w
	for _, s := range keyring.Secrets() {
		file.Secrets[s.Name] = policySecret{Workloads: []string{workloadName}}
	}
	text, err := yaml.MarshalWithOptions(file, yaml.UseLiteralStyleIfMultiline(true))
	if err != nil {
		return nil, err
	}
	if _, err := policy.Parse(text); err != nil {
		return nil, fmt.Errorf("the policy that was written is not sound: %w", err)
	}
	return text, nil
}

// forwarded is the local address to which the manuals forward the broker's admin channel.
const forwarded = "127.0.0.1:15001"

// link writes what the operator's commands need to reach and to verify the broker: a context file and the policy that
// it names.
func (p *Pipeline) link() error {
	m, err := p.Measurement("broker")
	if err != nil {
		return err
	}
	must := fmt.Sprintf("# What the key broker must be. \"sesame secret\" checks it before it sends anything.\n"+
		"sgx:\n  - name: key broker\n    mr_signer: %s\n    product_id: %d\n    min_svn: %d\n", m.MRSigner, m.ProductID, m.SVN)
	if err := os.WriteFile(p.path("broker-policy.yaml"), []byte(must), 0o644); err != nil {
		return err
	}
	context := struct {
		Broker string `yaml:"broker"`
		Policy string `yaml:"policy"`
		RootCA string `yaml:"root_ca,omitempty"`
		Cert   string `yaml:"cert"`
		Key    string `yaml:"key"`
	}{
		Broker: forwarded, Policy: "broker-policy.yaml",
		Cert: filepath.Join("keys", keyring.AdminCert), Key: filepath.Join("keys", keyring.AdminKey),
	}
	if p.simulated() {
		context.RootCA = "platform/root_ca.pem"
	}
	text, err := yaml.Marshal(context)
	if err != nil {
		return err
	}
	return os.WriteFile(p.path("broker.yaml"), text, 0o644)
}
