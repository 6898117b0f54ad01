// Package attack tries to get secrets out of a broker that it must not give, and releases that its log does not have: bad
// peers of every kind, kills and power cuts under load, databases that were put back or restarted, crowds that take a
// broker's places, and brokers that are hostile to init. Its judge compares what left the broker with what the log has.
// make attack runs all of it for minutes, go test a short form. One class alone, -full for the long form:
//
//	go test -count=1 ./lab/attack -v -run Nothing/cut-sqlite -full
//
// A judge that cannot fail proves nothing. So each class runs once more against a broker with a seeded fault, and must
// find it.
package attack

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
)

// Figures are the result of one class.
type Figures struct {
	Tried    int // attacks: peers, kills, cuts or restores
	Refused  int // attacks that got nothing
	Served   int // secrets that honest clients got meanwhile
	Leaked   int // secrets that left to a peer that must not have them, or honest peers that got none or a forged one
	Unlogged int // secrets that left without their entry in the log
}

// Clean reports whether nothing has leaked, nothing is unlogged, and honest clients were served.
func (f Figures) Clean() bool { return f.Leaked == 0 && f.Unlogged == 0 && f.Tried > 0 && f.Served > 0 }

// String implements [fmt.Stringer].
func (f Figures) String() string {
	return fmt.Sprintf("tried %d, refused %d, served %d, leaked %d, unlogged %d", f.Tried, f.Refused, f.Served, f.Leaked, f.Unlogged)
}

// Header is the head of the table that [Figures.Row] writes rows of.
const Header = "| class | tried | refused | served | leaked | unlogged | seconds |\n|---|---|---|---|---|---|---|\n"

// Row writes the figures as a row of the table in docs/trust.md.
func (f Figures) Row(w io.Writer, class string, took time.Duration) {
	fmt.Fprintf(w, "| %s | %d | %d | %d | %d | %d | %.0f |\n", class, f.Tried, f.Refused, f.Served, f.Leaked, f.Unlogged, took.Seconds())
}

// Entries reads the log of a keystore, and makes sure that it is the one that is signed.
func Entries(ctx context.Context, k *keystore.Keystore) (all []*releaselog.Entry, err error) {
	key, err := k.LogKey()
	if err != nil {
		return nil, err
	}
	var tree releaselog.Recomputed
	for {
		texts, signed, err := k.Entries(ctx, tree.Size(), 1000)
		if err != nil {
			return nil, err
		}
		for _, text := range texts {
			e, err := releaselog.Parse(text)
			if err != nil {
				return nil, err
			}
			if err := tree.Add(text); err != nil {
				return nil, err
			}
			all = append(all, e)
		}
		if len(texts) > 0 {
			continue
		}
		head, err := releaselog.Open(signed, key)
		if err != nil {
			return nil, err
		}
		return all, tree.Check(head)
	}
}
