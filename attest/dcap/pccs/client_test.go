package pccs_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/edgelesssys/ego/attestation/tcbstatus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/lab/softsgx"
)

const day = 24 * time.Hour

// clock stops until a test moves it; waits move it too and are recorded.
type clock struct {
	mu    sync.Mutex
	now   time.Time
	waits []time.Duration
}

func newClock() *clock { return &clock{now: time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func (c *clock) wait(ctx context.Context, d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waits = append(c.waits, d)
	c.now = c.now.Add(d)
	return ctx.Err()
}

// service is a software platform's PCCS behind a server that counts and can be made to fail.
type service struct {
	*httptest.Server
	platform *softsgx.Platform
	clock    *clock

	mu       sync.Mutex
	requests []string
	fail     func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
}

func newService(t *testing.T, o softsgx.Options) *service {
	t.Helper()
	s := &service{clock: newClock()}
	o.Rand, o.Now = rand.NewChaCha8(sha256.Sum256([]byte(t.Name()))), s.clock.now
	platform, err := softsgx.New(o)
	if err != nil {
		t.Fatal(err)
	}
	s.platform = platform
	handler := platform.PCCS()
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r.URL.Path)
		fail := s.fail
		s.mu.Unlock()
		if fail == nil || !fail(w, r) {
			handler.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *service) failing(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = f
}

func (s *service) roots() []*x509.Certificate { return []*x509.Certificate{s.platform.RootCA()} }

// down makes every answer a 503.
func (s *service) down() {
	s.failing(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
}

func (s *service) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.requests)
}

func (s *service) client(t *testing.T, change ...func(*pccs.Config)) *pccs.Client {
	t.Helper()
	c := pccs.Config{URL: s.URL, AllowHTTP: true, Roots: s.roots(), Now: s.clock.Now, Wait: s.clock.wait}
	for _, f := range change {
		f(&c)
	}
	return newClient(t, c)
}

func newClient(t *testing.T, c pccs.Config) *pccs.Client {
	t.Helper()
	client, err := pccs.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

var platformRequest = dcap.Request{TEE: attest.SGX, FMSPC: [6]byte{0x00, 0x60, 0x6A}, CA: dcap.PlatformCA}

// fetch asks for the platform's collateral and wants to get it.
func fetch(t *testing.T, s dcap.Source) *dcap.Collateral {
	t.Helper()
	c, err := s.Collateral(context.Background(), platformRequest)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func wantCode(t *testing.T, err error, code attest.Code) {
	t.Helper()
	if err == nil || attest.CodeOf(err) != code {
		t.Errorf("got %v (%s), want a refusal of class %s", err, attest.CodeOf(err), code)
	}
}

func wantEqual(t *testing.T, got, want *dcap.Collateral) {
	t.Helper()
	for name, pair := range map[string][2][]byte{
		"TCB info":          {got.TCBInfo, want.TCBInfo},
		"TCB info chain":    {got.TCBInfoChain, want.TCBInfoChain},
		"QE identity":       {got.QEIdentity, want.QEIdentity},
		"QE identity chain": {got.QEIdentityChain, want.QEIdentityChain},
		"PCK CRL":           {got.PCKCRL, want.PCKCRL},
		"PCK CRL chain":     {got.PCKCRLChain, want.PCKCRLChain},
	} {
		if !bytes.Equal(pair[0], pair[1]) {
			t.Errorf("%s is %.60q…, want %.60q…", name, pair[0], pair[1])
		}
	}
}

func TestCollateralIsWhatTheServiceHas(t *testing.T) {
	s := newService(t, softsgx.Options{})
	wantEqual(t, fetch(t, s.client(t)), s.platform.Collateral())

	v3 := fetch(t, s.client(t, func(c *pccs.Config) { c.URL = s.URL + "/sgx/certification/v3" }))
	if !bytes.HasPrefix(v3.TCBInfo, []byte(`{"tcbInfo":{"version":2,`)) {
		t.Errorf("TCB info of API version 3 is %.40s", v3.TCBInfo)
	}
}

func TestProcessorCAIsAskedFor(t *testing.T) {
	s := newService(t, softsgx.Options{Processor: true})
	request := platformRequest
	request.CA = dcap.ProcessorCA
	c, err := s.client(t).Collateral(context.Background(), request)
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, c, s.platform.Collateral())
}

func TestCollateralIsFetchedOnce(t *testing.T) {
	s := newService(t, softsgx.Options{})
	client := s.client(t)
	first := fetch(t, client)
	for range 3 {
		if fetch(t, client) != first {
			t.Error("collateral changed without a refresh")
		}
	}
	if n := s.count(); n != 4 {
		t.Errorf("the service was asked %d times, want 4: %v", n, s.requests)
	}
}

func TestConcurrentRequestsShareOneFetch(t *testing.T) {
	s := newService(t, softsgx.Options{})
	release := make(chan struct{})
	s.failing(func(http.ResponseWriter, *http.Request) bool { <-release; return false })
	client := s.client(t)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := client.Collateral(context.Background(), platformRequest); err != nil {
				t.Error(err)
			}
		})
	}
	close(release)
	wg.Wait()
	if n := s.count(); n != 4 {
		t.Errorf("the service was asked %d times, want 4", n)
	}
}

