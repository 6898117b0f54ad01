package maa

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sesame-init/sesame/attest"
)

const (
	maxResponse  = 256 << 10 // bytes of any HTTP answer
	maxMessage   = 500       // bytes of a service's message that reach a log
	maxAttempts  = 6
	firstPause   = time.Second
	longestPause = 32 * time.Second
)

// service is an HTTP service with a name that errors use.
type service struct {
	name string
	http *http.Client
	wait func(context.Context, time.Duration) error
	now  func() time.Time
}

// call is one request, made anew for every try.
type call struct {
	method, url string
	header      http.Header
	body        []byte
	advise      func(status int, e serviceError) (attest.Code, string)
}

// serviceError is what Azure says: a code, a code within it, and the first line of its message.
type serviceError struct{ Code, Inner, Message string }

// answer is what came back, whatever its status.
type answer struct {
	status    int
	body      []byte
	requestID string        // what the service's support asks for
	wait      time.Duration // what Retry-After asks for, 0 where it does not
}

// do sends the call until it is answered with 200, refused for good, or ctx ends. Transport errors and the
// statuses 408, 429 and 5xx are tried again, after what Retry-After asks for or an exponential pause with jitter.
func (s *service) do(ctx context.Context, c call) ([]byte, error) {
	pause := firstPause
	for attempt := 1; ; attempt++ {
		a, err := s.once(ctx, c)
		if err == nil {
			if a.status == http.StatusOK {
				return a.body, nil
			}
			err = s.refusal(c, a)
			if !transient(a.status) {
				return nil, err
			}
		} else if attest.CodeOf(err) != attest.CodeUnreachable {
			return nil, err
		}
		if attempt == maxAttempts || ctx.Err() != nil {
			return nil, err
		}
		wait := a.wait
		if wait == 0 {
			wait = pause/2 + rand.N(pause/2+1)
			pause = min(2*pause, longestPause)
		}
		if s.wait(ctx, wait) != nil {
			return nil, err
		}
	}
}

func transient(status int) bool {
	return status == http.StatusRequestTimeout || status == http.StatusTooManyRequests || status >= 500
}

func (s *service) once(ctx context.Context, c call) (answer, error) {
	unreachable := func(err error) error {
		var e *url.Error
		if errors.As(err, &e) {
			err = e.Err // the URL may carry what a log should not
		}
		return attest.Errorf(attest.CodeUnreachable, "asking "+s.name,
			"Check the address in the config, the network, and that the initfs holds the roots of the service's certificate.",
			"%w", err)
	}
	r, err := http.NewRequestWithContext(ctx, c.method, c.url, bytes.NewReader(c.body))
	if err != nil {
		return answer{}, attest.Errorf(attest.CodeConfig, "asking "+s.name, "Correct the address in the config.", "malformed address")
	}
	for name, values := range c.header {
		r.Header[name] = values
	}
	response, err := s.http.Do(r)
	if err != nil {
		return answer{}, unreachable(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxResponse+1))
	if err != nil {
		return answer{}, unreachable(err)
	}
	if len(body) > maxResponse {
		return answer{}, attest.Errorf(attest.CodeEvidence, "asking "+s.name,
			"The service at this address is not the one it should be.", "the answer has more than %d bytes", maxResponse)
	}
	return answer{
		status: response.StatusCode, body: body, requestID: printable(response.Header.Get("x-ms-request-id")),
		wait: retryAfter(response.Header.Get("Retry-After"), s.now()),
	}, nil
}

// retryAfter reads seconds or an HTTP date; what is absent, malformed or too long counts as not given.
func retryAfter(text string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(text); err == nil && seconds > 0 && seconds <= 600 {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil && at.After(now) && at.Sub(now) <= 10*time.Minute {
		return at.Sub(now)
	}
	return 0
}

// refusal turns an error answer into words.
func (s *service) refusal(c call, a answer) error {
	e := parseServiceError(a.body)
	code, hint := attest.CodeDenied, "See the service's message."
	if c.advise != nil {
		code, hint = c.advise(a.status, e)
	}
	if transient(a.status) {
		code, hint = attest.CodeUnreachable, "The service is busy or failing; it was asked again until the deadline."
	}
	text := fmt.Sprintf("%s answers %d", s.name, a.status)
	if e.Code != "" {
		text += " " + e.Code
	}
	if e.Inner != "" {
		text += "/" + e.Inner
	}
	if e.Message != "" {
		text += ": " + e.Message
	}
	if a.requestID != "" {
		text += " (request id " + a.requestID + ")"
	}
	return &attest.Error{Code: code, Step: "asking " + s.name, Err: errors.New(text), Hint: hint}
}

// parseServiceError reads the error shapes of MAA, Key Vault and Entra; anything else is left out, an HTML page
// of a proxy included.
func parseServiceError(body []byte) (e serviceError) {
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
		e.Code, e.Message, e.Inner = printable(nested.Code), printable(nested.Message), printable(nested.Inner.Code)
		return e
	}
	if json.Unmarshal(azure.Error, &e.Code) == nil {
		e.Code, e.Message = printable(e.Code), printable(azure.Text)
	}
	return e
}

// printable is the first line of a peer's text, bounded, and without what is not printable.
func printable(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if len(s) > maxMessage {
		s = s[:maxMessage]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return -1
		}
		return r
	}, s)
}
