// Package pfs reads and writes protected files: the encrypted and authenticated single-file format of the Intel
// SGX SDK's Protected File System, as the SDK forks of Occlum write it.
//
// A protected file is a row of 4096-byte nodes. Node 0 holds a header and, sealed, the file's name, size and first
// 3072 bytes. What follows lies in data nodes, each sealed with a key of its own; a tree of MHT nodes (Merkle hash
// tree) keeps these keys and tags, and node 0 those of the tree's root. The tag of node 0, the file's MAC, so
// covers every byte of the file.
//
// The package promises: content is returned only after every node on the way from the MAC to it has been
// verified; a file that is not exactly what a correct writer makes of its content (length, reserved fields,
// padding, unused entries) is refused, as is one whose update was interrupted; nothing is allocated because a file
// claims it; no node key is ever used for two plaintexts. It keeps a bounded cache of verified nodes and decrypts
// large reads on all cores.
//
// It does not promise freshness: anyone who can replace a file can replace it by an older one of the same name, unless
// the caller compares [File.MAC]. And integrity-only files are sealed under a public key: their MAC finds
// accidents, not an attacker who chooses the content.
//
// Files sealed with a key of the processor (use_user_kdk_key = 0) cannot be read here.
//
// # Compatibility
//
// This package serves the rest of the module: its names may change in any release. The format is that of Intel's
// protected file system, and stays.
package pfs

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
)

// NodeSize is the unit of encryption, in bytes.
const NodeSize = 4096

const (
	inlineSize   = 3072 // content bytes in node 0
	mhtData      = 96   // data nodes below one MHT node
	mhtChildren  = 32   // MHT nodes below one MHT node
	segmentNodes = 1 + mhtData
	entrySize    = 32 // key and tag
	tagSize      = 16
	nameSize     = 260
	// MaxName is the longest name of a protected file, in bytes.
	MaxName = 258
)

// Offsets in node 0.
const (
	magic        = "ELIF_XGS"
	offMajor     = 8
	offMinor     = 9
	offKeyID     = 10
	offSVN       = 42 // cpu_svn, isv_svn
	offUserKey   = 60
	offAttribute = 61
	offMAC       = 77
	offUpdate    = 93
	offIntegrity = 94
	offSealed    = 95
)

// Layout is the generation of the on-disk format. Both carry the same magic and version; only the right one
// authenticates.
type Layout uint8

// The two generations.
const (
	Layout031 Layout = iota // Occlum 0.31: no mc_uuid and mc_value
	Layout030               // Occlum up to 0.30
)

// String is the Occlum version the layout is named after.
func (l Layout) String() string {
	if l == Layout030 {
		return "0.30"
	}
	return "0.31"
}

// ParseLayout is the inverse of [Layout.String].
func ParseLayout(s string) (Layout, error) {
	for _, l := range []Layout{Layout031, Layout030} {
		if s == l.String() {
			return l, nil
		}
	}
	return 0, fmt.Errorf("layout %q is neither 0.31 nor 0.30", s)
}

// gap is the size of the unused fields between size and the root entry.
func (l Layout) gap() int {
	if l == Layout030 {
		return 20
	}
	return 0
}

func (l Layout) rootEntry() int  { return nameSize + 8 + l.gap() }
func (l Layout) inline() int     { return l.rootEntry() + entrySize }
func (l Layout) sealedSize() int { return l.inline() + inlineSize }

// The reasons why a file is refused. Each error of this package that is not the host's wraps one of them.
var (
	// ErrTampered: a tag is wrong. The bytes were changed, or the key or the layout is another one.
	ErrTampered = errors.New("not authentic")
	// ErrMalformed: the structure is not one that a correct writer makes.
	ErrMalformed = errors.New("malformed")
	// ErrMode: the file is encrypted and was opened without a key, or the other way round.
	ErrMode = errors.New("wrong mode")
)

// Codec is what all files of an image share: the layout, and the key or, without one, the integrity-only mode. It
// is safe for concurrent use.
type Codec struct {
	layout Layout
	key    *[16]byte    // nil: integrity-only
	user   cipher.Block // under key
	public cipher.AEAD  // under the all-zero key
}

