package maa

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/retry"
)

const (
	maxResponse  = 256 << 10 // bytes of any HTTP answer
	maxMessage   = 500       // bytes of a service's message that reach a log
	firstPause   = time.Second
	longestPause = 32 * time.Second
)

// call builds a request anew for every try.
type call struct {
	service     string // what errors name it
	method, url string
	header      http.Header
	body        []byte
	// again names statuses beyond those of [transient] that are worth another try.
	again  func(status int) bool
	advise func(status int, e serviceError) (attest.Code, string)
	// hide is what this request carries and no error may repeat, even if the service does.
	hide []attest.Secret
}

// serviceError is what Azure says: a code, a code within it, and the first line of its message.
type serviceError struct{ Code, Inner, Message string }

func (e serviceError) is(code string) bool { return e.Code == code || e.Inner == code }

func (e serviceError) says(text string) bool {
	return strings.Contains(strings.ToLower(e.Message), strings.ToLower(text))
}

// answer is what came back, whatever its status.
type answer struct {
	status    int
	body      []byte
	requestID string        // what the service's support asks for
	wait      time.Duration // what Retry-After asks for, 0 where it does not
}

// refusedError is an answer other than 200, in words.
type refusedError struct {
	status int
	text   string
}

func (e *refusedError) Error() string { return e.text }

// statusOf is the HTTP status that err stems from, 0 if it stems from none.
func statusOf(err error) int {
	var refused *refusedError
	if errors.As(err, &refused) {
		return refused.status
	}
	return 0
}

// do sends the call until it is answered with 200, refused for good, or ctx ends. Transport errors and the
// statuses 408, 429 and 5xx are tried again, after what Retry-After asks for, cut to a quarter of the time that is left, or an
// exponential pause with jitter.
func (n Network) do(ctx context.Context, c call) ([]byte, error) {
	pauses := retry.Pauses{First: firstPause, Longest: longestPause}
	for tries := 1; ; tries++ {
		a, err := n.once(ctx, c)
		if err == nil {
			if a.status == http.StatusOK {
				return a.body, nil
			}
			err = c.refusal(a)
			if !c.transient(a.status) {
				return nil, err
			}
		} else if attest.CodeOf(err) != attest.CodeUnreachable {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, err
		}
		shortened := retry.Heed(ctx, a.wait)
		if shortened < firstPause {
			shortened = pauses.Next()
		}
		n.Logger.WithError(err).Warnf("next try in %s", shortened.Round(time.Millisecond))
		if ended := n.Wait(ctx, shortened); ended != nil {
			return nil, &attest.Error{Code: attest.CodeUnreachable, Step: "asking " + c.service,
				Err: fmt.Errorf("%w after %d tries; the last: %w", ended, tries, err)}
		}
	}
}

func (c *call) transient(status int) bool {
	return status == http.StatusRequestTimeout || status == http.StatusTooManyRequests || status >= 500 ||
		c.again != nil && c.again(status)
}

