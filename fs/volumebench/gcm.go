package main

import (
	"crypto/aes"
	"crypto/cipher"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	nodeSize = 4096
	tagSize  = 16
	// batch is how many nodes are encrypted between two looks at the clock; their bytes stay in the cache of
	// the core, as a volume's do between reading and decrypting.
	batch = 64
)

// gcmTimes is what AES-128-GCM with a fresh key for each 4 KiB costs over the bytes of a tree: the lower bound
// of any reader and writer of the format. Only the cipher is on the clock, not the reading of the bytes.
type gcmTimes struct {
	seal, open           time.Duration // one core
	sealCores, openCores time.Duration // all cores
}

func measureGCM(fsys fs.FS, files []file, cores int) (gcmTimes, error) {
	var t gcmTimes
	g := newGCM(cores)
	for _, f := range files {
		in, err := fsys.Open(f.path)
		if err != nil {
			return t, err
		}
		for {
			n, err := io.ReadFull(in, g.plain)
			if n > 0 {
				g.fill(n)
				t.seal += g.run(1, g.seal)
				t.open += g.run(1, g.open)
				t.sealCores += g.run(cores, g.seal)
				t.openCores += g.run(cores, g.open)
			}
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				break
			}
			if err != nil {
				_ = in.Close()
				return t, err
			}
		}
		_ = in.Close()
	}
	return t, nil
}

type gcm struct {
	plain, sealed, opened []byte
	keys                  [][16]byte
	nodes                 int
	random                *rand.ChaCha8
}

func newGCM(cores int) *gcm {
	nodes := batch * cores
	return &gcm{
		plain:  make([]byte, nodes*nodeSize),
		sealed: make([]byte, nodes*(nodeSize+tagSize)),
		opened: make([]byte, nodes*nodeSize),
		keys:   make([][16]byte, nodes),
		random: rand.NewChaCha8([32]byte{}),
	}
}

// fill makes whole nodes of the n bytes read, each with a new key.
func (g *gcm) fill(n int) {
	g.nodes = (n + nodeSize - 1) / nodeSize
	clear(g.plain[n : g.nodes*nodeSize])
	for i := range g.nodes {
		_, _ = g.random.Read(g.keys[i][:])
	}
}

// run does the nodes on so many goroutines and returns the time on the wall.
func (g *gcm) run(goroutines int, node func(i int)) time.Duration {
	start := time.Now()
	var wg sync.WaitGroup
	for k := range goroutines {
		work := func() {
			for i := g.nodes * k / goroutines; i < g.nodes*(k+1)/goroutines; i++ {
				node(i)
			}
		}
		if k == goroutines-1 {
			work()
			break
		}
		wg.Go(work)
	}
	wg.Wait()
	return time.Since(start)
}

func (g *gcm) aead(i int) cipher.AEAD {
	block, err := aes.NewCipher(g.keys[i][:])
	if err != nil {
		panic(err) // the key has 16 bytes
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return aead
}

var nonce [12]byte

func (g *gcm) seal(i int) {
	out := g.sealed[i*(nodeSize+tagSize):][: 0 : nodeSize+tagSize]
	g.aead(i).Seal(out, nonce[:], g.plain[i*nodeSize:][:nodeSize], nil)
}

func (g *gcm) open(i int) {
	out := g.opened[i*nodeSize:][:0:nodeSize]
	in := g.sealed[i*(nodeSize+tagSize):][:nodeSize+tagSize]
	if _, err := g.aead(i).Open(out, nonce[:], in, nil); err != nil {
		panic(err) // sealed by this process a moment ago
	}
}
