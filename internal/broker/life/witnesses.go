package life

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
	"github.com/sesame-init/sesame/internal/fault"
)

// awaitWitnesses begins to push the log's head to the witnesses that the policy names, which goes on until Close, and
// waits until each has taken the log once. It logs what it waits for.
func (l *Locked) awaitWitnesses(ctx context.Context) error {
	if err := l.push(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(witnessLook)
	defer tick.Stop()
	said := ""
	for {
		err := l.keys.Disputed()
		if err == nil {
			if ctx.Err() != nil {
				return ErrStopped
			}
			return nil
		}
		if text := err.Error(); text != said {
			said = text
			l.settings.Log.WithField("hint", attest.HintOf(err)).Warnf("nothing is released: %v", err)
		}
		select {
		case <-ctx.Done():
			return ErrStopped
		case <-tick.C:
		}
	}
}

const witnessLook = 50 * time.Millisecond

func (l *Locked) push(ctx context.Context) error {
	w := l.settings.Policy.Broker.Witnesses
	key, err := l.keys.LogKey()
	if err != nil {
		return err
	}
	l.keys.Expect(w.At...)
	client := &http.Client{Timeout: 30 * time.Second}
	var all []releaselog.Witness
	for _, at := range w.At {
		one, err := releaselog.NewWitness(at, key, client)
		if err != nil {
			return err
		}
		all = append(all, one)
	}
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	for i, one := range all {
		log := l.settings.Log.WithField("witness", w.At[i])
		running.Go(fault.Guard(func() {
			good := true
			releaselog.Run(ctx, l.keys.Prover(), one, time.Duration(w.Interval), func(err error) {
				l.keys.Witnessed(w.At[i], err)
				switch {
				case err != nil:
					log.WithField("hint", attest.HintOf(err)).Errorf("%v", err)
				case !good:
					log.Info("the witness has the log again")
				}
				good = err == nil
			})
		}))
	}
	l.onClose(func() {
		stop()
		running.Wait()
	})
	return nil
}