func TestCollateralIsRefreshedBeforeItExpires(t *testing.T) {
	s := newService(t, softsgx.Options{Validity: 9 * day})
	client := s.client(t)
	first := fetch(t, client)
	if err := s.platform.Renew(s.clock.Now().Add(5 * day)); err != nil {
		t.Fatal(err)
	}
	s.clock.advance(6*day - time.Minute)
	if fetch(t, client) != first || s.count() != 4 {
		t.Error("collateral was refreshed early")
	}
	s.clock.advance(2 * time.Minute)
	if fetch(t, client) != first {
		t.Error("a caller waited for a refresh")
	}
	refreshed, err := client.Refresh(context.Background(), platformRequest) // joins or follows the one in the background
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(refreshed.TCBInfo, first.TCBInfo) || fetch(t, client) != refreshed {
		t.Error("collateral was not refreshed")
	}
}

func TestLongLivedCollateralIsRefreshedAtMaxAge(t *testing.T) {
	s := newService(t, softsgx.Options{Validity: 1000 * day})
	client := s.client(t, func(c *pccs.Config) { c.MaxAge = day })
	fetch(t, client)
	s.clock.advance(day + time.Second)
	asked := make(chan struct{}, 4)
	s.failing(func(http.ResponseWriter, *http.Request) bool { asked <- struct{}{}; return false })
	fetch(t, client)
	<-asked
}

func TestValidCollateralSurvivesAServiceThatIsDown(t *testing.T) {
	s := newService(t, softsgx.Options{Validity: 3 * day})
	client := s.client(t)
	first := fetch(t, client)
	s.down()
	s.clock.advance(2*day + time.Hour)
	_, err := client.Refresh(context.Background(), platformRequest)
	wantCode(t, err, attest.CodeUnreachable)
	asked := s.count()
	if fetch(t, client) != first || s.count() != asked {
		t.Error("valid collateral was not served from the cache during the rest after a failure")
	}
	s.clock.advance(day)
	_, err = client.Collateral(context.Background(), platformRequest)
	wantCode(t, err, attest.CodeUnreachable)
}

func TestFailureIsRememberedForAWhile(t *testing.T) {
	s := newService(t, softsgx.Options{})
	client := s.client(t)
	request := platformRequest
	request.FMSPC[0]++
	for range 5 {
		_, err := client.Collateral(context.Background(), request)
		wantCode(t, err, attest.CodeMissing)
	}
	if n := s.count(); n != 1 {
		t.Errorf("the service was asked %d times, want once", n)
	}
	s.clock.advance(31 * time.Second)
	_, err := client.Collateral(context.Background(), request)
	wantCode(t, err, attest.CodeMissing)
	if n := s.count(); n != 2 {
		t.Errorf("the service was asked %d times, want once more", n)
	}
}

