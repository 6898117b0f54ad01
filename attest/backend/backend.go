// Package backend is the seam between the boot sequence and the services that turn evidence into secrets:
// GRPC-RATLS key brokers (backend/grpcratls), Microsoft Azure Attestation with Key Vault (backend/maa) and
// KubeTEE AECS (backend/aecs). The measured config names one of them; nothing is guessed.
//
// A backend attests this environment to its service, verifies the service as its own policy says, and
// returns all secrets that were asked for, or none and one typed error. It writes nothing to disk and logs no
// secret.
//
// # When an answer is final
//
// Services of several servers are asked in rounds ([Rounds]), until one answers or ctx ends. What ends them sooner:
//
//   - A server that has proved what it is may refuse: that is its last word. A fault of its own side that it tells of
//     (no collateral, no store) is none, and neither is a server that cannot be reached.
//   - A server that has not proved what it is says nothing that counts, since anyone on the way can say it. What we find
//     wrong with it (its evidence, our policy) counts once it was found in three rounds.
//   - Both end the rounds only if every server has a last word: one that may still answer is waited for.
//
// No pause that a server asks for is longer than a quarter of the time that is left.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning.
package backend

import (
	"context"

	"github.com/sesame-init/sesame/attest"
)

// A Backend fetches secrets in exchange for evidence. Implementations live in the sub-packages and all pass
// the conformance suite of backend/backendtest.
type Backend interface {
	// Name is the word that selects the backend in the config: "grpc-ratls", "maa", "aecs".
	Name() string
	// Fetch returns the named secrets, all of them or an error, and never a secret that was not asked for.
	// ctx bounds the whole exchange; retries happen inside. The error's code is one of [attest.CodeAttester],
	// [attest.CodeUnreachable], [attest.CodeDenied], [attest.CodeEvidence], [attest.CodePolicy],
	// [attest.CodeCollateral], [attest.CodeMissing] and [attest.CodeSecret].
	Fetch(ctx context.Context, names []string) (map[string]attest.Secret, error)
}
