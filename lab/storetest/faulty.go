package storetest

import (
	"context"
	"errors"
	"sync"

	"github.com/sesame-init/sesame/internal/broker/store"
)

// A Fault is how the next update of a [Faulty] store fails.
type Fault string

// The faults. What a store can do wrong at a commit is one of them.
const (
	None    Fault = ""
	Begin   Fault = "the update does not begin"
	Write   Fault = "a write fails"               // the first one to Space
	Commit  Fault = "the commit fails"            // nothing is persisted
	Lost    Fault = "the commit's answer is lost" // everything is persisted
	Swallow Fault = "a write fails unnoticed"     // the writer is not told; the store refuses to commit
)

// ErrInjected is what a fault causes.
var ErrInjected = errors.New("injected fault: no space left on device")

// Faulty is a store that fails when it is told to.
type Faulty struct {
	store.Store

	mu    sync.Mutex
	fault Fault
	space store.Space
	err   error
	Hits  int // updates that have failed
}

// Fail makes the next update fail with err, [ErrInjected] if that is nil.
func (f *Faulty) Fail(fault Fault, space store.Space, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		err = ErrInjected
	}
	f.fault, f.space, f.err = fault, space, err
}

func (f *Faulty) take() (Fault, store.Space, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fault := f.fault
	f.fault = None
	if fault != None {
		f.Hits++
	}
	return fault, f.space, f.err
}

// Update implements [store.Store].
func (f *Faulty) Update(ctx context.Context, change func(store.Writer) error) error {
	fault, space, failure := f.take()
	if fault == Begin {
		return failure
	}
	err := f.Store.Update(ctx, func(w store.Writer) error {
		if fault == Write || fault == Swallow {
			faulty := &faultyWriter{Writer: w, space: space, err: failure, silent: fault == Swallow}
			return errors.Join(change(faulty), faulty.failed)
		}
		if err := change(w); err != nil || fault != Commit {
			return err
		}
		return failure
	})
	if err == nil && fault == Lost {
		return failure
	}
	return err
}

type faultyWriter struct {
	store.Writer
	space  store.Space
	err    error
	silent bool
	failed error
}

// Put implements [store.Writer].
func (w *faultyWriter) Put(space store.Space, rows ...store.Row) error {
	if space != w.space {
		return w.Writer.Put(space, rows...)
	}
	if w.failed = w.err; w.silent {
		return nil
	}
	return w.err
}
