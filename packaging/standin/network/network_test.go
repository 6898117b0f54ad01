package network

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

var tiny = Sizes{Conv1: 3, Conv2: 5, Hidden: 8, Classes: 4}

func newRandom() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

// newTiny is a network with biases, so that they count too.
func newTiny(r *rand.Rand) *Network {
	n := New(tiny, r)
	for _, t := range n.tensors() {
		if strings.HasSuffix(t.name, ".bias") {
			for i := range t.data {
				t.data[i] = float32(r.NormFloat64())
			}
		}
	}
	return n
}

func randomImage(r *rand.Rand) []float32 {
	image := make([]float32, InputLength)
	for i := range image {
		image[i] = r.Float32()
	}
	return image
}

func TestPredictionMatchesTheDefinition(t *testing.T) {
	r := newRandom()
	n := newTiny(r)
	image := randomImage(r)
	got, err := n.Predict(image)
	if err != nil {
		t.Fatal(err)
	}
	want := define(n, image)
	for i := range want {
		if math.Abs(float64(got[i])-want[i]) > 1e-4 {
			t.Fatalf("probabilities are %.5f, by the definition of the layers %.5f", got, want)
		}
	}
}

// define computes a network's probabilities in the plainest way, from the description in the package comment.
func define(n *Network, image []float32) []float64 {
	input := func(y, x, c int) float64 {
		if y < 0 || y >= Size || x < 0 || x >= Size {
			return 0
		}
		return float64(image[(y*Size+x)*Channels+c])
	}
	logits := make([]float64, n.Classes())
	for range 4 {
		value, size, channels := input, Size, Channels
		for i, layer := range []struct {
			convolution
			stride int
			pool   func(a, b, c, d float64) float64
		}{
			{n.stem, 4, func(a, b, c, d float64) float64 { return (a + b + c + d) / 4 }},
			{n.conv1, 1, func(a, b, c, d float64) float64 { return max(a, b, c, d) }},
			{n.conv2, 1, func(a, b, c, d float64) float64 { return max(a, b, c, d) }},
		} {
			in, inChannels, out, k := value, channels, len(layer.bias), layer.kernel
			at := func(y, x, o int) float64 {
				sum := float64(layer.bias[o])
				for ky := range k {
					for kx := range k {
						for c := range inChannels {
							sum += in(y*layer.stride+ky-k/2, x*layer.stride+kx-k/2, c) *
								float64(layer.weight[((o*k+ky)*k+kx)*inChannels+c])
						}
					}
				}
				if i == 0 {
					return math.Abs(sum)
				}
				return max(sum, 0)
			}
			size = size / layer.stride / 2
			pooled, squares := make([]float64, size*size*out), 0.0
			for p := range pooled {
				y, x, o := p/out/size*2, p/out%size*2, p%out
				pooled[p] = layer.pool(at(y, x, o), at(y, x+1, o), at(y+1, x, o), at(y+1, x+1, o))
				squares += pooled[p] * pooled[p]
			}
			if i == 0 {
				for p := range pooled {
					pooled[p] /= math.Sqrt(squares/float64(len(pooled)) + 1e-9)
				}
			}
			channels = out
			value = func(s int) func(y, x, c int) float64 {
				return func(y, x, c int) float64 {
					if y < 0 || y >= s || x < 0 || x >= s {
						return 0
					}
					return pooled[(y*s+x)*out+c]
				}
			}(size)
		}
		for h, bias := range n.hidden.bias {
			sum := float64(bias)
			for i := range size * size * channels {
				sum += value(i/channels/size, i/channels%size, i%channels) * float64(n.hidden.weight[h*n.hidden.in+i])
			}
			for c := range logits {
				logits[c] += max(sum, 0) / 4 * float64(n.output.weight[c*n.output.in+h])
			}
		}
		before := input
		input = func(y, x, c int) float64 { return before(x, Size-1-y, c) }
	}
	sum := 0.0
	for c := range logits {
		logits[c] = math.Exp(logits[c] + float64(n.output.bias[c]))
		sum += logits[c]
	}
	for c := range logits {
		logits[c] /= sum
	}
	return logits
}

