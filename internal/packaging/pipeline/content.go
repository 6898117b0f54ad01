package pipeline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/packaging/keyring"
	"github.com/sesame-init/sesame/internal/packaging/ociimage"
)

// standIn is the image that the stand-in model server is put into, so that simulated deployments take the same way.
const standIn = "standin"

// muslLoader is what the stand-in names as its loader.
const muslLoader = "/lib/ld-musl-x86_64.so.1"

// root takes the application out of its container image.
func (p *Pipeline) root(ctx context.Context) error {
	dst := p.path("root")
	in := input{words: append([]string{p.o.AppImage, p.o.Program, p.o.Mode}, p.o.Files...)}
	own := p.program("libos/tensorflow_model_server")
	if p.o.AppImage == standIn {
		in.files = append(in.files, own)
	}
	if p.o.OcclumLibc != "" {
		in.files = append(in.files, p.o.OcclumLibc)
	}
	return p.once("root", in, []string{dst}, func() error {
		from := p.o.AppImage
		if from == standIn {
			layout := p.path("standin")
			if err := p.standInImage(own, layout); err != nil {
				return err
			}
			from = "oci:" + layout
		}
		image, err := ociimage.Open(ctx, from)
		if err != nil {
			return attest.Errorf(attest.CodeUnreachable, "opening image "+from,
				"Write a reference, oci:DIR for an OCI layout, or tar:FILE for what docker save wrote.", "%w", err)
		}
		flat := p.path("root.image")
		defer os.RemoveAll(flat)
		for _, dir := range []string{flat, dst} {
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
		}
		if err := ociimage.Unpack(image, flat); err != nil {
			return fmt.Errorf("unpacking image %s: %w", from, err)
		}
		taken, err := extract(flat, dst, selection{
			Programs: []string{p.o.Program}, Files: p.o.Files, Libc: p.o.OcclumLibc,
		})
		if err != nil {
			return err
		}
		var size int64
		replaced := 0
		for _, t := range taken {
			size += t.Size
			if t.Replaced {
				replaced++
			}
		}
		p.say("root", "%s and what it names from %s: %d files, %s", p.o.Program, p.o.AppImage, len(taken), megabytes(size))
		if p.o.OcclumLibc != "" {
			p.say("root", "%d loaders and libraries are Occlum's own, from %s", replaced, p.o.OcclumLibc)
		}
		return nil
	})
}

func (p *Pipeline) standInImage(program, layout string) error {
	file, err := ociimage.File(program, p.o.Program)
	if err != nil {
		return attest.Errorf(attest.CodeConfig, "packing the stand-in model server", "Run make build.", "%w", err)
	}
	loader, err := ociimage.File(muslLoader, muslLoader)
	if err != nil {
		return attest.Errorf(attest.CodeConfig, "packing the stand-in model server", "Run make deps.", "%w", err)
	}
	layer, err := ociimage.Layer([]ociimage.Entry{file, loader}, p.o.Created)
	if err != nil {
		return err
	}
	image, err := ociimage.New(nil, ociimage.Config{Entrypoint: []string{p.o.Program}, Created: p.o.Created}, layer)
	if err != nil {
		return err
	}
	return ociimage.WriteLayout(layout, "standin:latest", image)
}

// volume encrypts the model.
func (p *Pipeline) volume(ctx context.Context) error {
	ring, err := p.ring()
	if err != nil {
		return err
	}
	dst := p.path("model.volume")
	in := input{files: []string{p.o.Model, ring.Path(keyring.ModelKey)}}
	return p.once("volume", in, []string{dst, p.path("model.mac")}, func() error {
		versions, err := os.ReadDir(p.o.Model)
		if err != nil {
			return attest.Errorf(attest.CodeUsage, "reading the model",
				"Name the directory of version folders with --model; make model makes one for the stand-in.", "%w", err)
		}
		if len(versions) == 0 {
			return attest.Errorf(attest.CodeUsage, "reading the model", "It holds version folders, such as 1/saved_model.pb.",
				"%s is empty", p.o.Model)
		}
		key, err := ring.Volume(keyring.ModelKey)
		if err != nil {
			return err
		}
		if err := os.RemoveAll(dst); err != nil {
			return err
		}
		src, err := os.OpenRoot(p.o.Model)
		if err != nil {
			return err
		}
		defer src.Close()
		mac, err := sefs.Create(ctx, dst, src.FS(), sefs.CreateOptions{Key: &key, Reproducible: true})
		if err != nil {
			return fmt.Errorf("encrypting the model: %w", err)
		}
		size, err := treeSize(dst)
		if err != nil {
			return err
		}
		p.say("volume", "%s encrypted, %s, MAC %v", p.o.Model, megabytes(size), mac)
		return os.WriteFile(p.path("model.mac"), []byte(mac.String()+"\n"), 0o644)
	})
}

func (p *Pipeline) mac() (sefs.MAC, error) {
	text, err := os.ReadFile(p.path("model.mac"))
	if err != nil {
		return sefs.MAC{}, attest.Errorf(attest.CodeUsage, "reading the model's MAC", "Run: sesame package volume.", "%w", err)
	}
	return sefs.ParseMAC(string(text))
}

func treeSize(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}

func largestFile(dir string) (most int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			most = max(most, info.Size())
		}
		return err
	})
	return most, err
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/(1<<20)) }

// client puts a Python together for the client's scripts: the interpreter, its libraries and its standard library.
func (p *Pipeline) client(ctx context.Context) error {
	dst := p.path("python")
	return p.once("client", input{words: []string{p.o.Python}}, []string{dst}, func() error {
		from := p.path("python.source")
		defer os.RemoveAll(from)
		for _, dir := range []string{from, dst} {
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
		}
		origin := p.o.Python
		switch info, err := os.Stat(p.o.Python); {
		case p.o.Python == "":
			origin = "Debian's python3-minimal"
			if err := debianPython(ctx, from); err != nil {
				return err
			}
		case err == nil && info.IsDir():
			from = p.o.Python
		default:
			image, err := ociimage.Open(ctx, p.o.Python)
			if err != nil {
				return fmt.Errorf("opening image %s: %w", p.o.Python, err)
			}
			if err := ociimage.Unpack(image, from); err != nil {
				return fmt.Errorf("unpacking image %s: %w", p.o.Python, err)
			}
		}
		taken, err := takePython(from, dst)
		if err != nil {
			return err
		}
		var size int64
		for _, t := range taken {
			size += t.Size
		}
		p.say("client", "%s: %d files, %s", origin, len(taken), megabytes(size))
		return nil
	})
}

// takePython finds python3 and its standard library in a file system.
func takePython(from, dst string) ([]takenFile, error) {
	for _, prefix := range []string{"/usr", "/usr/local"} {
		libraries, err := filepath.Glob(filepath.Join(from, prefix, "lib/python3.[0-9]*"))
		if err != nil {
			return nil, err
		}
		if len(libraries) == 0 {
			continue
		}
		library := prefix + "/lib/" + filepath.Base(libraries[len(libraries)-1])
		taken, err := extract(from, dst, selection{
			Programs: []string{prefix + "/bin/python3"}, Files: []string{library},
		})
		if err != nil {
			return nil, err
		}
		return taken, nil
	}
	return nil, errors.New("there is no python3 in /usr or /usr/local")
}
