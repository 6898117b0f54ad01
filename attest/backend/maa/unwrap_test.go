package maa

import (
	"bytes"
	"encoding/hex"
	"testing"
)

// RFC 5649, section 6.
func TestUnwrapsTheVectorsOfTheRFC(t *testing.T) {
	kek, _ := hex.DecodeString("5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8")
	for _, c := range []struct{ plain, wrapped string }{
		{"c37b7e6492584340bed12207808941155068f738", "138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a"},
		{"466f7250617369", "afbeb0f07dfbf5419200f2ccb50bb24f"},
	} {
		in, _ := hex.DecodeString(c.wrapped)
		want, _ := hex.DecodeString(c.plain)
		got, err := unwrapKWP(kek, in)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s opens to %x (%v), want %s", c.wrapped, got, err, c.plain)
		}
		for i := range in {
			in[i] ^= 1
			if got, err := unwrapKWP(kek, in); err == nil {
				t.Errorf("byte %d changed, and it opens to %x", i, got)
			}
			in[i] ^= 1
		}
		for n := range in {
			if _, err := unwrapKWP(kek, in[:n]); err == nil {
				t.Errorf("opens when cut to %d bytes", n)
			}
		}
	}
}
