package pfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/sesame-init/sesame/internal/fault"
)

const (
	chunkNodes    = 16 // decrypted by one goroutine in one go
	parallelNodes = 96 // reads of this many nodes use all cores
	dataCache     = 256
)

// Reader opens protected files. All files that it opened share its bounded memory: at most 32 buffers of 64 KiB,
// 1 MiB of data nodes, and the MHT nodes it was made for.
type Reader struct {
	*Codec
	tree    *cache
	data    *cache
	buffers *buffers
	files   atomic.Uint64
}

// NewReader returns a reader that keeps up to mhtCache verified MHT nodes, 4 KiB each; one of them covers 384 KiB
// of content.
func NewReader(c *Codec, mhtCache int) *Reader {
	limit := min(32, max(16, 4*runtime.GOMAXPROCS(0)))
	return &Reader{
		Codec: c, tree: newCache(mhtCache), data: newCache(dataCache),
		buffers: newBuffers(limit, chunkNodes*NodeSize+tagSize),
	}
}

// File is an open protected file. It is safe for concurrent use.
type File struct {
	r      *Reader
	src    io.ReaderAt
	id     uint64
	size   int64
	mac    [16]byte
	root   [entrySize]byte
	inline []byte
}

// Open verifies node 0 of the protected file in src, which is length bytes long, and that it was written under the
// given name. It does not take ownership of src.
func (r *Reader) Open(src io.ReaderAt, length int64, name string) (*File, error) {
	if length < NodeSize || length%NodeSize != 0 {
		return nil, fmt.Errorf("%w: %d bytes are not a number of nodes", ErrMalformed, length)
	}
	node := r.buffers.get()
	defer r.buffers.put(node)
	if err := readFull(src, node[:NodeSize], 0); err != nil {
		return nil, err
	}
	if err := r.checkHeader(node[:NodeSize]); err != nil {
		return nil, err
	}
	f := &File{r: r, src: src, id: r.files.Add(1), mac: [16]byte(node[offMAC:])}
	key := r.metadataKey(node[offKeyID : offKeyID+32])
	sealed := r.layout.sealedSize()
	padded := isZero(node[offSealed+sealed : NodeSize])
	copy(node[offSealed+sealed:], f.mac[:])
	plain := make([]byte, sealed)
	if !r.open(plain, key, node[offSealed:offSealed+sealed+tagSize]) {
		return nil, fmt.Errorf("%w: tag of node 0", ErrTampered)
	}
	if !padded {
		return nil, fmt.Errorf("%w: padding is not zero", ErrMalformed)
	}
	if err := f.parse(plain, length, name); err != nil {
		return nil, err
	}
	return f, nil
}

// checkHeader checks what precedes the sealed part. The tag covers none of it.
func (r *Reader) checkHeader(node []byte) error {
	malformed := func(what string) error { return fmt.Errorf("%w: %s", ErrMalformed, what) }
	switch {
	case string(node[:8]) != magic:
		return malformed("not a protected file")
	case node[offMajor] != 1 || node[offMinor] != 0:
		return malformed("version is not 1.0")
	case node[offUserKey] != 1:
		return fmt.Errorf("%w: sealed with a key of the processor", ErrMode)
	case node[offUpdate] != 0:
		return malformed("update was interrupted")
	case node[offIntegrity] == 1 && r.Encrypted():
		return fmt.Errorf("%w: integrity-only file opened with a key", ErrMode)
	case node[offIntegrity] == 0 && !r.Encrypted():
		return fmt.Errorf("%w: encrypted file opened without a key", ErrMode)
	case node[offIntegrity] > 1:
		return malformed("integrity flag")
	case !isZero(node[offSVN:offUserKey]) || !isZero(node[offAttribute:offMAC]):
		return malformed("reserved fields are not zero")
	case !r.Encrypted() && !isZero(node[offKeyID:offSVN]):
		return malformed("key id of an integrity-only file")
	}
	return nil
}

