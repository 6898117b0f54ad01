// Package pictures draws the images that the demo's classifier tells apart: each class is a colour, and an image of it is
// that colour with a shade from one side to another, a lighter or darker disc at a random place, and noise. An image
// follows from its class, size and random source alone.
package pictures

import (
	"image"
	"math"
	"math/rand/v2"
)

var colours = [...]struct {
	name string
	rgb  [3]float64
}{
	{"red", [3]float64{0.80, 0.10, 0.10}},
	{"orange", [3]float64{0.85, 0.45, 0.05}},
	{"yellow", [3]float64{0.85, 0.80, 0.10}},
	{"green", [3]float64{0.10, 0.60, 0.15}},
	{"cyan", [3]float64{0.10, 0.75, 0.80}},
	{"blue", [3]float64{0.10, 0.15, 0.80}},
	{"violet", [3]float64{0.45, 0.10, 0.70}},
	{"pink", [3]float64{0.90, 0.50, 0.70}},
	{"white", [3]float64{0.90, 0.90, 0.90}},
	{"black", [3]float64{0.08, 0.08, 0.08}},
}

// Classes are the names of the colours, in the order of the classifier's outputs.
func Classes() []string {
	names := make([]string, len(colours))
	for i, c := range colours {
		names[i] = c.name
	}
	return names
}

// Typical is a size×size image of nothing but a class's colour. class is an index into [Classes].
func Typical(class, size int) *image.RGBA {
	return paint(size, func(_, _ float64) [3]float64 { return colours[class].rgb })
}

// Draw makes a size×size image of a class, an index into [Classes].
func Draw(class, size int, r *rand.Rand) *image.RGBA {
	angle := 2 * math.Pi * r.Float64()
	sin, cos := math.Sincos(angle)
	x0, y0, radius := r.Float64(), r.Float64(), 0.1+0.1*r.Float64()
	disc := 0.15 * (2*r.Float64() - 1)
	return paint(size, func(x, y float64) (c [3]float64) {
		shade := 0.1 * ((x-0.5)*cos + (y-0.5)*sin)
		if math.Hypot(x-x0, y-y0) < radius {
			shade += disc
		}
		for i, v := range colours[class].rgb {
			c[i] = v + shade + 0.06*(r.Float64()-0.5)
		}
		return c
	})
}

// paint asks for the colour of each pixel by its place in 0..1.
func paint(size int, colour func(x, y float64) [3]float64) *image.RGBA {
	img := image.NewRGBA(image.Rect(0, 0, size, size))
	for y := range size {
		for x := range size {
			pixel := img.Pix[img.PixOffset(x, y):][:4]
			for i, v := range colour(float64(x)/float64(size), float64(y)/float64(size)) {
				pixel[i] = uint8(min(max(v, 0), 1)*255 + 0.5)
			}
			pixel[3] = 255
		}
	}
	return img
}
