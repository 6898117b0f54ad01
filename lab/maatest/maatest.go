// Package maatest is a fake of what package maa talks to: Microsoft Azure Attestation, Azure Key Vault and Managed HSM,
// the Entra token service (AAD) and the instance metadata service. It serves tests and the demo.
//
// It is faithful in what the security of the flow rests on: it verifies quotes, checks that a quote binds the runtime data,
// signs tokens with a key that its key set publishes as certificates only, judges a token by the instance that issued
// it, evaluates release policies written in Key Vault's grammar, and wraps keys in the three ways that the service knows.
// Error answers have the service's shapes. What the real services alone decide it does not know: Azure's TCB
// baseline, attestation policies, quotas, and roles of identities.
//
// An [Attack] makes it lie in one way, a [Fault] makes it fail. One [Cloud.Handler] serves all four,
// told apart by path, and answer to whatever host name they are asked by.
package maatest

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sesame-init/sesame/attest"
)

// A Service is one of the four.
type Service string

// The services.
const (
	MAA      Service = "maa"
	Vault    Service = "vault"
	Entra    Service = "entra"
	Metadata Service = "metadata"
)

// Config of a [Cloud].
type Config struct {
	PKI      *PKI
	Verifier attest.Verifier  // judges quotes
	Keys     map[string]Key   // of the vault, by name
	Identity Identity         // that the vault serves
	Attack   Attack           // "" for none
	Now      func() time.Time // default time.Now
	// Faults are used up by the requests to a service, one each.
	Faults map[Service][]Fault
}

// Key is a key of the vault.
type Key struct {
	Type     string // "oct", "RSA" or "EC"
	Material []byte // the key itself for oct, else PKCS #8
	Policy   []byte // release policy in Key Vault's JSON
	Disabled bool
}

// Identity is what may ask for access tokens.
type Identity struct{ Tenant, ClientID, Secret, FederatedToken string }

// Cloud is the four services. It is safe for concurrent use.
type Cloud struct {
	config Config

	mu       sync.Mutex
	faults   map[Service][]Fault
	access   map[string]string // resource by access token
	recorded map[string]string // the first release of each key
	refusals []string
	asked    []string
	bearers  []string
	instance map[string]*instance // MAA's signing certificates by issuer
}

// New makes a cloud.
func New(c Config) *Cloud {
	if c.Now == nil {
		c.Now = time.Now
	}
	cloud := &Cloud{config: c, faults: map[Service][]Fault{}, access: map[string]string{}, recorded: map[string]string{},
		instance: map[string]*instance{}}
	for service, faults := range c.Faults {
		cloud.faults[service] = slices.Clone(faults)
	}
	return cloud
}

// Handler serves all services.
func (c *Cloud) Handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(service Service, pattern string, f func(*http.Request) (any, *refusal)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
			c.note(service, r)
			if fault, ok := c.nextFault(service); ok {
				fault.serve(w, r)
				return
			}
			answer, refused := f(r)
			if refused != nil {
				c.refuse(w, service, refused)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(answer)
		})
	}
	handle(MAA, "POST /attest/SgxEnclave", c.attest)
	handle(MAA, "GET /certs", c.certs)
	handle(MAA, "GET /.well-known/openid-configuration", c.metadata)
	handle(Vault, "POST /keys/{name}/release", c.release)
	handle(Vault, "POST /keys/{name}/{version}/release", c.release)
	handle(Entra, "POST /{tenant}/oauth2/v2.0/token", c.entraToken)
	handle(Metadata, "GET /metadata/identity/oauth2/token", c.managedToken)
	return mux
}

const maxRequest = 256 << 10

// refusal is an error answer.
type refusal struct {
	status       int
	code         string
	message      string
	authenticate string // WWW-Authenticate
}

func (c *Cloud) refuse(w http.ResponseWriter, service Service, r *refusal) {
	c.mu.Lock()
	c.refusals = append(c.refusals, r.message)
	c.mu.Unlock()
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("x-ms-request-id", "00000000-0000-0000-0000-00000000c0de")
	if r.authenticate != "" {
		w.Header().Set("WWW-Authenticate", r.authenticate)
	}
	w.WriteHeader(r.status)
	var body any = map[string]any{"error": map[string]string{"code": r.code, "message": r.message}}
	if service == Entra || service == Metadata {
		body = map[string]string{"error": r.code, "error_description": r.message}
	}
	_ = json.NewEncoder(w).Encode(body)
}

func (c *Cloud) note(service Service, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, string(service)+" "+r.URL.Path)
	if bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		c.bearers = append(c.bearers, bearer)
	}
}

// Refusals are the messages of all refusals so far.
func (c *Cloud) Refusals() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.refusals)
}

// Asked returns all requests so far, each as service and path.
func (c *Cloud) Asked() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.asked)
}

// AccessTokens are the access tokens that the vault was shown, to search logs for them.
func (c *Cloud) AccessTokens() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.bearers)
}

// Revoke makes every access token given so far worthless.
func (c *Cloud) Revoke() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.access)
}

// Server is a cloud that listens on the loopback interface: HTTPS for all services, and HTTP for the metadata service.
type Server struct {
	*Cloud
	https, http *httptest.Server
}

// Start serves c at an address, "127.0.0.1:0" for any port; it fails if the address is taken.
func (c *Cloud) Start(address string) (*Server, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	handler := c.Handler()
	s := &Server{Cloud: c, https: httptest.NewUnstartedServer(handler), http: httptest.NewServer(handler)}
	s.https.Listener.Close()
	s.https.Listener = l
	s.https.TLS = &tls.Config{Certificates: []tls.Certificate{c.config.PKI.tls}, MinVersion: tls.VersionTLS12}
	s.https.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes are expected
	s.https.StartTLS()
	return s, nil
}

// Address is that of the HTTPS server.
func (s *Server) Address() string { return s.https.Listener.Addr().String() }

// MetadataURL is the address of the metadata service.
func (s *Server) MetadataURL() string { return s.http.URL }

// Close ends the server and all connections.
func (s *Server) Close() {
	for _, server := range []*httptest.Server{s.https, s.http} {
		server.CloseClientConnections()
		server.Close()
	}
}

// Token is the token that the instance of a host name gives for a quote, without runtime data; "" if it refuses.
func (c *Cloud) Token(ctx context.Context, host string, quote []byte) string {
	body := strings.NewReader(`{"quote":` + quoted(b64.EncodeToString(quote)) + `}`)
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "https://"+host+"/attest/SgxEnclave?api-version=2022-08-01", body)
	answer, refused := c.attest(r)
	if refused != nil {
		return ""
	}
	return answer.(map[string]string)["token"]
}

// Transport reaches the server by whatever host name, over TLS to the cloud's own root.
func (s *Server) Transport() http.RoundTripper {
	return s.config.PKI.transport(s.config.Now, func(ctx context.Context, host string) (net.Conn, error) {
		var d net.Dialer
		if host == s.http.Listener.Addr().String() {
			return d.DialContext(ctx, "tcp", host)
		}
		return d.DialContext(ctx, "tcp", s.Address())
	})
}
