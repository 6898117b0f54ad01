// Package occlumsim is the occlum command without SGX: instance directories with Occlum's file layout, built,
// measured and signed on plain Linux. Package lab/occlumsim/libos runs them.
//
// # Promises
//
//   - An instance has the files of a real one in the places that scripts know: Occlum.json, initfs/, image/,
//     build/initfs/__ROOT and build/mount/__ROOT (true SEFS images), run/.
//   - MRENCLAVE depends on exactly what Occlum measures: the content and modes of the initfs, the root MAC of
//     the image, entry points, environment, resource limits, process sizes, features and mounts. The same input
//     gives the same value. As with the real one, an encrypted image has random keys inside, so MRENCLAVE
//     changes with every build of one.
//   - MRSIGNER is the SHA-256 of the signing key's modulus as SGX takes it: 384 bytes, little-endian.
//     Product id, SVN, debug and KSS attributes are signed, not measured.
//
// # Limits
//
// A measurement of the simulator is not the one that a real Occlum would have for the same input, and nothing
// protects what runs in it. It is for development, tests and demonstrations; production programs must not
// import it. It runs on Linux on x86-64 only.
package occlumsim

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/occlum/occlumconf"
	"github.com/sesame-init/sesame/internal/packaging/copytree"
)

// Files of an instance, relative to it.
const (
	configFile    = "Occlum.json"
	initConfig    = "init_ra_conf.json"
	statusFile    = ".__occlum_status"
	modeFile      = ".sgx_mode"
	initFSDir     = "initfs"
	imageDir      = "image"
	buildDir      = "build"
	initFSMACFile = "build/initfs/.ROOT_MAC"
	imageVolume   = "build/mount/__ROOT"
	imageMACFile  = "build/mount/.ROOT_MAC"
	systemFile    = "build/.Occlum_sys.json"
	enclaveFile   = "build/lib/libocclum-libos.signed.so"
	runDir        = "run"
)

//go:embed template
var templates embed.FS

// InitFSVolume is the volume of the initfs that build makes, relative to the instance.
const InitFSVolume = "build/initfs/__ROOT"

// Instance is an instance directory.
type Instance struct{ Dir string }

// Open checks that dir is an instance directory.
func Open(dir string) (*Instance, error) {
	if _, err := os.Stat(filepath.Join(dir, statusFile)); err != nil {
		return nil, &attest.Error{Code: attest.CodeUsage, Step: "opening instance " + dir, Err: err,
			Hint: "Run the command in a directory that occlum new made."}
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	return &Instance{Dir: abs}, nil
}

func (i *Instance) path(name string) string { return filepath.Join(i.Dir, filepath.FromSlash(name)) }

// NewOptions say what a new instance begins with.
type NewOptions struct {
	// InitRA is the attestation of the stock init whose config template is added: "", "grpc_ratls" or "aecs".
	InitRA string
	// Init is the program to install as /bin/init; "" leaves initfs/bin empty.
	Init string
	// Libc is the musl loader to install, which is left out if the file does not exist.
	Libc string
	// CABundle is the file of CA certificates that goes into the initfs with InitRA grpc_ratls, as Occlum
	// does; it is left out if the file does not exist.
	CABundle string
}

// MuslLoader is the loader that programs of an instance name.
const MuslLoader = "/lib/ld-musl-x86_64.so.1"

// New makes an instance directory; dir must not exist, or be empty.
func New(dir string, o NewOptions) error {
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return attest.Errorf(attest.CodeUsage, "making instance "+dir, "Choose a directory that does not exist.",
			"the directory is not empty")
	}
	template := ""
	switch o.InitRA {
	case "":
	case "grpc_ratls", "aecs":
		template = "template/init_" + o.InitRA + ".json"
	default:
		return attest.Errorf(attest.CodeUsage, "making instance "+dir, "Write grpc_ratls or aecs.",
			"there is no attestation %q", o.InitRA)
	}
	if err := populate(dir, template, o); err != nil {
		return fmt.Errorf("making instance %s: %w", dir, err)
	}
	return nil
}

func populate(dir, template string, o NewOptions) error {
	for _, sub := range []string{
		"image/bin", "image/dev", "image/etc", "image/host", "image/lib", "image/lib64", "image/opt",
		"image/proc", "image/root", "image/run", "image/sys", "image/tmp", "image/usr",
		"initfs/bin", "initfs/dev", "initfs/etc", "initfs/lib", "initfs/proc", "build", "run",
	} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	hosts := []byte("127.0.0.1   localhost\n::1         localhost\n")
	for _, f := range []struct {
		name string
		text []byte
	}{
		{statusFile, []byte("initialized\n")}, {modeFile, []byte("SIM\n")},
		{"initfs/etc/hosts", hosts}, {"image/etc/hosts", hosts},
	} {
		if err := os.WriteFile(filepath.Join(dir, f.name), f.text, 0o644); err != nil {
			return err
		}
	}
	if err := copyTemplate("template/Occlum.json", filepath.Join(dir, configFile)); err != nil {
		return err
	}
	if template != "" {
		if err := copyTemplate(template, filepath.Join(dir, initConfig)); err != nil {
			return err
		}
	}
	if o.InitRA == "grpc_ratls" {
		bundle := filepath.Join(dir, "initfs/etc/ssl/certs/ca-certificates.crt")
		if err := os.MkdirAll(filepath.Dir(bundle), 0o755); err != nil {
			return err
		}
		if err := copyIfExists(o.CABundle, bundle, 0o644); err != nil {
			return err
		}
	}
	for _, root := range []string{initFSDir, imageDir} {
		if err := copyIfExists(o.Libc, filepath.Join(dir, root, MuslLoader), 0o755); err != nil {
			return err
		}
	}
	if o.Init != "" {
		return copytree.File(o.Init, filepath.Join(dir, "initfs/bin/init"), 0o755)
	}
	return nil
}

func copyTemplate(name, dst string) error {
	text, err := templates.ReadFile(name)
	if err != nil {
		return err
	}
	return os.WriteFile(dst, text, 0o644)
}

func copyIfExists(src, dst string, mode fs.FileMode) error {
	if src == "" {
		return nil
	}
	err := copytree.File(src, dst, mode)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Config reads the instance's Occlum.json.
func (i *Instance) Config() (*occlumconf.Config, error) {
	c, err := occlumconf.Load(i.path(configFile))
	if err != nil {
		return nil, &attest.Error{Code: attest.CodeConfig, Step: "reading " + configFile, Err: err,
			Hint: "Mend the field that is named; Occlum's own tool would drop or refuse it."}
	}
	return c, nil
}
