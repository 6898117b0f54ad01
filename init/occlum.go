//go:build !plainlinux

package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/attest/trust"
	"github.com/sesame-init/sesame/init/internal/occlum"
	"github.com/sesame-init/sesame/internal/boundedfile"
	"github.com/sesame-init/sesame/internal/clock"
	"github.com/sesame-init/sesame/internal/config"
	"github.com/sesame-init/sesame/internal/fault"
)

const (
	sgxDevice       = "/dev/sgx"
	imageConfigPath = "/etc/image_config.json"
)

func main() {
	defer fault.Exit()
	if filepath.Base(os.Args[0]) != "init" {
		os.Exit(refuse(os.Stderr, launch(os.Args[1:], os.Environ(), syscall.Exec)))
	}
	os.Exit(refuse(os.Stderr, boundBySignals(func(ctx context.Context) error { return runOnOcclum(ctx, newLogger()) })))
}

// peers are the kinds of evidence, beside quotes, that a broker may prove itself with: none in Occlum.
func peers() []trust.Kind { return nil }

// runOnOcclum boots inside Occlum's LibOS: evidence from /dev/sgx, file systems by the LibOS's own calls.
func runOnOcclum(ctx context.Context, log *logrus.Logger) error {
	text, err := boundedfile.Read(config.Path, config.MaxSize)
	if err != nil {
		return attest.Errorf(attest.CodeConfig, "reading the config",
			"Put init_ra_conf.json into the instance directory and build again.", "%w", err)
	}
	c, err := config.Parse(text)
	if err != nil {
		return err
	}
	if c.Platform != config.Occlum {
		return attest.Errorf(attest.CodeConfig, "choosing the platform", "Use init-linux, or write \"platform\": \"occlum\".",
			"this build of init is for Occlum, the config is for %s", c.Platform)
	}
	c.ApplyHost(os.Getenv)
	encrypted, err := imageEncrypted(imageConfigPath)
	if err != nil {
		return err
	}
	if err := c.MatchImage(encrypted); err != nil {
		return err
	}
	for _, line := range c.Remarks() {
		log.Warn(line)
	}

	b := &boot{config: c, mounter: occlum.Mounter{}, log: log}
	if c.Backend != "none" {
		device, err := sgx.OpenDevice(sgxDevice)
		if err != nil {
			return err
		}
		defer device.Close()
		self, err := device.SelfTarget()
		if err != nil {
			return err
		}
		log.WithFields(logrus.Fields{
			"platform": "occlum", "attester": "sgx", "mrenclave": hex.EncodeToString(self.MREnclave[:]),
		}).Info("chosen by the config")
		host, err := clock.Built(time.Now, buildTime)
		if err != nil {
			return attest.Errorf(attest.CodeInternal, "reading the clock", "Build with make.", "%w", err)
		}
		if b.backend, err = newBackend(c, device, host.Now, log); err != nil {
			return err
		}
		b.identity = identityMaker{device, host.Now}
	}
	return b.run(ctx)
}

// imageEncrypted reads what occlum build wrote about the image.
func imageEncrypted(path string) (bool, error) {
	const step = "reading image_config.json"
	const hint = "Build the instance again with occlum build -f; the file comes from it."
	text, err := boundedfile.Read(path, 4096)
	if err != nil {
		return false, attest.Errorf(attest.CodeConfig, step, hint, "%w", err)
	}
	var image struct {
		Type string `json:"image_type"`
	}
	if err := json.Unmarshal(text, &image); err != nil {
		return false, attest.Errorf(attest.CodeConfig, step, hint, "%w", err)
	}
	switch image.Type {
	case "encrypted":
		return true, nil
	case "integrity-only":
		return false, nil
	}
	return false, attest.Errorf(attest.CodeConfig, step, hint, "image_type is %q", image.Type)
}
