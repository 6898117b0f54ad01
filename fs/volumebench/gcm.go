package main

import (
	"crypto/aes"
	"crypto/cipher"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
)

const (
	nodeSize = 4096
	tagSize  = 16
	// batch is how many nodes are encrypted between two looks at the clock; their bytes stay in the cache of
	// the core, as a volume's do between reading and decrypting.
	batch = 64
)

// gcmCosts is what AES-128-GCM with a fresh key for each 4 KiB costs over the bytes of a tree: the lower bound of any
// reader and writer of the format. Only the cipher is measured, not the reading of the bytes.
type gcmCosts struct {
	seal, open           cost // one core
	sealCores, openCores cost // all cores
}

func (g *gcmCosts) best(m gcmCosts) {
	g.seal.best(m.seal)
	g.open.best(m.open)
	g.sealCores.best(m.sealCores)
	g.openCores.best(m.openCores)
}

func measureGCM(fsys fs.FS, files []file, cores int) (gcmCosts, error) {
	var c gcmCosts
	g := newGCM(cores)
	for _, f := range files {
		in, err := fsys.Open(f.path)
		if err != nil {
			return c, err
		}
		for {
			n, err := io.ReadFull(in, g.plain)
			if n > 0 {
				g.fill(n)
				c.seal = c.seal.plus(g.run(1, g.seal))
				c.open = c.open.plus(g.run(1, g.open))
				c.sealCores = c.sealCores.plus(g.run(cores, g.seal))
				c.openCores = c.openCores.plus(g.run(cores, g.open))
			}
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				break
			}
			if err != nil {
				_ = in.Close()
				return c, err
			}
		}
		_ = in.Close()
	}
	return c, nil
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

// run does the nodes on so many goroutines.
func (g *gcm) run(goroutines int, node func(i int)) cost {
	c, _ := measure(0, func() error {
		var others sync.WaitGroup
		part := func(k int) {
			for i := g.nodes * k / goroutines; i < g.nodes*(k+1)/goroutines; i++ {
				node(i)
			}
		}
		for k := 1; k < goroutines; k++ {
			others.Go(func() { part(k) })
		}
		part(0)
		others.Wait()
		return nil
	})
	return c
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
