package standin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/sesame-init/sesame/lab/standin/network"
)

// FileName is the file of weights in a version's folder.
const FileName = "model.safetensors"

// Model is a loaded version of a model.
type Model struct {
	Name    string
	Version int64
	Network *network.Network
}

// Load reads the highest version below base: folders are versions if their names are numbers, other entries are
// skipped, as TensorFlow Serving does it.
func Load(name, base string) (*Model, error) {
	entries, err := os.ReadDir(base)
	if err != nil {
		return nil, fmt.Errorf("looking for versions of model %s: %w", name, err)
	}
	m, folder := &Model{Name: name, Version: -1}, ""
	for _, e := range entries {
		version, err := strconv.ParseUint(e.Name(), 10, 63)
		if err == nil && e.IsDir() && int64(version) > m.Version {
			m.Version, folder = int64(version), e.Name()
		}
	}
	if m.Version < 0 {
		return nil, fmt.Errorf("no versions of servable %s found under base path %s", name, base)
	}
	file, err := os.Open(filepath.Join(base, folder, FileName))
	if err != nil {
		return nil, fmt.Errorf("loading model %s: %w", name, err)
	}
	m.Network, err = network.Read(file)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("loading model %s: %s: %w", name, file.Name(), err)
	}
	return m, nil
}
