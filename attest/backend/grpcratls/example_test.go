package grpcratls_test

import (
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// An enclave fetches a secret from a key broker: it verifies the broker, proves what it is itself, and gets what the broker's
// policy allows it. A software platform and a broker of the test stand in for the real ones.
func ExampleClient_Fetch() {
	t := &stage{}
	defer t.end()
	platform := brokertest.Platform(t, softsgx.Options{})
	server := brokertest.Listen(t, brokertest.Config(t, platform, map[string][]byte{"model_key": []byte("0123456789abcdef")}, io.Discard))

	signer, product, least := brokertest.Broker().MRSigner, uint16(100), uint16(3)
	client, err := grpcratls.New(grpcratls.Config{
		Servers:  []string{server},
		Protocol: grpcratls.SessionV1,
		Attester: platform.Attester(brokertest.Workload()), // in an enclave: sgx.Open
		Verifier: brokertest.Verifier(platform),            // dcap.NewVerifier
		Policy:   &policy.Policy{SGX: []policy.SGX{{MRSigner: signer[:], ProductID: &product, MinSVN: &least}}},
		Now:      brokertest.Clock,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	secrets, err := client.Fetch(ctx, []string{"model_key"})
	if err != nil {
		fmt.Println(err)
		return
	}
	key := secrets["model_key"]
	defer key.Wipe()
	fmt.Println(key, "of", len(key.Expose()), "bytes")
	// Output: [secret] of 16 bytes
}

// stage lets an example use helpers of tests.
type stage struct {
	testing.TB
	cleanups []func()
}

func (*stage) Helper()                  {}
func (*stage) Context() context.Context { return context.Background() }
func (*stage) Fatal(args ...any)        { panic(fmt.Sprint(args...)) }
func (*stage) Error(args ...any)        { panic(fmt.Sprint(args...)) }
func (s *stage) Cleanup(f func())       { s.cleanups = append(s.cleanups, f) }
func (s *stage) end() {
	for _, f := range s.cleanups {
		defer f()
	}
}
