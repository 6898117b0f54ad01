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

// statusPlatformUnknown is of Intel's PCCS.
const statusPlatformUnknown = 461

// statusError is an answer other than 200.
type statusError struct {
	status     int
	retryAfter time.Duration // zero where the service did not say
}

func (e *statusError) Error() string {
	text := http.StatusText(e.status)
	if e.status == statusPlatformUnknown {
		text = "Platform Unknown"
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

// get tries to fetch a document, again if that may help and as long as ctx lasts.
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

// explain gives class and hint of a failed fetch. unknown is the hint for 404.
func explain(err error, unknown string) (attest.Code, string) {
	var status *statusError
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &certificate):
		return attest.CodeUnreachable, "Configure the authority that issued the service's TLS certificate."
	case errors.Is(err, errTooLarge):
		return attest.CodeCollateral, "This is not a collateral service."
	case !errors.As(err, &status):
		return attest.CodeUnreachable, hintReach
	case status.status == http.StatusTooManyRequests:
		return attest.CodeUnreachable, "The service wants fewer requests; use a caching service (PCCS) of your own."
	case status.status >= 500:
		return attest.CodeUnreachable, "The service is up, but cannot answer now; see its log."
	}
	switch status.status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return attest.CodeCollateral, "PCCS and Intel's PCS give collateral without credentials; check the URL."
	case http.StatusNotFound, statusPlatformUnknown:
		return attest.CodeCollateral, unknown
	case http.StatusGone:
		return attest.CodeCollateral, "The TCB evaluation that is asked for is no longer served."
	}
	return attest.CodeCollateral, "Check the service's URL."
}
