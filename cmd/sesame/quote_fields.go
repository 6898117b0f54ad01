package main

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/sgx"
)

// field is a named part of a quote: a group of fields, or a value with its bytes.
type field struct {
	name   string
	hex    string // "" where the value is not one of the quote's own bytes
	value  string // decoded; "" where hexadecimal is all there is to say
	fields []field
}

func group(name string, fields ...field) field { return field{name: name, fields: fields} }

func text(name, value string) field { return field{name: name, value: value} }

func octets(name string, b []byte) field { return field{name: name, hex: hex.EncodeToString(b)} }

// number is a little-endian integer, as in a quote.
func number[N uint16 | uint32 | uint64](name string, n N) field {
	b, _ := binary.Append(nil, binary.LittleEndian, n)
	return field{name: name, hex: hex.EncodeToString(b), value: strconv.FormatUint(uint64(n), 10)}
}

func (f field) as(format string, args ...any) field {
	f.value = fmt.Sprintf(format, args...)
	return f
}

// print writes f and what is in it, a line each.
func (f field) print(w io.Writer, depth int) {
	indent := strings.Repeat("  ", depth)
	switch {
	case f.fields != nil:
		fmt.Fprintf(w, "%s%s\n", indent, f.name)
		for _, inner := range f.fields {
			inner.print(w, depth+1)
		}
	case f.hex == "":
		fmt.Fprintf(w, "%s%-*s %s\n", indent, 28-len(indent), f.name, f.value)
	case f.value == "":
		fmt.Fprintf(w, "%s%-*s %s\n", indent, 28-len(indent), f.name, f.hex)
	default:
		fmt.Fprintf(w, "%s%-*s %s (%s)\n", indent, 28-len(indent), f.name, f.hex, f.value)
	}
}

