package pfs

import (
	"context"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/sesame-init/sesame/internal/fault"
)

const segmentSize = segmentNodes * NodeSize

// WriterOptions say how a [Writer] makes keys and how much it does at once.
type WriterOptions struct {
	// Rand is the source of keys; each file takes 96 bytes. It must be a cryptographic source.
	Rand io.Reader
	// Reproducible derives node keys and key ids from the user key, the file name, the position of the node and
	// its exact content, so that the same content makes the same file. Equal nodes at equal places of two files of
	// one name are then visible as such to anyone who sees both.
	Reproducible bool
	// Buffers bounds the memory: that many times 388 KiB. About two for each core keep all cores busy.
	Buffers int
}

// Writer writes protected files. It is safe for concurrent use; all files share its bounded memory.
type Writer struct {
	*Codec
	mu      sync.Mutex // of rand
	rand    io.Reader
	derive  []byte // key of the reproducible mode's node keys, or nil
	buffers *buffers
}

// NewWriter returns a writer of files of the codec.
func NewWriter(c *Codec, o WriterOptions) (*Writer, error) {
	w := &Writer{Codec: c, rand: o.Rand, buffers: newBuffers(o.Buffers, segmentSize+tagSize)}
	if o.Reproducible && c.Encrypted() {
		var err error
		if w.derive, err = hkdf.Key(sha256.New, c.key[:], nil, "repro", sha256.Size); err != nil {
			return nil, fmt.Errorf("deriving key: %w", err)
		}
	}
	return w, nil
}

// Target receives a protected file. It is new: what has not been written reads as zeros or not at all.
type Target interface {
	io.ReaderAt
	io.WriterAt
}

// output is a protected file that is being written.
type output struct {
	w     *Writer
	dst   Target
	name  string
	keyID [32]byte
	keys  cipher.Block // node keys: the node's number, encrypted under a key of this file alone
	spill cipher.Block // hides MHT nodes that still wait for their children
}

// Write makes the protected file of everything that src gives, and returns its size and MAC. The memory it takes
// does not depend on the size: MHT nodes that wait for their children's tags stand in dst meanwhile, encrypted
// under a key that is then forgotten.
//
// A segment is an MHT node and its data nodes, which are adjacent in the file. Segments are sealed in parallel
// while src is read on. After an error dst holds nothing of use.
func (w *Writer) Write(ctx context.Context, dst Target, name string, src io.Reader) (int64, [16]byte, error) {
	var none [16]byte
	if len(name) > MaxName {
		return 0, none, fmt.Errorf("name of %d bytes is too long", len(name))
	}
	o := &output{w: w, dst: dst, name: name}
	var random [96]byte
	w.mu.Lock()
	_, err := io.ReadFull(w.rand, random[:])
	w.mu.Unlock()
	if err != nil {
		return 0, none, fmt.Errorf("reading random bytes: %w", err)
	}
	o.keys, o.spill = newBlock(random[:32]), newBlock(random[32:64])
	if w.Encrypted() {
		o.keyID = [32]byte(random[64:])
	}
	node0 := make([]byte, NodeSize)
	plain := node0[offSealed:][:w.layout.sealedSize()]
	n, err := readBlock(src, plain[w.layout.inline():])
	size := int64(n)
	if err == nil && n == inlineSize {
		var more int64
		more, err = o.writeSegments(ctx, src)
		size += more
	}
	if err != nil {
		return 0, none, err
	}
	root, err := o.writeTree(ctx, dataNodes(size))
	if err != nil {
		return 0, none, err
	}
	copy(plain, name)
	binary.LittleEndian.PutUint64(plain[nameSize:], uint64(size))
	copy(plain[w.layout.rootEntry():], root)
	mac, err := o.writeNode0(node0, plain)
	return size, mac, err
}

// readBlock fills p; it reads less only at the end of src.
func readBlock(src io.Reader, p []byte) (int, error) {
	n, err := io.ReadFull(src, p)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	return n, err
}

func (o *output) writeSegments(ctx context.Context, src io.Reader) (size int64, err error) {
	g, gctx := errgroup.WithContext(ctx)
	for m := int64(0); gctx.Err() == nil; m++ {
		buf := o.w.buffers.get()
		n, err := readBlock(src, buf[NodeSize:segmentSize])
		if err != nil || n == 0 {
			o.w.buffers.put(buf)
			if err != nil {
				_ = fault.Raise(g.Wait())
				return 0, err
			}
			break
		}
		size += int64(n)
		g.Go(func() error {
			defer o.w.buffers.put(buf)
			return fault.Try(func() error { return o.writeSegment(m, buf, n) })
		})
		if n < mhtData*NodeSize {
			break
		}
	}
	if err := fault.Raise(g.Wait()); err != nil {
		return 0, err
	}
	return size, ctx.Err()
}

