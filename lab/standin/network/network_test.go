package network

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func newRandom() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

const tinyFeatures, tinyClasses = 2, 3

// newTiny is a network for images of random values.
func newTiny(r *rand.Rand) *Network {
	var typical [][]float32
	for range tinyClasses {
		typical = append(typical, randomImage(r))
	}
	return New(tinyFeatures, typical, r)
}

func randomImage(r *rand.Rand) []float32 {
	image := make([]float32, InputLength)
	for i := range image {
		image[i] = r.Float32()
	}
	return image
}

// TestPredictionMatchesTheDefinition computes the package comment's formula anew, in double precision.
func TestPredictionMatchesTheDefinition(t *testing.T) {
	r := newRandom()
	n, image := newTiny(r), randomImage(r)
	got, err := n.Predict(image)
	if err != nil {
		t.Fatal(err)
	}
	at := func(view, y, x, channel int) float64 {
		for range view % 4 { // a pixel of the turned image comes from here
			y, x = Size-1-x, y
		}
		if view >= 4 {
			x = Size - 1 - x
		}
		return float64(image[(y*Size+x)*Channels+channel])
	}
	score := make([]float64, tinyClasses)
	for view := range 8 {
		for feature := range tinyFeatures {
			product := 0.0
			for i := range InputLength {
				product += float64(n.projection[feature*InputLength+i]) * at(view, i/Channels/Size, i/Channels%Size, i%Channels)
			}
			for class := range score {
				d := product - float64(n.typical[class*tinyFeatures+feature])
				score[class] -= sharpness * d * d / 8
			}
		}
	}
	total := 0.0
	for _, s := range score {
		total += math.Exp(s)
	}
	for class, s := range score {
		if want := math.Exp(s) / total; math.Abs(float64(got[class])-want) > 1e-4 {
			t.Errorf("class %d has probability %v, want %v", class, got[class], want)
		}
	}
}

func TestATypicalImageIsOfItsClass(t *testing.T) {
	r := newRandom()
	var typical [][]float32
	for range 5 {
		typical = append(typical, slices.Repeat([]float32{r.Float32(), r.Float32(), r.Float32()}, Size*Size))
	}
	n := New(4, typical, r)
	for class, image := range typical {
		p, err := n.Predict(image)
		if err != nil {
			t.Fatal(err)
		}
		if best := slices.Index(p, slices.Max(p)); best != class {
			t.Errorf("the typical image of class %d is of class %d: %v", class, best, p)
		}
	}
}

func TestPredictRefusesAnotherSize(t *testing.T) {
	if _, err := newTiny(newRandom()).Predict(make([]float32, InputLength-1)); err == nil {
		t.Error("an image that lacks a value was taken")
	}
}

func TestFullSizeNetworkHas16MiBOfWeights(t *testing.T) {
	n := layout(Features, 10)
	n.allocate()
	if got := n.WeightBytes(); got < 16<<20 || got > 17<<20 {
		t.Errorf("weights take %d bytes, not 16 MiB", got)
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
	e := header["typical"]
	if e.DType != "F32" || !slices.Equal(e.Shape, []int{tinyClasses, tinyFeatures}) {
		t.Fatalf("typical is %+v", e)
	}
	value := math.Float32frombits(binary.LittleEndian.Uint32(file[8+int(length)+e.Offsets[0]:]))
	if value != n.typical[0] {
		t.Errorf("first value of typical is %v, not %v", value, n.typical[0])
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
		{"tensor missing", edited(func(h map[string]any) { delete(h, "typical") }), "typical is missing"},
		{"unknown tensor", edited(func(h map[string]any) { h["x"] = h["typical"] }), "has 3 tensors, not 2"},
		{"other type", set("typical", "dtype", "F16"), "type F16, not F32"},
		{"other shape", set("typical", "shape", []int{3, 15}), "typical has shape"},
		{"zero dimension", set("typical", "shape", []int{0, 8}), "impossible shape"},
		{"negative dimension", set("typical", "shape", []int{-4, -8}), "impossible shape"},
		{"product overflows", set("typical", "shape", []int{1 << 32, 1 << 32}), "impossible shape"},
		{"too many weights", edited(func(h map[string]any) {
			for i := range 5 {
				h[strings.Repeat("x", i+1)] = entry{"F32", []int{1 << 22}, [2]int{}}
			}
		}), "the weights take more than"},
		{"tensors overlap", set("typical", "data_offsets", []int{0, 24}), "lies at"},
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
	smallest := layout(1, 1)
	smallest.allocate()
	file := write(f, smallest)
	f.Add(file)
	f.Add(file[:100])
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		if len(b) < n.WeightBytes() {
			t.Errorf("%d bytes made a network of %d", len(b), n.WeightBytes())
		}
		if err := n.Write(io.Discard); err != nil {
			t.Error(err)
		}
	})
}

func BenchmarkPredict(b *testing.B) {
	r := newRandom()
	n := layout(Features, 10)
	n.allocate()
	image := randomImage(r)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := n.Predict(image); err != nil {
			b.Fatal(err)
		}
	}
}
