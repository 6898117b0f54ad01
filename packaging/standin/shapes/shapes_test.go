package shapes_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/sesame-init/sesame/packaging/standin/shapes"
)

func draw(class int, seed uint64) []byte {
	return shapes.Draw(class, 64, rand.New(rand.NewPCG(seed, 0))).Pix
}

func TestDrawingFollowsFromItsArguments(t *testing.T) {
	for class, name := range shapes.Classes() {
		if !bytes.Equal(draw(class, 1), draw(class, 1)) {
			t.Errorf("%s: two drawings of one seed differ", name)
		}
		if bytes.Equal(draw(class, 1), draw(class, 2)) {
			t.Errorf("%s: drawings of two seeds are equal", name)
		}
	}
}

// TestClassesAreDifferentShapes compares what is drawn in the same place and colours.
func TestClassesAreDifferentShapes(t *testing.T) {
	seen := map[string]string{}
	for class, name := range shapes.Classes() {
		pix := string(draw(class, 1))
		if other := seen[pix]; other != "" {
			t.Errorf("%s looks like %s", name, other)
		}
		seen[pix] = name
	}
	if len(seen) < 8 {
		t.Errorf("%d classes are fewer than 8", len(seen))
	}
}

// TestEveryShapeIsVisible finds both the background's and the shape's brightness in each image.
func TestEveryShapeIsVisible(t *testing.T) {
	for class, name := range shapes.Classes() {
		for seed := range uint64(20) {
			low, high := 1.0, 0.0
			pix := draw(class, seed)
			for i := 0; i < len(pix); i += 4 {
				v := (0.3*float64(pix[i]) + 0.59*float64(pix[i+1]) + 0.11*float64(pix[i+2])) / 255
				low, high = min(low, v), max(high, v)
			}
			if high-low < 0.2 {
				t.Errorf("%s, seed %d: brightness is all within %.2f and %.2f", name, seed, low, high)
			}
		}
	}
}
