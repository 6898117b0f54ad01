package maa

import (
	"crypto/aes"
	"encoding/binary"
	"errors"
)

// errKeyWrap says no more than that the wrapped key does not open, whatever the reason.
var errKeyWrap = errors.New("the wrapped key does not open")

// kwpMagic is the constant of the alternative initial value (RFC 5649, section 3).
const kwpMagic = 0xA65959A6

// unwrapKWP opens AES key wrap with padding (RFC 5649): in is at least 16 bytes and a multiple of 8.
func unwrapKWP(kek, in []byte) ([]byte, error) {
	if len(in) < 16 || len(in)%8 != 0 {
		return nil, errKeyWrap
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, errKeyWrap
	}
	n := len(in)/8 - 1
	out := make([]byte, 8*n)
	var a [16]byte
	defer clear(a[:])
	if n == 1 {
		block.Decrypt(a[:], in)
		copy(out, a[8:])
	} else {
		copy(a[:8], in[:8])
		copy(out, in[8:])
		for j := 5; j >= 0; j-- {
			for i := n; i >= 1; i-- {
				binary.BigEndian.PutUint64(a[:8], binary.BigEndian.Uint64(a[:8])^uint64(n*j+i))
				copy(a[8:], out[(i-1)*8:i*8])
				block.Decrypt(a[:], a[:])
				copy(out[(i-1)*8:i*8], a[8:])
			}
		}
	}
	length := int64(binary.BigEndian.Uint32(a[4:8]))
	ok := binary.BigEndian.Uint32(a[:4]) == kwpMagic && length > int64(8*(n-1)) && length <= int64(8*n)
	if ok {
		for _, v := range out[length:] {
			ok = ok && v == 0
		}
	}
	if !ok {
		clear(out)
		return nil, errKeyWrap
	}
	return out[:length], nil
}
