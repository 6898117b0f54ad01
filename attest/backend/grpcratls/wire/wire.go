// Package wire is what GRPC-RATLS peers send each other: the messages of the service ratls.GrSecret and the
// encoding of a secret in its reply. Client (attest/backend/grpcratls) and server (broker) share it.
//
// The encoding is Occlum's: a JSON string literal, quotes included, of padded standard base64. Occlum's C++ client
// takes the two quotes into account when it computes the length, so that bare base64 would cost it the last byte.
// It leaves one or two zero bytes at the end of a secret whose length is no multiple of three; here decoding gives
// the exact bytes.
//
// # Compatibility
//
// This package serves the rest of the module: its names may change in any release. The encoding is Occlum's, and stays.
package wire

import (
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/sesame-init/sesame/attest"
)

// EncodeSecret is the wire form of a secret. The caller may wipe it.
func EncodeSecret(s attest.Secret) []byte {
	b := make([]byte, 2+base64.StdEncoding.EncodedLen(s.Len()))
	b[0], b[len(b)-1] = '"', '"'
	base64.StdEncoding.Encode(b[1:len(b)-1], s.Expose())
	return b
}

// DecodeSecret reads the wire form of a secret of at most max bytes. It takes padded standard base64 in quotes and
// nothing else. Its errors never quote the text.
func DecodeSecret(text []byte, max int) (attest.Secret, error) {
	if len(text) < 2 || text[0] != '"' || text[len(text)-1] != '"' {
		return attest.Secret{}, errors.New("it is not a quoted string")
	}
	text = text[1 : len(text)-1]
	if base64.StdEncoding.DecodedLen(len(text)) > max+2 {
		return attest.Secret{}, fmt.Errorf("it is longer than %d bytes", max)
	}
	for _, c := range text {
		if c == '\n' || c == '\r' {
			return attest.Secret{}, errors.New("it is not standard base64") // encoding/base64 would skip them
		}
	}
	b := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Strict().Decode(b, text)
	if err != nil {
		clear(b)
		return attest.Secret{}, errors.New("it is not standard base64")
	}
	if n > max {
		clear(b)
		return attest.Secret{}, fmt.Errorf("it is longer than %d bytes", max)
	}
	return attest.NewSecret(b[:n]), nil
}
