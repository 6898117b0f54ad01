package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/admin"
	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store/memory"
	"github.com/sesame-init/sesame/lab/admintest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// TestBrokerCommands runs the scripts in testdata/broker against brokers of this process: $BROKER in an enclave of a
// software platform, $BARE outside one, and $MOVED, locked, on the store of $BROKER.
func TestBrokerCommands(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "broker"),
		Setup: func(env *testscript.Env) error {
			w := &brokers{t: t, env: env, dir: env.WorkDir, alice: admintest.Administrator(t, "alice"), identity: admintest.NewKey(t)}
			w.start()
			return nil
		},
	})
}

// brokers are the brokers of one script.
type brokers struct {
	t        *testing.T
	env      *testscript.Env
	dir      string
	alice    tls.Certificate
	identity *admintest.Key
}

func (b *brokers) file(name string, block string, der []byte) {
	if err := os.WriteFile(filepath.Join(b.dir, name), pem.EncodeToMemory(&pem.Block{Type: block, Bytes: der}), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *brokers) certificate(name string, c tls.Certificate) {
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		b.t.Fatal(err)
	}
	b.file(name+".crt", "CERTIFICATE", c.Certificate[0])
	b.file(name+".key", "PRIVATE KEY", key)
}

func (b *brokers) start() {
	platform, err := softsgx.New(softsgx.Options{Now: time.Now().Add(-time.Hour)})
	if err != nil {
		b.t.Fatal(err)
	}
	var enclave sgx.ReportBody
	enclave.MREnclave[0], enclave.Attributes, enclave.XFRM = 0xcc, attest.AttributeInit|attest.AttributeMode64Bit, 3
	attested := session.BrokerConfig{Quoter: session.NewQuoter(session.QuoterOptions{Attester: platform.Attester(enclave),
		Collateral: func(context.Context, attest.Evidence) (*dcap.Collateral, error) { return platform.Collateral(), nil }})}
	shared := memory.New()
	k := b.keystore(keystore.Options{Store: shared, Root: &rootkey.Process{}})
	b.listen("BROKER", k, attested)
	b.listen("MOVED", b.keystore(keystore.Options{Store: shared.Replica()}), attested)
	b.listen("BARE", b.keystore(keystore.Options{Store: memory.New(), Root: &rootkey.Process{}}), session.BrokerConfig{})
	b.certificate("alice", b.alice)
	b.certificate("mallory", admintest.Administrator(b.t, "mallory"))
	b.file("root_ca.pem", "CERTIFICATE", platform.RootCA().Raw)
	pin := sha256.Sum256(b.identity.Leaf().RawSubjectPublicKeyInfo)
	b.env.Setenv("PIN", hex.EncodeToString(pin[:]))
	b.env.Setenv("MRENCLAVE", hex.EncodeToString(enclave.MREnclave[:]))
	b.env.Setenv("HOME", b.dir)
	b.releases(k)
}

func (b *brokers) keystore(o keystore.Options) *keystore.Keystore {
	k, err := keystore.Open(context.Background(), o)
	if err != nil {
		b.t.Fatal(err)
	}
	b.env.Defer(k.Close)
	return k
}

func (b *brokers) listen(name string, k *keystore.Keystore, proof session.BrokerConfig) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	o := admin.Options{Keystore: k, Identity: b.identity, Session: proof, Roots: admintest.Roots(b.alice), Now: time.Now, Logger: log}
	if name == "BROKER" {
		o.Policies = &inForce{}
	}
	b.env.Setenv(name, admintest.Listen(b.t, o))
}

// inForce takes policies whose version is higher than that of the last one.
type inForce struct{ version atomic.Uint64 }

func (p *inForce) Replace(_ context.Context, text []byte, by string) error {
	parsed, err := policy.Parse(text)
	if err != nil {
		return err
	}
	if before := p.version.Swap(parsed.Version); parsed.Version <= before || by == "" {
		return attest.Errorf(attest.CodeConfig, "replacing policy", "Raise version.", "version %d is in force", before)
	}
	return nil
}

// releases makes a log with something in it.
func (b *brokers) releases(k *keystore.Keystore) {
	ctx := context.Background()
	if _, err := k.Put(ctx, "setup", "known", keystore.Value, attest.NewSecret([]byte("canary"))); err != nil {
		b.t.Fatal(err)
	}
	for i := range byte(5) {
		d := broker.Decision{Binder: [32]byte{1, i}, At: time.Now(), Peer: "10.0.0.1:5", Wire: "session", Workload: "inference",
			Grants: []broker.Grant{{Secret: "known", Rule: "secrets.known.workloads"}}}
		if _, _, err := k.Release(ctx, d); err != nil {
			b.t.Fatal(err)
		}
	}
}
