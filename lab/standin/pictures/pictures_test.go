package pictures

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

func draw(class int, seed uint64) []byte { return Draw(class, 60, rand.New(rand.NewPCG(seed, 0))).Pix }

func TestDrawingFollowsFromItsArguments(t *testing.T) {
	for class := range Classes() {
		if !bytes.Equal(draw(class, 1), draw(class, 1)) {
			t.Errorf("class %d: the same arguments draw different images", class)
		}
		if bytes.Equal(draw(class, 1), draw(class, 2)) {
			t.Errorf("class %d: another seed draws the same image", class)
		}
	}
}
