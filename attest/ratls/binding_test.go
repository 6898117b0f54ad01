package ratls_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/internal/reportdata"
	"github.com/sesame-init/sesame/lab/attesttest"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// legacyPolicy is a policy whose entries want certificates without Sesame's label.
func legacyPolicy(p *policy.Policy) *policy.Policy {
	for i := range p.SGX {
		p.SGX[i].Binding = attest.BindingLegacy
	}
	return p
}

func application(t *testing.T, platform *softsgx.Platform) tls.Certificate {
	t.Helper()
	c, err := ratls.NewApplicationCertificate(t.Context(), platform.Attester(brokertest.Workload()), ratls.Options{Now: brokertest.Clock})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAnApplicationsCertificateIsInteroperableRATLSWithItsRole(t *testing.T) {
	c := application(t, brokertest.Platform(t, softsgx.Options{}))
	if c.Leaf.IsCA || !c.Leaf.BasicConstraintsValid || c.Leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Error("the certificate may issue others")
	}
	i := slices.IndexFunc(c.Leaf.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidDICE) })
	if i < 0 || c.Leaf.Extensions[i].Critical {
		t.Fatalf("the extensions are %v", c.Leaf.Extensions)
	}
	// Read as a stranger to the label does.
	var tagged cbor.RawTag
	var parts struct {
		_             struct{} `cbor:",toarray"`
		Quote, Claims []byte
	}
	claims := map[string][]byte{}
	if err := cbor.Unmarshal(c.Leaf.Extensions[i].Value, &tagged); err != nil || tagged.Number != 60000 {
		t.Fatalf("tag %d, %v", tagged.Number, err)
	}
	if err := cbor.Unmarshal(tagged.Content, &parts); err != nil {
		t.Fatal(err)
	}
	if err := cbor.Unmarshal(parts.Claims, &claims); err != nil {
		t.Fatal(err)
	}
	if want := encode(t, []any{1, sum(c.Leaf.RawSubjectPublicKeyInfo)}); len(claims) != 2 ||
		!bytes.Equal(claims["pubkey-hash"], want) || string(claims["sesame"]) != "sesame-ra-tls-v1/application" {
		t.Errorf("the claims are %q", claims)
	}
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := mode.Marshal(claims); err != nil || !bytes.Equal(again, parts.Claims) {
		t.Errorf("the claims are no deterministic CBOR: %x, not %x, %v", parts.Claims, again, err)
	}
	shown, err := ratls.Read(c.Leaf.Raw)
	if err != nil || shown.Binding != attest.BindingApplication || !bytes.Equal(shown.Evidence.Raw, parts.Quote) {
		t.Errorf("read %v, %v", shown.Binding, err)
	}
}

func TestAnApplicationsCertificateNeverPassesOnTheLegacyWire(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{})
	c := application(t, platform)
	says := "that of an application"
	if _, err := ratls.Evidence(c.Leaf.Raw); attest.CodeOf(err) != attest.CodeEvidence || !strings.Contains(err.Error(), says) {
		t.Errorf("read: %v", err)
	}
	state := tls.ConnectionState{PeerCertificates: []*x509.Certificate{c.Leaf}}
	if _, err := ratls.Genuine(t.Context(), brokertest.Verifier(platform), state, brokertest.Now); attest.CodeOf(err) != attest.CodeEvidence {
		t.Errorf("genuine: %v", err)
	}
	for _, p := range []*policy.Policy{brokertest.WorkloadPolicy(), legacyPolicy(brokertest.WorkloadPolicy())} {
		v := ratls.PeerVerifier{Verifier: brokertest.Verifier(platform), Policy: p, Legacy: true, Now: brokertest.Clock}
		if err := v.VerifyConnection(state); attest.CodeOf(err) != attest.CodeEvidence || !strings.Contains(err.Error(), says) {
			t.Errorf("verified: %v", err)
		}
	}
}

// An entry takes one form, and only binding: legacy takes one without the label.
func TestAnEntrySaysWhichBindingItTakes(t *testing.T) {
	p := newPeer(t)
	labelled := p.dice(reportdata.ApplicationClaims(p.spki))
	both := legacyPolicy(brokertest.WorkloadPolicy())
	both.SGX = append(both.SGX, brokertest.WorkloadPolicy().SGX...)
	for name, test := range map[string]struct {
		extension   pkix.Extension
		application bool
	}{
		"application": {labelled, true},
		"Occlum":      {raw(oidOcclum, p.quote(sum(p.spki))), false},
		"Gramine":     {raw(oidGramine, p.quote(sum(p.spki))), false},
		"mbedTLS":     {raw(oidMbedTLS, p.quote(sum(p.spki))), false},
		"DICE":        {p.dice(p.claims(1, sum(p.spki))), false},
	} {
		leaf, err := x509.ParseCertificate(p.certificate(test.extension))
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range []struct {
			name   string
			policy *policy.Policy
			taken  bool
		}{
			{"an entry", brokertest.WorkloadPolicy(), test.application},
			{"an entry with binding: legacy", legacyPolicy(brokertest.WorkloadPolicy()), !test.application},
			{"an entry of each", both, true},
		} {
			v := ratls.PeerVerifier{Verifier: brokertest.Verifier(p.platform), Policy: entry.policy, Now: brokertest.Clock}
			claims, err := v.Verify(t.Context(), tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}})
			if (err == nil) != entry.taken || err != nil && (attest.CodeOf(err) != attest.CodePolicy || !strings.Contains(err.Error(), "sgx[0].binding")) {
				t.Errorf("%s at %s: %v", name, entry.name, err)
			}
			if err == nil && (claims.Binding == attest.BindingApplication) != test.application {
				t.Errorf("%s has binding %q", name, claims.Binding)
			}
		}
	}
}

