package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls/wire"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store/sqlite"
	"github.com/sesame-init/sesame/internal/pki"
	"github.com/sesame-init/sesame/internal/privatefile"
	"github.com/sesame-init/sesame/lab/softsgx"
)

func enclave(mrEnclave byte, product uint16) sgx.ReportBody {
	var r sgx.ReportBody
	for i := range r.MREnclave {
		r.MREnclave[i], r.MRSigner[i] = mrEnclave, 0xbb
	}
	r.ProductID, r.SVN, r.XFRM = product, 1, 3
	r.Attributes = attest.AttributeInit | attest.AttributeMode64Bit
	return r
}

func brokerEnclave() sgx.ReportBody   { return enclave(0xcc, 100) }
func workloadEnclave() sgx.ReportBody { return enclave(0xaa, 1) }

// secretName and secret are what is released.
const secretName = "image_key"

var secret = []byte("00-11-22-33-44-55-66-77-88-99-aa-bb-cc-dd-ee-ff")

// collateralSource is the platform's, read once.
func collateralSource(dir string) (dcap.Source, *dcap.Collateral, error) {
	c, err := pccs.Dir(filepath.Join(dir, "collateral")).Collateral(context.Background(), dcap.Request{})
	if err != nil {
		return nil, nil, err
	}
	return pccs.Stapled(c), c, nil
}

func listen() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }

// serveBroker serves with secrets in memory, or in a store of this kind.
func serveBroker(ctx context.Context, dir, stored string) (err error) {
	platform, err := softsgx.Load(filepath.Join(dir, "platform"))
	if err != nil {
		return err
	}
	root := string(pki.EncodeCertificate(platform.RootCA().Raw))
	text := `version: 1
trust: {collateral: {directory: none}}
workloads: {demo: {wire: legacy, versions: [{sgx: [{mr_enclave: ` + strings.Repeat("aa", 32) + `}]}]}}
secrets: {` + secretName + `: {workloads: [demo]}}
`
	p, err := policy.Parse([]byte(text))
	if err != nil {
		return err
	}
	source, _, err := collateralSource(dir)
	if err != nil {
		return err
	}
	log := logrus.New()
	log.SetOutput(io.Discard) // its lines are made all the same
	var keeper broker.Keeper = unrecorded{secretName, secret}
	if stored == "sqlite" {
		own, err := os.MkdirTemp(dir, "store-") // the root key is this process's
		if err != nil {
			return err
		}
		database, err := sqlite.Open(ctx, filepath.Join(own, "broker.db"), privatefile.Rule{})
		if err != nil {
			return err
		}
		defer database.Close()
		counted := &commits{Store: database}
		keys, err := keystore.Open(ctx, keystore.Options{Store: counted, Root: &rootkey.Process{}})
		if err != nil {
			return err
		}
		defer keys.Close()
		if _, err := keys.Put(ctx, "bench", secretName, keystore.ImageKey, attest.NewSecret(bytes.Clone(secret))); err != nil {
			return err
		}
		counted.made.Store(0)
		defer func() { err = errors.Join(err, counted.write(dir)) }()
		keeper = keys
	}
	policies, err := broker.NewPolicies(ctx, broker.PoliciesConfig{
		Trust: func(t policy.Trust) (*broker.Trust, error) {
			t.Roots = []string{root}
			return broker.NewTrustWith(t, source, nil)
		},
		Keeper: keeper, Now: time.Now, Logger: log,
	}, p, "bench")
	if err != nil {
		return err
	}
	own, err := dialQuotes(dir)
	if err != nil {
		return err
	}
	identity, err := ratls.NewIdentity(own, ratls.Options{})
	if err != nil {
		return err
	}
	s, err := broker.New(broker.Config{
		Identity: identity, Policies: policies, Keeper: keeper, Logger: log,
		Quoter: session.NewQuoter(session.QuoterOptions{
			Attester: own, Collateral: policies.Collateral, Window: time.Duration(*p.Broker.Quotes.Window),
		}),
	})
	if err != nil {
		return err
	}
	l, err := listen()
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return s.Serve(ctx, l)
}