func TestAnswersThatRefuse(t *testing.T) {
	hijack := func(w http.ResponseWriter, text string) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = conn.Write([]byte(text))
		_ = conn.Close()
	}
	status := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
	}
	for _, c := range []struct {
		name     string
		fail     func(http.ResponseWriter, *http.Request) bool
		requests int
		code     attest.Code
		says     string
	}{
		{"400", status(400), 1, attest.CodeCollateral, "400"},
		{"401", status(401), 1, attest.CodeCollateral, "401"},
		{"404", status(404), 1, attest.CodeMissing, "404"},
		{"410", status(410), 1, attest.CodeMissing, "410"},
		{"461", status(461), 1, attest.CodeMissing, "Platform Unknown"},
		{"462", status(462), 1, attest.CodeMissing, "Certificate Unavailable"},
		{"429", status(429), 4, attest.CodeUnreachable, "429"},
		{"500", status(500), 4, attest.CodeUnreachable, "500"},
		{"503", status(503), 4, attest.CodeUnreachable, "503"},
		{"truncated", func(w http.ResponseWriter, _ *http.Request) bool {
			hijack(w, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"tcbInfo\":")
			return true
		}, 4, attest.CodeUnreachable, "unexpected EOF"},
		{"no answer", func(w http.ResponseWriter, _ *http.Request) bool {
			hijack(w, "")
			return true
		}, 4, attest.CodeUnreachable, "EOF"},
		{"oversized", func(w http.ResponseWriter, _ *http.Request) bool {
			_, _ = w.Write(make([]byte, 5<<20))
			return true
		}, 1, attest.CodeCollateral, "larger than"},
		{"oversized headers", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("TCB-Info-Issuer-Chain", strings.Repeat("A", 1<<20))
			return true
		}, 4, attest.CodeUnreachable, "header"},
		{"no issuer chain", func(w http.ResponseWriter, _ *http.Request) bool {
			_, _ = w.Write([]byte("{}"))
			return true
		}, 1, attest.CodeCollateral, "no header TCB-Info-Issuer-Chain"},
		{"issuer chain that is not encoded", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("TCB-Info-Issuer-Chain", "100%")
			return true
		}, 1, attest.CodeCollateral, "invalid URL escape"},
		{"not JSON", func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/tcb") {
				return false
			}
			w.Header().Set("TCB-Info-Issuer-Chain", "x")
			_, _ = w.Write([]byte("<html>"))
			return true
		}, 4, attest.CodeUnreachable, "a web page"},
		{"no CRL", func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/rootcacrl") {
				return false
			}
			_, _ = w.Write([]byte("3000"))
			return true
		}, 4, attest.CodeCollateral, "root CA CRL"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newService(t, softsgx.Options{})
			s.failing(c.fail)
			_, err := s.client(t).Collateral(context.Background(), platformRequest)
			wantCode(t, err, c.code)
			if err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q does not say %q", err, c.says)
			}
			if n := s.count(); n != c.requests {
				t.Errorf("the service was asked %d times, want %d", n, c.requests)
			}
		})
	}
}

func TestPassingFailuresAreTriedAgain(t *testing.T) {
	s := newService(t, softsgx.Options{})
	left := 3
	s.failing(func(w http.ResponseWriter, _ *http.Request) bool {
		if left == 0 {
			return false
		}
		left--
		w.WriteHeader(http.StatusInternalServerError)
		return true
	})
	fetch(t, s.client(t))
	if len(s.clock.waits) != 3 {
		t.Fatalf("waited %v, want three times", s.clock.waits)
	}
	for n, d := range s.clock.waits {
		base := 500 * time.Millisecond << n
		if d < base/2 || d >= base {
			t.Errorf("wait %d is %v, want %v to %v", n, d, base/2, base)
		}
	}
}

func TestRetryAfterIsObeyed(t *testing.T) {
	for name, header := range map[string]func(now time.Time) string{
		"seconds": func(time.Time) string { return "7" },
		"date":    func(now time.Time) string { return now.Add(7 * time.Second).Format(http.TimeFormat) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newService(t, softsgx.Options{})
			asked := false
			s.failing(func(w http.ResponseWriter, _ *http.Request) bool {
				if asked {
					return false
				}
				asked = true
				w.Header().Set("Retry-After", header(s.clock.Now()))
				w.WriteHeader(http.StatusTooManyRequests)
				return true
			})
			fetch(t, s.client(t))
			if !slices.Equal(s.clock.waits, []time.Duration{7 * time.Second}) {
				t.Errorf("waited %v, want 7 s", s.clock.waits)
			}
		})
	}
}

func TestLongRetryAfterIsCutToAQuarterOfTheTimeThatIsLeft(t *testing.T) {
	for _, asked := range []string{"600", "2147483647"} {
		s := newService(t, softsgx.Options{})
		s.failing(func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Retry-After", asked)
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		})
		client := s.client(t, func(c *pccs.Config) { c.FetchTimeout = 20 * time.Minute })
		_, err := client.Collateral(context.Background(), platformRequest)
		wantCode(t, err, attest.CodeUnreachable)
		if s.count() != 4 || len(s.clock.waits) != 3 {
			t.Fatalf("%s: the service was asked %d times after waits of %v, want 4", asked, s.count(), s.clock.waits)
		}
		for _, d := range s.clock.waits { // real time hardly passes
			if d > 5*time.Minute || d < 4*time.Minute {
				t.Errorf("%s: waited %v, want a quarter of 20 minutes", asked, d)
			}
		}
		s.failing(nil)
		s.clock.advance(31 * time.Second)
		fetch(t, client)
	}
}

