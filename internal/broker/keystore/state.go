package keystore

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
	"github.com/sesame-init/sesame/internal/broker/store"
)

// Bounds.
const (
	MaxSecrets  = 4096
	MaxVersions = 64 // of one secret
	MaxName     = 255
	MaxValue    = 1 << 20 // what a session can carry
)

var (
	headKey    = []byte("head")
	catalogKey = []byte("catalog")
)

// head is the part of the state that every decision changes. Catalog is the SHA-256 of the catalog that it belongs to,
// so that neither can be put back without the other.
type head struct {
	Log     releaselog.Head   `json:"log"`
	Catalog string            `json:"catalog"`
	Counts  map[string]uint64 `json:"counts,omitempty"` // releases of a secret
	// Vouched is the newest moment that a signature vouches for ([Keystore.Vouch]). Times of entries are the host's word, and
	// bound nothing: brokers before version 0.2 kept the newest one here, as "last".
	Vouched time.Time `json:"vouched,omitzero"`
	Epoch   uint64    `json:"epoch,omitempty"` // rollbacks that administrators have accepted
}

// catalog lists the secrets. It is replaced as a whole, never changed.
type catalog struct {
	digest  string                     // of its row
	Secrets map[string][]secretVersion `json:"secrets"` // versions, the oldest first
	Policy  policy                     `json:"policy"`
}

// secretVersion is one version of a secret.
type secretVersion struct {
	ID        string     `json:"id"` // 16 random bytes, hexadecimal
	Kind      string     `json:"kind"`
	Created   time.Time  `json:"created"`
	Withdrawn *time.Time `json:"withdrawn,omitempty"`
}

// policy is what is known of the policies that were in force.
type policy struct {
	Highest uint64 `json:"highest,omitempty"` // version, of those that were pinned
	Digest  string `json:"digest,omitempty"`  // of that version, hexadecimal
	Kept    bool   `json:"kept,omitempty"`    // its text is in the store
}

func newCatalog() *catalog { return &catalog{Secrets: map[string][]secretVersion{}} }

// clone is a copy to change.
func (c *catalog) clone() *catalog {
	next := &catalog{Secrets: make(map[string][]secretVersion, len(c.Secrets)), Policy: c.Policy}
	for name, versions := range c.Secrets {
		next.Secrets[name] = append([]secretVersion(nil), versions...)
	}
	return next
}

// current is the newest version that is not withdrawn, or the named one if it is not.
func (c *catalog) current(name, version string) (secretVersion, bool) {
	versions := c.Secrets[name]
	for i := len(versions) - 1; i >= 0; i-- {
		if v := versions[i]; v.Withdrawn == nil && (version == "" || v.ID == version) {
			return v, true
		}
	}
	return secretVersion{}, false
}

// resolve finds a name as [broker.Keeper] says.
func (c *catalog) resolve(fixed map[string]attest.Secret, asked string) (found string, ok bool) {
	if _, ok := fixed[asked]; ok {
		return asked, true
	}
	if _, ok := c.Secrets[asked]; ok {
		return asked, true
	}
	fold := func(name string) bool { // false where it is the second
		if name == found || !strings.EqualFold(name, asked) {
			return true
		}
		first := found == ""
		found = name
		return first
	}
	for name := range fixed {
		if !fold(name) {
			return "", false
		}
	}
	for name := range c.Secrets {
		if !fold(name) {
			return "", false
		}
	}
	return found, found != ""
}

// checkName says whether a secret can have a name.
func checkName(name string) error {
	const step = "checking name"
	if name == "" || len(name) > MaxName || !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool {
		return !unicode.IsPrint(r) || r == ' '
	}) {
		return attest.Errorf(attest.CodeConfig, step, "", "a name has 1 to %d bytes, all printable and without spaces", MaxName)
	}
	if strings.HasPrefix(name, broker.Reserved) {
		return attest.Errorf(attest.CodeConfig, step, "", "names that begin with %q are the broker's own", broker.Reserved)
	}
	return nil
}

// state is what a transaction sees.
type state struct {
	head    head
	catalog *catalog
	dirty   bool // the catalog was changed
	log     *releaselog.Appender
}

