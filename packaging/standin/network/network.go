// Package network is the image classifier of the demo's model server: a small convolutional network, its file,
// its computation and its training, in plain Go.
//
// An image is 224×224 pixels of red, green and blue in 0..1. The layers are:
//
//	stem     7×7 convolution, stride 4, of fixed oriented edge filters; magnitude; 2×2 average; scaled to RMS 1
//	conv1    3×3 convolution; ReLU; 2×2 maximum
//	conv2    3×3 convolution; ReLU; 2×2 maximum
//	hidden   fully connected; ReLU
//	output   fully connected, one row a class; softmax
//
// Logits are averaged over the image turned by 0°, 90°, 180° and 270°. Sizes come from the tensors in the file
// (see [Read]); the full-size network that [New] makes has 4.2 million weights, 16 MiB.
//
// One prediction runs on one core, about 20 ms on a current one. A [Network] is safe for concurrent use; rounding
// may differ between processor architectures.
package network

import (
	"fmt"
	"math"
)

// Size is the width and height of an input image, Channels its values a pixel, InputLength all its values.
const (
	Size        = 224
	Channels    = 3
	InputLength = Size * Size * Channels
)

const (
	stemKernel, stemStride = 7, 4
	stemSize               = Size / stemStride
	conv1Size              = stemSize / 2
	conv2Size              = conv1Size / 2
	featureSize            = conv2Size / 2
	views                  = 4
)

// Network is a classifier.
type Network struct {
	stem, conv1, conv2 convolution
	hidden, output     dense
}

// dense is a fully connected layer; weight is out×in.
type dense struct {
	weight, bias []float32
	in, out      int
}

// convolution is a square convolution over a map of pixels; weight is out×kernel×kernel×in. The map is padded
// with zeros so that stride 1 keeps its size.
type convolution struct {
	dense
	kernel, stride, size, channels int
}

// layout is a network of these sizes without its weights.
func layout(edges, first, second, hidden, classes int) *Network {
	conv := func(kernel, stride, size, in, out int) convolution {
		return convolution{dense{in: kernel * kernel * in, out: out}, kernel, stride, size, in}
	}
	return &Network{
		stem:   conv(stemKernel, stemStride, Size, Channels, edges),
		conv1:  conv(3, 1, conv1Size, edges, first),
		conv2:  conv(3, 1, conv2Size, first, second),
		hidden: dense{in: featureSize * featureSize * second, out: hidden},
		output: dense{in: hidden, out: classes},
	}
}

func (n *Network) allocate() {
	for _, d := range []*dense{&n.stem.dense, &n.conv1.dense, &n.conv2.dense, &n.hidden, &n.output} {
		d.weight, d.bias = make([]float32, d.out*d.in), make([]float32, d.out)
	}
}

// Classes is the number of outputs.
func (n *Network) Classes() int { return n.output.out }

// WeightBytes is the size of all weights.
func (n *Network) WeightBytes() int {
	total := 0
	for _, t := range n.tensors() {
		total += 4 * len(t.data)
	}
	return total
}

// Predict returns the probability of each class for one image of [InputLength] values.
func (n *Network) Predict(image []float32) ([]float32, error) {
	if len(image) != InputLength {
		return nil, fmt.Errorf("image has %d values, not %d", len(image), InputLength)
	}
	features := make([]float32, views*n.hidden.in)
	turned := image
	for v := range views {
		if v > 0 {
			turned = turn(turned)
		}
		n.features(features[v*n.hidden.in:][:n.hidden.in], n.edges(turned))
	}
	hidden := n.hidden.apply(features, views)
	rectify(hidden)
	mean := make([]float32, n.hidden.out)
	for v := range views {
		for i, x := range hidden[v*n.hidden.out:][:n.hidden.out] {
			mean[i] += x / views
		}
	}
	probabilities := n.output.apply(mean, 1)
	softmax(probabilities)
	return probabilities, nil
}

// edges is the part of the network that is not trained.
func (n *Network) edges(image []float32) []float32 {
	wide := n.stem.apply(image)
	for i, x := range wide {
		wide[i] = float32(math.Abs(float64(x)))
	}
	edges := averagePool(wide, stemSize, n.stem.out)
	var sum float64
	for _, x := range edges {
		sum += float64(x) * float64(x)
	}
	scale := float32(1 / math.Sqrt(sum/float64(len(edges))+1e-9))
	for i := range edges {
		edges[i] *= scale
	}
	return edges
}

