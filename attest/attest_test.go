package attest_test

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/attest"
)

func TestSecretNeverPrints(t *testing.T) {
	const canary = "canary-7f3a"
	s := attest.NewSecret([]byte(canary))
	wrapped := struct{ Inner attest.Secret }{s}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%p"} {
		for _, v := range []any{s, &s, wrapped, &wrapped, []attest.Secret{s}, map[string]attest.Secret{"k": s}} {
			out := fmt.Sprintf(verb, v)
			if strings.Contains(out, canary) || strings.Contains(out, fmt.Sprintf("%x", canary)) ||
				strings.Contains(out, fmt.Sprint([]byte(canary))) {
				t.Errorf("%s of %T prints the secret: %s", verb, v, out)
			}
		}
	}
	if out, err := json.Marshal(wrapped); err == nil {
		t.Errorf("json.Marshal gave %s, want an error", out)
	}
	if err := gob.NewEncoder(io.Discard).Encode(s); err == nil {
		t.Error("gob encoded a secret")
	}
}

func TestSecretWipeReachesCopies(t *testing.T) {
	raw := []byte{1, 2, 3}
	s := attest.NewSecret(raw)
	c := s
	if !c.Equal(attest.NewSecret([]byte{1, 2, 3})) || c.Equal(attest.NewSecret([]byte{1, 2, 4})) {
		t.Fatal("Equal is wrong")
	}
	s.Wipe()
	if c.Len() != 0 || raw[0]|raw[1]|raw[2] != 0 {
		t.Errorf("after Wipe: copy has %d bytes, raw is %v", c.Len(), raw)
	}
}

func TestAWipedRSAKeyHasNoPrivateNumbers(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public := rsa.PublicKey{N: new(big.Int).Set(key.N), E: key.E}
	var held [][]big.Word // shared with the key
	for _, n := range append([]*big.Int{key.D, key.Precomputed.Dp, key.Precomputed.Dq, key.Precomputed.Qinv}, key.Primes...) {
		held = append(held, n.Bits())
	}
	attest.WipeRSA(key)
	for i, words := range held {
		if len(words) == 0 || slices.Max(words) != 0 {
			t.Errorf("number %d of %d words holds something yet", i, len(words))
		}
	}
	if !public.Equal(&key.PublicKey) {
		t.Error("the public half has changed")
	}
	attest.WipeRSA(&rsa.PrivateKey{}) // has none, and does no harm
}

func TestErrorSpeaksOutwardInAndKnowsItsReason(t *testing.T) {
	inner := attest.Errorf(attest.CodePolicy, "verifying broker", "Allow it or patch.", "TCB status OutOfDate: %w", io.EOF)
	err := fmt.Errorf("boot: %w", &attest.Error{Code: attest.CodeUnreachable, Step: "fetching image key", Err: inner})
	if got, want := err.Error(), "boot: fetching image key: verifying broker: TCB status OutOfDate: EOF"; got != want {
		t.Errorf("text is %q, want %q", got, want)
	}
	if got := attest.CodeOf(err); got != attest.CodePolicy {
		t.Errorf("code is %q, want the innermost, policy", got)
	}
	if got := attest.HintOf(err); got != "Allow it or patch." {
		t.Errorf("hint is %q", got)
	}
	if !errors.Is(err, io.EOF) {
		t.Error("the cause is lost")
	}
	if attest.CodeOf(io.EOF) != attest.CodeInternal {
		t.Error("a foreign error must be internal")
	}
}
