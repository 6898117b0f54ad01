package dcap

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
)

// oidSGX is the arc of the SGX extension of PCK certificates, 1.2.840.113741.1.13.1, in DER. Its fields lie
// one or two numbers below.
var (
	oidSGX    = asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}
	oidSGXDER = []byte{0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01}
)

// SGX types of a platform in its PCK certificate.
const (
	SGXStandard              = 0
	SGXScalable              = 1
	SGXScalableWithIntegrity = 2
)

// PCKExtension is what a PCK certificate says about its platform (Intel, "SGX PCK Certificate and CRL
// Profile", extension 1.2.840.113741.1.13.1).
type PCKExtension struct {
	PPID       [16]byte
	Components [16]byte // SVNs of the 16 TCB components; TCB levels are compared with these
	PCESVN     uint16
	CPUSVN     [16]byte // raw; not for comparison
	PCEID      [2]byte
	FMSPC      [6]byte
	SGXType    int

	// Platform CA only.
	HasConfiguration                 bool
	PlatformInstanceID               [16]byte
	DynamicPlatform, CachedKeys, SMT bool
}

// PCKExtensionOf reads the SGX extension of a PCK certificate.
func PCKExtensionOf(cert *x509.Certificate) (PCKExtension, error) {
	for i := range cert.Extensions {
		if cert.Extensions[i].Id.Equal(oidSGX) {
			return ParsePCKExtension(cert.Extensions[i].Value)
		}
	}
	return PCKExtension{}, errors.New("the PCK certificate has no SGX extension")
}

// DER tags.
const (
	tagBoolean    = 0x01
	tagInteger    = 0x02
	tagOctets     = 0x04
	tagOID        = 0x06
	tagEnumerated = 0x0a
	tagSequence   = 0x30
)

// ParsePCKExtension reads the value of the SGX extension: exactly five fields, or seven from the platform CA,
// in Intel's order.
func ParsePCKExtension(der []byte) (PCKExtension, error) {
	var e PCKExtension
	d := &derReader{b: der}
	ext := d.sequence()
	fixed := func(field byte, out []byte) {
		copy(out, ext.field(tagOctets, len(out), field))
	}
	fixed(1, e.PPID[:])
	e.parseTCB(ext)
	fixed(3, e.PCEID[:])
	fixed(4, e.FMSPC[:])
	if v := ext.field(tagEnumerated, 1, 5); ext.err == nil {
		e.SGXType = int(v[0])
	}
	if ext.err == nil && len(ext.b) != 0 {
		e.HasConfiguration = true
		fixed(6, e.PlatformInstanceID[:])
		e.parseConfiguration(ext)
	}
	if err := errors.Join(d.end(), ext.end()); err != nil {
		return PCKExtension{}, fmt.Errorf("SGX extension: %w", err)
	}
	if e.SGXType > SGXScalableWithIntegrity {
		return PCKExtension{}, fmt.Errorf("SGX extension: unknown SGX type %d", e.SGXType)
	}
	return e, nil
}

func (e *PCKExtension) parseTCB(ext *derReader) {
	tcb := ext.nested(2)
	for i := range e.Components {
		e.Components[i] = byte(tcb.unsigned(0xff, 2, byte(i+1)))
	}
	e.PCESVN = uint16(tcb.unsigned(0xffff, 2, 17))
	copy(e.CPUSVN[:], tcb.field(tagOctets, 16, 2, 18))
	ext.fail(tcb.end())
}

func (e *PCKExtension) parseConfiguration(ext *derReader) {
	conf := ext.nested(7)
	for i, flag := range []*bool{&e.DynamicPlatform, &e.CachedKeys, &e.SMT} {
		if v := conf.field(tagBoolean, 1, 7, byte(i+1)); conf.err == nil {
			*flag = v[0] != 0
		}
	}
	ext.fail(conf.end())
}

// derReader reads DER with lengths below 64 KB. After the first error err is set and stays.
type derReader struct {
	b   []byte
	err error
}

func (d *derReader) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

func (d *derReader) end() error {
	if d.err == nil && len(d.b) != 0 {
		d.err = fmt.Errorf("%d bytes too many", len(d.b))
	}
	return d.err
}

// value reads one element of the given tag.
func (d *derReader) value(tag byte) []byte {
	b := d.b
	if d.err != nil || len(b) < 2 || b[0] != tag {
		d.fail(fmt.Errorf("no element of tag %#02x", tag))
		return nil
	}
	n, b := int(b[1]), b[2:]
	switch {
	case n == 0x81 && len(b) >= 1 && b[0] >= 0x80:
		n, b = int(b[0]), b[1:]
	case n == 0x82 && len(b) >= 2 && b[0] != 0:
		n, b = int(b[0])<<8|int(b[1]), b[2:]
	case n >= 0x80:
		d.fail(errors.New("length is not in DER"))
		return nil
	}
	if n > len(b) {
		d.fail(errors.New("element is longer than its parent"))
		return nil
	}
	d.b = b[n:]
	return b[:n]
}

func (d *derReader) sequence() *derReader {
	b := d.value(tagSequence)
	return &derReader{b: b, err: d.err}
}

// pair enters a SEQUENCE of the OID below the SGX arc and a value.
func (d *derReader) pair(arc ...byte) *derReader {
	s := d.sequence()
	oid := s.value(tagOID)
	if s.err == nil && (!bytes.HasPrefix(oid, oidSGXDER) || !bytes.Equal(oid[len(oidSGXDER):], arc)) {
		s.fail(fmt.Errorf("OID %x is not field %v", oid, arc))
	}
	d.fail(s.err)
	return s
}

// field reads a pair of OID and primitive value of the given size, 0 for any.
func (d *derReader) field(tag byte, size int, arc ...byte) []byte {
	s := d.pair(arc...)
	v := s.value(tag)
	if s.err == nil && (len(v) == 0 || size != 0 && len(v) != size) {
		s.fail(fmt.Errorf("field %v has %d bytes", arc, len(v)))
	}
	d.fail(s.end())
	return v
}

// nested reads a pair of OID and SEQUENCE.
func (d *derReader) nested(arc ...byte) *derReader {
	s := d.pair(arc...)
	inner := s.sequence()
	d.fail(s.end())
	inner.fail(d.err)
	return inner
}

func (d *derReader) unsigned(limit uint64, arc ...byte) uint64 {
	v := d.field(tagInteger, 0, arc...)
	if d.err != nil {
		return 0
	}
	minimal := len(v) == 1 || v[0] != 0 || v[1] >= 0x80
	var n uint64
	for _, b := range v[:min(len(v), 8)] {
		n = n<<8 | uint64(b)
	}
	if v[0] >= 0x80 || !minimal || len(v) > 8 || n > limit {
		d.fail(fmt.Errorf("field %v: %x is not a number from 0 to %d", arc, v, limit))
	}
	return n
}
