// Package pccs finds collateral for package attest/dcap: in a directory ([Dir]), beside the evidence
// ([Stapled]), or over HTTP ([Client]) at a provisioning certificate caching service (PCCS, API versions 3 and
// 4) or at Intel's provisioning certification service (PCS).
//
// # Promises of the client
//
//   - Collateral is cached in memory and, if a directory is configured, on disk, by kind of TEE, FMSPC and
//     CA. It is used until its first document expires, refreshed in the background once two thirds of that time
//     (at most [Config.MaxAge]) have passed, and kept when the refresh fails.
//   - Requests for the same collateral share one fetch. Every fetch has a deadline of its own; every
//     answer has a bound on its size.
//   - Failures that may pass (no connection, 429, 5xx) are tried again with growing, jittered delays, or after
//     what Retry-After says, cut to a quarter of the time that is left. A failure is remembered for a short while, so that a service that is down or does
//     not know a platform is not asked by every session.
//   - Nothing is cached whose signatures do not lead to a trusted root, so neither a service nor, on plain HTTP,
//     anyone on the network path can spoil the cache. The verifier checks all of it again.
//   - What a service once offered it may not take back: collateral with a lower tcbEvaluationDataNumber or CRL
//     number than seen before is refused.
//
// # Limits
//
// A service can withhold what is new, as long as what it has is valid; without TLS so can anyone on the network path.
// That is why plain HTTP is possible, and why it must be asked for with [Config.AllowHTTP].
//
// The client asks for collateral only: it gets no PCK certificates and needs no subscription key. It ignores the
// proxy variables of the environment; [Config.Transport] can use a proxy.
//
// Sources: Intel PCS API documentation versions 3 and 4, Intel PCCS 1.27, Intel QCNL.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning. The layout of
// the offline directory stays.
package pccs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/internal/fault"
	"github.com/sesame-init/sesame/internal/retry"
)

// IntelURL is Intel's provisioning certification service.
const IntelURL = "https://api.trustedservices.intel.com/sgx/certification/v4/"

// intelRootCRL is the address in the root's own CRL distribution point. PCS does not serve it.
const intelRootCRL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"

const (
	// maxDocument bounds each document. Intel's largest, a PCK CRL, is below 1 MiB.
	maxDocument = 4 << 20
	// maxHeaders bounds the headers of an answer, which hold an issuer chain of some 4 KB.
	maxHeaders = 64 << 10
	// maxEntries bounds the cache in memory.
	maxEntries = 256
)

// Config of a [Client]. Only URL is required.
type Config struct {
	// URL of the service, as in Intel's sgx_default_qcnl.conf: "https://HOST:PORT/sgx/certification/v4/". The
	// path may be left out. At Intel's own host the root CA CRL is fetched from its distribution point.
	URL string
	// AllowHTTP permits a URL, and redirects, without TLS.
	AllowHTTP bool
	// RootCAs are the authorities of the service's TLS certificate; nil means the system's.
	RootCAs *x509.CertPool
	// Transport replaces the HTTP transport; RootCAs is then not used.
	Transport http.RoundTripper
	// Update is "early" or "standard": which TCB evaluation to ask for (API version 4). Empty leaves it to the
	// service.
	Update string

	// Roots are the roots that collateral must be signed below; empty means Intel's.
	Roots []*x509.Certificate

	// Directory is the cache on disk, with one directory per platform that [Dir] can read. Empty means none.
	Directory string
	// MaxAge is the longest time without a refresh; zero is 168 hours, as in Intel's QCNL.
	MaxAge time.Duration
	// NegativeAge is how long a failure is remembered; zero is 30 seconds.
	NegativeAge time.Duration
	// Timeout bounds one HTTP exchange, zero is 10 seconds. FetchTimeout bounds the fetch of all documents with
	// its retries, zero is one minute. Attempts is how often a document is tried, zero is 4.
	Timeout, FetchTimeout time.Duration
	Attempts              int

	// Now is the clock; nil is the system's.
	Now func() time.Time
	// Wait waits between attempts; nil waits in real time.
	Wait func(ctx context.Context, d time.Duration) error
}

// Client fetches and caches collateral. It implements [dcap.Source] and is safe for concurrent use.
type Client struct {
	config  Config
	base    *url.URL // .../sgx/certification/vN/
	version int
	http    *http.Client

	ctx     context.Context // of all fetches; ends with Close
	cancel  context.CancelFunc
	fetches sync.WaitGroup
	flights singleflight.Group

	mu      sync.Mutex
	entries map[dcap.Request]entry
}

// entry is what is known for a request: the last good collateral, and the last failure.
type entry struct {
	collateral *dcap.Collateral
	marks      marks
	refresh    time.Time // when to fetch anew
	expires    time.Time // when a document expires

	err   error     // of the last fetch
	retry time.Time // until when err is the answer
}

