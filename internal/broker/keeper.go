package broker

import (
	"context"
	"errors"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/internal/broker/policy"
)

// A Keeper holds the secrets and the release log. The server decides, the keeper records the decision and only then
// hands out what it allows: an entry that cannot be stored releases nothing. It is safe for concurrent use.
type Keeper interface {
	// Resolve finds the name under which a secret is stored: the exact one, or, since Occlum's server ignores case,
	// the only one that differs in nothing else. ok is false if there is none. The error is of the store.
	Resolve(ctx context.Context, asked string) (name string, ok bool, err error)
	// Release records d and returns the values of d.Grants in their order, in one transaction with the release counts.
	// The caller owns the values and wipes them. A second call with the same Binder and grants returns the same entry
	// and values and counts nothing. The error's code is [attest.CodeDenied] if a release count is used up (that
	// refusal is recorded, too), [attest.CodeSecret] if a secret is missing or does not decrypt, and
	// [attest.CodeInternal] if the store fails. It is [ErrStale], and nothing is recorded, if d.Fresh says no when
	// the commit begins.
	Release(ctx context.Context, d Decision) ([]attest.Secret, Receipt, error)
	// Refuse records a refusal.
	Refuse(ctx context.Context, d Decision) (Receipt, error)
	// Adopt records that a policy takes force, and only then it does. Versions only rise: one below the highest that
	// was ever recorded, or another text under that version, is refused with [attest.CodeConfig]. The same text again
	// is recorded and allowed.
	Adopt(ctx context.Context, a Adoption) (Receipt, error)
	// Ready reports why the keeper can release nothing at the moment, nil if it can.
	Ready(ctx context.Context) error
}

// A Decision is what the server has decided about one request of a peer.
type Decision struct {
	// Binder names the session: fresh and unique (session.Peer.Binder; on the legacy wire a hash over the connection
	// and the call).
	Binder   [32]byte
	At       time.Time // of the reading that it was made from
	Peer     string    // network address
	Wire     string    // "session" or "legacy"
	Workload string    // "" where the peer is none
	Evidence [32]byte  // SHA-256 of the raw evidence
	Claims   attest.Claims
	Grants   []Grant // what was asked for, under the stored names
	// Code and Reason say why a refusal; both empty for a release.
	Code   attest.Code
	Reason string
	// Fresh reports whether the decision may still be committed. Nil: it may.
	Fresh func() bool
}

// ErrStale is of a decision that is too old to be committed. It has to be made again.
var ErrStale = errors.New("the decision is too old")

// A Grant is one secret that a decision is about.
type Grant struct {
	Secret string
	Rule   string  // of the policy, that allows it or forbids it: "secrets.model_key.workloads"
	Limit  *uint64 // most releases of the secret, ever; nil is no limit, 0 is none
	// Version is the id of the version to release. "" is the newest that is not withdrawn.
	Version string
}

// Exhausted is the refusal of a grant whose secret was released this many times before, and nil if one more is allowed.
// Its code is [attest.CodeDenied].
func (g Grant) Exhausted(released uint64) error {
	const step = "releasing secret"
	const hint = "Raise releases in the policy if more are wanted."
	switch {
	case g.Limit == nil || released < *g.Limit:
		return nil
	case *g.Limit == 0:
		return attest.Errorf(attest.CodeDenied, step, hint, "the policy allows no release of secret %q", g.Secret)
	}
	return attest.Errorf(attest.CodeDenied, step, hint, "secret %q was released %d times, and the policy allows %d",
		g.Secret, released, *g.Limit)
}

// An Adoption is a policy that is to take force.
type Adoption struct {
	At      time.Time
	Version uint64   // that the policy gives itself
	Digest  [32]byte // SHA-256 of its text
	Text    []byte   // a keeper with a store keeps it for the next start and the other replicas, where Pinned is set
	By      string   // who brought it: "file policy.yaml", "key NAME", "admin NAME"
	// Pinned is set if the version decides (in an enclave). Without it any version is recorded and allowed: in
	// bare mode the policy is a file of the operator's.
	Pinned bool
}

// A Receipt places a decision in the release log. The client of a session gets it with its secrets. A keeper without a
// log leaves Checkpoint empty.
type Receipt = session.Receipt

// Reserved begins the names of what the broker keeps for itself. No secret has such a name, and a policy's "all
// secrets" never means one.
const Reserved = policy.Reserved

// RootKey is the name under which a running broker hands the root key of its store to a new replica. A policy grants
// it to workloads that it marks as brokers, and to no one else. [Keeper.Resolve] finds it by exactly this name.
const RootKey = policy.RootKey
