package pipeline

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/config"
	"github.com/sesame-init/sesame/internal/occlum/occlumcheck"
	"github.com/sesame-init/sesame/internal/occlum/occlumconf"
	"github.com/sesame-init/sesame/internal/packaging/copytree"
	"github.com/sesame-init/sesame/internal/packaging/ociimage"
)

// occlumTool is the occlum command.
type occlumTool struct {
	// Program is its path, or a name in PATH.
	Program string
	// Simulated is the simulator's, which builds the same instance from the same input.
	Simulated bool
	// Output takes what the command prints; nil drops it, except if the command fails.
	Output io.Writer
}

// instanceSpec says what to build.
type instanceSpec struct {
	// Dir is the instance directory; what is there is removed.
	Dir string
	// Init is the init program.
	Init string
	// Root are files and directories of this machine by their absolute paths in the application's root.
	Root map[string]string
	// Dirs are further directories of the root: mount points.
	Dirs []string
	// InitFS are files of this machine by their absolute paths in the initfs, which is measured and not encrypted.
	InitFS map[string]string
	// Conf becomes Occlum.json.
	Conf *occlumconf.Config
	// InitConf becomes the measured config of init.
	InitConf *config.Config
	// SignKey signs the enclave; ImageKey encrypts the root, and is empty for one that is only measured.
	SignKey, ImageKey string
	// OcclumLibc is a directory with Occlum's C libraries, at any depth, or a list of their hashes: all in the instance
	// must be of them. Empty for the simulator.
	OcclumLibc string
}

// builtInstance is what a build made.
type builtInstance struct {
	MREnclave string // 64 hex digits
	MRSigner  string
	Warnings  []string // of the check
}

// build makes the instance: an instance directory, init and its measured config, the content of the root, Occlum.json,
// the build, the measurements. It begins with an empty directory. Before "occlum build" the instance is checked (package
// occlumcheck); an error there ends the build, so that nothing unsafe is measured and shipped.
func (t occlumTool) build(ctx context.Context, s instanceSpec) (*builtInstance, error) {
	if err := os.RemoveAll(s.Dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(s.Dir), 0o755); err != nil {
		return nil, err
	}
	if _, err := t.run(ctx, filepath.Dir(s.Dir), "new", filepath.Base(s.Dir)); err != nil {
		return nil, err
	}
	if err := fill(s); err != nil {
		return nil, fmt.Errorf("filling instance %s: %w", s.Dir, err)
	}
	b := new(builtInstance)
	findings, err := occlumcheck.Instance(s.Dir, occlumcheck.Options{OcclumLibc: s.OcclumLibc})
	if err != nil {
		return nil, err
	}
	for _, f := range findings {
		b.Warnings = append(b.Warnings, f.String())
	}
	if findings.Failed() {
		return nil, attest.Errorf(attest.CodeConfig, "checking instance "+s.Dir, "Each line says what to write.",
			"it would fail or be unsafe:\n%s", strings.Join(b.Warnings, "\n"))
	}
	mode := "HW"
	if t.Simulated {
		mode = "SIM"
	}
	args := []string{"build", "--sgx-mode", mode, "--sign-key", s.SignKey}
	if s.ImageKey != "" {
		args = append(args, "--image-key", s.ImageKey)
	}
	if t.Simulated {
		args = append(args, "--reproducible")
	}
	if _, err := t.run(ctx, s.Dir, args...); err != nil {
		return nil, err
	}
	if b.MREnclave, err = t.measurement(ctx, s.Dir, "mrenclave"); err != nil {
		return nil, err
	}
	b.MRSigner, err = t.measurement(ctx, s.Dir, "mrsigner")
	return b, err
}

