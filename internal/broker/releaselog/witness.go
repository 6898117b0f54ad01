package releaselog

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest"
)

// A Witness keeps checkpoints where the owner of the broker's machine cannot change them. It takes none that does not
// continue the ones before.
type Witness interface {
	// Size is the size of the log as the witness knows it, 0 if it knows none. It may be out of date.
	Size(ctx context.Context) (int64, error)
	// Add gives the witness a checkpoint, and the proof that it continues the log of the size that Size has said. The
	// error is [*BehindError] if the witness knows another size.
	Add(ctx context.Context, old int64, proof [][]byte, checkpoint []byte) error
}

// BehindError says which size a witness really knows.
type BehindError struct{ Size int64 }

// Error implements error.
func (e *BehindError) Error() string { return fmt.Sprintf("the witness knows %d entries", e.Size) }

// A Prover makes what a witness wants: a checkpoint and the proof that it continues a log of old entries (none for 0).
type Prover interface {
	Checkpoint(ctx context.Context) ([]byte, error)
	ProveConsistency(ctx context.Context, old int64) (proof [][]byte, checkpoint []byte, err error)
}

// errRolledBack says that a witness knows a log that the broker's does not continue.
var errRolledBack = errors.New("the witness knows a log that this one does not continue: an older state of the store was put back")

// RolledBack reports whether a push has failed because the witness knows a log that the broker's does not continue.
func RolledBack(err error) bool { return errors.Is(err, errRolledBack) }

// Push brings a witness up to date. [RolledBack] tells whether it has failed because the broker's log is not the one that
// the witness knows.
func Push(ctx context.Context, p Prover, w Witness) error {
	old, err := w.Size(ctx)
	for try := 0; err == nil && try < 3; try++ {
		var proof [][]byte
		var checkpoint []byte
		if checkpoint, err = p.Checkpoint(ctx); err != nil { // made after the witness has spoken: no replica can have told it more
			break
		}
		if size := sizeOf(checkpoint); old > size {
			err = fmt.Errorf("%w (it knows %d entries, the store has %d)", errRolledBack, old, size)
			break
		}
		if old > 0 {
			if proof, checkpoint, err = p.ProveConsistency(ctx, old); err != nil {
				break
			}
		}
		err = w.Add(ctx, old, proof, checkpoint)
		var behind *BehindError
		if !errors.As(err, &behind) {
			break
		}
		if old = behind.Size; try < 2 {
			err = nil
		}
	}
	if err != nil {
		return attest.Errorf(attest.CodeUnreachable, "pushing checkpoint to witness",
			"If the witness knows more entries than the broker, an older state of the store was put back.", "%w", err)
	}
	return nil
}

// Run pushes to a witness at once and then in every interval until ctx ends. report gets every outcome, nil included.
func Run(ctx context.Context, p Prover, w Witness, interval time.Duration, report func(error)) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := Push(ctx, p, w)
		if ctx.Err() != nil {
			return
		}
		report(err)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// NewWitness makes the witness of a URL (https, http) or of a folder. key is the log's public key.
func NewWitness(place, key string, client *http.Client) (Witness, error) {
	if place == "" {
		return nil, attest.Errorf(attest.CodeConfig, "finding witness", "Name a URL or a folder.", "it has no name")
	}
	if !strings.Contains(place, "://") {
		return &dirWitness{dir: place, key: key}, nil
	}
	u, err := url.Parse(place)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return nil, attest.Errorf(attest.CodeConfig, "finding witness", "Write https://HOST/PREFIX.", "%q is no address", place)
	}
	return &httpWitness{url: strings.TrimRight(place, "/") + "/add-checkpoint", client: client}, nil
}

// httpWitness speaks https://c2sp.org/tlog-witness.
type httpWitness struct {
	url    string
	client *http.Client
	size   int64 // as it was when it last answered
}

const maxWitnessAnswer = 64 << 10

// Size implements [Witness].
func (w *httpWitness) Size(context.Context) (int64, error) { return w.size, nil }

// Add implements [Witness].
func (w *httpWitness) Add(ctx context.Context, old int64, proof [][]byte, checkpoint []byte) error {
	var body bytes.Buffer
	fmt.Fprintf(&body, "old %d\n", old)
	for _, h := range proof {
		fmt.Fprintln(&body, base64.StdEncoding.EncodeToString(h))
	}
	body.WriteString("\n")
	body.Write(checkpoint)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, &body)
	if err != nil {
		return err
	}
	answer, err := w.client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxWitnessAnswer))
	if err != nil {
		return err
	}
	switch answer.StatusCode {
	case http.StatusOK:
		w.size = sizeOf(checkpoint)
		return nil
	case http.StatusUnprocessableEntity: // the proof does not hold for the tree that it knows
		return fmt.Errorf("%w (%s: %s)", errRolledBack, answer.Status, printable(string(text), 200))
	case http.StatusConflict:
		size, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil || size < 0 {
			return errors.New("the witness knows another size of the log, and does not say which")
		}
		w.size = size
		return &BehindError{Size: size}
	}
	return fmt.Errorf("the witness answers %s: %s", answer.Status, printable(string(text), 200))
}

// sizeOf is the size in a checkpoint of our own.
func sizeOf(checkpoint []byte) int64 {
	lines := strings.SplitN(string(checkpoint), "\n", 3)
	if len(lines) < 3 {
		return 0
	}
	size, _ := strconv.ParseInt(lines[1], 10, 64)
	return size
}

// dirWitness is a folder, on a file system that the broker's machine can add to and not take from. Every checkpoint
// is a file of its own, named by its size; "latest" is a copy of the newest.
type dirWitness struct{ dir, key string }

func (w *dirWitness) latest() (Checkpoint, error) {
	text, err := os.ReadFile(filepath.Join(w.dir, "latest"))
	if errors.Is(err, fs.ErrNotExist) {
		return Checkpoint{}, nil
	}
	if err != nil {
		return Checkpoint{}, err
	}
	return Open(text, w.key)
}

// Size implements [Witness].
func (w *dirWitness) Size(context.Context) (int64, error) {
	c, err := w.latest()
	return c.Size, err
}

// Add implements [Witness].
func (w *dirWitness) Add(_ context.Context, old int64, proof [][]byte, checkpoint []byte) error {
	known, err := w.latest()
	if err != nil {
		return err
	}
	next, err := Open(checkpoint, w.key)
	if err != nil {
		return err
	}
	hashes, err := Hashes(proof)
	if err != nil {
		return err
	}
	if known.Size != old {
		return &BehindError{Size: known.Size}
	}
	if known.Origin != "" {
		if err := next.CheckConsistency(known, hashes); err != nil {
			return fmt.Errorf("%w (%w)", errRolledBack, err)
		}
	}
	if next.Size == known.Size && known.Origin != "" {
		return nil
	}
	name := filepath.Join(w.dir, fmt.Sprintf("%020d", next.Size))
	if err := writeNew(name, checkpoint); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	fresh := filepath.Join(w.dir, ".latest")
	_ = os.Remove(fresh)
	if err := writeNew(fresh, checkpoint); err != nil {
		return err
	}
	return os.Rename(fresh, filepath.Join(w.dir, "latest"))
}

func writeNew(name string, text []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}