// NewCodec returns the codec for a layout and a user key; a nil key means integrity-only.
func NewCodec(layout Layout, key *[16]byte) *Codec {
	c := &Codec{layout: layout, public: newAEAD(make([]byte, 16))}
	if key != nil {
		k := *key
		c.key, c.user = &k, newBlock(k[:])
	}
	return c
}

// Layout returns the layout.
func (c *Codec) Layout() Layout { return c.layout }

// Encrypted says whether files are encrypted, not just authenticated.
func (c *Codec) Encrypted() bool { return c.key != nil }

var nonce [12]byte // constant: every key seals one plaintext

func newBlock(key []byte) cipher.Block {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // the length is a constant of this package
	}
	return b
}

func newAEAD(key []byte) cipher.AEAD {
	a, err := cipher.NewGCM(newBlock(key))
	if err != nil {
		panic(err)
	}
	return a
}

// open verifies box, which is a sealed plaintext with the tag behind it, and puts the plaintext into dst, which has
// its length. dst may be the start of box.
func (c *Codec) open(dst, key, box []byte) bool {
	if c.Encrypted() {
		_, err := newAEAD(key).Open(dst[:0], nonce[:], box, nil)
		return err == nil
	}
	end := len(box) - tagSize
	if _, err := c.public.Open(nil, nonce[:], box[end:], box[:end]); err != nil {
		return false
	}
	copy(dst, box[:end])
	return true
}

// seal replaces the first n bytes of buf by their sealed form and appends the tag to tag. The 16 bytes behind them
// are used meanwhile, and restored.
func (c *Codec) seal(tag, key, buf []byte, n int) []byte {
	if !c.Encrypted() {
		return c.public.Seal(tag, nonce[:], nil, buf[:n])
	}
	var saved [tagSize]byte
	copy(saved[:], buf[n:])
	newAEAD(key).Seal(buf[:0], nonce[:], buf[:n], nil)
	tag = append(tag, buf[n:n+tagSize]...)
	copy(buf[n:], saved[:])
	return tag
}

// metadataKey derives the key of node 0: AES-CMAC over a C struct of 120 bytes, its holes included.
func (c *Codec) metadataKey(keyID []byte) []byte {
	if !c.Encrypted() {
		return make([]byte, 16)
	}
	var b [120]byte
	b[0] = 1
	copy(b[4:], "SGX-PROTECTED-FS-METADATA-KEY")
	copy(b[80:], keyID)
	binary.LittleEndian.PutUint32(b[112:], 128)
	return cmac(c.user, b[:])
}

// cmac is AES-CMAC (RFC 4493) of a message that is not empty and not a multiple of 16 bytes.
func cmac(block cipher.Block, message []byte) []byte {
	double := func(b []byte) {
		carry := b[0] >> 7
		for i := range 15 {
			b[i] = b[i]<<1 | b[i+1]>>7
		}
		b[15] = b[15]<<1 ^ carry*0x87
	}
	k2 := make([]byte, 16)
	block.Encrypt(k2, k2)
	double(k2)
	double(k2)
	x := make([]byte, 16)
	for ; len(message) > 16; message = message[16:] {
		xor(x, message[:16])
		block.Encrypt(x, x)
	}
	xor(x, message)
	x[len(message)] ^= 0x80
	xor(x, k2)
	block.Encrypt(x, x)
	return x
}

func xor(dst, src []byte) {
	for i, b := range src {
		dst[i] ^= b
	}
}

var zeros [NodeSize]byte

// isZero takes at most a node.
func isZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }

// dataNodes and mhtNodes are N and M of a content of that many bytes.
func dataNodes(size int64) int64 {
	if size <= inlineSize {
		return 0
	}
	return (size-inlineSize-1)/NodeSize + 1
}

func mhtNodes(dataNodes int64) int64 { return (dataNodes + mhtData - 1) / mhtData }

// StoredSize is the length of the protected file of a content of that many bytes.
func StoredSize(size int64) int64 {
	n := dataNodes(size)
	return NodeSize * (1 + n + mhtNodes(n))
}

// physical positions of nodes, in nodes.
func mhtPosition(m int64) int64  { return 1 + segmentNodes*m }
func dataPosition(d int64) int64 { return 2 + d + d/mhtData }
