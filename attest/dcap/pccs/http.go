package pccs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/sesame-init/sesame/attest"
)

// statusError is an answer other than 200.
type statusError struct {
	status     int
	retryAfter time.Duration // zero where the service did not say
}

func (e *statusError) Error() string {
	text := http.StatusText(e.status)
	if e.status == 461 {
		text = "platform unknown" // Intel's PCCS
	}
	return fmt.Sprintf("the service answered %d %s", e.status, text)
}

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

func retryAfter(err error) time.Duration {
	var status *statusError
	if errors.As(err, &status) {
		return min(status.retryAfter, maxRetryAfter)
	}
	return 0
}

// get tries to fetch a document, again where that may help and as long as ctx lasts.
func (c *Client) get(ctx context.Context, address string) ([]byte, http.Header, error) {
	for n := 0; ; n++ {
		body, header, err := c.exchange(ctx, address)
		if err == nil || !passing(err) || n+1 >= c.config.Attempts || ctx.Err() != nil {
			return body, header, err
		}
		delay := max(backoff(n), retryAfter(err))
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
		return nil, nil, err
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
	return body, response.Header, nil
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

// explain puts a failed fetch into words. unknown is the hint for 404.
func explain(what string, err error, unknown string) error {
	code, hint := attest.CodeUnreachable, "Check that the collateral service runs and can be reached from here."
	var status *statusError
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &status):
		switch {
		case status.status == http.StatusTooManyRequests:
			hint = "The service wants fewer requests; use a caching service (PCCS) of your own."
		case status.status >= 500:
			hint = "The service is up, but cannot answer now; see its log."
		default:
			code, hint = attest.CodeCollateral, ""
		}
		switch status.status {
		case http.StatusUnauthorized, http.StatusForbidden:
			hint = "The service wants credentials for collateral, which a PCCS and Intel's PCS do not; check the URL."
		case http.StatusNotFound, 461:
			hint = unknown
		case http.StatusGone:
			hint = "The TCB evaluation that is asked for is no longer served."
		}
	case errors.As(err, &certificate):
		hint = "Configure the authority that issued the service's TLS certificate."
	case errors.Is(err, errTooLarge):
		code, hint = attest.CodeCollateral, ""
	}
	return attest.Errorf(code, what, hint, "%w", err)
}