// MarshalJSON makes an object of a group, in its order, and {"hex", "value"} of a value.
func (f field) MarshalJSON() ([]byte, error) {
	if f.fields == nil {
		return json.Marshal(struct {
			Hex   string `json:"hex,omitempty"`
			Value string `json:"value,omitempty"`
		}{f.hex, f.value})
	}
	var b bytes.Buffer
	for i, inner := range f.fields {
		value, err := json.Marshal(inner)
		if err != nil {
			return nil, err
		}
		b.WriteByte("{,"[min(i, 1)])
		fmt.Fprintf(&b, "%q:%s", inner.name, value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// describeQuote names every field of a quote of size bytes that was found in the given form.
func describeQuote(q *sgx.Quote, form string, size int) field {
	var tee string
	var body field
	if q.TDX != nil {
		tee, body = "TDX", describeTDX(q.TDX, q.BodyType)
	} else {
		tee, body = "SGX", describeReportBody("body", q.SGX)
	}
	fields := []field{
		text("form", form),
		text("size", strconv.Itoa(size)),
		group("header",
			number("version", q.Version),
			number("attestation_key_type", q.AttestationKeyType).as("%d: ECDSA with P-256", q.AttestationKeyType),
			number("tee_type", q.TEE).as("%#x: %s", q.TEE, tee),
			number("qe_svn", q.QESVN),
			number("pce_svn", q.PCESVN),
			octets("qe_vendor_id", q.QEVendorID[:]).as("Intel"),
			octets("user_data", q.UserData[:]).as("QE id %X", q.UserData[:16]),
		),
		body,
		octets("signature", q.Signature),
		octets("attestation_key", q.AttestationKey[:]),
		describeReportBody("qe_report", &q.QEReport),
		octets("qe_report_signature", q.QEReportSignature),
		octets("qe_auth_data", q.QEAuthData).as("%d bytes", len(q.QEAuthData)),
		describeCertification(q.CertType, q.CertData),
	}
	if len(q.Trailing) > 0 {
		kind := "not all zero"
		if len(bytes.Trim(q.Trailing, "\x00")) == 0 {
			kind = "all zero"
		}
		fields = append(fields, text("trailing", fmt.Sprintf("%d bytes after the quote's end, %s", len(q.Trailing), kind)))
	}
	return group("quote", fields...)
}

func describeReportBody(name string, r *sgx.ReportBody) field {
	return group(name,
		octets("cpu_svn", r.CPUSVN[:]),
		number("misc_select", r.MiscSelect).as("%#x", r.MiscSelect),
		octets("ext_prod_id", r.ExtProdID[:]),
		number("attributes", r.Attributes).as("%s", attributeNames(r.Attributes)),
		number("xfrm", r.XFRM).as("%#x", r.XFRM),
		octets("mr_enclave", r.MREnclave[:]),
		octets("mr_signer", r.MRSigner[:]),
		octets("config_id", r.ConfigID[:]),
		number("product_id", r.ProductID),
		number("svn", r.SVN),
		number("config_svn", r.ConfigSVN),
		octets("family_id", r.FamilyID[:]),
		octets("report_data", r.ReportData[:]),
	)
}

func attributeNames(flags uint64) string {
	var names []string
	for _, a := range []struct {
		bit  uint64
		name string
	}{
		{attest.AttributeInit, "INIT"},
		{attest.AttributeDebug, "DEBUG"},
		{attest.AttributeMode64Bit, "MODE64BIT"},
		{attest.AttributeProvisionKey, "PROVISION_KEY"},
		{attest.AttributeEInitToken, "EINITTOKEN_KEY"},
		{attest.AttributeKSS, "KSS"},
	} {
		if flags&a.bit != 0 {
			names = append(names, a.name)
			flags &^= a.bit
		}
	}
	if flags != 0 {
		names = append(names, fmt.Sprintf("%#x", flags))
	}
	return strings.Join(names, " ")
}

func describeTDX(r *sgx.TDXBody, bodyType uint16) field {
	debug := "production"
	if r.Debug() {
		debug = "DEBUG"
	}
	fields := []field{
		octets("tee_tcb_svn", r.TCBSVN[:]),
		octets("mr_seam", r.MRSeam[:]),
		octets("mr_signer_seam", r.MRSignerSeam[:]),
		number("seam_attributes", r.SeamAttributes).as("%#x", r.SeamAttributes),
		number("td_attributes", r.Attributes).as("%#x: %s", r.Attributes, debug),
		number("xfam", r.XFAM).as("%#x", r.XFAM),
		octets("mr_td", r.MRTD[:]),
		octets("mr_config_id", r.MRConfigID[:]),
		octets("mr_owner", r.MROwner[:]),
		octets("mr_owner_config", r.MROwnerConfig[:]),
	}
	for i, rtmr := range r.RTMR {
		fields = append(fields, octets("rtmr"+strconv.Itoa(i), rtmr[:]))
	}
	fields = append(fields, octets("report_data", r.ReportData[:]))
	if bodyType == sgx.BodyTD15 {
		fields = append(fields, octets("tee_tcb_svn_2", r.TCBSVN2[:]), octets("mr_service_td", r.MRServiceTD[:]))
	}
	return group("body", fields...)
}

func describeCertification(kind uint16, data []byte) field {
	names := map[uint16]string{
		sgx.CertPPIDClear:     "PPID",
		sgx.CertPPIDRSA2048:   "PPID encrypted with RSA-2048",
		sgx.CertPPIDRSA3072:   "PPID encrypted with RSA-3072",
		sgx.CertPCKLeaf:       "PCK certificate",
		sgx.CertPCKChain:      "PCK certificate chain",
		sgx.CertPlatformState: "platform manifest",
	}
	fields := []field{number("type", kind).as("%d: %s", kind, names[kind])}
	if kind != sgx.CertPCKLeaf && kind != sgx.CertPCKChain {
		return group("certification_data", append(fields, octets("data", data))...)
	}
	for i := 0; ; i++ {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		fields = append(fields, describeCertificate("certificate_"+strconv.Itoa(i), block.Bytes))
	}
	return group("certification_data", fields...)
}

// oidComment is Netscape's comment extension, in which a software platform's root says what it is.
var oidComment = asn1.ObjectIdentifier{2, 16, 840, 1, 113730, 1, 13}

func describeCertificate(name string, der []byte) field {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return octets(name, der).as("malformed: %v", err)
	}
	fields := []field{
		text("subject", c.Subject.CommonName),
		text("issuer", c.Issuer.CommonName),
		octets("serial", c.SerialNumber.Bytes()),
		text("not_before", c.NotBefore.UTC().Format(time.RFC3339)),
		text("not_after", c.NotAfter.UTC().Format(time.RFC3339)),
	}
	for _, e := range c.Extensions {
		if e.Id.Equal(oidComment) {
			var comment asn1.RawValue
			if _, err := asn1.Unmarshal(e.Value, &comment); err == nil {
				fields = append(fields, text("comment", strconv.Quote(string(comment.Bytes))))
			}
		}
	}
	e, err := dcap.PCKExtensionOf(c)
	if err != nil {
		return group(name, fields...)
	}
	fields = append(fields,
		octets("ppid", e.PPID[:]),
		octets("tcb_components", e.Components[:]),
		text("pce_svn", strconv.Itoa(int(e.PCESVN))),
		octets("cpu_svn", e.CPUSVN[:]),
		octets("pce_id", e.PCEID[:]),
		octets("fmspc", e.FMSPC[:]),
		text("sgx_type", map[int]string{dcap.SGXStandard: "standard", dcap.SGXScalable: "scalable",
			dcap.SGXScalableWithIntegrity: "scalable with integrity"}[e.SGXType]),
	)
	if e.HasConfiguration {
		fields = append(fields,
			octets("platform_instance_id", e.PlatformInstanceID[:]),
			text("dynamic_platform", strconv.FormatBool(e.DynamicPlatform)),
			text("cached_keys", strconv.FormatBool(e.CachedKeys)),
			text("smt", strconv.FormatBool(e.SMT)),
		)
	}
	return group(name, fields...)
}

// quoteClaims is the JSON of claims: byte strings in hexadecimal.
type quoteClaims struct {
	Type       attest.EvidenceType `json:"type"`
	ReportData hexBytes            `json:"report_data"`
	Debug      bool                `json:"debug"`
	TCBDate    time.Time           `json:"tcb_date"`
	RootCRL    uint64              `json:"root_crl_number"`
	PCKCRL     uint64              `json:"pck_crl_number"`
	VerifiedAt time.Time           `json:"verified_at"`
	SGX        *attest.SGXClaims   `json:"sgx,omitempty"`
	TDX        *attest.TDXClaims   `json:"tdx,omitempty"`
}

type hexBytes []byte

func (b hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(b)), nil }

func describeClaims(c attest.Claims) *quoteClaims {
	out := &quoteClaims{Type: c.Type, ReportData: c.ReportData[:], TCBDate: c.TCB.Date,
		RootCRL: c.TCB.RootCRLNumber, PCKCRL: c.TCB.PCKCRLNumber, VerifiedAt: c.TCB.VerifiedAt, SGX: c.SGX, TDX: c.TDX}
	if d := c.Details(); d != nil {
		out.Debug = d.Debug()
	}
	return out
}
