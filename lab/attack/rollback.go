package attack

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"time"

	"github.com/sesame-init/sesame/internal/broker"
)

func hexOf(b [32]byte) string { return hex.EncodeToString(b[:]) }

// Restore puts an older SQLite file back under a running broker, again and again, and asks for a secret that the policy
// releases once more and no oftener. Each time the newest file comes back, and the broker serves again. The place is
// prepared. [Forgetful] is a broker that restarts after the file was put back, without a witness.
func Restore(ctx context.Context, p Place, times int, fault Fault) (f Figures, err error) {
	k, s, err := p.Open(ctx)
	if err != nil {
		return f, err
	}
	defer func() {
		k.Close()
		_ = s.Close()
	}()
	held := map[string]int64{}
	for range times {
		old, err := os.ReadFile(p.SQLite)
		if err != nil {
			return f, err
		}
		binder, index, err := releaseOnce(ctx, k, uint64(f.Served)+1)
		if err != nil {
			return f, err
		}
		held[binder] = index
		f.Served++
		newest, err := os.ReadFile(p.SQLite)
		if err != nil {
			return f, err
		}
		if err := os.WriteFile(p.SQLite, old, 0o600); err != nil {
			return f, err
		}
		if fault == Forgetful {
			k.Close()
			if err := s.Close(); err != nil {
				return f, err
			}
			if k, s, err = p.Open(ctx); err != nil {
				return f, err
			}
		}
		f.Tried++
		binder, index, err = releaseOnce(ctx, k, uint64(f.Served)) // as before: it was used up
		if err == nil {
			f.Leaked++
			held[binder] = index
		} else {
			f.Refused++
		}
		if fault == Forgetful {
			break // two logs exist now
		}
		if err := os.WriteFile(p.SQLite, newest, 0o600); err != nil {
			return f, err
		}
	}
	all, err := Entries(ctx, k)
	if err != nil {
		return f, err
	}
	for binder, index := range held {
		if index < 0 || index >= int64(len(all)) || all[index].Binder != binder {
			f.Unlogged++
		}
	}
	return f, nil
}

// releaseOnce releases the secret within a limit of releases, and returns the decision's binder and its entry, -1 if there
// is none.
func releaseOnce(ctx context.Context, k broker.Keeper, limit uint64) (binder string, index int64, err error) {
	d := broker.Decision{At: time.Now(), Workload: "victim", Grants: []broker.Grant{{Secret: secretName, Limit: &limit}}}
	_, _ = rand.Read(d.Binder[:])
	secrets, r, err := k.Release(ctx, d)
	if err == nil && len(secrets) != 1 {
		err = errors.New("no secret")
	}
	if err != nil {
		return hexOf(d.Binder), -1, err
	}
	return hexOf(d.Binder), int64(r.Index), nil
}
