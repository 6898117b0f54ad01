package pfs

import (
	"container/list"
	"sync"
)

// nodeID names a node of an open file.
type nodeID struct {
	file uint64
	node int64
}

// cache keeps the most recently used verified nodes. What it returns must not be changed.
type cache struct {
	mu    sync.Mutex
	limit int
	byID  map[nodeID]*list.Element
	order list.List // of *cached, the latest first
}

type cachedNode struct {
	id   nodeID
	node []byte
}

func newCache(limit int) *cache {
	return &cache{limit: limit, byID: make(map[nodeID]*list.Element)}
}

func (c *cache) get(id nodeID) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byID[id]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*cachedNode).node
}

func (c *cache) put(id nodeID, node []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byID[id] != nil {
		return
	}
	c.byID[id] = c.order.PushFront(&cachedNode{id: id, node: node})
	if len(c.byID) > c.limit {
		last := c.order.Back()
		c.order.Remove(last)
		delete(c.byID, last.Value.(*cachedNode).id)
	}
}
