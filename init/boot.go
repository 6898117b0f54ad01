package main

import (
	"context"
	"encoding/json"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
	"github.com/sesame-init/sesame/fs"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/init/internal/stop"
	"github.com/sesame-init/sesame/internal/config"
)

// appVariable carries the measured app block from init to the launcher, in the trusted environment.
const appVariable = "SESAME_APP"

// boot is one boot on any platform. Backend and mounter hide what differs.
type boot struct {
	config  *config.Config
	backend backend.Backend // nil where the config fetches nothing
	mounter fs.Mounter
	log     *logrus.Logger
	// identity makes the application's TLS identity where the config asks for one.
	identity identityMaker
	// root, where it is not nil, names the directory of the new root, which is entered only after the boot.
	root func() string
	// prefix comes before the paths of secret files.
	prefix string

	undo []func()
}

// run boots, or takes back what it did and says why not. If a signal has ended ctx (see [stop.Watch]), that is why.
func (b *boot) run(ctx context.Context) (err error) {
	defer func() {
		if cause := stop.Cause(ctx); cause != nil {
			err = cause
		}
		if err != nil {
			b.takeBack()
		}
	}()

	secrets, err := b.fetch(ctx)
	if err != nil {
		return err
	}
	defer func() {
		for _, s := range secrets {
			s.Wipe()
		}
	}()
	if err := b.phase(ctx, "root mounted", func() error { return b.mountRoot(ctx, secrets) }); err != nil {
		return err
	}
	for _, v := range b.config.Volumes {
		if err := b.phase(ctx, "volume mounted at "+v.Target, func() error { return b.mountVolume(ctx, v, secrets) }); err != nil {
			return err
		}
	}
	if err := b.mountMemory(ctx); err != nil {
		return err
	}
	if len(b.config.Secrets) > 0 {
		if err := b.phase(ctx, "secret files written", func() error { return b.writeSecrets(ctx, secrets) }); err != nil {
			return err
		}
	}
	if c := b.config.AppTLS; c != nil {
		return b.phase(ctx, "application's TLS identity made, its certificate carries evidence", func() error {
			return b.identity.write(ctx, c, b.prefix, func(file string) {
				b.undo = append(b.undo, func() { _ = os.Remove(file) })
			})
		})
	}
	return nil
}

// takeBack undoes what was done, the last first.
func (b *boot) takeBack() {
	for i := len(b.undo) - 1; i >= 0; i-- {
		b.undo[i]()
	}
	b.undo = nil
}

// phase runs one step, unless ctx has ended, and logs it with its duration.
func (b *boot) phase(ctx context.Context, done string, step func() error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	start := time.Now()
	if err := step(); err != nil {
		return err
	}
	b.log.WithField("took", time.Since(start).Round(time.Microsecond)).Info(done)
	return nil
}

func (b *boot) fetch(ctx context.Context) (map[string]attest.Secret, error) {
	names := b.config.SecretNames()
	if len(names) == 0 || b.backend == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(b.config.Timeout))
	defer cancel()
	var secrets map[string]attest.Secret
	err := b.phase(ctx, "attested, keys released", func() (err error) {
		secrets, err = b.backend.Fetch(ctx, names)
		return err
	})
	return secrets, err
}

func (b *boot) mountRoot(ctx context.Context, secrets map[string]attest.Secret) error {
	root := fs.Root{Source: b.config.Root.Source, MAC: b.config.Root.MAC}
	if name := b.config.Root.Key; name != "" {
		key, err := volumeKey(name, secrets[name])
		if err != nil {
			return err
		}
		defer clear(key[:])
		root.Key = key
	}
	if app := b.config.App; app != nil {
		text, err := json.Marshal(app)
		if err != nil {
			return err
		}
		root.EntryPoint = app.EntryPoint
		root.Environment = []string{appVariable + "=" + string(text)}
	}
	if err := b.mounter.MountRoot(ctx, root); err != nil {
		return err
	}
	if b.root != nil {
		b.prefix = b.root()
	}
	return nil
}

func (b *boot) mountVolume(ctx context.Context, v config.Volume, secrets map[string]attest.Secret) error {
	key, err := volumeKey(v.Key, secrets[v.Key])
	if err != nil {
		return err
	}
	defer clear(key[:])
	volume := fs.Volume{Source: v.Source, Target: v.Target, Key: key, MAC: v.MAC}
	if err := b.mounter.MountVolume(ctx, volume); err != nil {
		return err
	}
	b.undo = append(b.undo, func() { b.unmount(v.Target) })
	return nil
}

// mountMemory mounts a memory file system at /run/secrets if a secret is to be written there.
func (b *boot) mountMemory(ctx context.Context) error {
	const memory = "/run/secrets"
	if !slices.ContainsFunc(b.config.SecretPaths(), func(p string) bool { return strings.HasPrefix(p, memory+"/") }) {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := b.mounter.MountMemory(memory); err != nil {
		return err
	}
	b.undo = append(b.undo, func() { b.unmount(memory) })
	return nil
}

func (b *boot) writeSecrets(ctx context.Context, secrets map[string]attest.Secret) error {
	for _, s := range b.config.Secrets {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		name := path.Join(b.prefix, s.Path)
		undo, err := fs.MakeDir(path.Dir(name), 0o755)
		if err != nil {
			return secretError(s, err)
		}
		b.undo = append(b.undo, undo)
		uid, gid := s.Owner()
		if err := fs.WriteSecret(name, secrets[s.Name], os.FileMode(s.Mode), uid, gid); err != nil {
			return secretError(s, err)
		}
		b.undo = append(b.undo, func() { _ = os.Remove(name) })
	}
	return nil
}

func (b *boot) unmount(target string) {
	if err := b.mounter.Unmount(target); err != nil {
		b.log.WithError(err).Warn("could not take back a mount")
	}
}

func secretError(s config.SecretFile, err error) error {
	return attest.Errorf(attest.CodeSecret, "writing secret "+s.Name,
		"Check that the directory of "+s.Path+" exists in the image and can be written.", "%w", err)
}

// volumeKey reads a key in the forms that Occlum's users keep it in. The caller clears it.
func volumeKey(name string, s attest.Secret) (*sefs.Key, error) {
	key, err := sefs.ParseKey(s.Expose())
	if err != nil {
		return nil, attest.Errorf(attest.CodeSecret, "reading secret "+name,
			"Store the key as occlum gen-image-key or \"sesame keygen image-key\" writes it.", "%w", err)
	}
	return &key, nil
}
