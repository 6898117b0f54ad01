package broker

import (
	"context"
	"errors"
	"sync"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/session"
)

// ownFault says whether an error is a fault of the broker's side: its collateral, its store, its own evidence. Such a
// fault says nothing about the peer, so it is no refusal and is not recorded as one.
func ownFault(err error) bool {
	switch attest.CodeOf(err) {
	case attest.CodeUnreachable, attest.CodeCollateral, attest.CodeMissing, attest.CodeAttester:
		return true
	}
	return false
}

// unavailable logs a fault of the broker's own and returns the status that the peer gets, which may try again.
func (s *Server) unavailable(ctx context.Context, r *request, err error) error {
	code := attest.CodeOf(err)
	log := r.log.WithField("code", string(code)).WithField("hint", attest.HintOf(err))
	switch {
	case errors.Is(context.Cause(ctx), context.Canceled): // the peer has left
		log.Debugf("peer not judged: %v", err)
	case s.lacking.first(err):
		log.Errorf("peer not judged, through a fault of this side: %v", err)
	default:
		log.Debugf("peer not judged, for lack of what was said before: %v", err)
	}
	s.metrics.undecided(r.decision.Wire, code)
	reason, hint := "something that it needs cannot be reached", "It is tried again; the broker's log says why."
	switch code {
	case attest.CodeCollateral:
		reason = "it has no valid collateral for this platform now"
		hint = "It is tried again; let the broker's operator look at the collateral service (docs/collateral.md)."
	case attest.CodeMissing:
		reason = "its collateral service does not have this platform"
		hint = "Let the broker's operator register the platform at the PCCS, or refresh its cache (docs/collateral.md)."
	case attest.CodeAttester:
		reason = "it cannot make its own evidence"
		hint = "It is tried again; let the broker's operator look at its quoting service."
	}
	return session.Unavailable(code, reason, hint)
}

const hintStore = "It is tried again; let the broker's operator look at its store."

// maxLacking bounds the memory of platforms. Only certificates under the vendor's root name one.
const maxLacking = 1024

// missingLog remembers the platforms whose collateral the service does not have, so that each is logged once as an error.
type missingLog struct {
	mu   sync.Mutex
	seen map[dcap.Request]bool
}

// first says whether an error is to be logged: any but that of a platform which was logged before.
func (l *missingLog) first(err error) bool {
	var of *dcap.FetchError
	if attest.CodeOf(err) != attest.CodeMissing || !errors.As(err, &of) {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen[of.Request] || len(l.seen) >= maxLacking {
		return false
	}
	if l.seen == nil {
		l.seen = map[dcap.Request]bool{}
	}
	l.seen[of.Request] = true
	return true
}
