package pfs

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sesame-init/sesame/internal/testenv"
)

// eachRoot runs a test on the vectors in the repository and on the full set.
func eachRoot(t *testing.T, test func(t *testing.T, root string)) {
	t.Run("some", func(t *testing.T) { test(t, filepath.Join("..", "..", "testdata", "vectors")) })
	t.Run("all", func(t *testing.T) { test(t, testenv.Vectors(t, "sefs")) })
}

type vector struct {
	Name      string `json:"name"`
	File      string `json:"file"`
	Gzip      bool   `json:"gzip"`
	Filename  string `json:"filename"`
	Key       string `json:"key"`
	MAC       string `json:"mac"`
	Size      int64  `json:"size"`
	SHA256    string `json:"sha256"`
	Must      string `json:"must"`
	Internals struct {
		KeyID       string `json:"key_id"`
		MetadataKey string `json:"metadata_key"`
		MHT         []struct {
			N        int64  `json:"n"`
			Physical int64  `json:"physical"`
			Key      string `json:"key"`
			GMAC     string `json:"gmac"`
		} `json:"mht"`
		Data []struct {
			N        int64  `json:"n"`
			Physical int64  `json:"physical"`
			Key      string `json:"key"`
			GMAC     string `json:"gmac"`
		} `json:"data"`
	} `json:"internals"`
}

func fromHex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// content is the protected file of a vector.
func (v vector) content(t testing.TB, root, layout string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, layout, v.File))
	if err == nil && v.Gzip {
		var z *gzip.Reader
		if z, err = gzip.NewReader(bytes.NewReader(b)); err == nil {
			b, err = io.ReadAll(z)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (v vector) codec(t testing.TB, layout Layout) *Codec {
	if v.Key == "" {
		return NewCodec(layout, nil)
	}
	key := [16]byte(fromHex(t, v.Key))
	return NewCodec(layout, &key)
}

func readIndex(t testing.TB, path string) (index struct {
	Layout     string   `json:"layout"`
	Vectors    []vector `json:"vectors"`
	PFSVectors []vector `json:"pfs_vectors"`
}) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &index)
	}
	if err != nil {
		t.Fatal(err)
	}
	return index
}

