// Package attesttest is the conformance suite that every kind of evidence passes, its attester and its verifier together:
// evidence binds exactly the report data that was asked for, is refused once anything of it was changed, and errors have
// the code that callers rely on. It must not be imported by programs.
package attesttest

import (
	"bytes"
	"context"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
)

// Case is a kind of evidence.
type Case struct {
	Type     attest.EvidenceType
	Attester attest.Attester
	Verifier attest.Verifier
	At       time.Time // when to verify
	// Recorded is set if the attester cannot make evidence anew: the only report data that it knows.
	Recorded *attest.ReportData
	// Stride is the distance of the bytes that are changed one after the other. Default 7.
	Stride int
}

// Run runs the suite.
func Run(t *testing.T, c Case) {
	if c.Stride == 0 {
		c.Stride = 7
	}
	t.Run("evidence binds its report data", func(t *testing.T) { c.binds(t) })
	t.Run("changed evidence is refused or says the same", func(t *testing.T) { c.changed(t) })
	t.Run("malformed evidence is refused", func(t *testing.T) { c.malformed(t) })
	t.Run("the end of the context is honoured", func(t *testing.T) { c.cancelled(t) })
	t.Run("many at once", func(t *testing.T) { c.concurrent(t) })
}

// data are report data that the attester can bind.
func (c Case) data() []attest.ReportData {
	if c.Recorded != nil {
		return []attest.ReportData{*c.Recorded}
	}
	return []attest.ReportData{{}, {1, 2, 3, 63: 4}, attest.ReportData(bytes.Repeat([]byte{0xff}, 64))}
}

func (c Case) evidence(t *testing.T, data attest.ReportData) attest.Evidence {
	t.Helper()
	e, err := c.Attester.Evidence(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (c Case) binds(t *testing.T) {
	if c.Attester.Type() != c.Type {
		t.Errorf("the attester is of type %q", c.Attester.Type())
	}
	for _, data := range c.data() {
		e := c.evidence(t, data)
		claims, err := c.Verifier.Verify(t.Context(), e, c.At)
		if err != nil {
			t.Fatal(err)
		}
		bodies := map[attest.EvidenceType]bool{
			attest.SGX: claims.SGX != nil, attest.TDX: claims.TDX != nil,
			attest.SNP: claims.SNP != nil, attest.TPM: claims.TPM != nil,
		}
		for kind, set := range bodies {
			if set != (kind == c.Type) {
				t.Errorf("the claims of type %q are there: %t", kind, set)
			}
		}
		if e.Type != c.Type || claims.Type != c.Type || claims.ReportData != data {
			t.Errorf("evidence of type %q gives claims of %q over %x, want %x", e.Type, claims.Type, claims.ReportData, data)
		}
	}
}

func (c Case) changed(t *testing.T) {
	good := c.evidence(t, c.data()[0])
	want, err := c.Verifier.Verify(t.Context(), good, c.At)
	if err != nil {
		t.Fatal(err)
	}
	refused, same := 0, 0
	for i := 0; i < len(good.Raw); i += c.Stride {
		bad := attest.Evidence{Type: good.Type, Raw: bytes.Clone(good.Raw)}
		bad.Raw[i] ^= 1 << (i % 8)
		claims, err := c.Verifier.Verify(t.Context(), bad, c.At)
		code := attest.CodeOf(err)
		switch {
		case err == nil && reflect.DeepEqual(claims, want):
			same++ // of no meaning: padding, or certificates that the verifier has itself
		case err == nil:
			t.Fatalf("byte %d: other claims of changed evidence: %+v", i, claims)
		case code != attest.CodeEvidence && code != attest.CodeCollateral:
			t.Errorf("byte %d: code %s: %v", i, code, err)
		default:
			refused++
		}
	}
	t.Logf("of the changed, %d are refused and %d say the same", refused, same)
	if refused < 50 {
		t.Errorf("only %d are refused", refused)
	}
}

func (c Case) malformed(t *testing.T) {
	good := c.evidence(t, c.data()[0])
	other := attest.SGX
	if c.Type == other {
		other = attest.TPM
	}
	for name, e := range map[string]attest.Evidence{
		"empty":      {Type: c.Type},
		"half":       {Type: c.Type, Raw: good.Raw[:len(good.Raw)/2]},
		"zeros":      {Type: c.Type, Raw: make([]byte, len(good.Raw))},
		"large":      {Type: c.Type, Raw: bytes.Repeat([]byte{0xa1}, 1<<20)},
		"other type": {Type: other, Raw: good.Raw},
	} {
		if _, err := c.Verifier.Verify(t.Context(), e, c.At); attest.CodeOf(err) != attest.CodeEvidence {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

func (c Case) cancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Attester.Evidence(ctx, c.data()[0]); err == nil || attest.CodeOf(err) != attest.CodeAttester {
		t.Errorf("error is %v, want code attester", err)
	}
}

func (c Case) concurrent(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			data := c.data()[i%len(c.data())]
			e, err := c.Attester.Evidence(t.Context(), data)
			if err != nil {
				t.Error(err)
				return
			}
			if claims, err := c.Verifier.Verify(t.Context(), e, c.At); err != nil || claims.ReportData != data {
				t.Errorf("claims over %x, error %v", claims.ReportData, err)
			}
		})
	}
	wg.Wait()
}
