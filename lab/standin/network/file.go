package network

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

// Limits of a file, so that a wrong one cannot ask for more memory than a real one needs.
const (
	maxHeader  = 64 << 10
	maxWeights = 64 << 20
)

type tensor struct {
	name  string
	shape []int
	data  []float32
}

// tensors are the network's weights in file order.
func (n *Network) tensors() []tensor {
	return []tensor{
		{"projection", []int{n.features, InputLength}, n.projection},
		{"typical", []int{n.classes, n.features}, n.typical},
	}
}

// entry describes a tensor in the header of a safetensors file.
type entry struct {
	DType   string `json:"dtype"`
	Shape   []int  `json:"shape"`
	Offsets [2]int `json:"data_offsets"`
}

// Write stores the network as a safetensors file: the header's length in 8 bytes, little-endian; the header, a JSON
// object that gives each tensor's type, shape and place; then the tensors' values, little-endian, one after the other.
func (n *Network) Write(w io.Writer) error {
	header, offset := map[string]entry{}, 0
	for _, t := range n.tensors() {
		end := offset + 4*len(t.data)
		header[t.name] = entry{"F32", t.shape, [2]int{offset, end}}
		offset = end
	}
	text, err := json.Marshal(header)
	if err != nil {
		return fmt.Errorf("writing header: %w", err)
	}
	// Readers that map the file want the values aligned; the format allows spaces at the header's end.
	for len(text)%8 != 0 {
		text = append(text, ' ')
	}
	b := bufio.NewWriter(w)
	b.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(text))))
	b.Write(text)
	for _, t := range n.tensors() {
		for _, x := range t.data {
			b.Write(binary.LittleEndian.AppendUint32(b.AvailableBuffer(), math.Float32bits(x)))
		}
	}
	return b.Flush()
}

// Read loads a network from a safetensors file of the layout that [Network.Write] makes, reading it once from
// front to back. Tensors must be of type F32 and fit each other.
func Read(r io.Reader) (*Network, error) {
	b := bufio.NewReaderSize(r, 1<<20)
	header, err := readHeader(b)
	if err != nil {
		return nil, err
	}
	n, err := fromShapes(header)
	if err != nil {
		return nil, err
	}
	tensors := n.tensors()
	slices.SortFunc(tensors, func(x, y tensor) int { return header[x.name].Offsets[0] - header[y.name].Offsets[0] })
	offset := 0
	for _, t := range tensors {
		if got, want := header[t.name].Offsets, [2]int{offset, offset + 4*len(t.data)}; got != want {
			return nil, fmt.Errorf("tensor %s lies at %d, not at %d", t.name, got, want)
		}
		offset += 4 * len(t.data)
		if err := readFloats(t.data, b); err != nil {
			return nil, fmt.Errorf("reading tensor %s: %w", t.name, noEOF(err))
		}
	}
	if _, err := b.ReadByte(); err != io.EOF {
		return nil, errors.New("the file goes on after its last tensor")
	}
	return n, nil
}

func readFloats(dst []float32, r io.Reader) error {
	var block [64 << 10]byte
	for len(dst) > 0 {
		values := min(len(dst), len(block)/4)
		if _, err := io.ReadFull(r, block[:4*values]); err != nil {
			return err
		}
		for i := range values {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(block[4*i:]))
		}
		dst = dst[values:]
	}
	return nil
}

func readHeader(r io.Reader) (map[string]entry, error) {
	var length uint64
	if err := binary.Read(r, binary.LittleEndian, &length); err != nil {
		return nil, fmt.Errorf("reading header length: %w", noEOF(err))
	}
	if length > maxHeader {
		return nil, fmt.Errorf("header has %d bytes, more than %d: not a safetensors file", length, maxHeader)
	}
	text := make([]byte, length)
	if _, err := io.ReadFull(r, text); err != nil {
		return nil, fmt.Errorf("reading header: %w", noEOF(err))
	}
	raw := map[string]json.RawMessage{}
	if err := json.Unmarshal(text, &raw); err != nil {
		return nil, fmt.Errorf("parsing header: %w", err)
	}
	delete(raw, "__metadata__")
	header := map[string]entry{}
	for name, text := range raw {
		var e entry
		if err := json.Unmarshal(text, &e); err != nil {
			return nil, fmt.Errorf("parsing header: tensor %q: %w", name, err)
		}
		header[name] = e
	}
	return header, nil
}

// fromShapes makes a network of the sizes in the header; it allocates nothing before they are found to agree.
func fromShapes(header map[string]entry) (*Network, error) {
	values := 0
	for name, e := range header {
		size := 1
		for _, d := range e.Shape {
			if d < 1 || d > maxWeights/4/size {
				return nil, fmt.Errorf("tensor %q has an impossible shape %d", name, e.Shape)
			}
			size *= d
		}
		if values += size; values > maxWeights/4 {
			return nil, fmt.Errorf("the weights take more than %d bytes", maxWeights)
		}
	}
	rows := func(name string) int {
		if shape := header[name].Shape; len(shape) > 0 {
			return shape[0]
		}
		return 0
	}
	n := layout(rows("projection"), rows("typical"))
	for _, t := range n.tensors() {
		e, ok := header[t.name]
		switch {
		case !ok:
			return nil, fmt.Errorf("tensor %s is missing", t.name)
		case e.DType != "F32":
			return nil, fmt.Errorf("tensor %s is of type %s, not F32", t.name, e.DType)
		case !slices.Equal(e.Shape, t.shape):
			return nil, fmt.Errorf("tensor %s has shape %d, not %d", t.name, e.Shape, t.shape)
		}
	}
	if len(header) != len(n.tensors()) {
		return nil, fmt.Errorf("the file has %d tensors, not %d", len(header), len(n.tensors()))
	}
	n.allocate()
	return n, nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
