// Package toyattester is an attester that needs no hardware: its evidence is a signature by a key in a file. It shows what an
// attester's folder has: claims, the entry of a policy, a verifier, and how init opens it. A test adds it to the product by a
// line in each of two lists. It must not be imported by programs.
package toyattester

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"os"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy/rule"
	"github.com/sesame-init/sesame/attest/trust"
)

// Type is the type of evidence, the word in init's config, and the key of entries in a policy.
const Type attest.EvidenceType = "toy"

// SeedVariable names the file with the seed of the machine's key.
const SeedVariable = "SESAME_TOY_SEED"

// Claims implement [attest.Details].
type Claims struct{ Key [ed25519.PublicKeySize]byte }

// Type implements [attest.Details].
func (*Claims) Type() attest.EvidenceType { return Type }

// Debug implements [attest.Details].
func (*Claims) Debug() bool { return false }

// Rated implements [attest.Details].
func (*Claims) Rated() bool { return false }

// Identity implements [attest.Details].
func (c *Claims) Identity() (name, value string) { return "toy_key", hex.EncodeToString(c.Key[:]) }

// String implements [attest.Details].
func (c *Claims) String() string { return fmt.Sprintf("a toy with key %x", c.Key) }

// Record implements [attest.Details].
func (c *Claims) Record() any {
	return struct {
		Key string `json:"toy_key"`
	}{hex.EncodeToString(c.Key[:])}
}

// Entry describes a toy in a policy.
type Entry struct {
	Key rule.Hex `json:"key" yaml:"key"` // 32 bytes
}

// Type implements [rule.Entry].
func (*Entry) Type() attest.EvidenceType { return Type }

// Validate implements [rule.Entry].
func (e *Entry) Validate(fault rule.Fault) {
	if e.Key == nil {
		fault("key is missing")
	}
	fault.Size("key", e.Key, ed25519.PublicKeySize)
}

// Appraise implements [rule.Entry].
func (e *Entry) Appraise(j *rule.Judge, claims attest.Claims) {
	c := claims.Details().(*Claims)
	j.Equal("key", c.Key[:], e.Key)
	j.Strongest(bytes.Equal(c.Key[:], e.Key), false, false)
}

// Kind is the attester.
func Kind() trust.Kind {
	return trust.Kind{
		Type:     Type,
		Verifier: func(trust.Config) attest.Verifier { return Verifier{} },
		Open: func(context.Context, trust.Opening) (trust.Device, error) {
			seed, err := os.ReadFile(os.Getenv(SeedVariable))
			if err != nil || len(seed) != ed25519.SeedSize {
				return nil, attest.Errorf(attest.CodeAttester, "opening the toy", "Name a file of 32 bytes in "+SeedVariable+".",
					"there is no seed (%v)", err)
			}
			return New([ed25519.SeedSize]byte(seed)), nil
		},
	}
}

// Attester makes evidence with a key.
type Attester struct{ key ed25519.PrivateKey }

// New makes an attester of a seed.
func New(seed [ed25519.SeedSize]byte) *Attester { return &Attester{ed25519.NewKeyFromSeed(seed[:])} }

// Key is the public key.
func (a *Attester) Key() []byte { return a.key.Public().(ed25519.PublicKey) }

// Type implements [attest.Attester].
func (*Attester) Type() attest.EvidenceType { return Type }

// Close implements io.Closer.
func (*Attester) Close() error { return nil }

// Evidence implements [attest.Attester]: the public key, the data, and the signature over both.
func (a *Attester) Evidence(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	if err := ctx.Err(); err != nil {
		return attest.Evidence{}, attest.Errorf(attest.CodeAttester, "making evidence", "", "%w", err)
	}
	signed := append(bytes.Clone(a.Key()), data[:]...)
	return attest.Evidence{Type: Type, Raw: append(signed, ed25519.Sign(a.key, signed)...)}, nil
}

// Verifier verifies such evidence.
type Verifier struct{}

// Verify implements [attest.Verifier].
func (Verifier) Verify(ctx context.Context, e attest.Evidence, at time.Time) (attest.Claims, error) {
	const signed = ed25519.PublicKeySize + attest.ReportDataSize
	refuse := func(format string, args ...any) (attest.Claims, error) {
		return attest.Claims{}, attest.Errorf(attest.CodeEvidence, "verifying a toy", "", format, args...)
	}
	switch {
	case ctx.Err() != nil:
		return refuse("%w", ctx.Err())
	case e.Type != Type:
		return refuse("it is of type %.16q", e.Type)
	case len(e.Raw) != signed+ed25519.SignatureSize:
		return refuse("it has %d bytes", len(e.Raw))
	case bytes.Equal(e.Raw[:ed25519.PublicKeySize], make([]byte, ed25519.PublicKeySize)): // no key: it "signs" much
		return refuse("it has no key")
	case !ed25519.Verify(e.Raw[:ed25519.PublicKeySize], e.Raw[:signed], e.Raw[signed:]):
		return refuse("the signature is wrong")
	}
	return attest.Claims{
		Type: Type, ReportData: attest.ReportData(e.Raw[ed25519.PublicKeySize:signed]),
		Other: &Claims{[ed25519.PublicKeySize]byte(e.Raw[:ed25519.PublicKeySize])},
	}, nil
}
