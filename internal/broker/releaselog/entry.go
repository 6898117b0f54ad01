// Package releaselog is the key broker's release log: an entry for every release, every refusal and every change an
// administrator makes, in a Merkle tree (RFC 6962, golang.org/x/mod/sumdb/tlog) whose head the broker signs.
//
// What it promises to anyone who has kept a signed head (a checkpoint): that every later head which verifies against
// it covers the same entries in the same places, and more behind them. Anyone who changes, removes or inserts an entry
// cannot make such a head without the broker's key, and the broker's code makes none.
//
// What it does not promise: an owner of the machine can put back an older state of the whole store. A broker
// that runs on and has seen a later one notices (package keystore); over a restart only someone who has seen a later
// checkpoint does. That is what a [Witness] is for.
//
// The log has no secrets and nothing computed from their values. It does have names of secrets, workloads, peers'
// addresses and their measurements.
package releaselog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Bounds of an entry, in bytes but for the numbers of things.
const (
	MaxEntry      = 64 << 10
	maxReason     = 512
	maxShort      = 255
	maxRefused    = 16 // secrets of a refusal that are listed
	maxRefusedLen = 64 // of their names, which the peer has chosen
	maxAdvisories = 256

	MaxDropped = 64 // rows of an entry of kind unrecorded
)

// Kind says what an entry is about.
type Kind string

// The kinds of entries.
const (
	Release Kind = "release"
	Refusal Kind = "refusal"
	Admin   Kind = "admin" // a change of secrets, policy or root key
	// Unrecorded tells of refusals of unknown peers that have no entries of their own, because there were too many.
	Unrecorded Kind = "unrecorded"
)

// An Entry is one line of the log. Its encoding is JSON with exactly these fields in this order, without white space
// and without the empty ones; there is one encoding of an entry.
type Entry struct {
	Format   int           `json:"format"` // 1
	Kind     Kind          `json:"kind"`
	Time     string        `json:"time"` // UTC, RFC 3339 with milliseconds, by the broker's clock
	Binder   string        `json:"binder,omitempty"`
	Peer     string        `json:"peer,omitempty"` // network address
	Wire     string        `json:"wire,omitempty"`
	Workload string        `json:"workload,omitempty"`
	Evidence string        `json:"evidence,omitempty"` // SHA-256
	Claims   *Claims       `json:"claims,omitempty"`
	Secrets  []SecretUse   `json:"secrets,omitempty"`
	Omitted  int           `json:"omitted,omitempty"` // secrets of a refusal that are not listed
	Code     string        `json:"code,omitempty"`    // class of a refusal
	Reason   string        `json:"reason,omitempty"`
	Admin    *Administered `json:"admin,omitempty"`
	// Unrecorded is the number of refusals of unknown peers since the entry before that are not in the log. Brokers
	// before version 0.2.0 have written it; now an entry of kind unrecorded has Dropped.
	Unrecorded uint64    `json:"unrecorded,omitempty"`
	Dropped    []Dropped `json:"dropped,omitempty"` // at most MaxDropped
}

// Dropped counts refusals since the last entry of kind unrecorded, by who was refused and why. The row without a peer is
// of all for whom there was no row.
type Dropped struct {
	Peer  string `json:"peer,omitempty"` // network address without port
	Code  string `json:"code,omitempty"` // class of the refusal
	Count uint64 `json:"count"`
}

// SecretUse is a secret that an entry is about.
type SecretUse struct {
	Name    string  `json:"name"`
	Version string  `json:"version,omitempty"` // random id
	Rule    string  `json:"rule,omitempty"`    // of the policy
	Count   uint64  `json:"count,omitempty"`   // releases of the secret with this one
	Limit   *uint64 `json:"limit,omitempty"`   // most releases that the policy allowed, ever; absent: any number
}

// Administered is a change that an administrator made.
type Administered struct {
	By     string `json:"by"`     // subject and SHA-256 of the certificate
	Action string `json:"action"` // "secret.put", "policy.push", …
	Detail string `json:"detail,omitempty"`
}

// Timestamp is t as entries have it.
func Timestamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// Encode bounds the texts of the entry, which peers may have chosen, and returns its bytes. It fails if the
// entry is larger than [MaxEntry], which only a release with very long names can be.
func (e Entry) Encode() ([]byte, error) {
	e.Format = 1
	e.Peer, e.Wire, e.Workload = printable(e.Peer, maxShort), printable(e.Wire, maxShort), printable(e.Workload, maxShort)
	e.Code, e.Reason = printable(e.Code, maxShort), printable(e.Reason, maxReason)
	if e.Kind == Refusal {
		uses := e.Secrets
		if len(uses) > maxRefused {
			e.Omitted += len(uses) - maxRefused
			uses = uses[:maxRefused]
		}
		e.Secrets = nil
		for _, u := range uses {
			u.Name, u.Rule = printable(u.Name, maxRefusedLen), printable(u.Rule, maxShort)
			e.Secrets = append(e.Secrets, u)
		}
	}
	rows := e.Dropped
	e.Dropped = nil
	for _, d := range rows[:min(len(rows), MaxDropped)] {
		d.Peer, d.Code = printable(d.Peer, maxShort), printable(d.Code, maxShort)
		e.Dropped = append(e.Dropped, d)
	}
	if e.Admin != nil {
		e.Admin = &Administered{By: printable(e.Admin.By, maxReason), Action: printable(e.Admin.Action, maxShort),
			Detail: printable(e.Admin.Detail, maxReason)}
	}
	return e.encode()
}

func (e *Entry) encode() ([]byte, error) {
	text, err := encodeJSON(e)
	if err != nil {
		return nil, fmt.Errorf("encoding log entry: %w", err)
	}
	if len(text) > MaxEntry {
		return nil, fmt.Errorf("a log entry of %d bytes", len(text))
	}
	return text, nil
}

// Parse reads an entry. What is not its one encoding is refused.
func Parse(text []byte) (*Entry, error) {
	if len(text) > MaxEntry {
		return nil, fmt.Errorf("a log entry of %d bytes", len(text))
	}
	e := &Entry{}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(e); err != nil {
		return nil, fmt.Errorf("reading log entry: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the log entry")
	}
	again, err := e.encode()
	if err != nil {
		return nil, err
	}
	if e.Format != 1 || !bytes.Equal(again, text) {
		return nil, errors.New("the log entry is not in its canonical form")
	}
	return e, nil
}

// printable bounds a text and leaves only what can be shown.
func printable(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if len(s) <= limit {
		return s
	}
	s = s[:limit]
	for len(s) > 0 && !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}
