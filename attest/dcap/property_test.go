package dcap_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"hash/fnv"
	"math/rand/v2"
	"testing"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/testenv"
)

// region is a part of a vector in which no byte may change.
type region struct {
	name string
	size int
	// change gives a copy of the vector with byte i changed.
	change func(i int) *vector
}

// regions lists all that a signature covers, and the signatures.
func regions(t *testing.T, v *vector) []region {
	t.Helper()
	q, err := sgx.ParseQuote(v.quote)
	if err != nil {
		t.Fatal(err)
	}
	certificates := len(q.CertData) + len(q.Trailing) + 6 // with their type and size
	out := []region{{"quote", len(v.quote) - certificates, func(i int) *vector {
		changed := *v
		changed.quote = flip(v.quote, i)
		return &changed
	}}}
	out = append(out, chainRegions(t, "PCK chain", q.CertData, func(chain []byte) *vector {
		changed := *v
		changed.quote = bytes.Replace(v.quote, q.CertData, chain, 1)
		return &changed
	})...)
	for _, doc := range []struct {
		name string
		of   func(*dcap.Collateral) *[]byte
	}{
		{"TCB info", func(c *dcap.Collateral) *[]byte { return &c.TCBInfo }},
		{"QE identity", func(c *dcap.Collateral) *[]byte { return &c.QEIdentity }},
		{"PCK CRL", func(c *dcap.Collateral) *[]byte { return &c.PCKCRL }},
		{"root CA CRL", func(c *dcap.Collateral) *[]byte { return &c.RootCACRL }},
	} {
		original := *doc.of(&v.collateral)
		if bytes.HasPrefix(original, []byte("-----BEGIN")) {
			continue // not every change of the text is one of the content
		}
		out = append(out, region{doc.name, len(original), func(i int) *vector {
			changed := *v
			*doc.of(&changed.collateral) = flip(original, i)
			return &changed
		}})
	}
	for _, chain := range []struct {
		name string
		of   func(*dcap.Collateral) *[]byte
	}{
		{"TCB info chain", func(c *dcap.Collateral) *[]byte { return &c.TCBInfoChain }},
		{"QE identity chain", func(c *dcap.Collateral) *[]byte { return &c.QEIdentityChain }},
		{"PCK CRL chain", func(c *dcap.Collateral) *[]byte { return &c.PCKCRLChain }},
	} {
		out = append(out, chainRegions(t, chain.name, *chain.of(&v.collateral), func(pem []byte) *vector {
			changed := *v
			*chain.of(&changed.collateral) = pem
			return &changed
		})...)
	}
	return out
}

// flip changes the lowest bit of a byte: no letter case, which hexadecimal digits do not have.
func flip(b []byte, i int) []byte {
	b = bytes.Clone(b)
	b[i] ^= 1
	return b
}

// chainRegions are the certificates of a PEM chain in DER.
func chainRegions(t *testing.T, name string, chain []byte, with func(chain []byte) *vector) []region {
	t.Helper()
	var out []region
	for block, rest := pem.Decode(chain); block != nil; block, rest = pem.Decode(rest) {
		text := bytes.TrimSpace(pem.EncodeToMemory(block))
		if !bytes.Contains(chain, text) {
			continue // lines of another length
		}
		out = append(out, region{name, len(block.Bytes), func(i int) *vector {
			changed := pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: flip(block.Bytes, i)})
			return with(bytes.Replace(chain, text, bytes.TrimSpace(changed), 1))
		}})
	}
	return out
}

// source hands out the collateral of whichever vector it was given last.
type source struct{ current *vector }

func (s *source) Collateral(context.Context, dcap.Request) (*dcap.Collateral, error) {
	return &s.current.collateral, nil
}

// warm is a verifier that knows the vector already, as a server's would.
func warm(t *testing.T, v *vector) (verify func(changed *vector) (attest.Claims, error)) {
	t.Helper()
	s := &source{v}
	config := dcap.Config{Source: s}
	config.Roots = append(config.Roots, v.root)
	d := dcap.NewVerifier(config)
	if _, err := v.verify(d); err != nil {
		t.Fatal(err)
	}
	return func(changed *vector) (attest.Claims, error) {
		s.current = changed
		return changed.verify(d)
	}
}

func TestNoSignedByteCanChange(t *testing.T) {
	for _, name := range []string{
		"dcap-qvl/f8b81014_SGX3_00A067110000_eval17_39a7da",
		"dcap-qvl/f1c85033_TDX3_B0C06F000000_eval17_49ce05",
		"openenclave/d21a11db_TDX3_90C06F000000_eval18_7f01ec",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := readVector(t, "testdata/vectors/"+name)
			verify := warm(t, v)
			total, step := 0, testenv.Sweep(1, 13)
			for _, r := range regions(t, v) {
				for i := 0; i < r.size; i += step {
					if _, err := verify(r.change(i)); err == nil {
						t.Errorf("%s: accepted with byte %d of %d changed", r.name, i, r.size)
					}
					total++
				}
			}
			t.Logf("%d changes refused", total)
		})
	}
}

func TestNoSignedByteOfAnyAcceptedVectorCanChange(t *testing.T) {
	t.Parallel()
	positions := testenv.Sweep(200, 20)
	total := 0
	for _, v := range readVectors(t, testenv.Vectors(t, "dcap"), "*/*") {
		if _, ok := deliberate[v.name]; ok || !v.accepted() {
			continue
		}
		verify := warm(t, v)
		parts := regions(t, v)
		size := 0
		for _, r := range parts {
			size += r.size
		}
		seed := fnv.New64a()
		seed.Write([]byte(v.name))
		random := rand.New(rand.NewPCG(seed.Sum64(), 0))
		for range positions {
			i := random.IntN(size)
			for _, r := range parts {
				if i >= r.size {
					i -= r.size
					continue
				}
				if _, err := verify(r.change(i)); err == nil {
					t.Errorf("%s: %s: accepted with byte %d of %d changed", v.name, r.name, i, r.size)
				}
				break
			}
		}
		total += positions
	}
	t.Logf("%d changes refused", total)
}
