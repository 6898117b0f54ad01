package aecs_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/aecs"
	"github.com/sesame-init/sesame/attest/backend/aecs/wire"
)

// An attacker on the network path may say at any time that the server does not know B. Once it has answered as B, that counts no more.
func TestAutoDoesNotFallToAOnceTheServerHasAnsweredAsB(t *testing.T) {
	var log bytes.Buffer
	d := newDeployment(t, aecs.GenerationB, &log)
	d.client.Generation, d.client.AllowDowngrade = aecs.Auto, true
	d.add("k", "value")
	d.add("second", "value")
	var calls, askedAsA atomic.Int32
	d.listen = append(d.listen, grpc.UnaryInterceptor(
		func(ctx context.Context, r any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			if strings.HasSuffix(info.FullMethod, "GetEnclaveSecret") {
				askedAsA.Add(1)
			}
			if calls.Add(1) > 1 {
				return nil, status.Error(codes.Unimplemented, "unknown method")
			}
			return handle(ctx, r)
		}))
	_, err := d.start(t).Fetch(t.Context(), []string{"k", "second"})
	if attest.CodeOf(err) != attest.CodeDenied || !strings.Contains(err.Error(), "does not know this method") {
		t.Errorf("%v", err)
	}
	if askedAsA.Load() != 0 || strings.Contains(log.String(), "falling to A") {
		t.Errorf("it asked %d times as A does; the log says %s", askedAsA.Load(), log.String())
	}
}

func TestTheKeyOfAFetchIsFreshAndWiped(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*deployment)
		ok     bool
	}{
		"given":        {func(*deployment) {}, true},
		"refused":      {func(d *deployment) { d.client.ServerKey = &[32]byte{1} }, false},
		"not attested": {func(d *deployment) { d.client.Attester = noEvidence{} }, false},
	} {
		d := newDeployment(t, aecs.GenerationB, io.Discard)
		d.add("k", "value")
		c.change(d)
		var made []*rsa.PrivateKey
		d.client.NewKey = func() (*rsa.PrivateKey, error) {
			key, err := rsa.GenerateKey(rand.Reader, 2048)
			made = append(made, key)
			return key, err
		}
		client := d.start(t)
		for range 2 {
			if _, err := client.Fetch(t.Context(), []string{"k"}); (err == nil) != c.ok {
				t.Errorf("%s: %v", name, err)
			}
		}
		if len(made) != 2 || made[0].Equal(made[1]) {
			t.Fatalf("%s: %d keys, want a new one for each of two fetches", name, len(made))
		}
		for _, key := range made {
			if slices.Max(key.D.Bits()) != 0 || slices.Max(key.Primes[0].Bits()) != 0 {
				t.Errorf("%s: a key is not wiped", name)
			}
		}
	}
}

type noEvidence struct{}

func (noEvidence) Type() attest.EvidenceType { return attest.SGX }

func (noEvidence) Evidence(context.Context, attest.ReportData) (attest.Evidence, error) {
	return attest.Evidence{}, attest.Errorf(attest.CodeAttester, "making evidence", "", "no device")
}

// Sizes are the upstream's: 10240 bytes of a secret, 256 of the key of an image; an answer has its own bound.
func TestSizesAreTheUpstreams(t *testing.T) {
	for _, generation := range []aecs.Generation{aecs.GenerationA, aecs.GenerationB} {
		d := newDeployment(t, generation, io.Discard)
		for name, size := range map[string]int{"largest": aecs.MaxSecret, "larger": aecs.MaxSecret + 1, "huge": 1 << 20, "key": aecs.MaxImageKey,
			"image_key": aecs.MaxImageKey + 1} {
			d.add(name, strings.Repeat("x", size))
		}
		client := d.start(t)
		got, err := client.Fetch(t.Context(), []string{"largest", "key"})
		if err != nil || got["largest"].Len() != 10240 || got["key"].Len() != 256 {
			t.Errorf("%s: %v", generation, err)
		}
		for name, says := range map[string]string{"larger": "want 1 to 10240", "image_key": "want 1 to 256", "huge": "larger than 1048576 bytes"} {
			if _, err := client.Fetch(t.Context(), []string{name}); err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%s: %s: %v", generation, name, err)
			}
		}
	}
}

// A request without the nonce, or with one that was used before, would make an answer that can be replayed.
func TestEveryRequestHasAFreshNonceOf32Bytes(t *testing.T) {
	for _, generation := range []aecs.Generation{aecs.GenerationA, aecs.GenerationB} {
		d := newDeployment(t, generation, io.Discard)
		d.add("k", "value")
		d.add("second", "value")
		nonces := make(chan string, 4)
		d.listen = append(d.listen, grpc.UnaryInterceptor(
			func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
				switch r := request.(type) {
				case *wire.GetEnclaveSecretRequest:
					nonces <- r.GetNonce()
				case *wire.TaRemoteCallRequest:
					var inner wire.TaGetSecretRequest
					if err := wire.Parse(r.GetReqJson(), &inner); err != nil {
						return nil, err
					}
					nonces <- inner.GetNonce()
				}
				return handle(ctx, request)
			}))
		client := d.start(t)
		for range 2 {
			if _, err := client.Fetch(t.Context(), []string{"k", "second"}); err != nil {
				t.Fatal(err)
			}
		}
		close(nonces)
		seen := map[string]bool{}
		for nonce := range nonces {
			if len(nonce) != 64 || seen[nonce] {
				t.Errorf("%s: nonce %q", generation, nonce)
			}
			seen[nonce] = true
		}
		if len(seen) != 4 {
			t.Errorf("%s: %d nonces", generation, len(seen))
		}
	}
}
