package network

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Sizes are the free dimensions of a network.
type Sizes struct {
	// Conv1, Conv2 and Hidden are the outputs of these layers. Hidden is a multiple of four.
	Conv1, Conv2, Hidden int
	Classes              int
}

// FullSize is the network of the demo: its weights take just over 16 MiB.
func FullSize(classes int) Sizes { return Sizes{Conv1: 16, Conv2: 32, Hidden: 2688, Classes: classes} }

// New makes an untrained network: edge filters in the stem, random weights elsewhere.
func New(s Sizes, r *rand.Rand) *Network {
	n := layout(2*directions, s.Conv1, s.Conv2, s.Hidden, s.Classes)
	n.allocate()
	n.stem.weight = edgeFilters()
	for _, d := range []*dense{&n.conv1.dense, &n.conv2.dense, &n.hidden, &n.output} {
		*d = randomDense(d.in, d.out, r)
	}
	return n
}

func randomDense(in, out int, r *rand.Rand) dense {
	d := dense{make([]float32, out*in), make([]float32, out), in, out}
	spread := math.Sqrt(2 / float64(in))
	for i := range d.weight {
		d.weight[i] = float32(r.NormFloat64() * spread)
	}
	return d
}

// directions is the number of ways in which an edge filter looks.
const directions = 8

// edgeFilters are first derivatives of a Gaussian of the image's brightness in each direction, at two scales.
func edgeFilters() []float32 {
	var filters []float32
	for _, sigma := range [...]float64{0.9, 1.8} {
		for d := range directions {
			sin, cos := math.Sincos(math.Pi * float64(d) / directions)
			filter, norm := make([]float64, stemKernel*stemKernel), 0.0
			for i := range filter {
				x, y := float64(i%stemKernel-stemKernel/2), float64(i/stemKernel-stemKernel/2)
				filter[i] = (x*cos + y*sin) * math.Exp(-(x*x+y*y)/(2*sigma*sigma))
				norm += math.Abs(filter[i])
			}
			for _, v := range filter {
				for _, share := range [Channels]float64{0.3, 0.59, 0.11} {
					filters = append(filters, float32(v/norm*share))
				}
			}
		}
	}
	return filters
}

// Example is a labelled image.
type Example struct {
	edges []float32
	class int
}

// Example prepares an image of [InputLength] values for training and testing: the layers that are not trained
// are computed only once.
func (n *Network) Example(image []float32, class int) Example {
	return Example{n.edges(image), class}
}

// Training says how to train.
type Training struct {
	// Epochs is how often the convolutions see all examples, HeadEpochs how often the hidden layer does.
	Epochs, HeadEpochs int
	Rate               float64 // learning rate at the start of either phase; it falls to zero along half a cosine
	Rand               *rand.Rand
	// Progress is told the mean loss after each epoch of the first phase; it may be nil.
	Progress func(epoch int, loss float64)
}

const (
	batchSize   = 32
	shards      = 2 // computed concurrently; a constant, so that sums do not depend on the number of cores
	heads       = 4 // parts of the hidden layer
	scaffolding = 96
	momentum    = 0.9
)