// reference does the broker's TLS handshakes, exchanges, P-256 verifications and, beside the row of the release log, the
// log's cryptography ([recorder]), and nothing else: it decides nothing and stores nothing.
type reference struct {
	wire.UnimplementedGrSecretServer
	sessionpb.UnimplementedKeyBrokerServer
	key       *ecdsa.PrivateKey
	signed    [32]byte
	signature []byte
	own       *remote
	quotes    share // of the server's own
	evidence  *sessionpb.BrokerEvidence
	recorder  *recorder // nil without a release log
}

func serveReference(ctx context.Context, dir string, ownEvery, commitEvery float64) error {
	own, err := dialQuotes(dir)
	if err != nil {
		return err
	}
	_, c, err := collateralSource(dir)
	if err != nil {
		return err
	}
	r := &reference{own: own, quotes: share{of: ownEvery}}
	if commitEvery > 0 {
		if r.recorder, err = newRecorder(commitEvery); err != nil {
			return err
		}
	}
	quote, err := own.Evidence(ctx, attest.ReportData{})
	if err != nil {
		return err
	}
	r.evidence = &sessionpb.BrokerEvidence{
		Nonce: make([]byte, 32), Evidence: &sessionpb.Evidence{Type: "sgx", Raw: quote.Raw, Size: 1},
		Collateral: &sessionpb.Collateral{
			TcbInfo: c.TCBInfo, TcbInfoChain: c.TCBInfoChain, QeIdentity: c.QEIdentity, QeIdentityChain: c.QEIdentityChain,
			PckCrl: c.PCKCRL, PckCrlChain: c.PCKCRLChain, RootCaCrl: c.RootCACRL,
		},
	}
	if r.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	if r.signature, err = ecdsa.SignASN1(rand.Reader, r.key, r.signed[:]); err != nil {
		return err
	}
	identity, err := ratls.NewIdentity(own, ratls.Options{})
	if err != nil {
		return err
	}
	config := ratls.ServerConfig(identity.Certificate, func(cs tls.ConnectionState) error {
		if evidence, err := ratls.Evidence(cs.PeerCertificates[0].Raw); err == nil {
			return r.verify(evidence.Raw)
		}
		return nil
	})
	l, err := listen()
	if err != nil {
		return err
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	wire.RegisterGrSecretServer(s, r)
	sessionpb.RegisterKeyBrokerServer(s, r)
	go func() {
		<-ctx.Done()
		s.Stop()
	}()
	fmt.Println(l.Addr())
	return s.Serve(l)
}

// verify is one P-256 verification, which is what a quote costs with all else known.
func (r *reference) verify(quote []byte) error {
	sha256.Sum256(quote)
	if !ecdsa.VerifyASN1(&r.key.PublicKey, r.signed[:], r.signature) {
		return errors.New("the signature does not verify")
	}
	return nil
}

// quoteOwn makes the server's own quote, and verifies it for its collateral, as often as the broker did.
func (r *reference) quoteOwn(ctx context.Context) error {
	if !r.quotes.due() {
		return nil
	}
	e, err := r.own.Evidence(ctx, attest.ReportData{})
	if err != nil {
		return err
	}
	return r.verify(e.Raw)
}

// Release implements the exchange of the session protocol.
func (r *reference) Release(stream session.Stream) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	if err := r.quoteOwn(stream.Context()); err != nil {
		return err
	}
	if err := stream.Send(&sessionpb.BrokerMessage{Message: &sessionpb.BrokerMessage_Evidence{Evidence: r.evidence}}); err != nil {
		return err
	}
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	if err := r.verify(m.GetRequest().GetEvidence().GetRaw()); err != nil {
		return err
	}
	if r.recorder != nil {
		if err := r.recorder.release(); err != nil {
			return err
		}
	}
	return stream.Send(&sessionpb.BrokerMessage{Message: &sessionpb.BrokerMessage_Result{
		Result: &sessionpb.Result{Secrets: []*sessionpb.Secret{{Name: secretName, Value: secret}}}}})
}

// GetSecret implements the exchange of GRPC-RATLS.
func (r *reference) GetSecret(context.Context, *wire.SecretRequest) (*wire.SecretReply, error) {
	return &wire.SecretReply{Secret: wire.EncodeSecret(attest.NewSecret(secret))}, nil
}