func layoutOf(t testing.TB, folder string) Layout {
	t.Helper()
	l, err := ParseLayout(strings.TrimPrefix(folder, "occlum-"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestFilesOfUpstreamReadBackExactly(t *testing.T) {
	eachRoot(t, func(t *testing.T, root string) {
		for _, layout := range []string{"occlum-0.31", "occlum-0.30"} {
			for _, v := range readIndex(t, filepath.Join(root, layout, "pfs", "index.json")).Vectors {
				t.Run(layout+"/"+v.Name, func(t *testing.T) {
					stored := v.content(t, root, layout)
					codec := v.codec(t, layoutOf(t, layout))
					f, err := NewReader(codec, 16).Open(bytes.NewReader(stored), int64(len(stored)), v.Filename)
					if err != nil {
						t.Fatal(err)
					}
					got := make([]byte, f.Size())
					if _, err := f.ReadAt(got, 0); err != nil && (err != io.EOF || len(got) > 0) {
						t.Fatal(err)
					}
					sum, mac := sha256.Sum256(got), f.MAC()
					if f.Size() != v.Size || hex.EncodeToString(sum[:]) != v.SHA256 || !bytes.Equal(mac[:], fromHex(t, v.MAC)) {
						t.Errorf("size %d, MAC %x, SHA-256 %x", f.Size(), mac, sum)
					}
					compareInternals(t, f, v)
					if v.Key == "" {
						again := write(t, codec, WriterOptions{}, v.Filename, got)
						if !bytes.Equal(again, stored) {
							t.Error("written again it is not the same")
						}
					}
				})
			}
		}
	})
}

func compareInternals(t *testing.T, f *File, v vector) {
	t.Helper()
	key := f.r.metadataKey(fromHex(t, v.Internals.KeyID))
	if !bytes.Equal(key, fromHex(t, v.Internals.MetadataKey)) {
		t.Errorf("metadata key %x, want %s", key, v.Internals.MetadataKey)
	}
	for _, n := range v.Internals.MHT {
		entry := f.root[:]
		if n.N > 0 {
			parent, err := f.mht((n.N - 1) / mhtChildren)
			if err != nil {
				t.Fatal(err)
			}
			entry = parent[(mhtData+(n.N-1)%mhtChildren)*entrySize:][:entrySize]
		}
		if hex.EncodeToString(entry) != n.Key+n.GMAC || mhtPosition(n.N) != n.Physical {
			t.Errorf("MHT node %d at %d: %x", n.N, mhtPosition(n.N), entry)
		}
	}
	for _, n := range v.Internals.Data {
		parent, err := f.mht(n.N / mhtData)
		if err != nil {
			t.Fatal(err)
		}
		entry := parent[n.N%mhtData*entrySize:][:entrySize]
		if hex.EncodeToString(entry) != n.Key+n.GMAC || dataPosition(n.N) != n.Physical {
			t.Errorf("data node %d at %d: %x", n.N, dataPosition(n.N), entry)
		}
	}
}

func TestTamperedFilesAreRefused(t *testing.T) {
	for _, layout := range []string{"occlum-0.31", "occlum-0.30"} {
		root := testenv.Vectors(t, "sefs")
		for _, v := range readIndex(t, filepath.Join(root, layout, "negative", "index.json")).PFSVectors {
			t.Run(layout+"/"+v.Name, func(t *testing.T) {
				stored := v.content(t, root, layout)
				_, err := read(v.codec(t, layoutOf(t, layout)), stored, v.Filename)
				if err == nil && v.Must != "may-reject" {
					t.Error("accepted")
				}
				if err != nil && !errors.Is(err, ErrTampered) && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrMode) {
					t.Errorf("error of no known kind: %v", err)
				}
				if v.Name == "other-layout" {
					if _, err := read(v.codec(t, 1-layoutOf(t, layout)), stored, v.Filename); err != nil {
						t.Errorf("opened as the other layout: %v", err)
					}
				}
			})
		}
	}
}

// read is the whole content of a protected file.
func read(c *Codec, stored []byte, name string) ([]byte, error) {
	f, err := NewReader(c, 16).Open(bytes.NewReader(stored), int64(len(stored)), name)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(f, 0, f.Size()))
}

// memory is a [Target] in memory.
type memory struct {
	mu sync.Mutex
	b  []byte
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if end := int(off) + len(p); end > len(m.b) {
		m.b = append(m.b, make([]byte, end-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.NewReader(m.b).ReadAt(p, off)
}

// write is the protected file of a content.
func write(t testing.TB, c *Codec, o WriterOptions, name string, content []byte) []byte {
	t.Helper()
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.Buffers == 0 {
		o.Buffers = 2
	}
	w, err := NewWriter(c, o)
	if err != nil {
		t.Fatal(err)
	}
	var m memory
	size, mac, err := w.Write(t.Context(), &m, name, bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	if size != int64(len(content)) || [16]byte(m.b[offMAC:]) != mac {
		t.Fatalf("size %d of %d, MAC %x", size, len(content), mac)
	}
	return m.b
}

var testKey = [16]byte{1, 2, 3}

// random is n reproducible bytes.
func random(n int) []byte {
	b := make([]byte, n)
	_, _ = mathrand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)}).Read(b)
	return b
}

// sizes are those around which the structure changes: inline, one node, one MHT, children, grandchildren.
var sizes = []int{
	0, 1, 3071, 3072, 3073, 7167, 7168, 7169, 8192, 3072 + 96*4096 - 1, 3072 + 96*4096, 3072 + 96*4096 + 1,
	3072 + 97*4096 + 5, 3072 + 33*96*4096, 3072 + 33*96*4096 + 1, 3072 + 34*96*4096 + 12345,
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	for _, layout := range []Layout{Layout031, Layout030} {
		for name, codec := range map[string]*Codec{
			"encrypted": NewCodec(layout, &testKey), "integrity-only": NewCodec(layout, nil),
		} {
			for _, size := range sizes {
				t.Run(fmt.Sprintf("%v/%s/%d", layout, name, size), func(t *testing.T) {
					content := random(size)
					stored := write(t, codec, WriterOptions{Reproducible: size%2 == 0}, "name", content)
					if int64(len(stored)) != StoredSize(int64(size)) {
						t.Errorf("%d bytes, want %d", len(stored), StoredSize(int64(size)))
					}
					got, err := read(codec, stored, "name")
					if err != nil || !bytes.Equal(got, content) {
						t.Errorf("read %d bytes: %v", len(got), err)
					}
					if name == "encrypted" && size > 64 && bytes.Contains(stored, content[:64]) {
						t.Error("content is in the clear")
					}
				})
			}
		}
	}
}

func TestReadAtGivesAnyPartToAnyNumberOfReaders(t *testing.T) {
	content := random(3072 + 97*4096 + 5)
	codec := NewCodec(Layout031, &testKey)
	stored := write(t, codec, WriterOptions{}, "name", content)
	f, err := NewReader(codec, 2).Open(bytes.NewReader(stored), int64(len(stored)), "name")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			r := mathrand.New(mathrand.NewPCG(1, uint64(i)))
			for range 200 {
				off := r.IntN(len(content) + 10)
				p := make([]byte, r.IntN(1<<r.IntN(20)))
				n, err := f.ReadAt(p, int64(off))
				want := content[min(off, len(content)):min(off+len(p), len(content))]
				if !bytes.Equal(p[:n], want) || (err == io.EOF) != (n < len(p) || off >= len(content)) || err != nil && err != io.EOF {
					t.Errorf("%d bytes at %d: %d, %v", len(p), off, n, err)
				}
			}
		})
	}
	group.Wait()
	if n := len(f.r.tree.byID); n > 2 {
		t.Errorf("%d MHT nodes are cached where 2 may be", n)
	}
	if _, err := f.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("negative offset accepted")
	}
}

