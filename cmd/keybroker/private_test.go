package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// withStore is a folder with the policy of a broker that has a store and a root key there.
func withStore(t *testing.T) (dir string) {
	t.Helper()
	platform := brokertest.Platform(t, softsgx.Options{Now: time.Now()})
	dir = folder(t, platform)
	settings := fmt.Sprintf("broker:\n  store: {sqlite: %q}\n  root_key: {file: %q}\n", filepath.Join(dir, "broker.db"), filepath.Join(dir, "root.key"))
	write(t, filepath.Join(dir, policyName), policyFor(platform, dir, 1, aa, settings))
	return dir
}

// ended runs a broker outside an enclave until it ends by itself.
func ended(t *testing.T, dir string, args ...string) (code int, said string) {
	t.Helper()
	var out buffer
	c := command{folder: dir, place: place{name: "bare"}, stdout: &out, stderr: &out}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return c.run(ctx, args, ""), out.String()
}

func TestItRefusesKeysSecretsAndStoresThatOthersMayRead(t *testing.T) {
	dir := withStore(t)
	secrets, policy := filepath.Join(dir, broker.SecretsFile), filepath.Join(dir, policyName)
	t.Run("made", func(t *testing.T) { run(t, place{name: "bare"}, dir, "--secrets", secrets) })
	for name, c := range map[string]struct {
		starts, check []string // arguments
	}{
		"broker.key":        {[]string{"--secrets", secrets, "127.0.0.1:0"}, nil},
		broker.SecretsFile:  {[]string{"--secrets", secrets, "127.0.0.1:0"}, nil},
		"root.key":          {[]string{"127.0.0.1:0"}, []string{"check", policy}},
		"broker.db":         {[]string{"127.0.0.1:0"}, []string{"check", policy}},
		"broker.db-journal": {[]string{"127.0.0.1:0"}, []string{"check", policy}},
	} {
		file := filepath.Join(dir, name)
		if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s was made with mode %v, error %v", name, info.Mode(), err)
		}
		if code, said := ended(t, dir, "check", policy); code != 0 {
			t.Fatalf("%s: checking before it is open: %d\n%s", name, code, said)
		}
		if err := os.Chmod(file, 0o644); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{c.starts, c.check} {
			if args == nil {
				continue
			}
			if code, said := ended(t, dir, args...); code != 1 || !strings.Contains(said, `hint: Run "chmod 600 `+file+`"`) {
				t.Errorf("%s, %v: exit code %d\n%s", name, args, code, said)
			}
		}
		if info, err := os.Stat(file); err != nil || info.Mode() != 0o644 {
			t.Errorf("%s was mended: %v, error %v", name, info.Mode(), err)
		}
		if err := os.Chmod(file, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOcclumsSecretsArePrivateOutsideAnEnclaveOnly(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{Now: time.Now()})
	dir := folder(t, platform)
	file := filepath.Join(dir, broker.SecretsFile)
	if err := os.Chmod(file, 0o644); err != nil { // as packaging writes it into an image
		t.Fatal(err)
	}
	for _, args := range [][]string{{"check", dir}, {"--collateral", filepath.Join(dir, "collateral"), "127.0.0.1:0"}} {
		if code, said := ended(t, dir, args...); code != 1 || !strings.Contains(said, "chmod 600 "+file) {
			t.Errorf("%v: exit code %d\n%s", args, code, said)
		}
	}
	r := run(t, inEnclave(func() (deviceAttester, error) { return enclave{platform.Attester(brokertest.Broker())}, nil }), dir,
		"--collateral", filepath.Join(dir, "collateral"))
	if strings.Contains(r.log.String(), "chmod") {
		t.Errorf("it minds the rights in an image:\n%s", r.log)
	}
}

// A Kubernetes secret under fsGroup belongs to root, and the broker reads it by its group.
func TestASecretThatItsGroupReadsIsSaidOnceAtTheStart(t *testing.T) {
	testenv.Root(t)
	dir := withStore(t)
	secrets, rootKey := filepath.Join(dir, broker.SecretsFile), filepath.Join(dir, "root.key")
	write(t, rootKey, strings.Repeat("5a", 32)+"\n")
	for _, file := range []string{secrets, rootKey} {
		if err := errors.Join(os.Chown(file, 65534, 65534), os.Chmod(file, 0o440)); err != nil {
			t.Fatal(err)
		}
	}
	r := run(t, place{name: "bare"}, dir, "--secrets", secrets)
	for _, file := range []string{secrets, rootKey} {
		if n := strings.Count(r.log.String(), file+" has mode 0440 and belongs to user 65534"); n != 1 {
			t.Errorf("said %d times of %s:\n%s", n, file, r.log)
		}
	}
}