// load reads the state and makes sure that it is authentic, of one moment and not rolled back. It is the first that a
// transaction reads.
func (k *Keystore) load(r store.Reader, ring *keys) (*state, error) {
	if err := k.watermark.dispute(); err != nil {
		return nil, err
	}
	return k.loadUndisputed(r, ring)
}

// loadUndisputed is load without the witnesses' word.
func (k *Keystore) loadUndisputed(r store.Reader, ring *keys) (*state, error) {
	before := k.watermark.read() // before the store shows its state, which is then at least as new
	s, err := k.read(r, ring)
	if err != nil {
		return nil, err
	}
	return s, k.compare(r, before, &s.head)
}

// read reads the state and makes sure that it is authentic and of one moment.
func (k *Keystore) read(r store.Reader, ring *keys) (*state, error) {
	rows, err := r.Get(stateSpace, headKey)
	if err != nil {
		return nil, err
	}
	s := &state{}
	if err := ring.read("head", rows[0], &s.head); err != nil {
		return nil, err
	}
	if at := k.vouched.Load(); at != nil && at.After(s.head.Vouched) {
		s.head.Vouched = *at // which the next entry's transaction writes
	}
	if known := k.catalog.Load(); known != nil && known.digest == s.head.Catalog {
		s.catalog = known
		return s, nil
	}
	if rows, err = r.Get(stateSpace, catalogKey); err != nil {
		return nil, err
	}
	s.catalog = &catalog{digest: s.head.Catalog}
	if digest(rows[0]) != s.head.Catalog {
		return nil, errForged
	}
	if err := ring.read("catalog", rows[0], s.catalog); err != nil {
		return nil, err
	}
	k.catalog.Store(s.catalog)
	return s, nil
}

func (k *keys) read(record string, row []byte, to any) error {
	text, err := k.authentic(record, row)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, to); err != nil {
		return attest.Errorf(attest.CodeInternal, stepStore, "Start the version of the broker that wrote it.", "%s: %w", record, err)
	}
	return nil
}

// begin makes the state one that entries can be appended to.
func (s *state) begin(w store.Writer) (err error) {
	s.log, err = releaselog.NewAppender(w, s.head.Log)
	return err
}

// write writes the state.
func (s *state) write(w store.Writer, ring *keys) (err error) {
	if s.log != nil {
		if s.head.Log, err = s.log.Write(); err != nil {
			return err
		}
	}
	if s.dirty {
		if s.head.Catalog, err = ring.put(w, catalogKey, s.catalog); err != nil {
			return err
		}
		s.catalog.digest = s.head.Catalog
	}
	_, err = ring.put(w, headKey, s.head)
	return err
}

// put writes a record and returns the digest of its row.
func (k *keys) put(w store.Writer, record []byte, from any) (string, error) {
	text, err := json.Marshal(from)
	if err != nil {
		return "", fmt.Errorf("encoding %s: %w", record, err)
	}
	row := k.authenticate(string(record), text)
	return digest(row), w.Put(stateSpace, store.Row{Key: record, Value: row})
}

func digest(row []byte) string {
	sum := sha256.Sum256(row)
	return hex.EncodeToString(sum[:])
}

// receipt places an entry that the state's head covers.
func (s *state) receipt(r store.Reader, ring *keys, index int64) (broker.Receipt, error) {
	entries, err := releaselog.Entries(r, index, 1)
	if err != nil {
		return broker.Receipt{}, err
	}
	if len(entries) == 0 {
		return broker.Receipt{}, attest.Errorf(attest.CodeConfig, "reading release log", "", "there is no entry %d", index)
	}
	proof, err := releaselog.Prove(r, s.head.Log, index)
	if err != nil {
		return broker.Receipt{}, err
	}
	signed, err := ring.signer.Checkpoint(s.head.Log)
	if err != nil {
		return broker.Receipt{}, err
	}
	return newReceipt(signed, index, entries[0], proof), nil
}

// newReceipt places an entry in the log of a checkpoint.
func newReceipt(checkpoint []byte, index int64, entry []byte, proof tlog.RecordProof) broker.Receipt {
	r := broker.Receipt{Index: uint64(index), Entry: entry, Checkpoint: bytes.Clone(checkpoint)}
	for _, h := range proof {
		r.Proof = append(r.Proof, bytes.Clone(h[:]))
	}
	return r
}