func TestBytesBeforeALieAreStillRead(t *testing.T) {
	content := random(1 << 20)
	codec := NewCodec(Layout031, &testKey)
	stored := write(t, codec, WriterOptions{}, "name", content)
	const bad = 200
	stored[dataPosition(bad)*NodeSize+7] ^= 1
	f, err := NewReader(codec, 16).Open(bytes.NewReader(stored), int64(len(stored)), "name")
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, len(content))
	n, err := f.ReadAt(p, 0)
	if !errors.Is(err, ErrTampered) || n < 100<<10 || n > inlineSize+bad*NodeSize || !bytes.Equal(p[:n], content[:n]) {
		t.Errorf("read %d bytes: %v", n, err)
	}
	if _, err := f.ReadAt(p[:100], inlineSize+(bad+1)*NodeSize); err != nil {
		t.Errorf("reading behind the lie: %v", err)
	}
}

func TestAFileCutWhileOpenIsRefused(t *testing.T) {
	codec := NewCodec(Layout031, &testKey)
	stored := write(t, codec, WriterOptions{}, "name", random(1<<20))
	f, err := NewReader(codec, 16).Open(bytes.NewReader(stored[:NodeSize]), int64(len(stored)), "name")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(make([]byte, 1<<20), 0); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
}

func TestFlippingAnyByteIsNoticedOrHarmless(t *testing.T) {
	for _, codec := range []*Codec{NewCodec(Layout031, &testKey), NewCodec(Layout030, &testKey), NewCodec(Layout031, nil)} {
		content := random(3072 + 4096 + 100)
		stored := write(t, codec, WriterOptions{}, "name", content)
		step := testenv.Sweep(1, 37)
		for i := 0; i < len(stored); i += step {
			stored[i] ^= 0x10
			got, err := read(codec, stored, "name")
			if err == nil && !bytes.Equal(got, content) {
				t.Fatalf("byte %d: other content", i)
			}
			if err == nil {
				t.Errorf("byte %d: not noticed", i) // stricter than promised: every byte has one value
			}
			stored[i] ^= 0x10
		}
	}
}

// nodeKeys are the keys of all nodes but the first, by position, and the key id.
func nodeKeys(t *testing.T, c *Codec, stored []byte) (keys map[int64][16]byte, id [32]byte) {
	t.Helper()
	f, err := NewReader(c, 100).Open(bytes.NewReader(stored), int64(len(stored)), "name")
	if err != nil {
		t.Fatal(err)
	}
	keys = make(map[int64][16]byte)
	n := dataNodes(f.size)
	for d := range n {
		node, err := f.mht(d / mhtData)
		if err != nil {
			t.Fatal(err)
		}
		keys[dataPosition(d)] = [16]byte(node[d%mhtData*entrySize:])
	}
	keys[1] = [16]byte(f.root[:])
	for m := int64(1); m < mhtNodes(n); m++ {
		node, err := f.mht((m - 1) / mhtChildren)
		if err != nil {
			t.Fatal(err)
		}
		keys[mhtPosition(m)] = [16]byte(node[(mhtData+(m-1)%mhtChildren)*entrySize:])
	}
	return keys, [32]byte(stored[offKeyID:])
}

func TestNoKeySeesTwoPlaintexts(t *testing.T) {
	content := random(3072 + 100*4096)
	codec := NewCodec(Layout031, &testKey)
	changed := bytes.Clone(content)
	changed[3072+50*4096] ^= 1
	t.Run("random", func(t *testing.T) {
		seen := make(map[[16]byte]bool)
		ids := make(map[[32]byte]bool)
		for range 3 {
			keys, id := nodeKeys(t, codec, write(t, codec, WriterOptions{}, "name", content))
			for position, key := range keys {
				if seen[key] {
					t.Errorf("key of node %d was used before", position)
				}
				seen[key] = true
			}
			if ids[id] {
				t.Error("key id was used before")
			}
			ids[id] = true
		}
	})
	t.Run("reproducible", func(t *testing.T) {
		o := WriterOptions{Reproducible: true}
		first, firstID := nodeKeys(t, codec, write(t, codec, o, "name", content))
		second, secondID := nodeKeys(t, codec, write(t, codec, o, "name", changed))
		other, _ := nodeKeys(t, NewCodec(Layout030, &testKey), write(t, NewCodec(Layout030, &testKey), o, "name", content))
		seen := make(map[[16]byte]bool)
		for position, key := range first {
			// The changed node and the MHT node above it.
			if same := key == second[position]; same == (position == dataPosition(50) || position == 1) {
				t.Errorf("node %d: the same key in both files: %v", position, same)
			}
			if seen[key] || key == other[position] {
				t.Errorf("node %d: key was used before", position)
			}
			seen[key] = true
		}
		if firstID == secondID {
			t.Error("both files have the same key id")
		}
	})
}

