package occlumsim

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/sesame-init/sesame/lab/softsgx"
)

// deviceKeyFile holds, beside the files of the software platform, the secret that sealing and report keys come from.
const deviceKeyFile = "device.key"

// Machine is the simulated machine: the platform that signs quotes, and the processor's own secret.
type Machine struct {
	Platform  *softsgx.Platform
	DeviceKey [32]byte
}

// NewMachine makes a machine in a directory that holds none yet.
func NewMachine(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return fmt.Errorf("making software platform: %s is not empty", dir)
	}
	// Made aside and renamed: who starts at the same time finds a whole one or none.
	temporary, err := os.MkdirTemp(filepath.Dir(dir), ".platform-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temporary)
	platform, err := softsgx.New(softsgx.Options{})
	if err != nil {
		return err
	}
	if err := platform.Save(temporary); err != nil {
		return err
	}
	var key [32]byte
	_, _ = rand.Read(key[:])
	if err := os.WriteFile(filepath.Join(temporary, deviceKeyFile), key[:], 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, dir)
}

// LoadMachine reads a machine. Its collateral is issued anew, for that of the file may have expired.
func LoadMachine(dir string) (*Machine, error) {
	platform, err := softsgx.Load(dir)
	if err != nil {
		return nil, err
	}
	if err := platform.Renew(time.Now()); err != nil {
		return nil, err
	}
	m := &Machine{Platform: platform}
	key, err := os.ReadFile(filepath.Join(dir, deviceKeyFile))
	switch {
	case err != nil:
		return nil, fmt.Errorf("loading software platform: %w", err)
	case len(key) != len(m.DeviceKey):
		return nil, fmt.Errorf("loading software platform: %s has %d bytes, want %d", deviceKeyFile, len(key),
			len(m.DeviceKey))
	}
	copy(m.DeviceKey[:], key)
	return m, nil
}

// EnsureMachine makes a machine if there is none.
func EnsureMachine(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, deviceKeyFile)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := NewMachine(dir); err != nil {
		if _, statErr := os.Stat(filepath.Join(dir, deviceKeyFile)); statErr == nil {
			return nil // another process was faster
		}
		return err
	}
	return nil
}
