package attest

import (
	"crypto/rsa"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
)

const secretText = "[secret]"

// Secret holds key material or another value that must not leave by accident: every formatter prints
// "[secret]", marshalling is refused, and == does not compile on it. Copies share the bytes, so one
// [Secret.Wipe] wipes them all.
type Secret struct {
	_ [0]func() // not comparable
	b *[]byte
}

// NewSecret takes ownership of b: the caller must not use it afterwards.
func NewSecret(b []byte) Secret { return Secret{b: &b} }

// Expose returns the bytes themselves, not a copy. The caller must not keep or change them.
func (s Secret) Expose() []byte {
	if s.b == nil {
		return nil
	}
	return *s.b
}

// Len is the number of bytes; 0 after [Secret.Wipe].
func (s Secret) Len() int { return len(s.Expose()) }

// Equal compares in constant time.
func (s Secret) Equal(other Secret) bool {
	return subtle.ConstantTimeCompare(s.Expose(), other.Expose()) == 1
}

// Wipe overwrites the bytes with zeros and forgets them.
func (s Secret) Wipe() {
	if s.b == nil {
		return
	}
	clear(*s.b)
	*s.b = nil
}

// String implements [fmt.Stringer].
func (Secret) String() string { return secretText }

// GoString implements [fmt.GoStringer].
func (Secret) GoString() string { return secretText }

// Format implements [fmt.Formatter] for every verb, %x and %v of containing structs included.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(secretText)) }

// LogValue implements [slog.LogValuer].
func (Secret) LogValue() slog.Value { return slog.StringValue(secretText) }

// WipeRSA overwrites the private numbers of a key, which is of no use after that. Copies that crypto/rsa keeps inside
// of the key cannot be reached.
func WipeRSA(k *rsa.PrivateKey) {
	numbers := append([]*big.Int{k.D, k.Precomputed.Dp, k.Precomputed.Dq, k.Precomputed.Qinv}, k.Primes...)
	for _, n := range numbers {
		if n != nil {
			clear(n.Bits())
		}
	}
}

var errMarshalSecret = errors.New("a secret cannot be marshalled")

// MarshalText refuses; it also keeps JSON, YAML and XML encoders out.
func (Secret) MarshalText() ([]byte, error) { return nil, errMarshalSecret }

// MarshalBinary refuses.
func (Secret) MarshalBinary() ([]byte, error) { return nil, errMarshalSecret }

// MarshalJSON refuses.
func (Secret) MarshalJSON() ([]byte, error) { return nil, errMarshalSecret }
