package occlumsim

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/occlum/occlumconf"
)

// BuildOptions say how to build an instance.
type BuildOptions struct {
	// ImageKey encrypts the image; nil makes it integrity-only.
	ImageKey *sefs.Key
	// EmbedImageKey puts the image key into the initfs, in plain text.
	EmbedImageKey bool
	// SignKey signs the enclave.
	SignKey *rsa.PrivateKey
	// EDMM switches dynamic enclave memory on, as Occlum.json's feature does.
	EDMM bool
	// Reproducible makes the same encrypted image of the same input and key, hence the same MRENCLAVE. Real Occlum
	// cannot. See [sefs.CreateOptions] for what it costs.
	Reproducible bool
	// Progress is told how many bytes of the image are written, if not nil.
	Progress func(done, total int64)
}

// runDirs are the directories in which real Occlum keeps the writable layers.
var runDirs = []string{"run/mount/__ROOT", "run/initfs/__ROOT"}

// Build makes the images, measures and signs. Everything is made anew each time, and what an earlier run left in
// the writable layers is removed.
func (i *Instance) Build(ctx context.Context, o BuildOptions) (*Enclave, error) {
	config, err := i.Config()
	if err != nil {
		return nil, err
	}
	config.Feature.EnableEDMM = config.Feature.EnableEDMM || o.EDMM
	if err := i.idle(); err != nil {
		return nil, err
	}
	if err := i.prepareInitFS(o); err != nil {
		return nil, fmt.Errorf("preparing the initfs: %w", err)
	}
	for _, dir := range []string{buildDir, runDir} {
		if err := os.RemoveAll(i.path(dir)); err != nil {
			return nil, err
		}
	}
	for _, dir := range append([]string{"build/bin", "build/lib"}, runDirs...) {
		if err := os.MkdirAll(i.path(dir), 0o755); err != nil {
			return nil, err
		}
	}

	if _, err := i.makeVolume(ctx, InitFSVolume, initFSMACFile, initFSDir,
		sefs.CreateOptions{Reproducible: true}); err != nil {
		return nil, fmt.Errorf("building the initfs: %w", err)
	}
	manifest, err := Manifest(os.DirFS(i.path(initFSDir)))
	if err != nil {
		return nil, fmt.Errorf("measuring the initfs: %w", err)
	}
	mac, err := i.makeVolume(ctx, imageVolume, imageMACFile, imageDir,
		sefs.CreateOptions{Key: o.ImageKey, Reproducible: o.Reproducible || o.ImageKey == nil, Progress: o.Progress})
	if err != nil {
		return nil, fmt.Errorf("building the image: %w", err)
	}

	system := newSystem(config, manifest, mac.String())
	text, err := json.MarshalIndent(system, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(i.path(systemFile), text, 0o644); err != nil {
		return nil, err
	}
	enclave, err := sign(system, config.Metadata, o.SignKey)
	if err != nil {
		return nil, fmt.Errorf("signing the enclave: %w", err)
	}
	text, err = json.MarshalIndent(enclave, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(i.path(enclaveFile), text, 0o644); err != nil {
		return nil, err
	}
	return enclave, os.WriteFile(i.path(statusFile), []byte("built\n"), 0o644)
}

// idle is an error while the instance runs: a build would remove the socket by which it is stopped.
func (i *Instance) idle() error {
	f, err := os.Open(i.path(InitFSVolume + "/metadata"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return &attest.Error{Code: attest.CodeUsage, Step: "building", Err: errors.New("the instance is running"),
			Hint: "Stop it first; occlum stop ends one that occlum start left running."}
	}
	return nil
}

// prepareInitFS puts the files into initfs/etc that Occlum's build does.
func (i *Instance) prepareInitFS(o BuildOptions) error {
	etc := i.path(initFSDir + "/etc")
	if err := os.MkdirAll(etc, 0o755); err != nil {
		return err
	}
	if _, err := os.Stat(i.path(initFSDir + "/bin/init")); err != nil {
		return &attest.Error{Code: attest.CodeConfig, Step: "looking for initfs/bin/init", Err: err,
			Hint: "Copy the init program there: it is what attests and mounts the image."}
	}
	imageType := "integrity-only"
	if o.ImageKey != nil {
		imageType = "encrypted"
	}
	text := fmt.Sprintf("{\"image_type\":%q}\n", imageType)
	if err := os.WriteFile(filepath.Join(etc, "image_config.json"), []byte(text), 0o644); err != nil {
		return err
	}
	if err := copyIfExists(i.path(initConfig), filepath.Join(etc, initConfig), 0o644); err != nil {
		return err
	}
	keyFile := filepath.Join(etc, "image_key")
	if o.EmbedImageKey && o.ImageKey != nil {
		return os.WriteFile(keyFile, append(sefs.EncodeKey(*o.ImageKey).Expose(), '\n'), 0o644)
	}
	if err := os.Remove(keyFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (i *Instance) makeVolume(ctx context.Context, dst, macFile, src string, o sefs.CreateOptions) (sefs.MAC, error) {
	if err := os.MkdirAll(filepath.Dir(i.path(dst)), 0o755); err != nil {
		return sefs.MAC{}, err
	}
	mac, err := sefs.Create(ctx, i.path(dst), os.DirFS(i.path(src)), o)
	if err != nil {
		return mac, err
	}
	return mac, os.WriteFile(i.path(macFile), []byte(mac.String()+"\n"), 0o644)
}

// System is the configuration that the LibOS trusts, build/.Occlum_sys.json: Occlum.json without what is only
// signed, with the MAC of the image and the hash of the initfs filled in. It is what MRENCLAVE covers.
type System struct {
	ResourceLimits occlumconf.ResourceLimits `json:"resource_limits"`
	Process        occlumconf.Process        `json:"process"`
	Env            occlumconf.Env            `json:"env"`
	DisableLog     bool                      `json:"disable_log"`
	Feature        occlumconf.Feature        `json:"feature"`
	// InitFS is the manifest hash of the initfs, in hex; see [Manifest].
	InitFS string `json:"initfs"`
	// EntryPoints are those of the application's stage; the init stage has /bin.
	EntryPoints []string           `json:"entry_points"`
	Mount       []occlumconf.Mount `json:"mount"`
}

func newSystem(c *occlumconf.Config, manifest, imageMAC string) *System {
	_, image, _ := c.Root()
	image.Options.MAC = &imageMAC
	disableLog := !c.Metadata.Debuggable
	if c.Metadata.DisableLog != nil {
		disableLog = *c.Metadata.DisableLog
	}
	return &System{
		ResourceLimits: c.ResourceLimits, Process: c.Process, Env: c.Env, DisableLog: disableLog,
		Feature: c.Feature, InitFS: manifest, EntryPoints: c.EntryPoints, Mount: c.Mount,
	}
}

// RootLayers are the image layer and the container layer of the application's root, nil if one is missing.
func (s *System) RootLayers() (image, container *occlumconf.Mount) {
	_, image, container = (&occlumconf.Config{Mount: s.Mount}).Root()
	return image, container
}

// StackArea is the size in bytes of the area that must hold a program's arguments, environment and auxiliary
// vector (Occlum 0.31, process/do_spawn/mod.rs).
func (s *System) StackArea() uint64 {
	return max(4096, uint64(s.Process.Stack)/256)
}

// Limits are the resource limits as the LibOS applies them: to its own heap, to the mappings of one process, and to the
// threads of all.
type Limits struct {
	KernelHeap, Mappings occlumconf.Size
	Threads              int
}

// Limits computes them. Stack and heap of a process are part of the user space from its start on, whatever it uses.
func (s *System) Limits() Limits {
	c := occlumconf.Config{ResourceLimits: s.ResourceLimits, Feature: s.Feature}
	l := Limits{KernelHeap: c.KernelHeap(), Threads: int(c.Threads())}
	if user, fixed := c.UserSpace(), s.Process.Stack+s.Process.Heap; user > fixed {
		l.Mappings = user - fixed
	}
	return l
}

// InitFSMAC is the root MAC of the initfs's volume.
func (i *Instance) InitFSMAC() (sefs.MAC, error) {
	text, err := os.ReadFile(i.path(initFSMACFile))
	if err != nil {
		return sefs.MAC{}, err
	}
	return sefs.ParseMAC(strings.TrimSpace(string(text)))
}