func (n *Network) features(dst, edges []float32) {
	first := n.conv1.apply(edges)
	rectify(first)
	middle, _ := maxPool(first, conv1Size, n.conv1.out)
	second := n.conv2.apply(middle)
	rectify(second)
	last, _ := maxPool(second, conv2Size, n.conv2.out)
	copy(dst, last)
}

// apply computes rows of outputs from rows of inputs.
func (d *dense) apply(in []float32, rows int) []float32 {
	out := make([]float32, rows*d.out)
	for r := range rows {
		copy(out[r*d.out:], d.bias)
	}
	matmulT(out, in, d.weight, rows, d.out, d.in)
	return out
}

// band is how many rows of a map are convolved at a time: few, so that their patches stay in the cache.
const band = 4

func (c *convolution) apply(in []float32) []float32 {
	size := c.size / c.stride
	out := make([]float32, size*size*c.out)
	patches := make([]float32, band*size*c.in)
	for y := 0; y < size; y += band {
		rows := min(band, size-y)
		c.patches(patches, in, y, y+rows)
		part := out[y*size*c.out:][:rows*size*c.out]
		for p := range rows * size {
			copy(part[p*c.out:], c.bias)
		}
		matmulT(part, patches, c.weight, rows*size, c.out, c.in)
	}
	return out
}

// patches lays out, one a row, the neighbourhoods of the output rows from y0 to y1.
func (c *convolution) patches(dst, in []float32, y0, y1 int) {
	line := c.kernel * c.channels
	for y := y0; y < y1; y++ {
		for x := range c.size / c.stride {
			left := x*c.stride - c.kernel/2
			from, to := max(left, 0), min(left+c.kernel, c.size)
			for ky := range c.kernel {
				row := dst[:line]
				dst = dst[line:]
				sy := y*c.stride + ky - c.kernel/2
				if sy < 0 || sy >= c.size {
					clear(row)
					continue
				}
				clear(row[:(from-left)*c.channels])
				copied := copy(row[(from-left)*c.channels:], in[(sy*c.size+from)*c.channels:(sy*c.size+to)*c.channels])
				clear(row[(from-left)*c.channels+copied:])
			}
		}
	}
}

// turn is the image turned by 90° anticlockwise.
func turn(image []float32) []float32 {
	out := make([]float32, len(image))
	for y := range Size {
		for x := range Size {
			copy(out[((Size-1-x)*Size+y)*Channels:][:Channels], image[(y*Size+x)*Channels:])
		}
	}
	return out
}

func rectify(values []float32) {
	for i, x := range values {
		if x < 0 {
			values[i] = 0
		}
	}
}

func averagePool(in []float32, size, channels int) []float32 {
	out := make([]float32, len(in)/4)
	eachBlock(size, channels, func(o int, block [4]int) {
		out[o] = (in[block[0]] + in[block[1]] + in[block[2]] + in[block[3]]) / 4
	})
	return out
}

// maxPool also tells where each maximum was.
func maxPool(in []float32, size, channels int) ([]float32, []int32) {
	out, from := make([]float32, len(in)/4), make([]int32, len(in)/4)
	eachBlock(size, channels, func(o int, block [4]int) {
		best := block[0]
		for _, i := range block[1:] {
			if in[i] > in[best] {
				best = i
			}
		}
		out[o], from[o] = in[best], int32(best)
	})
	return out, from
}

// eachBlock calls f with each output of a 2×2 pooling and the inputs it is made from.
func eachBlock(size, channels int, f func(o int, block [4]int)) {
	o := 0
	for y := 0; y < size; y += 2 {
		for x := 0; x < size; x += 2 {
			for c := range channels {
				i := (y*size+x)*channels + c
				f(o, [4]int{i, i + channels, i + size*channels, i + (size+1)*channels})
				o++
			}
		}
	}
}

func softmax(logits []float32) {
	top := logits[0]
	for _, x := range logits {
		top = max(top, x)
	}
	var sum float64
	for i, x := range logits {
		e := math.Exp(float64(x - top))
		logits[i] = float32(e)
		sum += e
	}
	for i := range logits {
		logits[i] = float32(float64(logits[i]) / sum)
	}
}
