package maa

import (
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math/big"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/reportdata"
)

// b64 is the encoding of JOSE: base64url without padding (RFC 7515, section 2).
var b64 = base64.RawURLEncoding

// wrappingKey is the public half of the key that the enclave makes for one boot.
type wrappingKey struct {
	id      string // RFC 7638 thumbprint
	n       string // modulus as JOSE writes it
	runtime []byte // the exact runtime data that is attested
}

// newWrappingKey writes the runtime data byte for byte as MAA and Key Vault take it: one RSA key, marked for
// encryption by key_ops, in canonical order.
func newWrappingKey(public *rsa.PublicKey) wrappingKey {
	e := b64.EncodeToString(big.NewInt(int64(public.E)).Bytes())
	n := b64.EncodeToString(public.N.Bytes())
	thumbprint := sha256.Sum256(fmt.Appendf(nil, `{"e":"%s","kty":"RSA","n":"%s"}`, e, n))
	id := b64.EncodeToString(thumbprint[:])
	return wrappingKey{
		id: id, n: n,
		runtime: fmt.Appendf(nil, `{"keys":[{"e":"%s","key_ops":["encrypt"],"kid":"%s","kty":"RSA","n":"%s"}]}`, e, id, n),
	}
}

// reportData binds the runtime data.
func (k wrappingKey) reportData() (attest.ReportData, error) {
	return reportdata.MAAKey.Data(k.runtime)
}