// once sends the call and reads the answer, whatever its status.
func (n Network) once(ctx context.Context, c call) (answer, error) {
	step := "asking " + c.service
	ctx, cancel := context.WithTimeout(ctx, n.TryTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, c.method, c.url, bytes.NewReader(c.body))
	if err != nil {
		return answer{}, attest.Errorf(attest.CodeConfig, step, "Correct the address in the config.", "malformed address")
	}
	for name, values := range c.header {
		r.Header[name] = values
	}
	client := http.Client{
		Transport: n.Transport,
		// No service of this flow redirects, and a redirect would carry tokens elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(r)
	if err != nil {
		return answer{}, transportError(step, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxResponse+1))
	if err != nil {
		return answer{}, transportError(step, err)
	}
	if len(body) > maxResponse {
		return answer{}, attest.Errorf(attest.CodeEvidence, step,
			"The service at this address is not the one it should be.", "the answer has more than %d bytes", maxResponse)
	}
	return answer{
		status: response.StatusCode, body: body, requestID: printable(response.Header.Get("x-ms-request-id")),
		wait: retryAfter(response.Header.Get("Retry-After"), n.Now()),
	}, nil
}

func transportError(step string, err error) error {
	var e *url.Error
	if errors.As(err, &e) {
		err = e.Err // the URL may carry what a log should not
	}
	var certificate *tls.CertificateVerificationError
	if errors.As(err, &certificate) {
		return attest.Errorf(attest.CodeEvidence, step,
			"Put the roots that \"sesame maa roots\" prints into the initfs as maa.tls_roots; if they are there already, something between init and Azure intercepts the connection.",
			"%w", err)
	}
	return attest.Errorf(attest.CodeUnreachable, step, "Check the address in the config, the name service and the network.", "%w", err)
}

// retryAfter reads seconds or an HTTP date; what is absent, malformed or past counts as not given.
func retryAfter(text string, now time.Time) time.Duration {
	var wait time.Duration
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		wait = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(text); err == nil {
		wait = at.Sub(now)
	}
	return max(0, wait)
}

// refusal turns an error answer into words.
func (c *call) refusal(a answer) error {
	e := parseServiceError(a.body, c.clean)
	code, hint := c.advise(a.status, e)
	if c.transient(a.status) {
		code, hint = attest.CodeUnreachable, "The service is busy or failing; it was asked again until the deadline."
	}
	text := fmt.Sprintf("%s answers %d", c.service, a.status)
	if e.Code != "" {
		text += " " + e.Code
	}
	if e.Inner != "" && e.Inner != e.Code {
		text += "/" + e.Inner
	}
	if e.Message != "" {
		text += ": " + e.Message
	}
	if a.requestID != "" {
		text += " (request id " + a.requestID + ")"
	}
	return &attest.Error{Code: code, Step: "asking " + c.service, Err: &refusedError{a.status, text}, Hint: hint}
}

// tokenForm is what compact JWS and JWT begin with: '{"' in base64url.
var tokenForm = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}[A-Za-z0-9_.=-]*`)

// redact takes tokens and this call's credentials out of a service's words.
func (c *call) redact(text string) string {
	for _, secret := range c.hide {
		if secret.Len() > 0 {
			text = strings.ReplaceAll(text, string(secret.Expose()), secret.String())
		}
	}
	return tokenForm.ReplaceAllString(text, "[token]")
}

// parseServiceError reads the error shapes of MAA, Key Vault and Entra; anything else is left out, an HTML page
// of a proxy included. clean makes its texts fit to print.
func parseServiceError(body []byte, clean func(string) string) (e serviceError) {
	var azure struct {
		Error json.RawMessage `json:"error"`
		Text  string          `json:"error_description"`
	}
	if json.Unmarshal(body, &azure) != nil {
		return e
	}
	var nested struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Inner   struct {
			Code string `json:"code"`
		} `json:"innererror"`
	}
	if json.Unmarshal(azure.Error, &nested) == nil {
		e.Code, e.Message, e.Inner = clean(nested.Code), clean(nested.Message), clean(nested.Inner.Code)
		return e
	}
	if json.Unmarshal(azure.Error, &e.Code) == nil {
		e.Code, e.Message = clean(e.Code), clean(azure.Text)
	}
	return e
}

// clean makes a service's words fit to print: one line, bounded, without tokens and this call's credentials. What is
// not printable goes first, so that it cannot hide a token.
func (c *call) clean(s string) string { return bounded(c.redact(line(s))) }

// printable is the first line of a peer's text, bounded, and without what is not printable.
func printable(s string) string { return bounded(line(s)) }

func bounded(s string) string {
	if len(s) > maxMessage {
		s = s[:maxMessage]
	}
	return strings.ToValidUTF8(s, "")
}

func line(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return -1
		}
		return r
	}, s))
}
