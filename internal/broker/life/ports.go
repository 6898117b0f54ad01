package life

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/internal/broker/admin"
	"github.com/sesame-init/sesame/internal/fault"
)

// changingHandler is a handler that becomes another one while it serves.
type changingHandler struct{ now atomic.Pointer[http.Handler] }

func (h *changingHandler) become(next http.Handler) { h.now.Store(&next) }

// ServeHTTP implements [http.Handler]. A panic ends the broker, where net/http would go on.
func (h *changingHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer fault.Exit()
	(*h.now.Load()).ServeHTTP(w, r)
}

// operate serves health and metrics, if there is an address for them: also while the broker is locked, so that an
// orchestrator that restarts what does not answer does not restart it then.
func (l *Life) operate(ctx context.Context, first http.Handler) error {
	l.health = &changingHandler{}
	l.health.become(first)
	if l.settings.HTTP == "" {
		return nil
	}
	listener, err := listenOn(ctx, l.settings.HTTP)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: l.health, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	l.settings.Log.Infof("health and metrics are served on %s", listener.Addr())
	ended := make(chan struct{})
	fault.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			l.settings.Log.Errorf("serving HTTP: %v", err)
		}
		close(ended)
	})
	l.onClose(func() {
		_ = server.Close()
		<-ended
	})
	return nil
}

// administer serves the administrators' channel, if the policy names an address for it.
func (l *Life) administer(ctx context.Context) error {
	settings, log := l.settings.Policy.Broker.Admin, l.settings.Log
	if settings.Listen == "" {
		return nil
	}
	roots, err := settings.RootCertificates()
	if err != nil {
		return attest.Errorf(attest.CodeConfig, "reading broker.admin.roots", "", "%w", err)
	}
	options := admin.Options{Keystore: l.keys, Identity: l.settings.Identity, Session: session.BrokerConfig{Quoter: l.config.Quoter},
		Roots: roots, Now: l.clock.Now, Logger: log}
	if l.settings.Enclave { // elsewhere the policy is a file
		options.Policies = l.late
	}
	server, err := admin.New(options)
	if err != nil {
		return err
	}
	listener, err := listenOn(ctx, settings.Listen)
	if err != nil {
		return err
	}
	log.Infof("administrators are served on %s", listener.Addr())
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	fault.Go(func() {
		if err := server.Serve(ctx, listener); err != nil {
			log.Errorf("serving administrators: %v", err)
		}
		close(ended)
	})
	l.onClose(func() {
		stop()
		<-ended
	})
	return nil
}
