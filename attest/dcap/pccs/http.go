package pccs

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/retry"
)

// Statuses of Intel's PCCS.
const (
	statusPlatformUnknown = 461
	statusNoCertificate   = 462
)

// statusError is an answer other than 200.
type statusError struct {
	status     int
	retryAfter time.Duration // zero where the service did not say
}

func (e *statusError) Error() string {
	text := http.StatusText(e.status)
	switch e.status {
	case statusPlatformUnknown:
		text = "Platform Unknown"
	case statusNoCertificate:
		text = "Certificate Unavailable"
	}
	return fmt.Sprintf("the service answered %d %s", e.status, text)
}

// errHTML is the page of a proxy or portal on the way.
var errHTML = errors.New("the answer is a web page, not collateral")

var errTooLarge = fmt.Errorf("the answer is larger than %d bytes", maxDocument)

// passing says whether another attempt may help.
func passing(err error) bool {
	var status *statusError
	if errors.As(err, &status) {
		return status.status == http.StatusTooManyRequests || status.status >= 500
	}
	var certificate *tls.CertificateVerificationError
	return !errors.Is(err, errTooLarge) && !errors.As(err, &certificate)
}

// retryAfter is how long the service asks to be left alone, cut to a quarter of the time that is left.
func retryAfter(ctx context.Context, err error) time.Duration {
	var status *statusError
	if !errors.As(err, &status) {
		return 0
	}
	return retry.Heed(ctx, status.retryAfter)
}

// get tries to fetch a document, again if that may help and as long as ctx lasts.
func (c *Client) get(ctx context.Context, address string) ([]byte, http.Header, error) {
	pauses := retry.Pauses{First: 500 * time.Millisecond, Longest: time.Minute}
	for n := 1; ; n++ {
		body, header, err := c.exchange(ctx, address)
		if err == nil || !passing(err) || n >= c.config.Attempts || ctx.Err() != nil {
			return body, header, err
		}
		delay := max(pauses.Next(), retryAfter(ctx, err))
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < delay {
			return nil, nil, err // there will be no time left
		}
		if c.config.Wait(ctx, delay) != nil {
			return nil, nil, err
		}
	}
}

func (c *Client) exchange(ctx context.Context, address string) ([]byte, http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, c.config.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, nil, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, nil, quoted(err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, nil, &statusError{response.StatusCode, parseRetryAfter(response.Header, c.config.Now())}
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxDocument+1))
	if err != nil {
		return nil, nil, fmt.Errorf("reading the answer: %w", err)
	}
	if len(body) > maxDocument {
		return nil, nil, errTooLarge
	}
	if strings.HasPrefix(response.Header.Get("Content-Type"), "text/html") || bytes.HasPrefix(bytes.TrimSpace(body), []byte("<")) {
		return nil, nil, errHTML
	}
	return body, response.Header, nil
}

// quoted is an error of an exchange. Beyond the failed connection, which is ours to tell, its text repeats the server's.
func quoted(err error) error {
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return err
	}
	return attest.OneLine(err)
}

// parseRetryAfter reads a Retry-After header: seconds or a date (RFC 9110 §10.2.3).
func parseRetryAfter(h http.Header, now time.Time) time.Duration {
	value := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil && at.After(now) {
		return at.Sub(now)
	}
	return 0
}

// explain gives class and hint of a failed fetch. unknown is the hint for 404.
func explain(err error, unknown string) (attest.Code, string) {
	var status *statusError
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &certificate):
		return attest.CodeUnreachable, "Configure the authority that issued the service's TLS certificate."
	case errors.Is(err, errHTML):
		return attest.CodeUnreachable, "A proxy or portal on the way answers instead of the collateral service."
	case errors.Is(err, errTooLarge):
		return attest.CodeCollateral, "This is not a collateral service."
	case !errors.As(err, &status):
		return attest.CodeUnreachable, hintReach
	case status.status == http.StatusTooManyRequests:
		return attest.CodeUnreachable, "The service limits requests; use a caching service (PCCS) of your own."
	case status.status >= 500:
		return attest.CodeUnreachable, "The service is up, but cannot answer now; see its log."
	}
	switch status.status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return attest.CodeCollateral, "PCCS and Intel's PCS give collateral without credentials; check the URL."
	case http.StatusNotFound, statusPlatformUnknown, statusNoCertificate:
		return attest.CodeMissing, unknown
	case http.StatusGone:
		return attest.CodeMissing, "The TCB evaluation that is asked for is no longer served."
	}
	return attest.CodeCollateral, "Check the service's URL."
}
