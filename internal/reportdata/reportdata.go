// Package reportdata is the one place that makes report data, the 64 bytes that evidence binds. A quote must never mean
// two things, so all producers stand in one table, and for each it says how the 64 bytes are made and how the hashed
// input begins. No two entries can give the same bytes: their layouts differ, or neither beginning is the beginning of
// the other. docs/protocol.md lists them with the forms that verifiers accept.
//
// Inputs begin with a label of Sesame's own, unless another protocol dictates them: RA-TLS hashes a public key in DER,
// Azure Key Vault's runtime data is a JSON object, AECS hashes a public key in PEM. What a host or an application may
// choose is hashed only behind a label. A part that is not hashed at all comes from the measured config alone.
//
// # Compatibility
//
// This package serves the rest of the module: its names may change in any release. The bytes of each producer stay for
// ever, since quotes bind them.
package reportdata

import (
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"strings"

	"github.com/sesame-init/sesame/attest"
)

// A Layout says how report data is made of an input.
type Layout int

// The layouts. The second half of HashThenZeros is zero, in the others it is a hash.
const (
	// HashThenZeros is SHA-256(input) ‖ 32 zero bytes.
	HashThenZeros Layout = iota
	// LongHash is SHA-512(input).
	LongHash
	// RawThenHash is 32 bytes as they are ‖ SHA-256(input).
	RawThenHash
	// ExtraData is no report data but SHA-256(input) in the extraData of a TPM's quote, which an attestation key
	// signs and no enclave does.
	ExtraData
)

// A Producer makes report data of one kind.
type Producer int

// The producers.
const (
	// RATLS binds a certificate's key as Occlum, CCZoo and Gramine do it. Input: the DER SubjectPublicKeyInfo.
	RATLS Producer = iota
	// Application binds the key of an application's certificate. Input: the claims of Interoperable RA-TLS, see
	// [ApplicationClaims].
	Application
	// SessionClient and SessionBroker bind sessions: package attest/session.
	SessionClient
	SessionBroker
	// MAAKey binds the key that Azure Key Vault wraps for. Input: a JSON Web Key Set.
	MAAKey
	// MAAToken binds what the backend maa-token is asked to have attested, behind its label.
	MAAToken
	// AECS binds a key to which KubeTEE AECS encrypts. Input: an RSA public key in PEM. The raw bytes are user data.
	AECS
	// TPM binds report data, and the hashes of keys and certificates, to a TPM's quote.
	TPM
)

// form is an entry of the table.
type form struct {
	name    string
	layout  Layout
	begins  string // every input begins so
	size    int    // of every input, in bytes; 0: any
	outside string // what of the 64 bytes' input others choose
}

const (
	// applicationLabel is the value of the claim "sesame" in certificates of applications: label and role.
	applicationLabel = "sesame-ra-tls-v1/application"
	// applicationPrefix is a map of two byte strings in deterministic CBOR (RFC 8949, 4.2): the claim "sesame", then
	// "pubkey-hash", whose value is again CBOR, [1, a byte string of 32]. The key's SHA-256 follows.
	applicationPrefix = "\xa2" + "\x66sesame" + "\x58\x1c" + applicationLabel + "\x6bpubkey-hash" + "\x58\x24\x82\x01\x58\x20"
	sessionLabel      = "sesame-session-v1/report"
	sessionSize       = len(sessionLabel) + 1 + 4 + sha256.Size // role, size of the tree, root
)

var forms = [...]form{
	RATLS:         {name: "RA-TLS", layout: HashThenZeros, begins: "\x30", outside: "nothing: the key is made here"},
	Application:   {name: "application", layout: HashThenZeros, begins: applicationPrefix, size: len(applicationPrefix) + sha256.Size, outside: "nothing: the key is made here"},
	SessionClient: {name: "session, client", layout: LongHash, begins: sessionLabel + "C", size: sessionSize, outside: "the peer's nonce and key, hashed"},
	SessionBroker: {name: "session, broker", layout: LongHash, begins: sessionLabel + "B", size: sessionSize, outside: "the peers' nonces and keys, hashed"},
	MAAKey:        {name: "maa", layout: HashThenZeros, begins: `{"keys":[{"e":"`, outside: "nothing: the key is made here"},
	MAAToken:      {name: "maa-token", layout: HashThenZeros, begins: "sesame-maa-token-v1\x00", outside: "all that follows the label"},
	AECS:          {name: "aecs", layout: RawThenHash, begins: "-----BEGIN RSA PUBLIC KEY-----\n", outside: "nothing: user data is measured, the key is made here"},
	TPM:           {name: "TPM quote", layout: ExtraData, begins: "sesame-tpm-v1", outside: "report data of another producer, hashed"},
}

// All are the producers in the order of the table.
func All() []Producer {
	all := make([]Producer, len(forms))
	for i := range all {
		all[i] = Producer(i)
	}
	return all
}

// String is the producer's name in docs/protocol.md.
func (p Producer) String() string { return forms[p].name }

// Layout says how the bytes are made.
func (p Producer) Layout() Layout { return forms[p].layout }

// Begins is what every input begins with.
func (p Producer) Begins() string { return forms[p].begins }

// Size is the size in bytes of every input, 0 if it may be any.
func (p Producer) Size() int { return forms[p].size }

// Outside says which part of the input is not this environment's own choice.
func (p Producer) Outside() string { return forms[p].outside }

func (p Producer) check(input []byte, layouts ...Layout) error {
	f := forms[p]
	known := false
	for _, l := range layouts {
		known = known || l == f.layout
	}
	switch {
	case !known:
		return fmt.Errorf("report data of %s is made in another way", f.name)
	case !strings.HasPrefix(string(input), f.begins):
		return fmt.Errorf("what report data of %s is made of begins with %.32q, want %.32q", f.name, input, f.begins)
	case f.size != 0 && len(input) != f.size:
		return fmt.Errorf("what report data of %s is made of has %d bytes, want %d", f.name, len(input), f.size)
	}
	return nil
}

// Data is the report data that binds input. It fails if input has not the producer's form.
func (p Producer) Data(input []byte) (d attest.ReportData, err error) {
	if err := p.check(input, HashThenZeros, LongHash); err != nil {
		return d, err
	}
	if p.Layout() == LongHash {
		return sha512.Sum512(input), nil
	}
	hash := sha256.Sum256(input)
	copy(d[:], hash[:])
	return d, nil
}

// DataAfter is the report data of the layout [RawThenHash]. raw must come from the measured config.
func (p Producer) DataAfter(raw [32]byte, input []byte) (d attest.ReportData, err error) {
	if err := p.check(input, RawThenHash); err != nil {
		return d, err
	}
	hash := sha256.Sum256(input)
	copy(d[:], raw[:])
	copy(d[len(raw):], hash[:])
	return d, nil
}

// Extra is what the layout [ExtraData] makes.
func (p Producer) Extra(input []byte) ([32]byte, error) {
	if err := p.check(input, ExtraData); err != nil {
		return [32]byte{}, err
	}
	return sha256.Sum256(input), nil
}

// ApplicationClaims are the claims by which an application's certificate binds its key, given as DER
// SubjectPublicKeyInfo: those of Interoperable RA-TLS, with one more that has Sesame's label and the role. Other readers
// of that format take the key's hash and pass over the claim that they do not know.
func ApplicationClaims(spki []byte) []byte {
	hash := sha256.Sum256(spki)
	return append([]byte(applicationPrefix), hash[:]...)
}

// TokenRuntime is the runtime data by which the backend maa-token has data attested.
func TokenRuntime(data []byte) []byte { return append([]byte(MAAToken.Begins()), data...) }
