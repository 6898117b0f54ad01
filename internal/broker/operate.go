package broker

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/sesame-init/sesame/attest/session/sessionpb"
)

// watchInterval is how often the broker looks whether it is ready.
const watchInterval = 10 * time.Second

// readyTimeout bounds one look.
const readyTimeout = 5 * time.Second

// Readiness is the state of each condition: nil if it holds.
type Readiness struct {
	Policy     error // a policy is in force
	Keeper     error // the store answers and the log can be written
	Collateral error // the collateral that peers need is there and valid
}

// Ok reports whether all conditions hold.
func (r Readiness) Ok() bool { return r.Policy == nil && r.Keeper == nil && r.Collateral == nil }

func (r Readiness) conditions() map[string]error {
	return map[string]error{"policy": r.Policy, "keeper": r.Keeper, "collateral": r.Collateral}
}

// Ready looks whether the broker can release secrets now. A broker is not made without a policy, so that condition
// always holds.
func (s *Server) Ready(ctx context.Context) Readiness {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	force := s.config.Policies.current.Load()
	expiry, err := force.trust.fresh(ctx, s.config.Now())
	r := Readiness{Keeper: s.config.Keeper.Ready(ctx), Collateral: err}
	if !expiry.IsZero() {
		s.metrics.expiry.Set(float64(expiry.Unix()))
	}
	s.metrics.version.Set(float64(force.policy.Version))
	s.metrics.show(r)
	return r
}

// watch keeps the state that gRPC's health service tells, and logs when it changes.
func (s *Server) watch(ctx context.Context) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	was := true
	for {
		r := s.Ready(ctx)
		if ctx.Err() != nil {
			return
		}
		state := grpc_health_v1.HealthCheckResponse_SERVING
		if !r.Ok() {
			state = grpc_health_v1.HealthCheckResponse_NOT_SERVING
		}
		s.health.SetServingStatus(sessionpb.KeyBroker_ServiceDesc.ServiceName, state)
		if r.Ok() != was {
			was = r.Ok()
			for name, err := range r.conditions() {
				if err != nil {
					s.config.Logger.Errorf("not ready: %s: %v", name, err)
				}
			}
			if was {
				s.config.Logger.Info("ready again")
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Handler serves /healthz, /readyz and /metrics, for a port of its own. It says nothing secret, but whom it may
// concern: an operator's network.
func (s *Server) Handler() http.Handler { return handler(s.metrics, s.Ready) }

// Starting is [Server.Handler] for a broker that is not made yet, as it waits for a keeper that is locked: it is alive
// and not ready, and says what of the keeper.
func Starting(k Keeper, m *Metrics) http.Handler {
	return handler(m, func(ctx context.Context) Readiness {
		ctx, cancel := context.WithTimeout(ctx, readyTimeout)
		defer cancel()
		r := Readiness{Policy: errStarting, Keeper: k.Ready(ctx), Collateral: errStarting}
		m.show(r)
		return r
	})
}

var errStarting = errors.New("the broker is starting")

func handler(m *Metrics, look func(context.Context) Readiness) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ready := look(r.Context())
		answer := map[string]string{}
		for name, err := range ready.conditions() {
			answer[name] = "ok"
			if err != nil {
				answer[name] = bounded(err.Error())
			}
		}
		w.Header().Set("Content-Type", "application/json")
		if !ready.Ok() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(answer)
	})
	mux.Handle("GET /metrics", m.Handler())
	return mux
}
