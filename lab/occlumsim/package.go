package occlumsim

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/sesame-init/sesame/attest"
)

// packaged is what Occlum packs. The initfs is among it, in plain text.
var packaged = []string{configFile, buildDir + "/bin", enclaveFile, buildDir + "/initfs", buildDir + "/mount",
	systemFile, initFSDir, runDir, statusFile, modeFile}

// Package writes the built instance as a compressed tar archive, in a directory named as the instance's. The writable
// layers are packed empty. An instance that can be debugged is refused unless debug is set, as Occlum refuses it;
// unlike Occlum it does not refuse what was built for a simulator, as everything here was.
func (i *Instance) Package(name string, debug bool) error {
	enclave, err := i.LoadEnclave()
	if err != nil {
		return &attest.Error{Code: attest.CodeConfig, Step: "packing the instance", Err: err, Hint: "Run occlum build."}
	}
	if enclave.Debug && !debug {
		return attest.Errorf(attest.CodeConfig, "packing the instance",
			"Set metadata.debuggable to false in Occlum.json and build again, or give --debug.",
			"the enclave can be debugged")
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".package-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = errors.Join(i.pack(f), f.Chmod(0o644), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

func (i *Instance) pack(w io.Writer) error {
	compressed, err := gzip.NewWriterLevel(w, gzip.BestSpeed) // encrypted files grow no smaller
	if err != nil {
		return err
	}
	archive := tar.NewWriter(compressed)
	for _, top := range packaged {
		if err := i.packTree(archive, top); err != nil {
			return err
		}
	}
	return errors.Join(archive.Close(), compressed.Close())
}

func (i *Instance) packTree(archive *tar.Writer, top string) error {
	return filepath.WalkDir(i.path(top), func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(i.Dir, file)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(relative)
		if (top == runDir) && !(entry.IsDir() && isRunDir(name)) {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		target := ""
		if info.Mode().Type() == fs.ModeSymlink {
			if target, err = os.Readlink(file); err != nil {
				return err
			}
		}
		header, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		header.Name = path.Join(filepath.Base(i.Dir), name)
		header.Uid, header.Gid, header.Uname, header.Gname = 0, 0, "", ""
		if err := archive.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
			return err
		}
		content, err := os.Open(file)
		if err != nil {
			return err
		}
		defer content.Close()
		_, err = io.Copy(archive, content)
		return err
	})
}

// isRunDir names the directories of the writable layers, as build makes them.
func isRunDir(name string) bool {
	for _, dir := range runDirs {
		for ; dir != "."; dir = path.Dir(dir) {
			if name == dir {
				return true
			}
		}
	}
	return false
}
