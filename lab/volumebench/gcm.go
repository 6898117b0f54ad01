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
	// memoryBatch is how many nodes each core does between two looks at the clock: 16 MiB, more than a core's cache
	// holds, as a tree is; and long enough that waking the other cores does not count.
	memoryBatch = 4096
	// window is how many of the results stay, as in the buffer of a program that reads or writes.
	window = 256
	// cachedBatch is how many stay in the core's cache: 16 are what a volume's reader has in hand at a time.
	cachedBatch = 16
)

// gcmCosts is what AES-128-GCM with a fresh key for each 4 KiB costs over the bytes of a tree: the lower bound of any
// reader and writer of the format. Only the cipher is measured, not the reading of files.
type gcmCosts struct {
	seal, open             cost // one core, bytes from memory
	sealCores, openCores   cost // all cores, likewise
	sealCached, openCached cost // one core that has the bytes in its cache
}

func (g *gcmCosts) best(m gcmCosts) {
	g.seal.best(m.seal)
	g.open.best(m.open)
	g.sealCores.best(m.sealCores)
	g.openCores.best(m.openCores)
	g.sealCached.best(m.sealCached)
	g.openCached.best(m.openCached)
}

func (g *gcmCosts) add(m gcmCosts) {
	g.seal = g.seal.plus(m.seal)
	g.open = g.open.plus(m.open)
	g.sealCores = g.sealCores.plus(m.sealCores)
	g.openCores = g.openCores.plus(m.openCores)
	g.sealCached = g.sealCached.plus(m.sealCached)
	g.openCached = g.openCached.plus(m.openCached)
}

func measureGCM(fsys fs.FS, files []file, cores int) (c gcmCosts, err error) {
	g := newGCM(cores)
	err = g.batches(fsys, files, func() error { c.add(g.measure(cores)); return nil })
	return c, err
}

// batches makes the bytes of all files, batch after batch, into nodes and calls f for each batch.
func (g *gcm) batches(fsys fs.FS, files []file, f func() error) error {
	filled := 0
	for _, each := range files {
		in, err := fsys.Open(each.path)
		if err != nil {
			return err
		}
		for err == nil {
			var n int
			n, err = io.ReadFull(in, g.plain[filled:])
			filled += (n + nodeSize - 1) / nodeSize * nodeSize
			if filled == len(g.plain) {
				g.makeNodes(filled)
				if err := f(); err != nil {
					_ = in.Close()
					return err
				}
				filled = 0
			}
		}
		_ = in.Close()
		if err != io.EOF && err != io.ErrUnexpectedEOF {
			return err
		}
	}
	g.makeNodes(filled)
	return f()
}

type gcm struct {
	plain, sealed []byte
	keys          [][16]byte
	hands         []hands // of each goroutine
	nodes         int
	random        *rand.ChaCha8
}

const boxSize = nodeSize + tagSize

// hands are what a goroutine works in: the node at hand and a window of results. Nodes are copied first, for AES-GCM
// takes longer over bytes that come from memory than to copy them and then decrypt them in the cache.
type hands struct{ node, out []byte }

func newGCM(cores int) *gcm {
	nodes := memoryBatch * cores
	g := &gcm{
		plain:  make([]byte, nodes*nodeSize),
		sealed: make([]byte, nodes*boxSize),
		keys:   make([][16]byte, nodes),
		random: rand.NewChaCha8([32]byte{}),
	}
	for range cores {
		g.hands = append(g.hands, hands{make([]byte, boxSize), make([]byte, window*boxSize)})
	}
	return g
}

// makeNodes takes the first n bytes for whole nodes, each with a new key, and seals them. What follows the end of a
// file in its last node is of no matter.
func (g *gcm) makeNodes(n int) {
	g.nodes = n / nodeSize
	for i := range g.nodes {
		_, _ = g.random.Read(g.keys[i][:])
		g.aead(i).Seal(g.sealed[i*boxSize:][:0:boxSize], nonce[:], g.plain[i*nodeSize:][:nodeSize], nil)
	}
}

func (g *gcm) measure(cores int) (c gcmCosts) {
	c.seal, c.open = g.run(1, g.seal), g.run(1, g.open)
	c.sealCores, c.openCores = g.run(cores, g.seal), g.run(cores, g.open)
	c.sealCached = g.run(1, func(h hands, i int) { g.seal(h, i%cachedBatch) })
	c.openCached = g.run(1, func(h hands, i int) { g.open(h, i%cachedBatch) })
	return c
}

// run does the nodes on so many goroutines.
func (g *gcm) run(goroutines int, node func(h hands, i int)) cost {
	c, _ := measure(0, func() error {
		var others sync.WaitGroup
		part := func(k int) {
			for i := g.nodes * k / goroutines; i < g.nodes*(k+1)/goroutines; i++ {
				node(g.hands[k], i)
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

func (g *gcm) aead(i int) cipher.AEAD { return newAEAD(&g.keys[i]) }

func newAEAD(key *[16]byte) cipher.AEAD {
	block, err := aes.NewCipher(key[:])
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

func (g *gcm) seal(h hands, i int) {
	plain := h.node[:copy(h.node, g.plain[i*nodeSize:][:nodeSize])]
	g.aead(i).Seal(h.out[i%window*boxSize:][:0:boxSize], nonce[:], plain, nil)
}

func (g *gcm) open(h hands, i int) {
	copy(h.node, g.sealed[i*boxSize:][:boxSize])
	if _, err := g.aead(i).Open(h.out[i%window*boxSize:][:0:nodeSize], nonce[:], h.node, nil); err != nil {
		panic(err) // sealed by this process a moment ago
	}
}
