package sefs_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing/fstest"

	"github.com/sesame-init/sesame/fs/sefs"
)

// A model owner encrypts a folder. Key and MAC are all that a reader needs; the MAC is no secret.
func ExampleCreate() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	model := fstest.MapFS{"1/model.bin": {Data: []byte("weights"), Mode: 0o644}} // or os.DirFS("model")
	var key sefs.Key
	if _, err := rand.Read(key[:]); err != nil {
		fmt.Println(err)
		return
	}
	volume := filepath.Join(dir, "volume")
	mac, err := sefs.Create(context.Background(), volume, model, sefs.CreateOptions{Key: &key})
	if err != nil {
		fmt.Println(err)
		return
	}

	opened, err := sefs.Open(volume, sefs.OpenOptions{Key: &key, MAC: &mac})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer opened.Close()
	text, err := fs.ReadFile(opened, "1/model.bin")
	fmt.Println(string(text), err)
	// Output: weights <nil>
}

// A volume that was changed, or exchanged for an older one, does not open under the MAC that a reader knows.
func ExampleOpen() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	key := sefs.Key{1, 2, 3} // of the key broker
	write := func(name, content string) sefs.MAC {
		mac, err := sefs.Create(context.Background(), filepath.Join(dir, name),
			fstest.MapFS{"file": {Data: []byte(content), Mode: 0o644}}, sefs.CreateOptions{Key: &key})
		if err != nil {
			fmt.Println(err)
		}
		return mac
	}
	write("old", "version 1")
	newest := write("new", "version 2")
	_, err = sefs.Open(filepath.Join(dir, "old"), sefs.OpenOptions{Key: &key, MAC: &newest})
	fmt.Println(errors.Is(err, sefs.ErrTampered))
	// Output: true
}
