package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/life"
	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/internal/clock"
	"github.com/sesame-init/sesame/internal/privatefile"
)

// serve leads the broker through its life, until ctx ends.
func (c *command) serve(ctx context.Context, address string) error {
	log, err := c.logger()
	if err != nil {
		return err
	}
	settings, err := c.settings(log)
	if err != nil {
		return err
	}
	inImage := len(settings.Secrets)
	c.warnOfImage(inImage, log)
	c.warnOfSwap(log)
	keyFile := c.keyFile
	if !filepath.IsAbs(keyFile) {
		keyFile = filepath.Join(c.folder, keyFile)
	}
	identity, own, err := c.place.identity(keyFile, settings.Private, settings.Clock.Now, log)
	if err != nil {
		return err
	}
	settings.Identity = identity
	if own != nil {
		defer own.Close()
		settings.Attester = own
	}
	locked, err := life.Start(ctx, settings)
	if err != nil {
		return err
	}
	defer locked.Close()
	open, err := locked.Unlock(ctx)
	if errors.Is(err, life.ErrStopped) {
		return nil
	} else if err != nil {
		return err
	}
	serving, err := open.Listen(ctx, address)
	if err != nil {
		return err
	}
	c.warnOfImage(inImage, log) // among the last lines of a start, too, where operators look
	return serving.Serve(ctx)
}

// settings reads policy and secrets.
func (c *command) settings(log *logrus.Logger) (life.Settings, error) {
	s := life.Settings{
		Place: c.place.name, Enclave: c.place.enclave, Collateral: c.collateral, Private: c.private(log.Warn), Getenv: os.Getenv,
		Hangup: c.hangup, Ticks: c.ticks, HTTP: c.http, Log: log,
		Listening: func(address string) { fmt.Fprintf(c.stdout, "Server listening on %s\n", address) },
		Notify:    func(state string) { _, _ = daemon.SdNotify(false, state) },
	}
	if c.signedPolicy != "" {
		s.Signed = func() ([]byte, error) { return readPolicyFile(c.signedPolicy) }
	}
	var err error
	if s.Clock, err = clock.Built(time.Now, buildTime); err != nil {
		return s, attest.Errorf(attest.CodeInternal, "reading the clock", "Build with make.", "%w", err)
	}
	file := c.policyFile
	if file == "" {
		file = filepath.Join(c.folder, policyName)
		if _, err := os.Stat(file); err != nil {
			return s, c.occlumFolder(&s)
		}
	}
	text, err := readPolicyFile(file)
	if err != nil {
		return s, err
	}
	if s.Policy, err = policy.Parse(text); err != nil {
		return s, err
	}
	s.From = "file " + file
	if !c.place.enclave {
		s.Edited, s.EditedName = func() ([]byte, error) { return readPolicyFile(file) }, file
	}
	s.Secrets, err = c.fixedSecrets(s.Private)
	return s, err
}

// occlumFolder takes policy and secrets from the files of Occlum's server.
func (c *command) occlumFolder(s *life.Settings) error {
	folder, err := broker.ReadFolder(c.folder, s.Private)
	if err != nil {
		return err
	}
	if c.collateral == "" { // a policy file that needs a source names one
		folder.Wipe()
		return attest.Errorf(attest.CodeConfig, "finding collateral",
			"Set PCCS_URL, or give --collateral with a PCCS address or a folder.", "no source is named")
	}
	s.Policy, s.From, s.Secrets = folder.Policy, "Occlum's files", folder.Secrets
	return nil
}

func (c *command) logger() (*logrus.Logger, error) {
	log := logrus.New()
	log.SetOutput(c.stderr)
	level, err := logrus.ParseLevel(c.logLevel)
	if err != nil {
		return nil, attest.Errorf(attest.CodeUsage, "reading --log-level", "", "%w", err)
	}
	log.SetLevel(level)
	switch c.logFormat {
	case "text":
	case "json":
		log.SetFormatter(&logrus.JSONFormatter{})
	default:
		return nil, attest.Errorf(attest.CodeUsage, "reading --log-format", "", "%q is neither text nor json", c.logFormat)
	}
	return log, nil
}

// private is the rule for files with keys and secrets, and for the store's. In an enclave rights say nothing: files of the
// image have those that packaging wrote, and are measured; those of the host's file system are what the host says.
func (c *command) private(warn func(...any)) privatefile.Rule {
	return privatefile.Rule{Unchecked: c.place.enclave, Remark: func(remark string) { warn(remark) }}
}

// fixedSecrets reads secret_config.json: of the option, or of the measured folder. It is nil if there is none.
func (c *command) fixedSecrets(rule privatefile.Rule) (map[string]attest.Secret, error) {
	file := c.secretsFile
	if c.place.enclave {
		file = filepath.Join(c.folder, broker.SecretsFile)
	}
	if file == "" {
		return nil, nil
	}
	content, err := rule.Read(file, maxSecrets)
	if c.place.enclave && errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &attest.Error{Code: attest.CodeConfig, Step: "reading secrets", Err: err}
	}
	return broker.ParseSecrets(content)
}

const maxSecrets = 16 << 20 // bytes of the file

// warnOfImage says that secrets come from the image of an enclave.
func (c *command) warnOfImage(secrets int, log logrus.FieldLogger) {
	if c.place.enclave && secrets > 0 {
		log.WithFields(logrus.Fields{"secrets": secrets, "hint": "Name a store in policy.yaml, put new secrets into it with " +
			"\"sesame secret put\", and build without " + broker.SecretsFile + "."}).
			Warn("secrets of this broker are in its image, which is measured but not encrypted: the host can read them")
	}
}

// warnOfSwap says that memory may be swapped out. An enclave's is encrypted wherever it is.
func (c *command) warnOfSwap(log logrus.FieldLogger) {
	if c.swapped != nil && !c.place.enclave {
		log.WithField("hint", "Grant CAP_IPC_LOCK, or let it lock all (LimitMEMLOCK=infinity in a unit, --ulimit memlock=-1 for a "+
			"container), or turn swap off.").Warnf("this broker's secrets may be written to swap space: %v", c.swapped)
	}
}
