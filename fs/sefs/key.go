package sefs

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/sesame-init/sesame/attest"
)

// Key is the user key of an encrypted volume. No formatter or encoder shows it.
type Key [16]byte

const keyText = "[secret]"

// String implements [fmt.Stringer].
func (Key) String() string { return keyText }

// GoString implements [fmt.GoStringer].
func (Key) GoString() string { return keyText }

// Format implements [fmt.Formatter] for every verb.
func (Key) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(keyText)) }

// LogValue implements [slog.LogValuer].
func (Key) LogValue() slog.Value { return slog.StringValue(keyText) }

// MarshalText refuses; it also keeps JSON and YAML encoders out.
func (Key) MarshalText() ([]byte, error) { return nil, errors.New("a volume key cannot be marshalled") }

// ParseKey reads the content of a key file: Occlum's form (xx-xx-..., 47 characters) or 32 hex digits, both with an
// optional line end, or 16 raw bytes. Sixteen bytes of plain text are refused: they are a pass phrase, or half of a
// key in hex, rather than a key.
func ParseKey(text []byte) (Key, error) {
	if len(text) == len(Key{}) {
		if printable(text) {
			return Key{}, keyError("16 characters of text are not a 128-bit key")
		}
		return Key(text), nil
	}
	line := bytes.TrimRight(text, "\r\n")
	var key Key
	switch {
	case parseDashed(key[:], line):
	case len(line) == hex.EncodedLen(len(key)):
		if _, err := hex.Decode(key[:], line); err != nil {
			return Key{}, keyError("32 characters that are not hex digits")
		}
	default:
		return Key{}, keyError("%d bytes, which is no known form of a key", len(text))
	}
	return key, nil
}

func keyError(format string, args ...any) error {
	return attest.Errorf(attest.CodeSecret, "reading volume key",
		"A key is 16 bytes: xx-xx-... as Occlum writes it, 32 hex digits, or raw. \"sesame keygen image-key\" makes one.",
		format, args...)
}

func printable(b []byte) bool {
	return !bytes.ContainsFunc(b, func(r rune) bool { return r < ' ' || r > '~' })
}

// MAC is the root MAC of a volume: the tag of its metadata file, which covers everything in the volume.
type MAC [16]byte

// ParseMAC reads Occlum's form, xx-xx-..., with an optional line end.
func ParseMAC(text string) (MAC, error) {
	var m MAC
	if !parseDashed(m[:], bytes.TrimRight([]byte(text), "\r\n")) {
		return MAC{}, attest.Errorf(attest.CodeConfig, "reading volume MAC",
			"A MAC is 16 bytes of two hex digits joined by dashes, as printed when the volume was made.",
			"%q is not of the form xx-xx-...-xx", text)
	}
	return m, nil
}

// String is Occlum's form: 47 characters.
func (m MAC) String() string { return dashed(m[:]) }

// MarshalText is the form of [MAC.String].
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads the form of [MAC.String], in either case, and nothing around it.
func (m *MAC) UnmarshalText(text []byte) error {
	var read MAC
	if !parseDashed(read[:], text) {
		return fmt.Errorf("is %.60q, want the MAC that \"sesame volume create\" printed, of the form xx-xx-...-xx", text)
	}
	*m = read
	return nil
}

// EncodeKey is the content of a key file in Occlum's form, without a line end. The result is as secret as the key.
func EncodeKey(k Key) attest.Secret { return attest.NewSecret([]byte(dashed(k[:]))) }

func dashed(b []byte) string { return strings.ReplaceAll(fmt.Sprintf("% x", b), " ", "-") }

func parseDashed(dst, text []byte) bool {
	if len(text) != 3*len(dst)-1 {
		return false
	}
	for i := range dst {
		if _, err := hex.Decode(dst[i:i+1], text[3*i:3*i+2]); err != nil {
			return false
		}
		if i > 0 && text[3*i-1] != '-' {
			return false
		}
	}
	return true
}
