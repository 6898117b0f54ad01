package keystore

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
)

const (
	// toldEvery is how often an entry tells of refusals that are not recorded.
	toldEvery = time.Minute
	// closing bounds the last of these entries.
	closing = 2 * time.Second
)

// dropCounter counts refusals that are not recorded, by who was refused and why. Beyond the bound of an entry all others are
// one.
type dropCounter struct {
	mu     sync.Mutex
	counts map[dropKey]uint64
}

type dropKey struct{ address, code string }

// addressOf is the address of a peer without its port, which every connection has anew.
func addressOf(peer string) string {
	if at, err := netip.ParseAddrPort(peer); err == nil {
		return at.Addr().Unmap().String()
	}
	return peer
}

func (d *dropCounter) add(key dropKey, n uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.counts == nil {
		d.counts = map[dropKey]uint64{}
	}
	if _, known := d.counts[key]; !known && len(d.counts) >= releaselog.MaxDropped-1 {
		key = dropKey{}
	}
	d.counts[key] += n
}

// take empties the counts.
func (d *dropCounter) take() map[dropKey]uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	counts := d.counts
	d.counts = nil
	return counts
}

// tell records what was counted, in one entry. What cannot be recorded stays counted.
func (k *Keystore) tell(ctx context.Context) {
	counts := k.dropped.take()
	if len(counts) == 0 {
		return
	}
	var rows []releaselog.Dropped
	for key, n := range counts {
		rows = append(rows, releaselog.Dropped{Peer: key.address, Code: key.code, Count: n})
	}
	slices.SortFunc(rows, func(a, b releaselog.Dropped) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.Code, b.Code))
	})
	if o := k.submit(ctx, &job{decision: broker.Decision{At: k.options.Now()}, dropped: rows}); o.err != nil {
		for key, n := range counts {
			k.dropped.add(key, n)
		}
	}
}

// tellAll tells at every tick until ctx ends.
func (k *Keystore) tellAll(ctx context.Context, ticks <-chan time.Time) {
	for {
		select {
		case <-ticks:
			k.tell(ctx)
		case <-ctx.Done():
			return
		}
	}
}