func TestReproducibleFilesAreTheSame(t *testing.T) {
	content := random(3072 + 300*4096)
	codec := NewCodec(Layout031, &testKey)
	first := write(t, codec, WriterOptions{Reproducible: true, Buffers: 1}, "name", content)
	if !bytes.Equal(first, write(t, codec, WriterOptions{Reproducible: true, Buffers: 5}, "name", content)) {
		t.Error("the same content made two files")
	}
	if bytes.Equal(first, write(t, codec, WriterOptions{}, "name", content)) {
		t.Error("files are reproducible without having been asked for")
	}
}

// failing gives n bytes and then an error.
type failing struct{ n int }

var errSource = errors.New("disk on fire")

func (f *failing) Read(p []byte) (int, error) {
	if f.n == 0 {
		return 0, errSource
	}
	n := min(f.n, len(p))
	f.n -= n
	return n, nil
}

type fullDisk struct{ memory }

func (*fullDisk) WriteAt([]byte, int64) (int, error) { return 0, errSource }

func TestErrorsOfSourceAndTargetAreReported(t *testing.T) {
	codec := NewCodec(Layout031, &testKey)
	w, err := NewWriter(codec, WriterOptions{Rand: rand.Reader, Buffers: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 100, 3072, 1 << 20} {
		if _, _, err := w.Write(t.Context(), &memory{}, "name", &failing{n}); !errors.Is(err, errSource) {
			t.Errorf("source of %d bytes: %v", n, err)
		}
		if _, _, err := w.Write(t.Context(), &fullDisk{}, "name", bytes.NewReader(random(n))); !errors.Is(err, errSource) {
			t.Errorf("full disk, %d bytes: %v", n, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := w.Write(ctx, &memory{}, "name", bytes.NewReader(random(1<<20))); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if _, _, err := w.Write(t.Context(), &memory{}, strings.Repeat("n", MaxName+1), bytes.NewReader(nil)); err == nil {
		t.Error("too long a name was accepted")
	}
	w, err = NewWriter(codec, WriterOptions{Rand: bytes.NewReader(make([]byte, 95)), Buffers: 2})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Write(t.Context(), &memory{}, "name", bytes.NewReader(nil)); err == nil {
		t.Error("written without enough random bytes")
	}
}

// RFC 4493, section 4, the examples whose length is no multiple of the block's.
func TestCMACOfTheRFC(t *testing.T) {
	block := newBlock(fromHex(t, "2b7e151628aed2a6abf7158809cf4f3c"))
	message := fromHex(t, "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411")
	if got := cmac(block, message); !bytes.Equal(got, fromHex(t, "dfa66747de9ae63030ca32611497c827")) {
		t.Errorf("%x", got)
	}
}

// FuzzOpen feeds whole files, as they are and with the tags of node 0 and of the root MHT node made right, so that
// what is behind them is reached as well.
func FuzzOpen(f *testing.F) {
	for _, layout := range []string{"occlum-0.31", "occlum-0.30"} {
		root := filepath.Join("..", "..", "testdata", "vectors")
		for _, v := range readIndex(f, filepath.Join(root, layout, "pfs", "index.json")).Vectors {
			f.Add(v.content(f, root, layout), v.Filename)
		}
	}
	f.Fuzz(func(t *testing.T, stored []byte, name string) {
		if len(stored) > 1<<20 {
			return
		}
		for _, layout := range []Layout{Layout031, Layout030} {
			c := NewCodec(layout, nil)
			_, _ = read(NewCodec(layout, &testKey), stored, name)
			_, _ = read(c, stored, name)
			stored := bytes.Clone(stored)
			if len(stored) >= 2*NodeSize {
				copy(stored[offSealed+layout.rootEntry()+16:], c.public.Seal(nil, nonce[:], nil, stored[NodeSize:2*NodeSize]))
			}
			if len(stored) >= NodeSize {
				copy(stored[offMAC:], c.public.Seal(nil, nonce[:], nil, stored[offSealed:][:layout.sealedSize()]))
			}
			got, err := read(c, stored, name)
			if err == nil && !bytes.Equal(write(t, c, WriterOptions{}, name, got), stored) {
				t.Error("accepted a file that a correct writer would not write")
			}
		}
	})
}