// New checks the configuration. It does no network.
func New(c Config) (*Client, error) {
	setDefault(&c.MaxAge, 168*time.Hour)
	setDefault(&c.NegativeAge, 30*time.Second)
	setDefault(&c.Timeout, 10*time.Second)
	setDefault(&c.FetchTimeout, time.Minute)
	if c.Attempts == 0 {
		c.Attempts = 4
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Wait == nil {
		c.Wait = retry.Wait
	}
	base, version, err := service(c.URL, c.AllowHTTP)
	if err != nil {
		return nil, err
	}
	switch {
	case c.Update != "" && c.Update != "early" && c.Update != "standard":
		return nil, attest.Errorf(attest.CodeConfig, step, "", `update is %q, want "early" or "standard"`, c.Update)
	case c.Update != "" && version < 4:
		return nil, attest.Errorf(attest.CodeConfig, step, "", "update needs version 4 of the API, not %d", version)
	}
	if c.Transport == nil {
		c.Transport = &http.Transport{
			TLSClientConfig:        &tls.Config{RootCAs: c.RootCAs, MinVersion: tls.VersionTLS12},
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxHeaders,
			MaxConnsPerHost:        8,
			IdleConnTimeout:        30 * time.Second,
		}
	}
	client := &Client{config: c, base: base, version: version, entries: map[dcap.Request]entry{}}
	client.ctx, client.cancel = context.WithCancel(context.Background())
	client.http = &http.Client{Transport: c.Transport, CheckRedirect: client.checkRedirect}
	return client, nil
}

const step = "configuring collateral service"

// CheckURL returns what [New] would say about the address: an error with [attest.CodeConfig], or nil.
func CheckURL(text string, allowHTTP bool) error {
	_, _, err := service(text, allowHTTP)
	return err
}

// service is the base address of a service and the version of its API.
func service(text string, allowHTTP bool) (*url.URL, int, error) {
	base, version, err := parseURL(text)
	if err != nil {
		return nil, 0, attest.Errorf(attest.CodeConfig, step,
			"Write it as https://HOST:PORT/sgx/certification/v4/ (or v3).", "URL %q: %w", text, err)
	}
	if base.Scheme == "http" && !allowHTTP {
		return nil, 0, attest.Errorf(attest.CodeConfig, step,
			"Use https, or allow plain HTTP explicitly: collateral is signed, but anyone on the network path can then withhold it.",
			"URL %q has no TLS", text)
	}
	return base, version, nil
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d == 0 {
		*d = value
	}
}

func parseURL(text string) (*url.URL, int, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, 0, errors.Unwrap(err)
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return nil, 0, errors.New("not an http(s) address")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/sgx/certification/v4/"
	}
	if !strings.HasSuffix(u.Path, "/") {
		u.Path += "/"
	}
	u.RawQuery, u.Fragment = "", ""
	switch {
	case strings.HasSuffix(u.Path, "/sgx/certification/v4/"):
		return u, 4, nil
	case strings.HasSuffix(u.Path, "/sgx/certification/v3/"):
		return u, 3, nil
	}
	return nil, 0, fmt.Errorf("path %s is not that of API version 3 or 4", u.Path)
}

func (c *Client) checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) >= 3 {
		return errors.New("too many redirects")
	}
	if r.URL.Scheme != "https" && !c.config.AllowHTTP {
		return fmt.Errorf("redirected to %s without TLS", r.URL.Redacted())
	}
	return nil
}

// Close ends the fetches that are under way and waits for them. The client answers from its cache afterwards.
func (c *Client) Close() {
	c.mu.Lock()
	c.cancel()
	c.mu.Unlock()
	c.fetches.Wait()
	c.http.CloseIdleConnections()
}

// Collateral implements [dcap.Source].
func (c *Client) Collateral(ctx context.Context, r dcap.Request) (*dcap.Collateral, error) {
	if err := c.checkRequest(r); err != nil {
		return nil, err
	}
	now := c.config.Now()
	c.lookup(r, now)
	c.mu.Lock() // until the fetch is joined: one that ended in between would be made again
	e := c.entries[r]
	valid := e.collateral != nil && now.Before(e.expires)
	resting := now.Before(e.retry)
	var fetched <-chan singleflight.Result
	if !resting && (!valid || !now.Before(e.refresh)) {
		fetched = c.fetch(r)
	}
	c.mu.Unlock()
	switch {
	case valid:
		return e.collateral, nil
	case resting:
		return nil, e.err
	}
	return c.await(ctx, fetched)
}

// Refresh fetches collateral whatever the cache holds, or joins a fetch that is under way.
func (c *Client) Refresh(ctx context.Context, r dcap.Request) (*dcap.Collateral, error) {
	if err := c.checkRequest(r); err != nil {
		return nil, err
	}
	return c.await(ctx, c.fetch(r))
}