// fill puts everything into the instance that the build measures.
func fill(s instanceSpec) error {
	initFS, root := filepath.Join(s.Dir, "initfs"), filepath.Join(s.Dir, "image")
	if err := copytree.Copy(s.Init, filepath.Join(initFS, "bin/init")); err != nil {
		return err
	}
	if err := os.Chmod(filepath.Join(initFS, "bin/init"), 0o755); err != nil {
		return err
	}
	for to, from := range s.InitFS {
		if err := copytree.Copy(from, filepath.Join(initFS, to)); err != nil {
			return err
		}
	}
	for to, from := range s.Root {
		if err := copytree.Copy(from, filepath.Join(root, to)); err != nil {
			return err
		}
	}
	for _, dir := range s.Dirs {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	text, err := json.MarshalIndent(s.InitConf, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.Dir, filepath.Base(config.Path)), append(text, '\n'), 0o644); err != nil {
		return err
	}
	if text, err = json.MarshalIndent(s.Conf, "", "    "); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.Dir, "Occlum.json"), append(text, '\n'), 0o644)
}

var hash = regexp.MustCompile(`^[0-9a-f]{64}$`)

// measurement asks for a measurement: the last word that the command prints.
func (t occlumTool) measurement(ctx context.Context, dir, which string) (string, error) {
	out, err := t.run(ctx, dir, "print", which)
	if err != nil {
		return "", err
	}
	words := strings.Fields(out)
	if len(words) == 0 || !hash.MatchString(strings.ToLower(words[len(words)-1])) {
		return "", fmt.Errorf("occlum print %s: %q is no measurement", which, out)
	}
	return strings.ToLower(words[len(words)-1]), nil
}

// pack runs "occlum package" and unpacks the archive, which holds what a machine needs to run the instance, into
// the directory dst. The instance's own directory is not part of the names.
func (t occlumTool) pack(ctx context.Context, dir, dst string) error {
	archive := filepath.Join(filepath.Dir(dst), filepath.Base(dst)+".tar.gz")
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return err
	}
	if _, err := t.run(ctx, dir, "package", archive); err != nil {
		return err
	}
	defer os.Remove(archive)
	aside := dst + ".unpacked"
	for _, d := range []string{aside, dst} {
		if err := os.RemoveAll(d); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(aside, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(aside)
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	plain, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	if err := ociimage.UnpackTar(plain, aside); err != nil {
		return err
	}
	inner := filepath.Join(aside, filepath.Base(dir))
	if _, err := os.Stat(inner); err != nil {
		return fmt.Errorf("occlum package: the archive holds no %s: %w", filepath.Base(dir), err)
	}
	return os.Rename(inner, dst)
}

// run runs the command and returns its standard output.
func (t occlumTool) run(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, t.Program, args...)
	cmd.Dir = dir
	var out, all bytes.Buffer
	var both io.Writer = &all
	if t.Output != nil {
		both = t.Output
	}
	shared := &lockedWriter{to: both} // the two outputs are copied by a goroutine each
	cmd.Stdout, cmd.Stderr = io.MultiWriter(&out, shared), shared
	if err := cmd.Run(); err != nil {
		return "", &attest.Error{Code: attest.CodeConfig, Step: "running occlum " + strings.Join(redact(args), " "),
			Err: fmt.Errorf("%w\n%s", err, bytes.TrimSpace(all.Bytes())), Hint: "In hardware mode this runs in Occlum's development image."}
	}
	return out.String(), nil
}

// lockedWriter lets several goroutines write to one writer.
type lockedWriter struct {
	mu sync.Mutex
	to io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.to.Write(b)
}

// redact leaves out nothing but the places of keys, which a log need not have.
func redact(args []string) []string {
	short := slices.Clone(args)
	for i, a := range short {
		if a == "--sign-key" || a == "--image-key" {
			short[i+1] = "…"
		}
	}
	return short
}

// newPlatform makes a software platform (simulator only).
func (t occlumTool) newPlatform(ctx context.Context, dir string) error {
	_, err := t.run(ctx, filepath.Dir(dir), "sim-platform", "new", dir)
	return err
}
