// Package ociimage makes container images without a container engine: layers from files of this machine, a config,
// and from them an OCI layout directory or a push to a registry.
//
// # Promises
//
// The same files, modes and config give the same digest for any builder, place and time: entries stand in the
// order of their names, with one time and one owner, and nothing of this machine (times, owners, device numbers,
// the order of a directory) gets into a layer.
//
// # Limits
//
// Regular files, directories and symbolic links only. Images are for linux/amd64. The compressed bytes depend on the
// version of Go that compresses.
package ociimage

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Entry is one file, directory or link of a layer.
type Entry struct {
	// Path is absolute in the image.
	Path string
	// From is the file of this machine whose content it has; empty for directories and links, and for files with Text.
	From string
	// Text is the content of a file without From.
	Text []byte
	// Link is the target of a symbolic link.
	Link string
	// Mode holds the type and the permission bits.
	Mode fs.FileMode
	// UID and GID own it.
	UID, GID int
}

// File is a regular file with the content and the permission bits of a file of this machine.
func File(from, to string) (Entry, error) {
	info, err := os.Stat(from)
	if err != nil {
		return Entry{}, err
	}
	if !info.Mode().IsRegular() {
		return Entry{}, fmt.Errorf("%s is no regular file", from)
	}
	return Entry{Path: to, From: from, Mode: info.Mode().Perm()}, nil
}

// Tree is everything below a directory of this machine, at another place, owned by uid and gid. The directory itself
// is among it.
func Tree(from, to string, uid, gid int) ([]Entry, error) {
	var entries []Entry
	err := filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(from, file)
		if err != nil {
			return err
		}
		e := Entry{Path: path.Join("/", to, filepath.ToSlash(relative)), UID: uid, GID: gid,
			Mode: info.Mode() & (fs.ModeType | fs.ModePerm)}
		switch info.Mode().Type() {
		case 0:
			e.From = file
		case fs.ModeDir:
		case fs.ModeSymlink:
			if e.Link, err = os.Readlink(file); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s: a layer cannot hold a %s", file, info.Mode().Type())
		}
		entries = append(entries, e)
		return nil
	})
	return entries, err
}

// Layer packs entries, all with the same time. Parent directories that are not among them are made, with mode 0755.
// No path may occur twice.
func Layer(entries []Entry, modified time.Time) (v1.Layer, error) {
	all, err := complete(entries)
	if err != nil {
		return nil, err
	}
	// What the layer is made of is read now: a file that changes later does not change it any more.
	var packed bytes.Buffer
	if err := pack(&packed, all, modified); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(packed.Bytes())), nil
	}, tarball.WithCompressedCaching, tarball.WithMediaType(types.OCILayer))
}

// complete adds parents and sorts.
func complete(entries []Entry) ([]Entry, error) {
	have := make(map[string]bool)
	for _, e := range entries {
		if !path.IsAbs(e.Path) || path.Clean(e.Path) != e.Path {
			return nil, fmt.Errorf("packing %q: not a clean absolute path", e.Path)
		}
		if have[e.Path] {
			return nil, fmt.Errorf("packing %s: it occurs twice", e.Path)
		}
		have[e.Path] = true
	}
	all := slices.Clone(entries)
	for _, e := range entries {
		for dir := path.Dir(e.Path); dir != "/" && !have[dir]; dir = path.Dir(dir) {
			have[dir] = true
			all = append(all, Entry{Path: dir, Mode: fs.ModeDir | 0o755})
		}
	}
	all = slices.DeleteFunc(all, func(e Entry) bool { return e.Path == "/" })
	slices.SortFunc(all, func(a, b Entry) int { return cmp.Compare(a.Path, b.Path) })
	return all, nil
}

func pack(w io.Writer, entries []Entry, modified time.Time) error {
	archive := tar.NewWriter(w)
	for _, e := range entries {
		if err := packEntry(archive, e, modified); err != nil {
			return fmt.Errorf("packing %s: %w", e.Path, err)
		}
	}
	return archive.Close()
}

func packEntry(archive *tar.Writer, e Entry, modified time.Time) error {
	header := &tar.Header{
		Name: strings.TrimPrefix(e.Path, "/"), Mode: int64(e.Mode.Perm()), Uid: e.UID, Gid: e.GID,
		ModTime: modified.UTC().Truncate(time.Second), Format: tar.FormatPAX,
	}
	switch e.Mode.Type() {
	case fs.ModeDir:
		header.Typeflag, header.Name = tar.TypeDir, header.Name+"/"
		return archive.WriteHeader(header)
	case fs.ModeSymlink:
		header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, e.Link, 0o777
		return archive.WriteHeader(header)
	case 0:
		header.Typeflag = tar.TypeReg
	default:
		return fmt.Errorf("a layer cannot hold a %s", e.Mode.Type())
	}
	var content io.Reader = bytes.NewReader(e.Text)
	header.Size = int64(len(e.Text))
	if e.From != "" {
		f, err := os.Open(e.From)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		content, header.Size = f, info.Size()
	}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err := io.Copy(archive, content)
	return err
}

// Config is what an image says about itself.
type Config struct {
	Entrypoint, Cmd []string
	Env             []string
	WorkingDir      string
	User            string
	Ports           []string // "9001/tcp"
	Labels          map[string]string
	Created         time.Time
}