func TestSlowServiceIsGivenUp(t *testing.T) {
	s := newService(t, softsgx.Options{})
	s.failing(func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true })
	client := s.client(t, func(c *pccs.Config) { c.Timeout = time.Millisecond })
	_, err := client.Collateral(context.Background(), platformRequest)
	wantCode(t, err, attest.CodeUnreachable)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want a deadline", err)
	}
}

func TestCallerCanLeaveAndTheFetchGoesOn(t *testing.T) {
	s := newService(t, softsgx.Options{})
	asked, release := make(chan struct{}, 4), make(chan struct{})
	s.failing(func(http.ResponseWriter, *http.Request) bool { asked <- struct{}{}; <-release; return false })
	client := s.client(t)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-asked; cancel() }()
	_, err := client.Collateral(ctx, platformRequest)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the caller's cancellation", err)
	}
	close(release)
	fetch(t, client)
	if n := s.count(); n != 4 {
		t.Errorf("the service was asked %d times, want 4", n)
	}
}

func TestCloseEndsFetches(t *testing.T) {
	s := newService(t, softsgx.Options{})
	asked := make(chan struct{}, 8)
	s.failing(func(_ http.ResponseWriter, r *http.Request) bool {
		asked <- struct{}{}
		<-r.Context().Done()
		return true
	})
	client := s.client(t)
	done := make(chan error, 1)
	go func() {
		_, err := client.Collateral(context.Background(), platformRequest)
		done <- err
	}()
	<-asked
	client.Close()
	wantCode(t, <-done, attest.CodeUnreachable)
	_, err := client.Refresh(context.Background(), platformRequest)
	wantCode(t, err, attest.CodeUnreachable)
}

func TestServiceCannotGoBack(t *testing.T) {
	for name, c := range map[string]struct {
		reissue func(t *testing.T, p *softsgx.Platform, now time.Time) (older http.Handler, err error)
		says    string
	}{
		"evaluation number": {func(_ *testing.T, p *softsgx.Platform, now time.Time) (http.Handler, error) {
			return p.PCCS(), p.Reissue(now, softsgx.TCB{EvaluationNumber: 16, Status: tcbstatus.UpToDate})
		}, "evaluation number is 16 after 17"},
		"CRL number": {func(t *testing.T, _ *softsgx.Platform, now time.Time) (http.Handler, error) {
			older, err := softsgx.New(softsgx.Options{Now: now, Rand: rand.NewChaCha8(sha256.Sum256([]byte(t.Name())))})
			if err != nil {
				return nil, err
			}
			return older.PCCS(), nil
		}, "CRL has number 1 after 2"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newService(t, softsgx.Options{})
			if err := s.platform.Renew(s.clock.Now()); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			cached := func(c *pccs.Config) { c.Directory = dir }
			client := s.client(t, cached)
			first := fetch(t, client)
			older, err := c.reissue(t, s.platform, s.clock.Now())
			if err != nil {
				t.Fatal(err)
			}
			s.failing(func(w http.ResponseWriter, r *http.Request) bool { older.ServeHTTP(w, r); return true })
			for _, client := range []*pccs.Client{client, s.client(t, cached)} {
				_, err = client.Refresh(context.Background(), platformRequest)
				wantCode(t, err, attest.CodeCollateral)
				if err != nil && !strings.Contains(err.Error(), c.says) {
					t.Errorf("%q does not say %q", err, c.says)
				}
				wantEqual(t, fetch(t, client), first)
			}
		})
	}
}

func TestExpiredCollateralIsNotTaken(t *testing.T) {
	s := newService(t, softsgx.Options{Validity: day})
	s.clock.advance(day)
	_, err := s.client(t).Collateral(context.Background(), platformRequest)
	wantCode(t, err, attest.CodeCollateral)
}

func TestDiskCacheOutlivesTheProcess(t *testing.T) {
	s := newService(t, softsgx.Options{Validity: 3 * day})
	dir := t.TempDir()
	cached := func(c *pccs.Config) { c.Directory = dir }
	first := fetch(t, s.client(t, cached))
	s.down()
	s.clock.advance(day)
	wantEqual(t, fetch(t, s.client(t, cached)), first)
	wantEqual(t, fetch(t, pccs.Dir(filepath.Join(dir, "sgx-00606A000000-platform"))), first)

	asked := s.count()
	s.clock.advance(2 * day)
	_, err := s.client(t, cached).Collateral(context.Background(), platformRequest)
	wantCode(t, err, attest.CodeUnreachable)
	if s.count() == asked {
		t.Error("the service was not asked although the cache had expired")
	}
}

