package main

import (
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/trust"
	"github.com/sesame-init/sesame/internal/broker/admin"
	"github.com/sesame-init/sesame/internal/privatefile"
)

// brokerLink is how a command reaches a broker's admin channel. Flags come first, then the context file. It is the
// shape of that file, too; names of files in it are relative to it.
type brokerLink struct {
	Broker    string `yaml:"broker"`     // HOST:PORT
	Policy    string `yaml:"policy"`     // file: what the broker must be
	BrokerKey string `yaml:"broker_key"` // or, for a broker outside an enclave, SHA-256 of its public key
	RootCA    string `yaml:"root_ca"`    // file, instead of Intel's root
	Cert      string `yaml:"cert"`       // files: the administrator's certificate and key
	Key       string `yaml:"key"`
	LogKey    string `yaml:"log_key"` // of the broker's release log

	context string
	timeout time.Duration
}

const linkHelp = `

This command connects to the broker's admin channel. Before anything is sent, the broker must prove itself: its evidence
must match --policy (a file with sgx or tdx entries), or, if it runs outside an enclave, its key must be the one pinned
by --broker-key. A context file can hold the same names instead of flags (broker, policy, broker_key, root_ca, cert, key,
log_key). It is named by --context or the environment variable SESAME_CONTEXT, or is ~/.config/sesame/broker.yaml.`

func (l *brokerLink) flags(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringVar(&l.Broker, "broker", "", "HOST:PORT of the broker's admin channel")
	f.StringVar(&l.Policy, "policy", "", "file with the policy that the broker's evidence must meet, YAML or JSON")
	f.StringVar(&l.BrokerKey, "broker-key", "", "SHA-256 of the broker's public key, if it runs outside an enclave, hexadecimal")
	f.StringVar(&l.RootCA, "root-ca", "", "PEM file with the trusted root of evidence (default Intel's)")
	f.StringVar(&l.Cert, "cert", "", "PEM file with the administrator's certificate")
	f.StringVar(&l.Key, "key", "", "PEM file with its key, a private one (chmod 600)")
	f.StringVar(&l.LogKey, "log-key", "", "public key of the release log, as the broker prints it")
	f.StringVar(&l.context, "context", "", "context file")
	f.DurationVar(&l.timeout, "timeout", 30*time.Second, "how long one command may take")
}

// complete fills in what the context file says and no flag does.
func (l *brokerLink) complete() error {
	file, must := l.context, true
	if file == "" {
		file = os.Getenv("SESAME_CONTEXT")
	}
	if file == "" {
		must = false
		dir, err := os.UserConfigDir()
		if err != nil {
			return nil
		}
		file = filepath.Join(dir, "sesame", "broker.yaml")
	}
	text, err := readBounded(file)
	if errors.Is(err, fs.ErrNotExist) && !must {
		return nil
	}
	if err != nil {
		return usage("", "reading context: %w", err)
	}
	var c brokerLink
	if err := yaml.UnmarshalWithOptions(text, &c, yaml.Strict()); err != nil {
		return usage("", "context %s: %w", file, err)
	}
	for _, name := range []*string{&c.Policy, &c.RootCA, &c.Cert, &c.Key} {
		if *name != "" && !filepath.IsAbs(*name) {
			*name = filepath.Join(filepath.Dir(file), *name)
		}
	}
	if l.Policy != "" || l.BrokerKey != "" {
		c.Policy, c.BrokerKey = "", "" // one of a pair counts for both
	}
	for _, pair := range []struct{ to, from *string }{
		{&l.Broker, &c.Broker}, {&l.Policy, &c.Policy}, {&l.BrokerKey, &c.BrokerKey}, {&l.RootCA, &c.RootCA},
		{&l.Cert, &c.Cert}, {&l.Key, &c.Key}, {&l.LogKey, &c.LogKey},
	} {
		if *pair.to == "" {
			*pair.to = *pair.from
		}
	}
	return nil
}

// with calls f with a connection to a broker that has proved itself.
func (l *brokerLink) with(cmd *cobra.Command, f func(context.Context, *admin.Client) error) error {
	if err := l.complete(); err != nil {
		return err
	}
	options, err := l.options(private(cmd))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), l.timeout)
	defer cancel()
	c, err := admin.Dial(ctx, options)
	if err != nil {
		return err
	}
	defer c.Close()
	return f(ctx, c)
}

func (l *brokerLink) options(rule privatefile.Rule) (o admin.DialOptions, err error) {
	const hint = "Give --broker, --cert, --key, and --policy or --broker-key, or write them into a context file."
	if l.Broker == "" || l.Cert == "" || l.Key == "" || (l.Policy == "") == (l.BrokerKey == "") {
		return o, usage(hint, "the broker's address, what it must be, or the administrator's certificate is missing (or both --policy and --broker-key are given)")
	}
	o.Address = l.Broker
	if o.Certificate, err = rule.KeyPair(l.Cert, l.Key); err != nil {
		return o, usage("", "reading the administrator's certificate: %w", err)
	}
	o.Broker = session.ClientConfig{Now: time.Now}
	if l.BrokerKey != "" {
		if o.Broker.BrokerKey, err = hex.DecodeString(l.BrokerKey); err != nil || len(o.Broker.BrokerKey) != 32 {
			return o, usage("", "--broker-key takes the 64 hexadecimal digits that the broker prints at its start")
		}
		return o, nil
	}
	p, err := readServerPolicy(l.Policy)
	if err != nil {
		return o, err
	}
	if keys := p.LegacyBindings(); len(keys) > 0 {
		return o, usage("Leave the key out.", "policy %s: %s is for policies of an application's clients", l.Policy, keys[0])
	}
	roots, err := rootsOf(l.RootCA)
	if err != nil {
		return o, err
	}
	verifies, err := trust.New(trust.Config{Roots: roots, Now: time.Now})
	if err != nil {
		return o, err
	}
	o.Broker.Policy = p
	o.Broker.Staple = verifies.Stapled
	o.Broker.Verifier = noCollateral{}
	return o, nil
}

// noCollateral is the verifier for a broker that sends no collateral with its evidence.
type noCollateral struct{}

// Verify implements [attest.Verifier].
func (noCollateral) Verify(context.Context, attest.Evidence, time.Time) (attest.Claims, error) {
	return attest.Claims{}, attest.Errorf(attest.CodeCollateral, "verifying broker",
		"The broker's log says why it cannot get collateral for its own platform.", "it has sent no collateral for its evidence")
}
