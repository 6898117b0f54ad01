package attack

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/backend/grpcratls/wire"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store/memory"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

const (
	peersPolicy = `
workloads:
  demo: {wire: legacy, versions: [{sgx: [{mr_enclave: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}]}]}
secrets:
  known: {workloads: [demo]}
`
	// foreignPolicy gives the secret to one of [BadEnclaves], too.
	foreignPolicy = `
workloads:
  demo:  {wire: legacy, versions: [{sgx: [{mr_enclave: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}]}]}
  other: {wire: legacy, versions: [{sgx: [{mr_enclave: abababababababababababababababababababababababababababababababab}]}]}
secrets:
  known: {workloads: [demo, other]}
`
	peersAtOnce = 16
)

// silent is a keeper that hands the secret out and records nothing.
type silent struct{ broker.Keeper }

// Release implements [broker.Keeper].
func (silent) Release(_ context.Context, d broker.Decision) (out []attest.Secret, _ broker.Receipt, _ error) {
	for range d.Grants {
		out = append(out, attest.NewSecret([]byte(secretValue)))
	}
	return out, broker.Receipt{}, nil
}

// watched remembers the binders of the decisions whose secrets have left.
type watched struct {
	broker.Keeper
	mu   sync.Mutex
	left [][32]byte
}

// Release implements [broker.Keeper].
func (w *watched) Release(ctx context.Context, d broker.Decision) ([]attest.Secret, broker.Receipt, error) {
	secrets, r, err := w.Keeper.Release(ctx, d)
	if len(secrets) > 0 {
		w.mu.Lock()
		w.left = append(w.left, d.Binder)
		w.mu.Unlock()
	}
	return secrets, r, err
}

// Peers lets bad peers of every kind, on both wires, race with good ones. Each kind comes rounds times.
func Peers(t testing.TB, rounds int, fault Fault) (f Figures) {
	t.Helper()
	platform := brokertest.Platform(t, softsgx.Options{})
	keys := keystoreOf(t)
	defer keys.Close()
	keeper := &watched{Keeper: keys}
	text := peersPolicy
	switch fault {
	case Silent:
		keeper.Keeper = silent{keys}
	case Foreign:
		text = foreignPolicy
	}
	address := brokertest.Listen(t, kept(t, platform, keeper, text))

	type attempt func() (got []byte, err error)
	session := func(a attest.Attester) attempt {
		client, err := grpcratls.New(grpcratls.Config{
			Servers: []string{address}, Protocol: grpcratls.SessionV1, Attester: a, Verifier: brokertest.Verifier(platform),
			Policy: brokertest.BrokerPolicy(), Now: brokertest.Clock, Pause: time.Millisecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		return func() ([]byte, error) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			got, err := client.Fetch(ctx, []string{secretName})
			if s, ok := got[secretName]; ok {
				return []byte(string(s.Expose())), err
			}
			return nil, err
		}
	}
	legacy := func(certificate *tls.Certificate) attempt {
		return func() ([]byte, error) { return askLegacy(t.Context(), address, certificate) }
	}
	var bad []attempt
	for _, a := range BadEnclaves(t, platform) {
		bad = append(bad, session(a))
	}
	for _, c := range BadPeers(t, platform) {
		bad = append(bad, legacy(c))
	}
	right := brokertest.Certificate(t, platform, brokertest.Workload())
	good := []attempt{session(platform.Attester(brokertest.Workload())), legacy(&right)}

	var mu sync.Mutex
	var wg sync.WaitGroup
	work := make(chan func())
	for range peersAtOnce {
		wg.Go(func() {
			for w := range work {
				w()
			}
		})
	}
	for round := range rounds {
		for _, try := range bad {
			work <- func() {
				got, err := try()
				mu.Lock()
				defer mu.Unlock()
				f.Tried++
				if err == nil || len(got) > 0 {
					f.Leaked++
				} else {
					f.Refused++
				}
			}
		}
		work <- func() {
			got, err := good[round%len(good)]()
			mu.Lock()
			defer mu.Unlock()
			onLegacy := strconv.Quote(base64.StdEncoding.EncodeToString([]byte(secretValue))) // Occlum's encoding
			if err != nil || string(got) != secretValue && string(got) != onLegacy {
				t.Errorf("a good peer among them has got %d bytes: %v", len(got), err)
				return
			}
			f.Served++
		}
	}
	close(work)
	wg.Wait()

	all, err := Entries(t.Context(), keys)
	if err != nil {
		t.Fatal(err)
	}
	var logged []string
	for _, e := range all {
		if e.Kind == releaselog.Release {
			logged = append(logged, e.Binder)
		}
	}
	keeper.mu.Lock()
	defer keeper.mu.Unlock()
	for _, binder := range keeper.left {
		if !slices.Contains(logged, hexOf(binder)) {
			f.Unlogged++
		}
	}
	f.Unlogged = max(f.Unlogged, f.Served+f.Leaked-len(logged)) // what clients hold, whatever the keeper says
	return f
}

// kept is the config of a broker with a keeper and a policy.
// keystoreOf is a keystore in memory that holds the secret.
func keystoreOf(t testing.TB) *keystore.Keystore {
	t.Helper()
	keys, err := keystore.Open(t.Context(), keystore.Options{Store: memory.New(), Root: &rootkey.Process{}, Now: brokertest.Clock})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Put(t.Context(), "attack", secretName, keystore.Value, attest.NewSecret([]byte(secretValue))); err != nil {
		t.Fatal(err)
	}
	return keys
}

func kept(t testing.TB, platform *softsgx.Platform, keeper broker.Keeper, text string) broker.Config {
	config := brokertest.Config(t, platform, nil, io.Discard)
	config.Keeper = keeper
	config.Policies = brokertest.Policies(t, brokertest.Trust(t, platform), brokertest.Policy(t, text), keeper, config.Logger)
	return config
}

// askLegacy asks for the secret on the legacy wire.
func askLegacy(ctx context.Context, address string, certificate *tls.Certificate) ([]byte, error) {
	any := func(tls.ConnectionState) error { return nil } // the broker is attacked, not judged
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(ratls.ClientConfig(certificate, "127.0.0.1", any))))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	reply, err := wire.NewGrSecretClient(conn).GetSecret(ctx, &wire.SecretRequest{Name: secretName})
	if err == nil && len(reply.GetSecret()) == 0 {
		err = status.Error(codes.NotFound, "an empty answer")
	}
	return []byte(reply.GetSecret()), errors.Join(err, conn.Close())
}