// Train fits all layers but the stem by stochastic gradient descent with momentum, in two phases.
//
// First the convolutions learn, under a small hidden layer that is thrown away afterwards: the full one would make
// each step three times as dear. Then the quarters of the full hidden layer learn apart from each other, each from
// its own order of the examples; the finished network averages what the four say.
func (n *Network) Train(ctx context.Context, examples []Example, t Training) error {
	if n.hidden.out%heads != 0 || len(examples) < batchSize {
		return fmt.Errorf("training needs a hidden layer of a multiple of %d and at least %d examples", heads, batchSize)
	}
	if err := n.trainConvolutions(ctx, examples, t); err != nil {
		return err
	}
	features := make([][]float32, len(examples))
	for i, e := range examples {
		features[i] = make([]float32, n.hidden.in)
		n.features(features[i], e.edges)
	}
	n.hidden.bias, n.output.bias = make([]float32, n.hidden.out), make([]float32, n.output.out)
	var trained [heads]*head
	group, ctx := errgroup.WithContext(ctx)
	for i := range trained {
		h := newHead(n.hidden.in, n.hidden.out/heads, n.output.out, t.Rand)
		order := rand.New(rand.NewPCG(t.Rand.Uint64(), t.Rand.Uint64()))
		trained[i] = h
		group.Go(func() error { return h.train(ctx, features, examples, t, order) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i, h := range trained {
		first := i * h.hidden.out
		copy(n.hidden.weight[first*n.hidden.in:], h.hidden.weight)
		copy(n.hidden.bias[first:], h.hidden.bias)
		for c := range n.output.out {
			for j, w := range h.output.weight[c*h.output.in:][:h.output.in] {
				n.output.weight[c*n.hidden.out+first+j] = w / heads
			}
			n.output.bias[c] += h.output.bias[c] / heads
		}
	}
	return nil
}

func (n *Network) trainConvolutions(ctx context.Context, examples []Example, t Training) error {
	h := newHead(n.hidden.in, scaffolding, n.output.out, t.Rand)
	layers := []*dense{&n.conv1.dense, &n.conv2.dense, &h.hidden, &h.output}
	d := newDescent(layers, t.Rate, t.Epochs*(len(examples)/batchSize))
	for epoch := range t.Epochs {
		order, loss := t.Rand.Perm(len(examples)), 0.0
		for step := range len(examples) / batchSize {
			if err := ctx.Err(); err != nil {
				return err
			}
			batch := order[step*batchSize:][:batchSize]
			var grads [shards][]dense
			var losses [shards]float64
			var wait sync.WaitGroup
			for s := range shards {
				grads[s] = zeros(layers)
				part := batch[s*batchSize/shards : (s+1)*batchSize/shards]
				wait.Go(func() { losses[s] = n.backpropagate(h, grads[s], examples, part) })
			}
			wait.Wait()
			d.step(grads[:])
			for _, l := range losses {
				loss += l
			}
		}
		if t.Progress != nil {
			t.Progress(epoch+1, loss/float64(len(examples)))
		}
	}
	return nil
}

// descent changes layers against their gradients.
type descent struct {
	layers      []*dense
	speed       []dense
	rate        float64
	done, steps int
}

func newDescent(layers []*dense, rate float64, steps int) *descent {
	return &descent{layers: layers, speed: zeros(layers), rate: rate, steps: steps}
}

func (d *descent) step(grads [][]dense) {
	rate := float32(d.rate * (1 + math.Cos(math.Pi*float64(d.done)/float64(d.steps))) / 2 / batchSize)
	d.done++
	for l, layer := range d.layers {
		for _, g := range grads {
			accelerate(d.speed[l].weight, g[l].weight, rate)
			accelerate(d.speed[l].bias, g[l].bias, rate)
		}
		move(layer.weight, d.speed[l].weight)
		move(layer.bias, d.speed[l].bias)
	}
}

func accelerate(speed, grad []float32, rate float32) {
	for i, g := range grad {
		speed[i] -= rate * g
	}
}

// move takes one step and slows down.
func move(values, speed []float32) {
	for i, v := range speed {
		values[i] += v
		speed[i] = momentum * v
	}
}

// zeros are gradients of layers, before anything is added.
func zeros(layers []*dense) []dense {
	z := make([]dense, len(layers))
	for i, l := range layers {
		z[i] = dense{make([]float32, len(l.weight)), make([]float32, len(l.bias)), l.in, l.out}
	}
	return z
}

// head is a hidden layer with its output layer.
type head struct{ hidden, output dense }

func newHead(features, hidden, classes int, r *rand.Rand) *head {
	return &head{randomDense(features, hidden, r), randomDense(hidden, classes, r)}
}

func (h *head) train(ctx context.Context, features [][]float32, examples []Example, t Training, r *rand.Rand) error {
	layers := []*dense{&h.hidden, &h.output}
	d := newDescent(layers, t.Rate, t.HeadEpochs*(len(examples)/batchSize))
	in, classes := make([]float32, batchSize*h.hidden.in), make([]int, batchSize)
	for range t.HeadEpochs {
		order := r.Perm(len(examples))
		for step := range len(examples) / batchSize {
			if err := ctx.Err(); err != nil {
				return err
			}
			for i, e := range order[step*batchSize:][:batchSize] {
				copy(in[i*h.hidden.in:], features[e])
				classes[i] = examples[e].class
			}
			grads := zeros(layers)
			h.backpropagate(&grads[0], &grads[1], in, classes)
			d.step([][]dense{grads})
		}
	}
	return nil
}

// backpropagate adds to the gradients of the cross-entropy and returns its sum and its derivative by the hidden
// layer's outputs.
func (h *head) backpropagate(hidden, output *dense, in []float32, classes []int) (byHidden []float32, loss float64) {
	rows := len(classes)
	middle := h.hidden.apply(in, rows)
	rectify(middle)
	errors := h.output.apply(middle, rows)
	for i, class := range classes {
		p := errors[i*h.output.out:][:h.output.out]
		softmax(p)
		loss -= math.Log(float64(p[class]) + 1e-12)
		p[class]-- // the derivative by the logits is the error of the probabilities
	}
	output.descend(middle, errors, rows)
	byHidden = h.output.back(errors, rows)
	for i, x := range middle {
		if x <= 0 { // where the ReLU was shut
			byHidden[i] = 0
		}
	}
	hidden.descend(in, byHidden, rows)
	return byHidden, loss
}

// backpropagate adds a part of a batch to the gradients of the convolutions and of the head.
func (n *Network) backpropagate(h *head, grads []dense, examples []Example, part []int) (loss float64) {
	traces, classes := make([]trace, len(part)), make([]int, len(part))
	var features []float32
	for i, e := range part {
		traces[i], classes[i] = n.trace(examples[e].edges), examples[e].class
		features = append(features, traces[i].features...)
	}
	byHidden, loss := h.backpropagate(&grads[2], &grads[3], features, classes)
	byFeatures := h.hidden.back(byHidden, len(part))
	for i, e := range part {
		n.backtrace(&grads[0], &grads[1], &traces[i], examples[e].edges, byFeatures[i*n.hidden.in:][:n.hidden.in])
	}
	return loss
}

// descend adds to a gradient, from a layer's inputs and the derivative by its outputs.
func (d *dense) descend(in, byOut []float32, rows int) {
	for r := range rows {
		for o, x := range byOut[r*d.out:][:d.out] {
			d.bias[o] += x
		}
	}
	matmulT(d.weight, transposed(byOut, rows, d.out), transposed(in, rows, d.in), d.out, d.in, rows)
}

// back is the derivative by a layer's inputs, from that by its outputs.
func (d *dense) back(byOut []float32, rows int) []float32 {
	byIn := make([]float32, rows*d.in)
	matmulT(byIn, byOut, transposed(d.weight, d.out, d.in), rows, d.in, d.out)
	return byIn
}

// trace is what the convolutions leave behind for the way back.
type trace struct {
	first, middle, second, features []float32
	fromFirst, fromSecond           []int32
}

func (n *Network) trace(edges []float32) trace {
	var t trace
	t.first = n.conv1.apply(edges)
	rectify(t.first)
	t.middle, t.fromFirst = maxPool(t.first, conv1Size, n.conv1.out)
	t.second = n.conv2.apply(t.middle)
	rectify(t.second)
	t.features, t.fromSecond = maxPool(t.second, conv2Size, n.conv2.out)
	return t
}

func (n *Network) backtrace(conv1, conv2 *dense, t *trace, edges, byFeatures []float32) {
	bySecond := unpool(byFeatures, t.fromSecond, t.second)
	conv2.descend(n.conv2.allPatches(t.middle), bySecond, conv2Size*conv2Size)
	byMiddle := n.conv2.gather(n.conv2.back(bySecond, conv2Size*conv2Size))
	conv1.descend(n.conv1.allPatches(edges), unpool(byMiddle, t.fromFirst, t.first), conv1Size*conv1Size)
}

func (c *convolution) allPatches(in []float32) []float32 {
	patches := make([]float32, c.size*c.size*c.in)
	c.patches(patches, in, 0, c.size)
	return patches
}

// gather adds each patch to where it was taken from.
func (c *convolution) gather(patches []float32) []float32 {
	out := make([]float32, c.size*c.size*c.channels)
	for y := range c.size {
		for x := range c.size {
			for ky := range c.kernel {
				for kx := range c.kernel {
					pixel := patches[:c.channels]
					patches = patches[c.channels:]
					sy, sx := y+ky-c.kernel/2, x+kx-c.kernel/2
					if sy < 0 || sy >= c.size || sx < 0 || sx >= c.size {
						continue
					}
					for i, v := range pixel {
						out[(sy*c.size+sx)*c.channels+i] += v
					}
				}
			}
		}
	}
	return out
}

// unpool sends derivatives back to the maxima they came from, through the ReLU before it.
func unpool(by []float32, from []int32, activation []float32) []float32 {
	out := make([]float32, len(activation))
	for i, x := range by {
		if activation[from[i]] > 0 {
			out[from[i]] = x
		}
	}
	return out
}

func transposed(a []float32, rows, columns int) []float32 {
	t := make([]float32, len(a))
	transpose(t, a, rows, columns)
	return t
}