func TestOurLabelIsTakenExactlyAsItIsMade(t *testing.T) {
	p := newPeer(t)
	other := p.with(newPeer(t).key)
	right := reportdata.ApplicationClaims(p.spki)
	hash := encode(t, []any{1, sum(p.spki)})
	for name, claims := range map[string][]byte{
		"another key":  reportdata.ApplicationClaims(other.spki),
		"another role": encode(t, map[string][]byte{"sesame": []byte("sesame-ra-tls-v1/broker"), "pubkey-hash": hash}),
		"an empty one": encode(t, map[string][]byte{"sesame": nil, "pubkey-hash": hash}),
		"one more claim": encode(t, map[string][]byte{"sesame": []byte("sesame-ra-tls-v1/application"), "pubkey-hash": hash,
			"nonce": {1}}),
		"a byte after it": append(slices.Clone(right), 0),
	} {
		if shown, err := ratls.Read(p.certificate(p.dice(claims))); attest.CodeOf(err) != attest.CodeEvidence || err == nil {
			t.Errorf("%s: taken as %q", name, shown.Binding)
		}
	}
}

// The first 32 bytes of report data are right in each, the last 32 are not zero.
func TestAllOfTheReportDataCounts(t *testing.T) {
	p := newPeer(t)
	labelled, plain := reportdata.ApplicationClaims(p.spki), p.claims(1, sum(p.spki))
	for _, at := range []int{32, 47, 63} {
		half := func(b []byte) []byte {
			data := append(sum(b), make([]byte, 32)...)
			data[at] = 1
			return p.quote(data)
		}
		for name, extension := range map[string]pkix.Extension{
			"Occlum":      raw(oidOcclum, half(p.spki)),
			"Gramine":     raw(oidGramine, half(p.spki)),
			"mbedTLS":     raw(oidMbedTLS, half(p.spki)),
			"DICE":        p.diceOf(60000, []any{half(plain), plain}),
			"application": p.diceOf(60000, []any{half(labelled), labelled}),
		} {
			_, err := ratls.Read(p.certificate(extension))
			if attest.CodeOf(err) != attest.CodeEvidence || !strings.Contains(err.Error(), "does not bind") {
				t.Errorf("%s, byte %d: %v", name, at, err)
			}
		}
	}
}

func TestAnApplicationsCertificateBoundsItsSize(t *testing.T) {
	for size, ok := range map[sized]bool{255: false, 4734: true, 11_800: true, 70_000: false} {
		c, err := ratls.NewApplicationCertificate(context.Background(), size, ratls.Options{})
		if (err == nil) != ok || !ok && attest.CodeOf(err) != attest.CodeAttester {
			t.Errorf("quote of %d bytes: %v", size, err)
		}
		if ok && len(c.Certificate[0]) > 64<<10 {
			t.Errorf("quote of %d bytes: %d bytes", size, len(c.Certificate[0]))
		}
	}
}

// Certificates are refused outside of their dates in each form.
func TestExpiredCertificatesAreRefusedInEachForm(t *testing.T) {
	p := newPeer(t)
	for name, extension := range map[string]pkix.Extension{
		"application": p.dice(reportdata.ApplicationClaims(p.spki)),
		"Occlum":      raw(oidOcclum, p.quote(sum(p.spki))),
		"DICE":        p.dice(p.claims(1, sum(p.spki))),
	} {
		leaf, err := x509.ParseCertificate(p.certificate(extension))
		if err != nil {
			t.Fatal(err)
		}
		for _, legacy := range []bool{true, false} {
			for _, at := range []time.Time{leaf.NotAfter.Add(time.Second), leaf.NotBefore.Add(-ratls.Leeway - time.Second)} {
				v := ratls.PeerVerifier{Verifier: brokertest.Verifier(p.platform), Policy: brokertest.WorkloadPolicy(), Legacy: legacy,
					Now: func() time.Time { return at }}
				err := v.VerifyConnection(tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}})
				if want := legacy && name == "application"; attest.CodeOf(err) != attest.CodeEvidence ||
					!want && !strings.Contains(err.Error(), "valid from") {
					t.Errorf("%s at %s: %v", name, at, err)
				}
			}
		}
	}
}

// Whatever else a quote was made for, it binds no certificate's key.
func TestAQuoteOfAnotherUseBindsNoKey(t *testing.T) {
	p := newPeer(t)
	for name, other := range attesttest.OtherMeanings() {
		a := attesttest.Rebound{Attester: p.platform.Attester(brokertest.Workload()), Data: other}
		for _, certificate := range []func(context.Context, attest.Attester, ratls.Options) (tls.Certificate, error){
			ratls.NewCertificate, ratls.NewApplicationCertificate,
		} {
			c, err := certificate(t.Context(), a, ratls.Options{Now: brokertest.Clock})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ratls.Read(c.Leaf.Raw); attest.CodeOf(err) != attest.CodeEvidence || !strings.Contains(err.Error(), "does not bind") {
				t.Errorf("%s: %v", name, err)
			}
		}
		plain := p.claims(1, sum(p.spki))
		rebound := func(b []byte) []byte {
			data := other(attest.ReportData(append(sum(b), make([]byte, 32)...)))
			return p.quote(data[:])
		}
		for form, extension := range map[string]pkix.Extension{
			"Gramine": raw(oidGramine, rebound(p.spki)), "mbedTLS": raw(oidMbedTLS, rebound(p.spki)),
			"DICE": p.diceOf(60000, []any{rebound(plain), plain}),
		} {
			if _, err := ratls.Read(p.certificate(extension)); attest.CodeOf(err) != attest.CodeEvidence {
				t.Errorf("%s as %s: %v", name, form, err)
			}
		}
	}
}
