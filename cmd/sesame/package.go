package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/config"
	"github.com/sesame-init/sesame/internal/packaging/pipeline"
)

// packageFlags are the options of a deployment as a command line has them.
type packageFlags struct {
	o       pipeline.Options
	created int64
	push    bool
}

func packageCommand() *cobra.Command {
	var f packageFlags
	cmd := &cobra.Command{
		Use:   "package [STEP]...",
		Short: "Build the images and manifests of an attested inference service",
		Long: `package turns a model and a program into three container images and Kubernetes manifests, in steps:

` + stepList() + `
If you name no STEP, package runs all of them. It skips a step whose input has not changed. Give every call the same
options. Keys are made only once, in the folder keys of the work directory; no image contains a secret.

If your machine has no SGX, use mode sim, which builds everything with the simulator. Run mode hw in Occlum's
development image: it calls Occlum's own command.`,
		Example: "  sesame package -r registry.example/team -g v1 -s sim --model build/model/resnet\n" +
			"  sesame package -r registry.example/team -g v1 images push",
		RunE: func(cmd *cobra.Command, args []string) error {
			o := f.o
			o.Created, o.Now, o.Output = time.Unix(f.created, 0), time.Now(), cmd.OutOrStdout()
			if err := completePackageOptions(&o); err != nil {
				return err
			}
			p, err := pipeline.New(o)
			if err != nil {
				return err
			}
			steps, push, err := chosenSteps(args)
			if err != nil {
				return err
			}
			if err := p.Run(cmd.Context(), steps...); err != nil {
				return err
			}
			if push || f.push {
				_, err = p.Push(cmd.Context())
			}
			return err
		},
	}
	f.add(cmd)
	return cmd
}

func (f *packageFlags) add(cmd *cobra.Command) {
	o, flags := &f.o, cmd.Flags()
	flags.StringVarP(&o.Registry, "registry", "r", "", "`registry` of the images, as registry.example/team (required)")
	flags.StringVarP(&o.Tag, "tag", "g", "", "`tag` of the images (required)")
	flags.StringVarP(&o.BrokerHost, "broker-domain", "d", "init-ra-server-svc", "`host` of the key broker")
	flags.IntVarP(&o.BrokerPort, "broker-port", "p", 5000, "`port` of the key broker")
	flags.StringVarP(&o.Mode, "mode", "s", pipeline.Hardware, "`sim` or hw")
	flags.StringVarP(&o.Backend, "backend", "b", pipeline.OwnBackend,
		"`service` that gives init its secrets, "+pipeline.OwnBackend+" being the key broker: "+strings.Join(config.BackendNames(), ", "))
	flags.StringVar(&o.Service, "backend-config", "",
		"`file` with the block of init's config for any other backend, as {\"maa\": {…}}")
	flags.StringToStringVar(&o.InitFS, "initfs-file", nil,
		"add a file to the initfs that the block names, such as `/etc/azure_roots.pem=FILE`")
	flags.StringVarP(&o.PCCS, "pccs", "u", "",
		"`URL` of the collateral service, measured; PCCS_URL in a manifest overrides it")
	flags.StringVar(&o.Model, "model", "", "`directory` of the model's version folders (required for all steps)")
	flags.StringVar(&o.ModelName, "model-name", "resnet", "`name` of the model")
	flags.StringSliceVar(&o.Names, "tls-name", []string{"localhost", "127.0.0.1", "tf-demo-svc"},
		"`names` of the server's certificate")
	flags.StringVar(&o.ServerTLS, "server-tls", pipeline.FromBroker,
		"origin of the server's TLS key: one from the `broker` for all\n"+
			"replicas, or made in each enclave with a certificate that carries its evidence")
	flags.IntVar(&o.CPUs, "cpus", 4, "`number` of processors that the inference server may use")
	flags.StringVar(&o.AppImage, "app-image", "",
		"container `image` of the application: a reference, oci:DIR or tar:FILE\n"+
			"(default tensorflow/serving:2.5.1, or standin in mode sim)")
	flags.StringVar(&o.Program, "app-program", "/usr/bin/tensorflow_model_server",
		"`path` of the application in its image")
	flags.StringSliceVar(&o.Files, "app-file", nil, "further `paths` of that image that the application needs")
	flags.StringVar(&o.Work, "work", "build/package", "`directory` of all results")
	flags.StringVar(&o.Template, "template", "Occlum.json",
		"Occlum.json of the inference server; its limits are raised if they are too low")
	flags.StringVar(&o.Programs, "programs", "bin", "`directory` of the built programs")
	flags.StringVar(&o.Manifests, "manifests", "packaging/kubernetes", "`directory` of the manifests")
	flags.StringVar(&o.Client, "client-scripts", "packaging/clientscripts", "`directory` of the client's scripts")
	flags.StringVar(&o.Dockerfile, "dockerfiles", "docker", "`directory` of the Dockerfiles")
	flags.StringVar(&o.Occlum, "occlum", "", "the occlum `command` (default: from PATH, or the simulator in mode sim)")
	flags.StringVar(&o.OcclumLibc, "occlum-libc", "", "`directory` of Occlum's build of the application's C library\n"+
		"(default in mode hw: /opt/occlum/glibc/lib)")
	flags.StringVar(&o.OcclumRoot, "occlum-files", "",
		"`directory` of all that Occlum installed, or a list of hashes: every C library must\n"+
			"be of it (default in mode hw: /opt/occlum)")
	flags.StringVar(&o.Base, "base", "",
		"`image` with Occlum's and Intel's run-time parts (mode hw; docker/runtime.Dockerfile makes it)")
	flags.StringVar(&o.Python, "python", "",
		"`image` or directory with python3 for the client (default: Debian's, by mmdebstrap)")
	flags.StringVar(&o.Picture, "picture", "", "the client's cat.jpg (default in mode sim: a sample of the stand-in's)")
	flags.StringVar(&o.Writer, "writer", "oci", "what writes the images: `oci`, docker, podman or buildah")
	flags.BoolVar(&o.Withdraw, "withdraw", false,
		"remove the measurements of earlier builds from the policy")
	flags.Int64Var(&f.created, "created", 0, "time of everything in the images, in `seconds` since 1970")
	flags.BoolVar(&f.push, "push", false, "push the images, too")
}