func TestPredictRefusesAnotherSize(t *testing.T) {
	if _, err := New(tiny, newRandom()).Predict(make([]float32, InputLength-1)); err == nil {
		t.Error("an image that lacks a value was taken")
	}
}

func TestFullSizeNetworkHas16MiBOfWeights(t *testing.T) {
	if got := New(FullSize(10), newRandom()).WeightBytes(); got < 16<<20 {
		t.Errorf("weights take %d bytes, less than 16 MiB", got)
	}
}

func TestGradientsMatchDifferences(t *testing.T) {
	r := newRandom()
	n := newTiny(r)
	h := newHead(n.hidden.in, 6, tiny.Classes, r)
	examples := []Example{n.Example(randomImage(r), 1), n.Example(randomImage(r), 3)}
	layers := []*dense{&n.conv1.dense, &n.conv2.dense, &h.hidden, &h.output}
	grads := zeros(layers)
	n.backpropagate(h, grads, examples, []int{0, 1})
	loss := func() float64 { return n.backpropagate(h, zeros(layers), examples, []int{0, 1}) }
	for l, layer := range layers {
		for range 12 {
			i := r.IntN(len(layer.weight))
			const step = 1e-2
			before := layer.weight[i]
			layer.weight[i] = before + step
			above := loss()
			layer.weight[i] = before - step
			below := loss()
			layer.weight[i] = before
			want, got := (above-below)/(2*step), float64(grads[l].weight[i])
			if math.Abs(want-got) > 0.02+0.05*math.Abs(want) {
				t.Errorf("layer %d, weight %d: gradient is %.4f, the loss changes by %.4f", l, i, got, want)
			}
		}
	}
}

func TestTrainingIsTheSameForTheSameSeed(t *testing.T) {
	train := func() []byte {
		r := newRandom()
		n := New(tiny, r)
		var examples []Example
		for i := range batchSize {
			examples = append(examples, n.Example(randomImage(r), i%tiny.Classes))
		}
		if err := n.Train(context.Background(), examples, Training{Epochs: 2, HeadEpochs: 2, Rate: 0.01, Rand: r}); err != nil {
			t.Fatal(err)
		}
		return write(t, n)
	}
	if !bytes.Equal(train(), train()) {
		t.Error("two runs made different weights")
	}
}

func TestTrainingEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r := newRandom()
	n := New(tiny, r)
	examples := slices.Repeat([]Example{n.Example(randomImage(r), 0)}, batchSize)
	if err := n.Train(ctx, examples, Training{Epochs: 1, HeadEpochs: 1, Rate: 0.01, Rand: r}); err != context.Canceled {
		t.Errorf("error is %v, not that the context is cancelled", err)
	}
}

