// Package wire is what an application and a KubeTEE AECS send each other: the messages of the service kubetee.Aecs in
// both deployed generations (kubetee.proto), and their JSON. Client (attest/backend/aecs) and test server (aecstest)
// share it.
//
// The upstream puts JSON into strings of its protobuf messages, signs those strings and encrypts them, so the bytes
// count. [JSON] writes what libprotobuf 3.21 writes (the version that both generations are built with): one line, no
// spaces, fields in the order of their numbers, defaults left out, the same characters escaped. Anyone who has received
// such a string must verify it as it came, never after writing it anew.
//
// [Parse] takes what the upstream's parser takes of what its writer writes: both spellings of a name, any white
// space, both alphabets of base64; and no unknown field. It is stricter than libprotobuf, which is lenient beyond JSON: no
// name twice, no comma before a closing brace, no name or string in other than double quotes.
//
// # Compatibility
//
// This package serves the rest of the module: its names may change in any release. The format is that of AECS.
package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// TaGetSecret is the function of generation B's TaRemoteCall that gets a secret.
const TaGetSecret = "TaGetSecret"

// Kinds and platforms of a report (jinzhao-attest, attestation.cpp).
const (
	ReportVersion   = "1.0"
	BackgroundCheck = "BackgroundCheck" // evidence alone: its verifier finds the collateral
	Passport        = "Passport"        // evidence with its collateral
	PlatformDCAP    = "SGX_DCAP"
	PlatformEPID    = "SGX_EPID" // what a server says that is built for simulation
	PlatformTDX     = "TDX"      // generation B
)

// ErrUnknownField is the error for JSON that is right but for a field that the message does not have, or for the name
// of a value that its enumeration does not have.
var ErrUnknownField = errors.New("it has a field, or names a value, that is not known")

// JSON writes a message as the upstream does.
func JSON(m proto.Message) (string, error) {
	spaced, err := protojson.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("writing %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	defer clear(spaced)
	var compact bytes.Buffer
	compact.Grow(len(spaced)) // so that no copy of what may be a secret is left behind
	defer func() { clear(compact.Bytes()) }()
	if err := json.Compact(&compact, spaced); err != nil { // protojson spaces at random, on purpose
		return "", errors.New("writing JSON")
	}
	return escape(compact.Bytes()), nil
}

// escape writes the characters that libprotobuf escapes beyond JSON's own. In compact JSON they stand in strings only.
func escape(text []byte) string {
	out := make([]byte, 0, len(text))
	defer func() { clear(out) }()
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		switch {
		case !escaped(r):
			out = append(out, text[:size]...)
		case r > 0xffff:
			out = fmt.Appendf(out, `\u%04x\u%04x`, 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		text = text[size:]
	}
	return string(out)
}

// escapes are the ranges of characters that libprotobuf 3.21 escapes, without those that JSON itself demands.
var escapes = [...][2]rune{
	{'<', '<'}, {'>', '>'}, {0x7f, 0x9f}, {0xad, 0xad}, {0x600, 0x603}, {0x6dd, 0x6dd}, {0x70f, 0x70f}, {0x17b4, 0x17b5},
	{0x200b, 0x200f}, {0x2028, 0x202e}, {0x2060, 0x2064}, {0x206a, 0x206f}, {0xfeff, 0xfeff}, {0xfff9, 0xfffb},
	{0x1d173, 0x1d17a}, {0xe0001, 0xe0001}, {0xe0020, 0xe007f},
}

func escaped(r rune) bool {
	for _, e := range escapes {
		if r >= e[0] && r <= e[1] {
			return true
		}
	}
	return false
}

// Parse reads the JSON of a message. The caller bounds the text. The error never quotes the text, which may hold a
// secret; it is [ErrUnknownField] if nothing else is wrong.
func Parse(text string, m proto.Message) error {
	b := []byte(text)
	defer clear(b)
	if protojson.Unmarshal(b, m) == nil {
		return nil
	}
	lenient := protojson.UnmarshalOptions{DiscardUnknown: true}
	if lenient.Unmarshal(b, m) == nil {
		proto.Reset(m)
		return ErrUnknownField
	}
	proto.Reset(m)
	return fmt.Errorf("it is not the JSON of %s", m.ProtoReflect().Descriptor().Name())
}