// completePackageOptions fills in what depends on other options.
func completePackageOptions(o *pipeline.Options) error {
	simulated := o.Mode == pipeline.Simulated
	if o.AppImage == "" {
		o.AppImage = "tensorflow/serving:2.5.1"
		if simulated {
			o.AppImage = "standin"
		}
	}
	if o.Model == "" && simulated {
		o.Model = "build/model/resnet"
	}
	if o.PCCS == "" {
		o.PCCS = "https://pccs:8081/sgx/certification/v4/"
		if simulated {
			o.PCCS = "http://sim-pccs:8081/sgx/certification/v4/"
		}
	}
	if o.OcclumLibc == "" && !simulated {
		o.OcclumLibc = "/opt/occlum/glibc/lib"
	}
	if o.OcclumRoot == "" && !simulated {
		o.OcclumRoot = "/opt/occlum"
	}
	if o.Picture == "" {
		samples, err := filepath.Glob(filepath.Join(filepath.Dir(o.Model), "samples", "*.jpg"))
		if err != nil {
			return err
		}
		if !simulated || len(samples) == 0 {
			return attest.Errorf(attest.CodeUsage, "reading command line", "It becomes cat.jpg of the client's image.",
				"--picture is required")
		}
		o.Picture = samples[0]
	}
	switch o.Writer {
	case "oci", "docker", "podman", "buildah":
	default:
		return attest.Errorf(attest.CodeUsage, "reading command line", "Write oci, docker, podman or buildah.",
			"no writer %q", o.Writer)
	}
	if o.Model == "" {
		return attest.Errorf(attest.CodeUsage, "reading command line",
			"It holds version folders, such as 1/saved_model.pb.", "--model is required")
	}
	_, err := os.Stat(o.Template)
	if err != nil {
		return attest.Errorf(attest.CodeUsage, "reading command line", "Run it in the repository, or name the file.",
			"--template: %w", err)
	}
	return nil
}

// chosenSteps are the steps with these names, in their order; push is none of the pipeline's.
func chosenSteps(names []string) (steps []pipeline.Step, push bool, err error) {
	if len(names) == 0 {
		return pipeline.Steps(), false, nil
	}
	for _, s := range pipeline.Steps() {
		if slices.Contains(names, s.Name) {
			steps = append(steps, s)
		}
	}
	for _, name := range names {
		known := name == "push" || slices.ContainsFunc(steps, func(s pipeline.Step) bool { return s.Name == name })
		if !known {
			return nil, false, attest.Errorf(attest.CodeUsage, "reading command line", "See sesame package -h.", "no step %q",
				name)
		}
	}
	return steps, slices.Contains(names, "push"), nil
}

func stepList() string {
	var b strings.Builder
	for _, s := range pipeline.Steps() {
		fmt.Fprintf(&b, "  %-10s %s\n", s.Name, s.Short)
	}
	fmt.Fprintf(&b, "  %-10s %s\n", "push", "push the images to their registry")
	return b.String()
}
