package pipeline

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/occlum/occlumcheck"
	"github.com/sesame-init/sesame/internal/packaging/keyring"
	"github.com/sesame-init/sesame/internal/packaging/ociimage"
)

// The images' names.
const (
	BrokerImage   = "init_ra_server"
	WorkloadImage = "tf_demo"
	ClientImage   = "tf_demo_client"
)

// Images are the names of the three images, without registry and tag.
func Images() []string { return []string{BrokerImage, WorkloadImage, ClientImage} }

// Reference is the full name of an image.
func (p *Pipeline) Reference(name string) string { return p.o.Registry + "/" + name + ":" + p.o.Tag }

// user is the unprivileged user of the images that need no device.
const user = 65534

// picture is what an image is made of.
type picture struct {
	name   string
	base   string // reference of the image below; empty for none
	config ociimage.Config
	layers [][]ociimage.Entry
}

// programsLayer is shared by all images: the tool, and in simulated ones the simulator.
func (p *Pipeline) programsLayer(simulator bool) ([]ociimage.Entry, error) {
	names := []string{"sesame"}
	if simulator {
		names = append(names, "occlum")
	}
	var layer []ociimage.Entry
	for _, name := range names {
		e, err := ociimage.File(p.program(name), "/usr/local/bin/"+name)
		if err == nil {
			err = static(p.program(name))
		}
		if err != nil {
			return nil, attest.Errorf(attest.CodeConfig, "packing the programs", "Run make build.", "%w", err)
		}
		layer = append(layer, e)
	}
	// What programs expect of any system; the mode of /tmp needs no sticky bit if one user runs.
	return append(layer, ociimage.Entry{Path: "/tmp", Mode: fs.ModeDir | 0o777}), nil
}

// static makes sure that a program runs in an image that has no loader.
func static(program string) error {
	f, err := elf.Open(program)
	if err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	defer f.Close()
	if loader := occlumcheck.Interpreter(f); loader != "" {
		return fmt.Errorf("%s needs the loader %s: it is not built with CGO_ENABLED=0", program, loader)
	}
	return nil
}