func (c *Client) await(ctx context.Context, fetched <-chan singleflight.Result) (*dcap.Collateral, error) {
	select {
	case result := <-fetched:
		if result.Err != nil {
			return nil, result.Err
		}
		return result.Val.(*dcap.Collateral), nil
	case <-ctx.Done():
		return nil, c.refuse(attest.CodeUnreachable, hintReach, "%w", ctx.Err())
	}
}

const hintReach = "Check that the collateral service runs and can be reached from here."

// refuse makes the client's errors, which all name the service.
func (c *Client) refuse(code attest.Code, hint, format string, args ...any) error {
	return attest.Errorf(code, "asking "+c.base.Host, hint, format, args...)
}

func (c *Client) checkRequest(r dcap.Request) error {
	var err error
	switch {
	case r.CA != dcap.PlatformCA && r.CA != dcap.ProcessorCA:
		err = fmt.Errorf("unknown CA %q of a PCK certificate", r.CA)
	case r.TEE != attest.SGX && r.TEE != attest.TDX:
		err = fmt.Errorf("there is no Intel collateral for %q", r.TEE)
	case r.TEE == attest.TDX && c.version < 4:
		err = errors.New("collateral of TDX needs version 4 of the API")
	default:
		return nil
	}
	return c.refuse(attest.CodeCollateral, "", "%w", err)
}

// name of the request, for the disk and for the single flight.
func name(r dcap.Request) string { return fmt.Sprintf("%s-%X-%s", r.TEE, r.FMSPC, r.CA) }

