// Package network is the image classifier of the demo's model server. It needs no training and answers correctly, so that
// an answer proves that the server has read the whole, right model.
//
// An image is 224×224 pixels of red, green and blue in 0..1. The network multiplies it with a random matrix, which keeps
// distances (Johnson and Lindenstrauss, 1984), and compares the product with that of one typical image of each class: the
// nearer a class, the higher its probability. It does so for the image turned by 0°, 90°, 180° and 270°, and for its mirror
// image turned so, and takes the mean of the distances.
//
// The network that [New] makes with [Features] rows has 4.2 million weights, 16 MiB. One prediction runs on one core, about
// 20 ms on a current one. A [Network] is safe for concurrent use; rounding may differ between processor architectures.
package network

import (
	"fmt"
	"math"
	"math/rand/v2"
)

// Size is the width and height of an input image, Channels its values a pixel, InputLength all its values. Features is
// the number of rows of a network of full size.
const (
	Size        = 224
	Channels    = 3
	InputLength = Size * Size * Channels
	Features    = 28
)

const views = 8

// Network is a classifier.
type Network struct {
	features, classes int
	projection        []float32 // features×InputLength
	typical           []float32 // classes×features: the product of each class's typical image
}

// New makes a network of this many features that tells apart what these images show, one image a class. Each has
// [InputLength] values.
func New(features int, typical [][]float32, r *rand.Rand) *Network {
	n := layout(features, len(typical))
	n.allocate()
	scale := float32(1 / math.Sqrt(InputLength))
	for i := range n.projection {
		n.projection[i] = float32(r.NormFloat64()) * scale
	}
	for class, image := range typical {
		n.project(n.typical[class*features:][:features], image)
	}
	return n
}

func layout(features, classes int) *Network { return &Network{features: features, classes: classes} }

func (n *Network) allocate() {
	n.projection = make([]float32, n.features*InputLength)
	n.typical = make([]float32, n.classes*n.features)
}

// Classes is the number of classes, which is the length of an answer.
func (n *Network) Classes() int { return n.classes }

// WeightBytes is the size of the weights in memory and in the file.
func (n *Network) WeightBytes() int { return 4 * (len(n.projection) + len(n.typical)) }

// sharpness turns distances into probabilities.
const sharpness = 40

// Predict returns the probability of each class for an image of [InputLength] values, rows from the top, pixels from
// the left, red, green, blue.
func (n *Network) Predict(image []float32) ([]float32, error) {
	if len(image) != InputLength {
		return nil, fmt.Errorf("an image of %d values, not %d", len(image), InputLength)
	}
	score := make([]float64, n.classes)
	product := make([]float32, n.features)
	for view := range views {
		switch view {
		case 0:
		case views / 2:
			image = mirrored(turned(image)) // four turns make the first view again
		default:
			image = turned(image)
		}
		n.project(product, image)
		for class := range score {
			for i, t := range n.typical[class*n.features:][:n.features] {
				d := float64(product[i] - t)
				score[class] -= sharpness / views * d * d
			}
		}
	}
	return softmax(score), nil
}

// project multiplies the matrix with an image.
func (n *Network) project(product, image []float32) {
	for i := range product {
		row := n.projection[i*InputLength:][:InputLength]
		var a, b, c, d float32 // four sums, which a processor can add side by side
		for j := 0; j < InputLength; j += 4 {
			w, x := row[j:j+4:j+4], image[j:j+4:j+4]
			a, b, c, d = a+w[0]*x[0], b+w[1]*x[1], c+w[2]*x[2], d+w[3]*x[3]
		}
		product[i] = a + b + c + d
	}
}

// turned is an image turned by 90°.
func turned(image []float32) []float32 {
	out := make([]float32, len(image))
	for y := range Size {
		for x := range Size {
			copy(out[(x*Size+Size-1-y)*Channels:][:Channels], image[(y*Size+x)*Channels:])
		}
	}
	return out
}

// mirrored is an image with left and right swapped.
func mirrored(image []float32) []float32 {
	out := make([]float32, len(image))
	for y := range Size {
		for x := range Size {
			copy(out[(y*Size+Size-1-x)*Channels:][:Channels], image[(y*Size+x)*Channels:])
		}
	}
	return out
}

func softmax(score []float64) []float32 {
	best, sum := math.Inf(-1), 0.0
	for _, s := range score {
		best = max(best, s)
	}
	out := make([]float32, len(score))
	for _, s := range score {
		sum += math.Exp(s - best)
	}
	for i, s := range score {
		out[i] = float32(math.Exp(s-best) / sum)
	}
	return out
}
