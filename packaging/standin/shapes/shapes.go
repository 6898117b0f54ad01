// Package shapes draws the labelled images that the demo's classifier learns from and is tested with: one
// shape or texture an image, in random colours, at a random place, size and angle, over a shaded and noisy
// background. An image follows from its class, size and random source alone.
package shapes

import (
	"image"
	"math"
	"math/rand/v2"
)

// Classes are the names of what can be drawn, in the order of the classifier's outputs.
func Classes() []string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = k.name
	}
	return names
}

// kinds give for a point, in units of the shape's radius, a value that is negative inside and grows by about one
// a unit of distance.
var kinds = [...]struct {
	name    string
	texture bool // fills the whole image
	field   func(x, y float64) float64
}{
	{"circle", false, func(x, y float64) float64 { return math.Hypot(x, y) - 0.95 }},
	{"square", false, func(x, y float64) float64 { return box(x, y, 0.8, 0.8) }},
	{"triangle", false, triangle},
	{"star", false, star},
	{"cross", false, func(x, y float64) float64 { return min(box(x, y, 1, 0.3), box(x, y, 0.3, 1)) }},
	{"ring", false, func(x, y float64) float64 { return math.Abs(math.Hypot(x, y)-0.75) - 0.2 }},
	{"crescent", false, func(x, y float64) float64 {
		return max(math.Hypot(x, y)-1, 0.85-math.Hypot(x-0.5, y))
	}},
	{"stripes", true, func(x, y float64) float64 { return wave(x) }},
	{"checkerboard", true, func(x, y float64) float64 {
		a, b := wave(x), wave(y)
		return max(min(a, b), -max(a, b))
	}},
	{"dots", true, func(x, y float64) float64 {
		return math.Hypot(x-math.Round(x/0.8)*0.8, y-math.Round(y/0.8)*0.8) - 0.22
	}},
}

func box(x, y, w, h float64) float64 { return max(math.Abs(x)-w, math.Abs(y)-h) }

func triangle(x, y float64) float64 {
	s := math.Sqrt(3) / 2
	return max(-y, s*x+y/2, -s*x+y/2) - 0.55
}

// star has five points: the plane is folded into half of one of them, which a straight edge closes.
func star(x, y float64) float64 {
	const outer, inner, fold = 1.0, 0.42, math.Pi / 5
	r, angle := math.Hypot(x, y), math.Atan2(y, x)
	angle = math.Abs(math.Remainder(angle, 2*fold))
	px, py := r*math.Cos(angle), r*math.Sin(angle)
	qx, qy := inner*math.Cos(fold), inner*math.Sin(fold)
	nx, ny := qy, outer-qx
	return ((px-outer)*nx + py*ny) / math.Hypot(nx, ny)
}

// wave is a stripe of width 0.4 every 0.8.
func wave(x float64) float64 { return math.Abs(math.Remainder(x, 0.8)) - 0.2 }

// Draw makes a size×size image of a class, an index into [Classes].
func Draw(class, size int, r *rand.Rand) *image.RGBA {
	kind := kinds[class]
	back, fore := colours(r)
	radius := float64(size) * (0.24 + 0.16*r.Float64())
	cx := float64(size)/2 + (r.Float64()-0.5)*2*(float64(size)*0.46-radius)
	cy := float64(size)/2 + (r.Float64()-0.5)*2*(float64(size)*0.46-radius)
	if kind.texture {
		cx, cy = cx+radius*r.Float64(), cy+radius*r.Float64()
		radius *= 0.8
	}
	sin, cos := math.Sincos(2 * math.Pi * r.Float64())
	shadeX, shadeY := (r.Float64()-0.5)*0.2/float64(size), (r.Float64()-0.5)*0.2/float64(size)
	noise := 0.02 + 0.06*r.Float64()

	img := image.NewRGBA(image.Rect(0, 0, size, size))
	for py := range size {
		for px := range size {
			dx, dy := float64(px)-cx, float64(py)-cy
			inside := 0.5 - kind.field((dx*cos+dy*sin)/radius, (dy*cos-dx*sin)/radius)*radius
			inside = min(max(inside, 0), 1)
			shade := shadeX*dx + shadeY*dy
			pixel := img.Pix[img.PixOffset(px, py):][:4]
			bits := r.Uint64() // a third of them for each colour's noise
			for c := range 3 {
				v := back[c] + (fore[c]-back[c])*inside + shade + (float64(bits>>(21*c)&(1<<21-1))/(1<<20)-1)*noise
				pixel[c] = uint8(min(max(v, 0), 1)*255 + 0.5)
			}
			pixel[3] = 255
		}
	}
	return img
}

// colours are two whose brightness differs enough to be told apart without colour.
func colours(r *rand.Rand) (back, fore [3]float64) {
	for {
		for c := range 3 {
			back[c], fore[c] = r.Float64(), r.Float64()
		}
		if math.Abs(brightness(back)-brightness(fore)) >= 0.25 {
			return back, fore
		}
	}
}

func brightness(c [3]float64) float64 { return 0.3*c[0] + 0.59*c[1] + 0.11*c[2] }