// parse checks the plaintext of the sealed part.
func (f *File) parse(plain []byte, length int64, name string) error {
	l := f.r.layout
	stored, rest, _ := bytes.Cut(plain[:nameSize], []byte{0})
	f.size = int64(binary.LittleEndian.Uint64(plain[nameSize:]))
	f.inline = plain[l.inline():]
	f.root = [entrySize]byte(plain[l.rootEntry():])
	nodes := dataNodes(f.size)
	switch {
	case string(stored) != name:
		return fmt.Errorf("%w: file was written under the name %q", ErrTampered, stored)
	case len(stored) > MaxName || !isZero(rest):
		return fmt.Errorf("%w: name field", ErrMalformed)
	case !isZero(plain[nameSize+8 : l.rootEntry()]):
		return fmt.Errorf("%w: reserved fields are not zero", ErrMalformed)
	case f.size < 0 || f.size > 1<<62 || StoredSize(f.size) != length:
		return fmt.Errorf("%w: content of %d bytes in a file of %d", ErrMalformed, f.size, length)
	case nodes == 0 && (f.root != [entrySize]byte{} || !isZero(f.inline[f.size:])):
		return fmt.Errorf("%w: unused part of node 0 is not zero", ErrMalformed)
	case !f.r.Encrypted() && !isZero(f.root[:16]):
		return fmt.Errorf("%w: key in an integrity-only file", ErrMalformed)
	}
	return nil
}

// Size is the length of the content in bytes.
func (f *File) Size() int64 { return f.size }

// MAC is the tag of node 0. It covers the name and the whole content.
func (f *File) MAC() [16]byte { return f.mac }

// ReadAt implements [io.ReaderAt]. After an error the bytes before the returned count are still verified ones.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	if off >= f.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > f.size-off {
		p, eof = p[:f.size-off], io.EOF
	}
	n := 0
	if off < inlineSize {
		n = copy(p, f.inline[off:])
	}
	if n < len(p) {
		k, err := f.readNodes(p[n:], off+int64(n)-inlineSize)
		if n += k; err != nil {
			return n, err
		}
	}
	return n, eof
}

// chunk is a part of a read that lies below one MHT node: p starts skip bytes into data node first.
type chunk struct {
	p     []byte
	first int64
	skip  int
}

// next cuts the chunk at byte off of the data nodes from the front of p.
func next(p []byte, off int64) chunk {
	c := chunk{first: off / NodeSize, skip: int(off % NodeSize)}
	nodes := min(chunkNodes, mhtData-c.first%mhtData)
	c.p = p[:min(len(p), int(nodes)*NodeSize-c.skip)]
	return c
}

// readNodes fills p from byte off of the data nodes; all of it is there.
func (f *File) readNodes(p []byte, off int64) (int, error) {
	if len(p) >= parallelNodes*NodeSize {
		return f.readParallel(p, off)
	}
	n := 0
	for n < len(p) {
		c := next(p[n:], off+int64(n))
		if err := f.readChunk(c); err != nil {
			return n, err
		}
		n += len(c.p)
	}
	return n, nil
}

func (f *File) readParallel(p []byte, off int64) (int, error) {
	var chunks []chunk
	for n := 0; n < len(p); {
		c := next(p[n:], off+int64(n))
		chunks = append(chunks, c)
		n += len(c.p)
	}
	errs := make([]error, len(chunks))
	var claimed atomic.Int64
	work := func() error {
		for {
			i := int(claimed.Add(1)) - 1
			if i >= len(chunks) {
				return nil
			}
			if errs[i] = f.readChunk(chunks[i]); errs[i] != nil {
				claimed.Store(int64(len(chunks))) // those before i are claimed already
				return nil
			}
		}
	}
	var others errgroup.Group
	for range min(runtime.GOMAXPROCS(0), len(chunks)) - 1 {
		others.Go(func() error { return fault.Try(work) })
	}
	panicked := fault.Try(work)
	_ = fault.Raise(errors.Join(others.Wait(), panicked)) // after all have let go of p
	n := 0
	for i, err := range errs {
		if err != nil {
			return n, err
		}
		n += len(chunks[i].p)
	}
	return n, nil
}

