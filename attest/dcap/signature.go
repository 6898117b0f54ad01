package dcap

import (
	"crypto/ecdsa"
	"crypto/sha256"
)

// verifyRaw verifies an ECDSA signature over the SHA-256 of data, given as r ‖ s of 32 bytes each.
func verifyRaw(key *ecdsa.PublicKey, data, sig []byte) bool {
	hash := sha256.Sum256(data)
	return verifyHash(key, hash[:], sig)
}

func verifyHash(key *ecdsa.PublicKey, hash, sig []byte) bool {
	if len(sig) != 64 {
		return false
	}
	der := make([]byte, 2, 72)
	der = appendInteger(der, sig[:32])
	der = appendInteger(der, sig[32:])
	der[0], der[1] = tagSequence, byte(len(der)-2)
	return ecdsa.VerifyASN1(key, hash, der)
}

// appendInteger appends the DER of the big-endian, unsigned n.
func appendInteger(b, n []byte) []byte {
	for len(n) > 1 && n[0] == 0 {
		n = n[1:]
	}
	if n[0] >= 0x80 {
		b = append(b, tagInteger, byte(len(n)+1), 0)
	} else {
		b = append(b, tagInteger, byte(len(n)))
	}
	return append(b, n...)
}
