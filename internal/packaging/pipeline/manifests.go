package pipeline

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/goccy/go-yaml"
)

// cpusArgument is the place of --cpus in the command of both deployments.
const cpusArgument = "/spec/template/spec/containers/0/command/5"

// kustomization is the part of Kustomize's file that is written here.
type kustomization struct {
	APIVersion      string            `yaml:"apiVersion"`
	Kind            string            `yaml:"kind"`
	Resources       []string          `yaml:"resources"`
	Images          []kustomizeImage  `yaml:"images"`
	Patches         []kustomizePatch  `yaml:"patches"`
	SecretGenerator []kustomizeSecret `yaml:"secretGenerator,omitempty"`
}

type kustomizeImage struct {
	Name    string `yaml:"name"`
	NewName string `yaml:"newName"`
	NewTag  string `yaml:"newTag"`
}

type kustomizePatch struct {
	Target kustomizeTarget `yaml:"target"`
	Patch  string          `yaml:"patch"`
}

type kustomizeTarget struct {
	Kind string `yaml:"kind"`
	Name string `yaml:"name"`
}

type kustomizeSecret struct {
	Name    string            `yaml:"name"`
	Files   []string          `yaml:"files"`
	Options map[string]string `yaml:"options,omitempty"`
}

// manifests writes a kustomization over the repository's manifests: names of the images, and the limits that were
// computed for this build.
func (p *Pipeline) manifests(context.Context) error {
	broker, err := p.Measurement("broker")
	if err != nil {
		return err
	}
	workload, err := p.Measurement("workload")
	if err != nil {
		return err
	}
	dir := p.path("kubernetes")
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	base := p.o.Manifests
	if p.simulated() {
		base += "-sim"
	}
	if base, err = filepath.Rel(dir, base); err != nil {
		return err
	}
	k := kustomization{
		APIVersion: "kustomize.config.k8s.io/v1beta1", Kind: "Kustomization", Resources: []string{filepath.ToSlash(base)},
		Patches: []kustomizePatch{
			p.patch("init-ra-server-deployment", broker), p.patch("tf-demo-deployment", workload),
		},
	}
	for _, name := range Images() {
		k.Images = append(k.Images, kustomizeImage{Name: name, NewName: p.o.Registry + "/" + name, NewTag: p.o.Tag})
	}
	if p.simulated() {
		files, err := p.copyPlatform(filepath.Join(dir, "platform"))
		if err != nil {
			return err
		}
		k.SecretGenerator = []kustomizeSecret{{Name: "sim-platform", Files: files}}
	}
	text, err := yaml.Marshal(k)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), text, 0o644); err != nil {
		return err
	}
	p.say("manifests", "kubectl apply -k %s", dir)
	return nil
}

// patch sets what was computed for one enclave.
func (p *Pipeline) patch(deployment string, m *Measured) kustomizePatch {
	var b strings.Builder
	fmt.Fprintf(&b, "- {op: test, path: %s, value: --cpus=%s}\n", cpusArgument, baseCPUs[deployment])
	fmt.Fprintf(&b, "- {op: replace, path: %s, value: --cpus=%d}\n", cpusArgument, m.CPUs)
	fmt.Fprintf(&b, "- op: add\n  path: /spec/template/metadata/labels/mrenclave\n  value: %q\n", m.MREnclave[:16])
	if deployment == "tf-demo-deployment" {
		fmt.Fprintf(&b, "- op: replace\n  path: /spec/template/spec/containers/0/env/1/value\n  value: %q\n", p.address())
	}
	if !p.simulated() {
		fmt.Fprintf(&b, "- op: replace\n  path: /spec/template/spec/containers/0/resources/limits/sgx.intel.com~1epc\n"+
			"  value: %s\n", m.EPC)
		fmt.Fprintf(&b, "- op: replace\n  path: /spec/template/spec/containers/0/env/0/value\n  value: %q\n", p.o.PCCS)
	}
	return kustomizePatch{Target: kustomizeTarget{Kind: "Deployment", Name: deployment}, Patch: b.String()}
}

// baseCPUs is what the manifests of the repository say.
var baseCPUs = map[string]string{"init-ra-server-deployment": "2", "tf-demo-deployment": "4"}

// copyPlatform copies the files of the software platform beside the kustomization, which takes none from elsewhere, as
// entries of a Secret: a file in a folder has the folder's name before its own.
func (p *Pipeline) copyPlatform(dst string) (entries []string, err error) {
	if err := os.Mkdir(dst, 0o700); err != nil {
		return nil, err
	}
	src := p.path("platform")
	err = filepath.WalkDir(src, func(file string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		relative, err := filepath.Rel(src, file)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		name := strings.ReplaceAll(filepath.ToSlash(relative), "/", ".")
		entries = append(entries, "platform/"+name)
		return os.WriteFile(filepath.Join(dst, name), text, 0o600)
	})
	return entries, err
}
