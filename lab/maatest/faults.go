package maatest

import (
	"io"
	"net/http"
	"strings"
)

// An Attack is one way to lie.
type Attack string

// Attacks of a false MAA.
const (
	OtherQuote      Attack = "token for another quote"
	OtherKey        Attack = "token for another key"
	OtherEnclave    Attack = "token for another enclave"
	NoKey           Attack = "token without a key"
	UnsignedToken   Attack = "unsigned token"
	SymmetricToken  Attack = "token of algorithm HS256"
	CriticalToken   Attack = "token with a critical extension"
	ForeignKeySet   Attack = "token whose jku is foreign"
	ForeignIssuer   Attack = "token of another issuer"
	ExpiredToken    Attack = "expired token"
	FutureToken     Attack = "token of the future"
	MachineToken    Attack = "token of a virtual machine"
	DebugToken      Attack = "token of a debug enclave"
	RepeatedMember  Attack = "token with a member twice"
	WrongSignature  Attack = "token with a wrong signature" // the vault finds it
	EmptyToken      Attack = "no token"
	UnknownTokenKey Attack = "token of an unknown key" // the vault finds it
)

// Attacks of a false vault, or of an attacker between it and the enclave.
const (
	SwappedKey        Attack = "another key of the vault"
	OtherVault        Attack = "the same key of another vault"
	OtherVersion      Attack = "another version of the key"
	WeakerWrapping    Attack = "the weaker wrapping with SHA-1"
	InnerWrapping     Attack = "another wrapping within"
	InnerAlgorithm    Attack = "another algorithm within"
	Replay            Attack = "a recorded release"
	ReplayWithNonce   Attack = "a recorded release, signed anew with this nonce"
	WrongNonce        Attack = "another nonce"
	ForOtherKey       Attack = "a key wrapped for somebody else"
	ForOtherKeyRaw    Attack = "a key wrapped for somebody else under our name"
	ShortCiphertext   Attack = "a ciphertext cut off"
	EmptyCiphertext   Attack = "no ciphertext"
	ChangedCiphertext Attack = "a changed ciphertext"
	UnsignedRelease   Attack = "an unsigned release"
	SymmetricRelease  Attack = "a release of algorithm HS256"
	ChangedRelease    Attack = "a release with a wrong signature"
	UntrustedChain    Attack = "a release under a root that is not trusted"
	NoChain           Attack = "a release without certificates"
	ExpiredLeaf       Attack = "a release with an expired certificate"
	WrongHost         Attack = "a release with another host's certificate"
	WrongThumbprint   Attack = "a release with a wrong thumbprint"
	RepeatedKID       Attack = "a release with a member twice"
	EmptyRelease      Attack = "no release"
)

// A Fault is one way to fail.
type Fault struct {
	// Status and Body answer with an error; Code and Message make a body of the service's shape.
	Status        int
	Code, Message string
	Body          string
	RetryAfter    string // header
	Trouble       Trouble
}

// Trouble is a failure below HTTP's statuses.
type Trouble string

// Troubles.
const (
	Hangs     Trouble = "never answers"
	HangsBody Trouble = "begins an answer and never ends it"
	Cuts      Trouble = "cuts the connection"
	CutsBody  Trouble = "cuts the connection within the answer"
	Floods    Trouble = "answers more than anybody reads"
	Redirects Trouble = "redirects to another host"
	Nonsense  Trouble = "answers something that is not JSON"
)

// flood is more than package maa reads of any answer.
const flood = 8 << 20

func (c *Cloud) nextFault(service Service) (Fault, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.faults[service]) == 0 {
		return Fault{}, false
	}
	next := c.faults[service][0]
	c.faults[service] = c.faults[service][1:]
	return next, true
}

func (f Fault) serve(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // a server notices that the client has gone only after that
	switch f.Trouble {
	case Hangs:
		<-r.Context().Done()
		panic(http.ErrAbortHandler) // a return would be an empty answer
	case HangsBody:
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte(`{"tok`))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	case Cuts:
		panic(http.ErrAbortHandler)
	case CutsBody:
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte(`{"tok`))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case Floods:
		_, _ = w.Write([]byte(`{"token":"` + strings.Repeat("A", flood) + `"}`))
		return
	case Redirects:
		w.Header().Set("Location", "https://elsewhere.example/")
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	case Nonsense:
		_, _ = w.Write([]byte("<html>welcome</html>"))
		return
	}
	if f.RetryAfter != "" {
		w.Header().Set("Retry-After", f.RetryAfter)
	}
	w.Header().Set("x-ms-request-id", "00000000-0000-0000-0000-0000000fa017")
	w.WriteHeader(f.Status)
	body := f.Body
	if body == "" && f.Code != "" {
		body = `{"error":{"code":` + quoted(f.Code) + `,"message":` + quoted(f.Message) + `}}`
	}
	_, _ = w.Write([]byte(body))
}