// lookup is the entry of r, read from disk when it is first asked for.
func (c *Client) lookup(r dcap.Request, now time.Time) entry {
	c.mu.Lock()
	e, found := c.entries[r]
	c.mu.Unlock()
	if found || c.config.Directory == "" {
		return e
	}
	e, err := c.load(r, now)
	if err != nil {
		return entry{} // a cache: what cannot be read is fetched
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if newer, found := c.entries[r]; found {
		return newer
	}
	c.put(r, e)
	return e
}

// put needs c.mu. A full cache loses an entry, of a failure if there is one.
func (c *Client) put(r dcap.Request, e entry) {
	if _, found := c.entries[r]; !found && len(c.entries) >= maxEntries {
		var victim dcap.Request
		for candidate, e := range c.entries {
			victim = candidate
			if e.collateral == nil {
				break
			}
		}
		delete(c.entries, victim)
	}
	c.entries[r] = e
}

// fetch starts to fetch, or joins. The fetch belongs to the client, not to the caller: it ends by its own
// deadline or with Close, whether or not anyone waits for its result.
func (c *Client) fetch(r dcap.Request) <-chan singleflight.Result {
	return c.flights.DoChan(name(r), func() (any, error) {
		c.mu.Lock()
		if c.ctx.Err() != nil {
			c.mu.Unlock()
			return nil, c.refuse(attest.CodeUnreachable, "", "the client is closed")
		}
		c.fetches.Add(1)
		c.mu.Unlock()
		defer c.fetches.Done()

		ctx, cancel := context.WithTimeout(c.ctx, c.config.FetchTimeout)
		defer cancel()
		now := c.config.Now()
		before := c.lookup(r, now)
		var after entry
		err := fault.Try(func() (err error) { after, err = c.download(ctx, r, before.marks, now); return err })
		if err != nil {
			after = before
			after.err = err
			after.retry = c.config.Now().Add(c.config.NegativeAge)
		}
		c.mu.Lock()
		c.put(r, after)
		c.mu.Unlock()
		return after.collateral, after.err
	})
}

// download fetches and checks all documents.
func (c *Client) download(ctx context.Context, r dcap.Request, seen marks, now time.Time) (entry, error) {
	collateral, err := c.documents(ctx, r)
	if err != nil {
		return entry{}, err
	}
	e, err := c.check(r, collateral)
	if err != nil {
		return entry{}, err
	}
	if err := e.marks.notBefore(seen); err != nil {
		return entry{}, c.refuse(attest.CodeCollateral,
			"The service went back to older collateral. If that is intended, remove the cache directory.", "%w", err)
	}
	if !now.Before(e.expires) {
		return entry{}, c.refuse(attest.CodeCollateral,
			"Refresh the caching service's own cache, or set the clock.", "the collateral expired at %s",
			e.expires.Format(time.RFC3339))
	}
	e.refresh = now.Add(min(e.expires.Sub(now)*2/3, c.config.MaxAge))
	if c.config.Directory != "" {
		// The collateral is good even if it cannot be stored.
		_ = c.save(r, collateral, now)
	}
	return e, nil
}

// check verifies the signatures of collateral and reads what the cache must know of it.
func (c *Client) check(r dcap.Request, collateral *dcap.Collateral) (entry, error) {
	e, err := dcap.Load(collateral, c.config.Roots)
	switch {
	case err != nil:
		return entry{}, c.refuse(attest.CodeCollateral, "", "%w", err)
	case e.FMSPC() != r.FMSPC:
		return entry{}, c.refuse(attest.CodeCollateral, "", "TCB info is for FMSPC %X, not %X", e.FMSPC(), r.FMSPC)
	}
	return entry{
		collateral: collateral,
		marks:      marks{e.EvaluationNumber(), e.PCKCRLNumber(), e.RootCRLNumber()},
		expires:    e.Expiry(),
	}, nil
}

// marks are the numbers of collateral that only rise.
type marks struct {
	evaluation      uint32
	pckCRL, rootCRL *big.Int // nil where nothing was seen
}

// notBefore fails if a mark is below that of seen.
func (m marks) notBefore(seen marks) error {
	switch {
	case m.evaluation < seen.evaluation:
		return fmt.Errorf("TCB evaluation number is %d after %d", m.evaluation, seen.evaluation)
	case seen.pckCRL != nil && m.pckCRL.Cmp(seen.pckCRL) < 0:
		return fmt.Errorf("PCK CRL has number %v after %v", m.pckCRL, seen.pckCRL)
	case seen.rootCRL != nil && m.rootCRL.Cmp(seen.rootCRL) < 0:
		return fmt.Errorf("root CA CRL has number %v after %v", m.rootCRL, seen.rootCRL)
	}
	return nil
}

// documents fetches the four documents of r, one after the other over one connection.
func (c *Client) documents(ctx context.Context, r dcap.Request) (*dcap.Collateral, error) {
	fmspc := fmt.Sprintf("%X", r.FMSPC)
	tcb, qe := url.Values{"fmspc": {fmspc}}, url.Values{}
	if c.config.Update != "" {
		tcb.Set("update", c.config.Update)
		qe.Set("update", c.config.Update)
	}
	unknown := func(what string) string {
		return "The service has no " + what + ": register the platform there, or refresh the service's cache."
	}
	collateral := new(dcap.Collateral)
	for _, d := range []struct {
		what    string
		address string
		hint    string // for 404
		body    *[]byte
		chain   *[]byte
		headers []string // of the issuer chain
	}{
		{"TCB info of FMSPC " + fmspc, c.address(r.TEE, "tcb", tcb), unknown("TCB info of FMSPC " + fmspc),
			&collateral.TCBInfo, &collateral.TCBInfoChain, []string{"TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"}},
		{"QE identity", c.address(r.TEE, "qe/identity", qe), unknown("QE identity"),
			&collateral.QEIdentity, &collateral.QEIdentityChain, []string{"SGX-Enclave-Identity-Issuer-Chain"}},
		{"PCK CRL", c.address(attest.SGX, "pckcrl", url.Values{"ca": {r.CA}, "encoding": {"der"}}),
			unknown("CRL of the " + r.CA + " CA"),
			&collateral.PCKCRL, &collateral.PCKCRLChain, []string{"SGX-PCK-CRL-Issuer-Chain"}},
		{"root CA CRL", c.rootCRLAddress(), unknown("root CA CRL"), &collateral.RootCACRL, nil, nil},
	} {
		body, header, err := c.get(ctx, d.address)
		if err != nil {
			code, hint := explain(err, d.hint)
			return nil, c.refuse(code, hint, "%s: %w", d.what, err)
		}
		*d.body = body
		if d.chain == nil {
			continue
		}
		if *d.chain, err = issuerChain(header, d.headers); err != nil {
			return nil, c.refuse(attest.CodeCollateral, "", "%s: %w", d.what, err)
		}
	}
	return collateral, nil
}

func (c *Client) address(tee attest.EvidenceType, document string, query url.Values) string {
	u := *c.base
	if tee == attest.TDX {
		u.Path = strings.TrimSuffix(u.Path, "/sgx/certification/v4/") + "/tdx/certification/v4/"
	}
	u.Path = path.Join(u.Path, document)
	u.RawQuery = query.Encode()
	return u.String()
}

func (c *Client) rootCRLAddress() string {
	if c.base.Hostname() == "api.trustedservices.intel.com" {
		return intelRootCRL
	}
	return c.address(attest.SGX, "rootcacrl", nil)
}

// issuerChain is the PEM chain in the first of the headers that is there, percent-decoded.
func issuerChain(h http.Header, names []string) ([]byte, error) {
	for _, name := range names {
		if value := h.Get(name); value != "" {
			chain, err := url.PathUnescape(value)
			if err != nil {
				return nil, fmt.Errorf("header %s: %w", name, err)
			}
			return []byte(chain), nil
		}
	}
	return nil, fmt.Errorf("the answer has no header %s", strings.Join(names, " or "))
}