// writeSegment seals the data nodes of segment m, whose n bytes begin at the second node of buf, and writes them
// together with what is known of their MHT node.
func (o *output) writeSegment(m int64, buf []byte, n int) error {
	nodes := (n + NodeSize - 1) / NodeSize
	clear(buf[NodeSize+n : NodeSize*(1+nodes)])
	clear(buf[:NodeSize])
	for i := range nodes {
		node := buf[(1+i)*NodeSize:]
		entry := buf[i*entrySize:][:16:entrySize]
		o.key(entry, dataPosition(m*mhtData+int64(i)), node[:NodeSize])
		o.w.seal(entry, entry, node[:NodeSize+tagSize], NodeSize)
	}
	o.crypt(m, 0, buf[:nodes*entrySize])
	_, err := o.dst.WriteAt(buf[:(1+nodes)*NodeSize], mhtPosition(m)*NodeSize)
	return err
}

// writeTree completes and seals the MHT nodes, the highest first, and returns the entry of the root.
func (o *output) writeTree(ctx context.Context, data int64) ([]byte, error) {
	buf := make([]byte, NodeSize+tagSize)
	entry := make([]byte, entrySize)
	count := mhtNodes(data)
	for m := count - 1; m >= 0; m-- {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		node := buf[:NodeSize]
		if err := readFull(o.dst, node, mhtPosition(m)*NodeSize); err != nil {
			return nil, err
		}
		o.crypt(m, 0, node[:min(mhtData, data-m*mhtData)*entrySize])
		if children := min(mhtChildren, count-1-m*mhtChildren); children > 0 {
			o.crypt(m, mhtData*entrySize, node[mhtData*entrySize:][:children*entrySize])
		}
		o.key(entry[:16], mhtPosition(m), node)
		o.w.seal(entry[:16], entry[:16], buf, NodeSize)
		if _, err := o.dst.WriteAt(node, mhtPosition(m)*NodeSize); err != nil {
			return nil, err
		}
		if m == 0 {
			break
		}
		parent, off := (m-1)/mhtChildren, (mhtData+(m-1)%mhtChildren)*entrySize
		o.crypt(parent, off, entry)
		if _, err := o.dst.WriteAt(entry, mhtPosition(parent)*NodeSize+off); err != nil {
			return nil, err
		}
	}
	return entry, nil
}

func (o *output) writeNode0(node, plain []byte) (mac [16]byte, err error) {
	if o.w.derive != nil {
		copy(o.keyID[:], o.derived(0, plain))
	}
	copy(node, magic)
	node[offMajor] = 1
	node[offUserKey] = 1
	copy(node[offKeyID:], o.keyID[:])
	if !o.w.Encrypted() {
		node[offIntegrity] = 1
	}
	tag := o.w.seal(nil, o.w.metadataKey(o.keyID[:]), node[offSealed:], len(plain))
	copy(node[offMAC:], tag)
	_, err = o.dst.WriteAt(node, 0)
	return [16]byte(tag), err
}

// key makes the key of the node at a position.
func (o *output) key(dst []byte, position int64, plain []byte) {
	switch {
	case !o.w.Encrypted():
		clear(dst)
	case o.w.derive != nil:
		copy(dst, o.derived(position, plain))
	default:
		clear(dst)
		binary.LittleEndian.PutUint64(dst, uint64(position))
		o.keys.Encrypt(dst, dst)
	}
}

// derived is what the reproducible mode takes node keys and key ids from. The content is part of it, so that a key
// never sees two plaintexts.
func (o *output) derived(position int64, plain []byte) []byte {
	content := sha256.Sum256(plain)
	h := hmac.New(sha256.New, o.w.derive)
	message := []byte("sesame sefs node 1\x00")
	message = append(message, o.w.layout.String()...)
	message = append(message, 0, byte(len(o.name)), byte(len(o.name)>>8))
	message = append(message, o.name...)
	message = binary.LittleEndian.AppendUint64(message, uint64(position))
	h.Write(append(message, content[:]...))
	return h.Sum(nil)
}

// crypt encrypts or decrypts the bytes from off on of the waiting MHT node m. Each is written once.
func (o *output) crypt(m, off int64, b []byte) {
	if !o.w.Encrypted() {
		return
	}
	var counter [16]byte
	binary.BigEndian.PutUint64(counter[:], uint64(m))
	binary.BigEndian.PutUint64(counter[8:], uint64(off/16))
	cipher.NewCTR(o.spill, counter[:]).XORKeyStream(b, b)
}