func TestSpoiltDiskCacheIsFetchedAnew(t *testing.T) {
	s := newService(t, softsgx.Options{})
	dir := t.TempDir()
	cached := func(c *pccs.Config) { c.Directory = dir }
	first := fetch(t, s.client(t, cached))
	file := filepath.Join(dir, "sgx-00606A000000-platform", "tcb_info.json")
	for _, content := range [][]byte{nil, []byte("{"), bytes.Repeat([]byte(" "), 5<<20)} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		wantEqual(t, fetch(t, s.client(t, cached)), first)
	}
}

func TestCollateralOfAnotherRootIsNotCached(t *testing.T) {
	s := newService(t, softsgx.Options{})
	dir := t.TempDir()
	client := s.client(t, func(c *pccs.Config) { c.Directory, c.Roots = dir, nil })
	_, err := client.Collateral(context.Background(), platformRequest)
	wantCode(t, err, attest.CodeCollateral)
	if files, _ := os.ReadDir(dir); len(files) != 0 {
		t.Errorf("refused collateral is on disk: %v", files)
	}
}

func TestCollateralOfAnotherPlatformIsNotTaken(t *testing.T) {
	s := newService(t, softsgx.Options{FMSPC: [6]byte{7}})
	s.failing(func(_ http.ResponseWriter, r *http.Request) bool {
		r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "00606A000000", "070000000000", 1)
		return false
	})
	_, err := s.client(t).Collateral(context.Background(), platformRequest)
	wantCode(t, err, attest.CodeCollateral)
	if err != nil && !strings.Contains(err.Error(), "for FMSPC 070000000000, not 00606A000000") {
		t.Errorf("got %v", err)
	}
}

func TestCacheIsBounded(t *testing.T) {
	s := newService(t, softsgx.Options{})
	client := s.client(t)
	fetch(t, client)
	for i := range 400 {
		request := platformRequest
		request.FMSPC[4], request.FMSPC[5] = byte(i>>8)+1, byte(i)
		_, err := client.Collateral(context.Background(), request)
		wantCode(t, err, attest.CodeMissing)
	}
	if n := pccs.Entries(client); n > 256 {
		t.Errorf("the cache has %d entries", n)
	}
	asked := s.count()
	fetch(t, client)
	if s.count() != asked {
		t.Error("failures pushed collateral out of the cache")
	}
}

func TestPlainHTTPMustBeAllowed(t *testing.T) {
	_, err := pccs.New(pccs.Config{URL: "http://pccs.example/sgx/certification/v4/"})
	wantCode(t, err, attest.CodeConfig)

	s := newService(t, softsgx.Options{})
	secure := httptest.NewTLSServer(http.RedirectHandler(s.URL+"/sgx/certification/v4/tcb", http.StatusFound))
	defer secure.Close()
	client := newClient(t, pccs.Config{URL: secure.URL, RootCAs: pool(secure), Now: s.clock.Now, Wait: s.clock.wait})
	_, err = client.Collateral(context.Background(), platformRequest)
	wantCode(t, err, attest.CodeUnreachable)
	if s.count() != 0 {
		t.Error("a redirect to plain HTTP was followed")
	}
}

func pool(s *httptest.Server) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(s.Certificate())
	return p
}

func TestPrivateAuthorityOfTheService(t *testing.T) {
	s := newService(t, softsgx.Options{})
	secure := httptest.NewTLSServer(s.Config.Handler)
	defer secure.Close()
	config := pccs.Config{URL: secure.URL, Roots: s.roots(), Now: s.clock.Now, Wait: s.clock.wait, RootCAs: x509.NewCertPool()}
	_, err := newClient(t, config).Collateral(context.Background(), platformRequest)
	wantCode(t, err, attest.CodeUnreachable)
	if !strings.Contains(attest.HintOf(err), "authority") || len(s.clock.waits) != 0 {
		t.Errorf("hint %q after waits %v, want the authority at once", attest.HintOf(err), s.clock.waits)
	}
	config.RootCAs = pool(secure)
	fetch(t, newClient(t, config))
}

