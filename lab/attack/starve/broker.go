package starve

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store/memory"
	"github.com/sesame-init/sesame/internal/pki"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// Target says what broker [ServeTarget] serves.
type Target struct {
	Policy     string           // its text
	Root       []byte           // DER, of the platform whose quotes it takes
	Collateral *dcap.Collateral // of that platform
	Secrets    map[string][]byte
}

// ServeTarget serves a broker on a free port of loopback, in an enclave of a software platform of its own. in has the
// target in JSON. The broker's address goes to out, as one line, and it is served until in ends. It is the whole work
// of a process, so that its memory can be measured.
func ServeTarget(in io.Reader, out io.Writer) error {
	d := json.NewDecoder(in)
	var t Target
	if err := d.Decode(&t); err != nil {
		return err
	}
	s, err := t.broker()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	if _, err := fmt.Fprintln(out, l.Addr()); err != nil {
		return err
	}
	return s.Serve(ctx, l)
}

func (t *Target) broker() (*broker.Server, error) {
	own, err := softsgx.New(softsgx.Options{Now: brokertest.Now.Add(-24 * time.Hour)})
	if err != nil {
		return nil, err
	}
	first, err := policy.Parse([]byte(t.Policy))
	if err != nil {
		return nil, err
	}
	root, err := x509.ParseCertificate(t.Root)
	if err != nil {
		return nil, err
	}
	text := string(pki.EncodeCertificate(root.Raw))
	log := logrus.New()
	log.SetOutput(io.Discard)
	secrets := map[string]attest.Secret{}
	for name, value := range t.Secrets {
		secrets[name] = attest.NewSecret(value)
	}
	keeper, err := keystore.Open(context.Background(), keystore.Options{
		Store: memory.New(), Root: &rootkey.Process{}, Fixed: secrets, Now: brokertest.Clock,
	})
	if err != nil {
		return nil, err
	}
	policies, err := broker.NewPolicies(context.Background(), broker.PoliciesConfig{
		Trust: func(policy.Trust) (*broker.Trust, error) {
			return broker.NewTrustWith(policy.Trust{Roots: []string{text}}, pccs.Stapled(t.Collateral), nil)
		},
		Keeper: keeper, Now: brokertest.Clock, Logger: log,
	}, first, "attack")
	if err != nil {
		return nil, err
	}
	attester := own.Attester(brokertest.Broker())
	identity, err := ratls.NewIdentity(attester, ratls.Options{Now: brokertest.Clock})
	if err != nil {
		return nil, err
	}
	return broker.New(broker.Config{
		Identity: identity, Policies: policies, Keeper: keeper, Now: brokertest.Clock, Logger: log,
		Quoter: session.NewQuoter(session.QuoterOptions{Attester: attester,
			Collateral: func(context.Context, attest.Evidence) (*dcap.Collateral, error) { return own.Collateral(), nil }}),
	})
}