// New puts layers on a base, which is nil for an image from scratch. What the base's config says stays if c says
// nothing; labels are added.
func New(base v1.Image, c Config, layers ...v1.Layer) (v1.Image, error) {
	if base == nil {
		base = mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	}
	var additions []mutate.Addendum
	created := v1.Time{Time: c.Created.UTC().Truncate(time.Second)}
	for _, l := range layers {
		additions = append(additions, mutate.Addendum{Layer: l, History: v1.History{Created: created}})
	}
	image, err := mutate.Append(base, additions...)
	if err != nil {
		return nil, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Created = "linux", "amd64", created
	out := &file.Config
	if c.Entrypoint != nil {
		out.Entrypoint, out.Cmd = c.Entrypoint, c.Cmd
	} else if c.Cmd != nil {
		out.Cmd = c.Cmd
	}
	out.Env = append(out.Env, c.Env...)
	out.WorkingDir = cmp.Or(c.WorkingDir, out.WorkingDir)
	out.User = cmp.Or(c.User, out.User)
	if len(c.Ports) > 0 {
		out.ExposedPorts = make(map[string]struct{})
		for _, port := range c.Ports {
			out.ExposedPorts[port] = struct{}{}
		}
	}
	if out.Labels == nil && len(c.Labels) > 0 {
		out.Labels = make(map[string]string)
	}
	for key, value := range c.Labels {
		out.Labels[key] = value
	}
	return mutate.ConfigFile(image, file)
}

// Size is what a registry keeps of an image, in bytes: the compressed layers and the config.
func Size(image v1.Image) (int64, error) {
	manifest, err := image.Manifest()
	if err != nil {
		return 0, err
	}
	total := manifest.Config.Size
	for _, l := range manifest.Layers {
		total += l.Size
	}
	return total, nil
}

// WriteLayout writes an OCI layout directory that holds this one image under the name ref, in the place of what was
// there.
func WriteLayout(dir, ref string, image v1.Image) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	aside, err := os.MkdirTemp(filepath.Dir(dir), ".layout-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(aside)
	if err := os.Chmod(aside, 0o755); err != nil {
		return err
	}
	p, err := layout.Write(aside, empty.Index)
	if err != nil {
		return err
	}
	annotations := map[string]string{"org.opencontainers.image.ref.name": ref, "io.containerd.image.name": ref}
	if err := p.AppendImage(image, layout.WithAnnotations(annotations)); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(aside, dir)
}

// Open finds an image: "oci:DIR" is the one image of an OCI layout, "tar:FILE" that of an archive which docker save
// wrote, and anything else a reference that is read from its registry, with the credentials of docker's config.
func Open(ctx context.Context, from string) (v1.Image, error) {
	if dir, ok := strings.CutPrefix(from, "oci:"); ok {
		return openLayout(dir)
	}
	if file, ok := strings.CutPrefix(from, "tar:"); ok {
		return tarball.ImageFromPath(file, nil)
	}
	ref, err := name.ParseReference(from)
	if err != nil {
		return nil, err
	}
	return remote.Image(ref, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"}))
}

func openLayout(dir string) (v1.Image, error) {
	p, err := layout.FromPath(dir)
	if err != nil {
		return nil, err
	}
	index, err := p.ImageIndex()
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(manifest.Manifests) != 1 {
		return nil, fmt.Errorf("%s holds %d images, want one", dir, len(manifest.Manifests))
	}
	return index.Image(manifest.Manifests[0].Digest)
}

// Push writes an image to its registry and returns the reference with its digest. Registries at loopback addresses
// are spoken to without TLS.
func Push(ctx context.Context, ref string, image v1.Image) (string, error) {
	tag, err := name.NewTag(ref)
	if err != nil {
		return "", err
	}
	if err := remote.Write(tag, image, remote.WithContext(ctx),
		remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
		return "", err
	}
	digest, err := image.Digest()
	if err != nil {
		return "", err
	}
	return tag.Context().Digest(digest.String()).String(), nil
}

// maxUnpacked bounds what Unpack writes, in bytes.
const maxUnpacked = 64 << 30

// Unpack writes the file system of an image into a new directory: regular files, directories and links, with their
// permission bits. Devices are left out. Nothing is written outside of dir, whatever the image says.
func Unpack(image v1.Image, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	flat := mutate.Extract(image)
	defer flat.Close()
	return UnpackTar(flat, dir)
}

// UnpackTar is [Unpack] for a tar stream, into an existing directory.
func UnpackTar(r io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	archive := tar.NewReader(io.LimitReader(r, maxUnpacked))
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := unpackEntry(root, archive, header); err != nil {
			return fmt.Errorf("unpacking %q: %w", header.Name, err)
		}
	}
}

func sparse(header *tar.Header) bool {
	for key := range header.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return header.Typeflag == tar.TypeGNUSparse
}

func unpackEntry(root *os.Root, content io.Reader, header *tar.Header) error {
	at := strings.TrimPrefix(path.Clean("/"+header.Name), "/")
	if at == "" {
		return nil
	}
	if err := root.MkdirAll(path.Dir(at), 0o755); err != nil {
		return err
	}
	mode := fs.FileMode(header.Mode).Perm()
	if sparse(header) { // a few bytes would become as many as they like
		return errors.New("it is a sparse file")
	}
	switch header.Typeflag {
	case tar.TypeDir:
		if err := root.MkdirAll(at, 0o755); err != nil {
			return err
		}
		return root.Chmod(at, mode|0o700)
	case tar.TypeSymlink:
		if err := root.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return root.Symlink(header.Linkname, at)
	case tar.TypeLink:
		return root.Link(strings.TrimPrefix(path.Clean("/"+header.Linkname), "/"), at)
	case tar.TypeReg:
		f, err := root.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		return errors.Join(err, f.Chmod(mode), f.Close())
	default: // devices and FIFOs
		return nil
	}
}