func (f *File) readChunk(c chunk) error {
	first, count := c.first, (c.skip+len(c.p)+NodeSize-1)/NodeSize
	// A node that the read takes only a part of is likely to be needed again by the next read.
	if c.skip > 0 || len(c.p) < NodeSize {
		if node := f.r.data.get(nodeID{f.id, first}); node != nil {
			k := copy(c.p, node[c.skip:])
			c.p, c.skip = c.p[k:], 0
			first, count = first+1, count-1
		}
	}
	if count == 0 {
		return nil
	}
	mht, err := f.mht(first / mhtData)
	if err != nil {
		return err
	}
	buf := f.r.buffers.get()
	defer f.r.buffers.put(buf)
	if err := readFull(f.src, buf[:count*NodeSize], dataPosition(first)*NodeSize); err != nil {
		return err
	}
	// From the last to the first: the tag has to follow its node, in the place of the next one.
	for i := count - 1; i >= 0; i-- {
		d := first + int64(i)
		entry := mht[d%mhtData*entrySize:][:entrySize]
		box := buf[i*NodeSize : (i+1)*NodeSize+tagSize]
		copy(box[NodeSize:], entry[16:])
		from := i*NodeSize - c.skip // of the node in c.p
		if from >= 0 && from+NodeSize <= len(c.p) {
			if !f.r.open(c.p[from:from+NodeSize], entry[:16], box) {
				return fmt.Errorf("%w: tag of data node %d", ErrTampered, d)
			}
			continue
		}
		node := make([]byte, NodeSize)
		if !f.r.open(node, entry[:16], box) {
			return fmt.Errorf("%w: tag of data node %d", ErrTampered, d)
		}
		if used := f.size - inlineSize - d*NodeSize; used < NodeSize && !isZero(node[used:]) {
			return fmt.Errorf("%w: data node %d goes on after the end of the content", ErrMalformed, d)
		}
		f.r.data.put(nodeID{f.id, d}, node)
		copy(c.p[max(from, 0):], node[max(-from, 0):])
	}
	return nil
}

// mht returns MHT node m, verified from node 0 on.
func (f *File) mht(m int64) ([]byte, error) {
	id := nodeID{f.id, m}
	if node := f.r.tree.get(id); node != nil {
		return node, nil
	}
	entry := f.root[:]
	if m > 0 {
		parent, err := f.mht((m - 1) / mhtChildren)
		if err != nil {
			return nil, err
		}
		entry = parent[(mhtData+(m-1)%mhtChildren)*entrySize:][:entrySize]
	}
	buf := f.r.buffers.get()
	defer f.r.buffers.put(buf)
	if err := readFull(f.src, buf[:NodeSize], mhtPosition(m)*NodeSize); err != nil {
		return nil, err
	}
	copy(buf[NodeSize:], entry[16:])
	node := make([]byte, NodeSize)
	if !f.r.open(node, entry[:16], buf[:NodeSize+tagSize]) {
		return nil, fmt.Errorf("%w: tag of MHT node %d", ErrTampered, m)
	}
	if err := f.checkEntries(m, node); err != nil {
		return nil, err
	}
	f.r.tree.put(id, node)
	return node, nil
}

// checkEntries checks that MHT node m has no entries for nodes that do not exist, and no keys that are not used.
func (f *File) checkEntries(m int64, node []byte) error {
	n := dataNodes(f.size)
	data := min(mhtData, n-m*mhtData)
	children := max(0, min(mhtChildren, mhtNodes(n)-1-m*mhtChildren))
	if !isZero(node[data*entrySize:mhtData*entrySize]) || !isZero(node[(mhtData+children)*entrySize:]) {
		return fmt.Errorf("%w: unused part of MHT node %d is not zero", ErrMalformed, m)
	}
	if f.r.Encrypted() {
		return nil
	}
	for e := node; len(e) > 0; e = e[entrySize:] {
		if !isZero(e[:16]) {
			return fmt.Errorf("%w: key in an integrity-only file", ErrMalformed)
		}
	}
	return nil
}

// readFull takes a file that ends early, because it was cut while open, for the lie that it is.
func readFull(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("%w: file ends early", ErrMalformed)
	}
	return err
}
