// Package backendtest is the conformance suite that every backend passes: right secrets, all or none, a refusal
// with the right code and a hint when something is wrong, the end of the context honoured, and nothing secret in
// logs, errors or standard output.
package backendtest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
	"github.com/sesame-init/sesame/internal/loopback"
)

// A Fault is what is wrong with a service.
type Fault int

// The faults that a service is started with.
const (
	Sound      Fault = iota
	WrongPeer        // genuine, but not what the backend's policy for the service wants
	NotGenuine       // its evidence (or key, or token) does not verify
	Refuses          // it does not want this environment
	Silent           // it takes connections and never answers
	Down             // nothing listens at its address
)

// Service says what to start.
type Service struct {
	Secrets map[string][]byte
	Fault   Fault
	// Log takes whatever the backend under test logs.
	Log io.Writer
}

// Address is where a service of the faults [Silent] and [Down] is: nothing else can listen there before the test ends.
func (s Service) Address(t *testing.T) string {
	t.Helper()
	if s.Fault == Silent {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		return l.Addr().String()
	}
	port, release, err := loopback.Reserve() // the kernel refuses connections to it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return net.JoinHostPort("127.0.0.1", port)
}

// Start starts a service, to be stopped by t.Cleanup, and returns a backend that is configured for it.
type Start func(t *testing.T, s Service) backend.Backend

// patience bounds every exchange that is to succeed or be refused; a busy machine may take long to make an RSA key.
const patience = 2 * time.Minute

// Run runs the suite.
func Run(t *testing.T, start Start) {
	secrets := func() map[string][]byte {
		return map[string][]byte{
			"image_key":  []byte("c4-n4-ry-image-key-0123456789abcdef0123456789ab"),
			"ssl_config": []byte("canary-ssl-config\n\x00\xff binary, of a length that is no multiple of three"),
			"spare":      []byte("canary-not-asked-for"),
		}
	}
	wanted := []string{"image_key", "ssl_config"}

	fetch := func(t *testing.T, ctx context.Context, s Service, names []string) (map[string]attest.Secret, error) {
		t.Helper()
		var log lockedBuffer
		s.Secrets, s.Log = secrets(), &log
		b := start(t, s)
		var got map[string]attest.Secret
		var err error
		printed := capture(t, func() { got, err = b.Fetch(ctx, names) })
		if err != nil && got != nil {
			t.Error("an error came with secrets")
		}
		said := log.String() + printed + fmt.Sprintf("%v %+v %#v", err, err, got) + attest.HintOf(err)
		for name, value := range secrets() {
			if leaks(said, value) {
				t.Errorf("secret %s is in the log, the error or the standard output", name)
			}
		}
		return got, err
	}
	within := func(t *testing.T) context.Context {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		t.Cleanup(cancel)
		return ctx
	}
	refused := func(t *testing.T, err error, codes ...attest.Code) {
		t.Helper()
		if err == nil {
			t.Fatal("it succeeded")
		}
		if code := attest.CodeOf(err); !slices.Contains(codes, code) {
			t.Errorf("code is %s, want one of %v: %v", code, codes, err)
		}
		if attest.HintOf(err) == "" {
			t.Errorf("no hint with: %v", err)
		}
	}

	t.Run("returns exactly what was asked for", func(t *testing.T) {
		got, err := fetch(t, within(t), Service{}, wanted)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(wanted) {
			t.Errorf("%d secrets, want %d", len(got), len(wanted))
		}
		for _, name := range wanted {
			if !bytes.Equal(got[name].Expose(), secrets()[name]) {
				t.Errorf("secret %s is not the right one", name)
			}
		}
	})
	t.Run("returns nothing where nothing was asked for", func(t *testing.T) {
		got, err := fetch(t, within(t), Service{}, nil)
		if err != nil || len(got) != 0 {
			t.Errorf("%d secrets, %v", len(got), err)
		}
	})
	t.Run("returns none where one is missing", func(t *testing.T) {
		_, err := fetch(t, within(t), Service{}, append([]string{"no_such_secret"}, wanted...))
		refused(t, err, attest.CodeSecret, attest.CodeDenied)
		_, err = fetch(t, within(t), Service{}, append(slices.Clone(wanted), "no_such_secret"))
		refused(t, err, attest.CodeSecret, attest.CodeDenied)
	})
	t.Run("refuses another service", func(t *testing.T) {
		_, err := fetch(t, within(t), Service{Fault: WrongPeer}, wanted)
		refused(t, err, attest.CodePolicy)
	})
	t.Run("refuses a service that is not genuine", func(t *testing.T) {
		_, err := fetch(t, within(t), Service{Fault: NotGenuine}, wanted)
		refused(t, err, attest.CodeEvidence)
	})
	t.Run("says that it was refused", func(t *testing.T) {
		_, err := fetch(t, within(t), Service{Fault: Refuses}, wanted)
		refused(t, err, attest.CodeDenied)
	})
	t.Run("ends at the deadline", func(t *testing.T) {
		for _, fault := range []Fault{Silent, Down} {
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			began := time.Now()
			_, err := fetch(t, ctx, Service{Fault: fault}, wanted)
			cancel()
			refused(t, err, attest.CodeUnreachable)
			if took := time.Since(began); took > patience/2 {
				t.Errorf("it took %s", took)
			}
		}
	})
	t.Run("ends when it is cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err := fetch(t, ctx, Service{}, wanted)
		if err == nil || !errors.Is(err, context.Canceled) {
			t.Errorf("the error is %v", err)
		}
	})
	t.Run("shares no secret between callers", func(t *testing.T) {
		b := start(t, Service{Secrets: secrets(), Log: io.Discard})
		first, err := b.Fetch(within(t), wanted)
		if err != nil {
			t.Fatal(err)
		}
		second, err := b.Fetch(within(t), wanted)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range first {
			s.Wipe()
		}
		if !bytes.Equal(second["image_key"].Expose(), secrets()["image_key"]) {
			t.Error("wiping one caller's secret changed another's")
		}
	})
	t.Run("has a name", func(t *testing.T) {
		if b := start(t, Service{Secrets: secrets(), Log: io.Discard}); b.Name() == "" {
			t.Error("it has none")
		}
	})
}

// leaks reports whether text holds a part of secret, as it is or encoded.
func leaks(text string, secret []byte) bool {
	part := secret[:12]
	for _, form := range []string{string(part), hex.EncodeToString(part), base64.StdEncoding.EncodeToString(part),
		fmt.Sprint(part)[1:]} {
		if bytes.Contains([]byte(text), bytes.TrimSuffix([]byte(form), []byte("]"))) {
			return true
		}
	}
	return false
}

// capture returns what f prints on standard output and standard error.
func capture(t *testing.T, f func()) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr := os.Stdout, os.Stderr
	os.Stdout, os.Stderr = w, w
	printed := make(chan string)
	go func() {
		text, _ := io.ReadAll(r)
		printed <- string(text)
	}()
	defer r.Close()
	func() {
		defer func() {
			os.Stdout, os.Stderr = stdout, stderr
			_ = w.Close()
		}()
		f()
	}()
	return <-printed
}

// lockedBuffer is a log that several goroutines write to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements [io.Writer].
func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String is what was written so far.
func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
