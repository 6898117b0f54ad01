package ratls

import (
	"context"
	"crypto/tls"
	"sync"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/fault"
)

const (
	// renewalPause is how long after a renewal that failed the next one is tried.
	renewalPause = time.Minute
	// renewalTime bounds a renewal.
	renewalTime = time.Minute
	// renewalWait is how long a handshake waits for a renewal while the current certificate is valid.
	renewalWait = 2 * time.Second
)

// An Identity is one endpoint's key and evidence. It makes the certificate at first use and a new one, with a new
// key and new evidence, when half of its life is over. While that fails, or takes long, the current one is used until it
// ends. It is safe for concurrent use.
type Identity struct {
	attester attest.Attester
	options  Options

	mu      sync.Mutex
	current *tls.Certificate
	renewal chan struct{} // closed when the renewal under way has ended; nil if there is none
	failed  error         // of the last renewal
	retry   time.Time     // when the next one may be tried

	panicked error // of a renewal, until a caller is told
}

// NewIdentity returns an identity whose evidence a makes.
func NewIdentity(a attest.Attester, o Options) (*Identity, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, attest.Errorf(attest.CodeConfig, "making identity", "", "%w", err)
	}
	return &Identity{attester: a, options: o}, nil
}

// Certificate returns the current certificate. Callers share it and must not change it. If a renewal has panicked, the next
// call panics.
func (i *Identity) Certificate(ctx context.Context) (*tls.Certificate, error) {
	i.raise()
	certificate, renewal, patience := i.look(ctx)
	if renewal == nil {
		return certificate, nil
	}
	if patience > 0 {
		bounded, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		ctx = bounded
	}
	select {
	case <-renewal:
	case <-ctx.Done():
	}
	i.raise()
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.valid(i.options.Now()) {
		return i.current, nil
	}
	if ctx.Err() != nil {
		return nil, attest.Errorf(attest.CodeAttester, "making attested certificate", "", "%w", ctx.Err())
	}
	return nil, i.failed
}

// raise panics if a renewal has.
func (i *Identity) raise() {
	i.mu.Lock()
	panicked := i.panicked
	i.panicked = nil
	i.mu.Unlock()
	_ = fault.Raise(panicked)
}

// look returns the current certificate or a renewal to wait for, and for how long if there is a certificate meanwhile.
func (i *Identity) look(ctx context.Context) (*tls.Certificate, <-chan struct{}, time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.options.Now()
	valid := i.valid(now)
	switch {
	case valid && (now.Before(i.current.Leaf.NotAfter.Add(-i.options.Validity/2)) || i.renewal != nil || now.Before(i.retry)):
		return i.current, nil, 0
	case i.renewal == nil:
		i.renewal = make(chan struct{})
		go func(ctx context.Context, ended chan struct{}) {
			defer close(ended)
			if err := fault.Try(func() error { i.renew(ctx); return nil }); err != nil {
				i.mu.Lock()
				defer i.mu.Unlock()
				i.renewal, i.failed, i.panicked, i.retry = nil, err, err, i.options.Now().Add(renewalPause)
			}
		}(context.WithoutCancel(ctx), i.renewal)
	}
	if valid {
		return nil, i.renewal, renewalWait
	}
	return nil, i.renewal, 0
}

func (i *Identity) valid(now time.Time) bool {
	return i.current != nil && now.Before(i.current.Leaf.NotAfter)
}

func (i *Identity) renew(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, renewalTime)
	defer cancel()
	certificate, err := NewCertificate(ctx, i.attester, i.options)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.renewal, i.failed = nil, err
	now := i.options.Now()
	if err == nil {
		i.current = &certificate
		return
	}
	i.retry = now.Add(renewalPause)
	if i.options.Failed != nil && i.valid(now) {
		i.options.Failed(err, i.current.Leaf.NotAfter)
	}
}