func TestWrongConfigurationIsRefused(t *testing.T) {
	for _, c := range []pccs.Config{
		{},
		{URL: "pccs.example"},
		{URL: "ftp://pccs.example"},
		{URL: "https://%zz/"},
		{URL: "https://pccs.example/sgx/certification/v2/"},
		{URL: "https://pccs.example", Update: "late"},
		{URL: "https://pccs.example/sgx/certification/v3", Update: "early"},
	} {
		_, err := pccs.New(c)
		wantCode(t, err, attest.CodeConfig)
	}
}

func TestWrongRequestIsNotSent(t *testing.T) {
	s := newService(t, softsgx.Options{})
	v3 := s.client(t, func(c *pccs.Config) { c.URL = s.URL + "/sgx/certification/v3/" })
	for _, r := range []dcap.Request{
		{TEE: attest.SGX, CA: "other"},
		{TEE: "sev", CA: dcap.PlatformCA},
		{TEE: attest.TDX, CA: dcap.PlatformCA},
	} {
		_, err := v3.Collateral(context.Background(), r)
		wantCode(t, err, attest.CodeCollateral)
	}
	if s.count() != 0 {
		t.Error("the service was asked")
	}
}

// recorder answers nothing and records what is asked.
type recorder struct{ addresses []string }

func (r *recorder) RoundTrip(request *http.Request) (*http.Response, error) {
	r.addresses = append(r.addresses, request.URL.String())
	w := httptest.NewRecorder()
	for _, name := range []string{"TCB-Info", "SGX-Enclave-Identity", "SGX-PCK-CRL"} {
		w.Header().Set(name+"-Issuer-Chain", "chain")
	}
	return w.Result(), nil
}

func TestAddressesAreThoseOfTheAPI(t *testing.T) {
	const intel = "https://api.trustedservices.intel.com"
	for _, c := range []struct {
		url, update string
		tee         attest.EvidenceType
		want        []string
	}{
		{intel, "", attest.SGX, []string{
			intel + "/sgx/certification/v4/tcb?fmspc=00606A000000",
			intel + "/sgx/certification/v4/qe/identity",
			intel + "/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
			"https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
		}},
		{pccs.IntelURL, "early", attest.TDX, []string{
			intel + "/tdx/certification/v4/tcb?fmspc=00606A000000&update=early",
			intel + "/tdx/certification/v4/qe/identity?update=early",
			intel + "/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
			"https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
		}},
		{"https://pccs:8081/sgx/certification/v3/", "", attest.SGX, []string{
			"https://pccs:8081/sgx/certification/v3/tcb?fmspc=00606A000000",
			"https://pccs:8081/sgx/certification/v3/qe/identity",
			"https://pccs:8081/sgx/certification/v3/pckcrl?ca=platform&encoding=der",
			"https://pccs:8081/sgx/certification/v3/rootcacrl",
		}},
	} {
		r := new(recorder)
		request := platformRequest
		request.TEE = c.tee
		client := newClient(t, pccs.Config{URL: c.url, Update: c.update, Transport: r})
		_, err := client.Collateral(context.Background(), request)
		wantCode(t, err, attest.CodeCollateral)
		if !slices.Equal(r.addresses, c.want) {
			t.Errorf("asked for\n%s\nwant\n%s", strings.Join(r.addresses, "\n"), strings.Join(c.want, "\n"))
		}
	}
}

// breaking is a transport with a fault in its code.
type breaking struct{}

func (breaking) RoundTrip(*http.Request) (*http.Response, error) { panic("it broke") }

func TestAPanicInAFetchIsAnErrorOfAllThatWaitForIt(t *testing.T) {
	client := newClient(t, pccs.Config{URL: pccs.IntelURL, Transport: breaking{}})
	for range 2 { // the second is answered from the cache
		_, err := client.Collateral(t.Context(), platformRequest)
		wantCode(t, err, attest.CodeInternal)
		if err == nil || !strings.Contains(err.Error(), "panic: it broke") {
			t.Errorf("the error is %v", err)
		}
	}
}

func TestErrorsNameServiceAndPlatform(t *testing.T) {
	s := newService(t, softsgx.Options{FMSPC: [6]byte{1}})
	_, err := s.client(t).Collateral(context.Background(), platformRequest)
	u, _ := url.Parse(s.URL)
	want := fmt.Sprintf("asking %s: TCB info of FMSPC 00606A000000: the service answered 404 Not Found", u.Host)
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if !strings.Contains(attest.HintOf(err), "register the platform") {
		t.Errorf("the hint is %q", attest.HintOf(err))
	}
}