// enclave is the image of one of the two enclaves.
func (p *Pipeline) enclave(name, step string, port int, command []string, more ...[]ociimage.Entry) (*picture, error) {
	m, err := p.Measurement(step)
	if err != nil {
		return nil, err
	}
	dir := path.Join(instancesInImage, name)
	// Owned by the user that runs it: Occlum writes below run and locks its volumes.
	files, err := ociimage.Tree(p.path("packed", name), dir, user, user)
	if err != nil {
		return nil, attest.Errorf(attest.CodeUsage, "packing "+name, "Run: sesame package "+step+".", "%w", err)
	}
	programs, err := p.programsLayer(p.simulated())
	if err != nil {
		return nil, err
	}
	pic := &picture{
		name: name, base: p.o.Base,
		layers: append([][]ociimage.Entry{programs, files}, more...),
		config: ociimage.Config{
			Entrypoint: []string{"sesame", "pod", "run", "--"}, Cmd: command, WorkingDir: dir,
			Ports: []string{strconv.Itoa(port) + "/tcp"},
			Labels: map[string]string{
				"sesame.mode": p.o.Mode, "sesame.mrenclave": m.MREnclave, "sesame.mrsigner": m.MRSigner,
				"sesame.product-id": fmt.Sprint(m.ProductID), "sesame.svn": fmt.Sprint(m.SVN),
			},
		},
	}
	if p.simulated() {
		// The simulator makes namespaces and mounts; in hardware mode nothing needs root but, on some machines, the device.
		pic.config.Env = []string{"PATH=/usr/local/bin", "XDG_STATE_HOME=/tmp"}
	} else {
		pic.config.User = fmt.Sprintf("%d:%d", user, user)
		pic.config.Env = []string{"PATH=/usr/local/bin:/opt/occlum/build/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	return pic, nil
}

func (p *Pipeline) pictures() ([]*picture, error) {
	broker, err := p.enclave(BrokerImage, "broker", 5000, []string{"occlum", "run", brokerEntry, brokerAddress})
	if err != nil {
		return nil, err
	}
	model, err := ociimage.Tree(p.path("model.volume"), path.Join(instancesInImage, WorkloadImage, "model"), user, user)
	if err != nil {
		return nil, err
	}
	workload, err := p.enclave(WorkloadImage, "workload", 9001, []string{"occlum", "run", serverEntry}, model)
	if err != nil {
		return nil, err
	}
	client, err := p.clientPicture()
	if err != nil {
		return nil, err
	}
	all := []*picture{broker, workload, client}
	for _, pic := range all {
		c := &pic.config
		c.Created = p.o.Created
		if c.Labels == nil {
			c.Labels = make(map[string]string)
		}
		c.Labels["org.opencontainers.image.title"] = pic.name
		c.Labels["org.opencontainers.image.version"] = p.o.Tag
		c.Labels["org.opencontainers.image.licenses"] = "Apache-2.0"
		c.Labels["org.opencontainers.image.created"] = p.o.Created.UTC().Format("2006-01-02T15:04:05Z")
		c.Labels["org.opencontainers.image.description"] = descriptions[pic.name]
	}
	return all, nil
}

var descriptions = map[string]string{
	BrokerImage:   "Key broker for attested enclaves; holds no secret until it is given one",
	WorkloadImage: "Inference server with attested init, encrypted root and encrypted model",
	ClientImage:   "Inference client and benchmark",
}

// clientPicture holds Python for the scripts, the tool that they call, and what they ask with.
func (p *Pipeline) clientPicture() (*picture, error) {
	ring, err := p.ring()
	if err != nil {
		return nil, err
	}
	const home = instancesInImage + "/client"
	python, err := ociimage.Tree(p.path("python"), "/", 0, 0)
	if err != nil {
		return nil, attest.Errorf(attest.CodeUsage, "packing "+ClientImage, "Run: sesame package client.", "%w", err)
	}
	programs, err := p.programsLayer(false)
	if err != nil {
		return nil, err
	}
	var files []ociimage.Entry
	add := func(from, to string) {
		e, fileErr := ociimage.File(from, to)
		err = errors.Join(err, fileErr)
		e.Mode = 0o644
		files = append(files, e)
	}
	for _, script := range []string{"inception_client.py", "resnet_client_grpc.py", "benchmark.py"} {
		add(filepath.Join(p.o.Client, script), path.Join(home, script))
	}
	add(ring.Path(keyring.Certificate), path.Join(home, "server.crt"))
	add(p.o.Picture, path.Join(home, "cat.jpg"))
	if err != nil {
		return nil, fmt.Errorf("packing %s: %w", ClientImage, err)
	}
	return &picture{
		name: ClientImage, layers: [][]ociimage.Entry{python, programs, files},
		config: ociimage.Config{
			Cmd: []string{"python3", "inception_client.py", "--help"}, WorkingDir: home, User: fmt.Sprintf("%d:%d", user, user),
			Env: []string{"PATH=/usr/local/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE=1"},
		},
	}, nil
}

// layout is the path of an image's OCI layout.
func (p *Pipeline) layout(name string) string { return p.path("oci", name) }

// images writes the three images.
func (p *Pipeline) images(ctx context.Context) error {
	pictures, err := p.pictures()
	if err != nil {
		return err
	}
	for _, pic := range pictures {
		if p.o.Writer == "oci" {
			err = p.writeLayout(ctx, pic)
		} else {
			err = p.writeByEngine(ctx, pic)
		}
		if err != nil {
			return fmt.Errorf("writing %s: %w", p.Reference(pic.name), err)
		}
	}
	return nil
}

func (p *Pipeline) writeLayout(ctx context.Context, pic *picture) error {
	var base v1.Image
	if pic.base != "" {
		var err error
		if base, err = ociimage.Open(ctx, pic.base); err != nil {
			return fmt.Errorf("opening base image %s: %w", pic.base, err)
		}
	}
	var layers []v1.Layer
	for _, entries := range pic.layers {
		l, err := ociimage.Layer(entries, p.o.Created)
		if err != nil {
			return err
		}
		layers = append(layers, l)
	}
	image, err := ociimage.New(base, pic.config, layers...)
	if err != nil {
		return err
	}
	if err := ociimage.WriteLayout(p.layout(pic.name), p.Reference(pic.name), image); err != nil {
		return err
	}
	digest, err := image.Digest()
	if err != nil {
		return err
	}
	size, err := ociimage.Size(image)
	if err != nil {
		return err
	}
	p.say("images", "%s %s, %s compressed, in %s", p.Reference(pic.name), digest, megabytes(size), p.layout(pic.name))
	return nil
}

// writeByEngine lets docker, podman or buildah write an image: the files of all layers in a context directory, and the
// Dockerfile of that image.
func (p *Pipeline) writeByEngine(ctx context.Context, pic *picture) error {
	dir := p.path("context", pic.name)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	for _, e := range slices.Concat(pic.layers...) {
		if err := place(filepath.Join(dir, "rootfs"), e); err != nil {
			return err
		}
	}
	args := []string{"build"}
	if p.o.Writer == "buildah" {
		args = []string{"build", "--layers=false"}
	}
	base := pic.base
	if base == "" {
		base = "scratch"
	}
	args = append(args, "-f", filepath.Join(p.o.Dockerfile, pic.name+".Dockerfile"), "-t", p.Reference(pic.name),
		"--build-arg", "BASE="+base, "--build-arg", "RUN_AS="+pic.config.User)
	for _, key := range slices.Sorted(maps.Keys(pic.config.Labels)) {
		args = append(args, "--label", key+"="+pic.config.Labels[key])
	}
	cmd := exec.CommandContext(ctx, p.o.Writer, append(args, dir)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return attest.Errorf(attest.CodeConfig, "running "+p.o.Writer,
			"With --writer oci no container engine is needed.", "%w\n%s", err, out)
	}
	p.say("images", "%s, written by %s; its digest depends on the time of the build", p.Reference(pic.name), p.o.Writer)
	return nil
}

// place puts an entry of a layer into a directory.
func place(root string, e ociimage.Entry) error {
	at := filepath.Join(root, e.Path)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	switch e.Mode.Type() {
	case fs.ModeDir:
		return errors.Join(os.MkdirAll(at, 0o755), os.Chmod(at, e.Mode.Perm()))
	case fs.ModeSymlink:
		return os.Symlink(e.Link, at)
	}
	text := e.Text
	if e.From != "" {
		var err error
		if text, err = os.ReadFile(e.From); err != nil {
			return err
		}
	}
	return errors.Join(os.WriteFile(at, text, 0o600), os.Chmod(at, e.Mode.Perm()))
}

// Push sends the three images to their registry and returns their references with digests.
func (p *Pipeline) Push(ctx context.Context) ([]string, error) {
	var pushed []string
	for _, name := range Images() {
		image, err := ociimage.Open(ctx, "oci:"+p.layout(name))
		if err != nil {
			return nil, attest.Errorf(attest.CodeUsage, "pushing "+p.Reference(name),
				"Run: sesame package images. What docker, podman or buildah has written it pushes itself.", "%w", err)
		}
		ref, err := ociimage.Push(ctx, p.Reference(name), image)
		if err != nil {
			return nil, attest.Errorf(attest.CodeUnreachable, "pushing "+p.Reference(name),
				"Is the registry up, and docker login done?",
				"%w", err)
		}
		p.say("push", "%s", ref)
		pushed = append(pushed, ref)
	}
	return pushed, nil
}