func write(t testing.TB, n *Network) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := n.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestFileKeepsEveryWeight(t *testing.T) {
	file := write(t, newTiny(newRandom()))
	n, err := Read(iotest.HalfReader(bytes.NewReader(file)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(write(t, n), file) {
		t.Error("what was read is not what was written")
	}
}

// TestFileIsSafetensors pins the layout to the format's description, not to our reader.
func TestFileIsSafetensors(t *testing.T) {
	n := newTiny(newRandom())
	file := write(t, n)
	length := binary.LittleEndian.Uint64(file)
	if length%8 != 0 {
		t.Errorf("header has %d bytes: the values are not aligned", length)
	}
	var header map[string]struct {
		DType   string `json:"dtype"`
		Shape   []int  `json:"shape"`
		Offsets []int  `json:"data_offsets"`
	}
	if err := json.Unmarshal(file[8:8+length], &header); err != nil {
		t.Fatal(err)
	}
	e := header["output.weight"]
	if e.DType != "F32" || !slices.Equal(e.Shape, []int{tiny.Classes, tiny.Hidden}) {
		t.Fatalf("output.weight is %+v", e)
	}
	value := math.Float32frombits(binary.LittleEndian.Uint32(file[8+int(length)+e.Offsets[0]:]))
	if value != n.output.weight[0] {
		t.Errorf("first value of output.weight is %v, not %v", value, n.output.weight[0])
	}
}

func TestReadRefusesWhatIsNotANetwork(t *testing.T) {
	file := write(t, newTiny(newRandom()))
	length := int(binary.LittleEndian.Uint64(file))
	// edited is the file with a changed header.
	edited := func(change func(header map[string]any)) []byte {
		var header map[string]any
		if err := json.Unmarshal(file[8:8+length], &header); err != nil {
			t.Fatal(err)
		}
		change(header)
		text, err := json.Marshal(header)
		if err != nil {
			t.Fatal(err)
		}
		return slices.Concat(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), text, file[8+length:])
	}
	set := func(tensor, key string, value any) []byte {
		return edited(func(h map[string]any) { h[tensor].(map[string]any)[key] = value })
	}
	for _, test := range []struct {
		name string
		file []byte
		want string
	}{
		{"empty", nil, "unexpected EOF"},
		{"huge header", []byte("\xff\xff\xff\xff\xff\xff\xff\x7f{}"), "not a safetensors file"},
		{"header cut off", file[:20], "unexpected EOF"},
		{"not JSON", append([]byte("\x02\x00\x00\x00\x00\x00\x00\x00"), "{]"...), "parsing header"},
		{"values cut off", file[:len(file)-1], "unexpected EOF"},
		{"more values", append(slices.Clone(file), 0), "goes on after its last tensor"},
		{"tensor missing", edited(func(h map[string]any) { delete(h, "conv1.bias") }), "conv1.bias is missing"},
		{"unknown tensor", edited(func(h map[string]any) { h["x"] = h["conv1.bias"] }), "has 11 tensors, not 10"},
		{"other type", set("conv1.bias", "dtype", "F16"), "type F16, not F32"},
		{"other shape", set("conv1.weight", "shape", []int{3, 3, 3, 15}), "conv1.weight has shape"},
		{"zero dimension", set("output.weight", "shape", []int{0, 8}), "impossible shape"},
		{"negative dimension", set("output.weight", "shape", []int{-4, -8}), "impossible shape"},
		{"product overflows", set("output.weight", "shape", []int{1 << 32, 1 << 32}), "impossible shape"},
		{"too many weights", edited(func(h map[string]any) {
			for i := range 5 {
				h[strings.Repeat("x", i+1)] = entry{"F32", []int{1 << 22}, [2]int{}}
			}
		}), "the weights take more than"},
		{"tensors overlap", set("conv1.bias", "data_offsets", []int{0, 12}), "lies at"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Read(bytes.NewReader(test.file))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, not one with %q", err, test.want)
			}
		})
	}
}

func FuzzRead(f *testing.F) {
	smallest := layout(1, 1, 1, 1, 1)
	smallest.allocate()
	file := write(f, smallest)
	f.Add(file)
	f.Add(file[:100])
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		names := map[string]int{}
		for _, tensor := range n.tensors() {
			names[tensor.name] = len(tensor.data)
		}
		if len(b) < 4*sum(maps.Values(names)) {
			t.Errorf("%d bytes made tensors %v", len(b), names)
		}
		if err := n.Write(io.Discard); err != nil {
			t.Error(err)
		}
	})
}

func sum(values func(func(int) bool)) int {
	total := 0
	for v := range values {
		total += v
	}
	return total
}

func BenchmarkPredict(b *testing.B) {
	r := newRandom()
	n := New(FullSize(10), r)
	image := randomImage(r)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := n.Predict(image); err != nil {
			b.Fatal(err)
		}
	}
}
