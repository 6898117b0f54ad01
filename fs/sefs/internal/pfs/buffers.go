package pfs

import "sync"

// buffers lends a bounded number of buffers, first the one that came back last: it may still be in the core's cache.
type buffers struct {
	size int
	lent chan struct{}

	mu   sync.Mutex
	idle [][]byte
}

func newBuffers(limit, size int) *buffers {
	return &buffers{size: size, lent: make(chan struct{}, limit)}
}

// get waits for a buffer. Its owner must not wait for another one before put.
func (b *buffers) get() []byte {
	b.lent <- struct{}{}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.idle) == 0 {
		return make([]byte, b.size)
	}
	last := len(b.idle) - 1
	buf := b.idle[last]
	b.idle = b.idle[:last]
	return buf
}

func (b *buffers) put(buf []byte) {
	b.mu.Lock()
	b.idle = append(b.idle, buf)
	b.mu.Unlock()
	<-b.lent
}
