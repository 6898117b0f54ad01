package keystore

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
	"github.com/sesame-init/sesame/internal/broker/store"
	"github.com/sesame-init/sesame/internal/fault"
)

const (
	binderSpace store.Space = "binder" // binder of a session: index of its entry
	valueSpace  store.Space = "value"  // name, 0, version: an envelope

	// maxBatch bounds how many decisions share a commit.
	maxBatch = 128
	// versionOfFile is the version of a secret that is not in the store.
	versionOfFile = "file"
)

const stepRelease = "releasing secret"

// job is a decision on its way to the store.
type job struct {
	decision broker.Decision
	release  bool
	dropped  []releaselog.Dropped // instead of a decision
	done     chan outcome         // takes one, without a reader
}

type outcome struct {
	secrets []attest.Secret
	receipt broker.Receipt
	err     error

	index int64 // of the entry; -1 where there is none
	entry []byte
}

func (o *outcome) wipe() {
	for _, s := range o.secrets {
		s.Wipe()
	}
	o.secrets = nil
}

// Resolve implements [broker.Keeper].
func (k *Keystore) Resolve(ctx context.Context, asked string) (name string, ok bool, err error) {
	ring, err := k.ring()
	if err != nil {
		return "", false, err
	}
	if asked == broker.RootKey {
		return asked, true, nil
	}
	if known := k.catalog.Load(); known != nil {
		if name, ok = known.resolve(k.options.Fixed, asked); ok {
			return name, true, nil
		}
	}
	err = k.view(ctx, func(r store.Reader) error { // another replica may have it by now
		s, err := k.load(r, ring)
		if err == nil {
			name, ok = s.catalog.resolve(k.options.Fixed, asked)
		}
		return err
	})
	return name, ok, err
}

// Release implements [broker.Keeper].
func (k *Keystore) Release(ctx context.Context, d broker.Decision) ([]attest.Secret, broker.Receipt, error) {
	if d.Binder == [32]byte{} || d.Code != "" || d.Reason != "" {
		return nil, broker.Receipt{}, attest.Errorf(attest.CodeInternal, stepRelease, "", "the decision is no release of a session")
	}
	o := k.submit(ctx, &job{decision: d, release: true})
	return o.secrets, o.receipt, o.err
}

// Refuse implements [broker.Keeper]. Of peers that are no workload only as many refusals are recorded as the budget
// says. The others are counted, which an entry a minute tells, and their receipt is empty.
func (k *Keystore) Refuse(ctx context.Context, d broker.Decision) (broker.Receipt, error) {
	if d.Workload == "" && !k.refusals.take(k.options.Now()) {
		k.dropped.add(dropKey{addressOf(d.Peer), string(d.Code)}, 1)
		return broker.Receipt{}, nil
	}
	o := k.submit(ctx, &job{decision: d})
	return o.receipt, o.err
}

// submit waits for the outcome of a job.
func (k *Keystore) submit(ctx context.Context, j *job) outcome {
	if _, err := k.ring(); err != nil {
		return outcome{err: err}
	}
	j.done = make(chan outcome, 1)
	gone := func(err error) outcome {
		return outcome{err: attest.Errorf(attest.CodeInternal, "recording decision", "", "%w", err)}
	}
	select {
	case k.queue <- j:
	case <-ctx.Done():
		return gone(ctx.Err())
	case <-k.done:
		return gone(context.Canceled)
	}
	select {
	case o := <-j.done:
		return o
	case <-ctx.Done():
		fault.Go(func() { // the commit is under way; what it releases has no taker any more
			o := <-j.done
			o.wipe()
		})
		return gone(ctx.Err())
	}
}

// commit commits decisions until ctx ends: all that wait at once and, if the commit before was of several, too, those
// that come within the time to gather. A commit costs the same for one and for many.
func (k *Keystore) commit(ctx context.Context) {
	several := false
	for {
		var batch []*job
		select {
		case <-ctx.Done():
			return
		case j := <-k.queue:
			batch = append(batch, j)
		}
		if several {
			batch = k.gather(ctx, batch)
		}
	waiting:
		for len(batch) < maxBatch {
			select {
			case j := <-k.queue:
				batch = append(batch, j)
			default:
				break waiting
			}
		}
		several = len(batch) > 1
		for len(batch) > 0 {
			batch = k.commitBatch(ctx, batch)
		}
	}
}

// gather waits for decisions that come soon.
func (k *Keystore) gather(ctx context.Context, batch []*job) []*job {
	timer := time.NewTimer(k.options.Gather)
	defer timer.Stop()
	for len(batch) < maxBatch {
		select {
		case j := <-k.queue:
			batch = append(batch, j)
		case <-timer.C:
			return batch
		case <-ctx.Done():
			return batch
		}
	}
	return batch
}

// commitBatch commits decisions in one transaction. It returns those whose binder another one of the batch has: their
// turn is after that.
func (k *Keystore) commitBatch(ctx context.Context, batch []*job) (later []*job) {
	seen := map[[32]byte]bool{}
	var now []*job
	for _, j := range batch {
		if b := j.decision.Binder; b != [32]byte{} && seen[b] {
			later = append(later, j)
			continue
		}
		seen[j.decision.Binder] = true
		now = append(now, j)
	}
	outcomes := make([]outcome, len(now))
	ring, err := k.ring()
	var s *state
	if err == nil {
		err = k.update(ctx, func(w store.Writer) (err error) {
			s, err = k.decideAll(w, ring, now, outcomes)
			return err
		})
	}
	if err == nil {
		k.committed(s)
	}
	for i, j := range now {
		if err != nil {
			outcomes[i].wipe()
			outcomes[i] = outcome{err: err}
		}
		j.done <- outcomes[i]
	}
	return later
}

// decideAll is the body of the transaction. It may run again. Each job is decided on the state that those before it have
// left, and one that fails leaves the state as it was.
func (k *Keystore) decideAll(w store.Writer, ring *keys, batch []*job, outcomes []outcome) (s *state, err error) {
	if s, err = k.load(w, ring); err != nil {
		return nil, err
	}
	if err := s.begin(w); err != nil {
		return nil, err
	}
	s.head.Counts = maps.Clone(s.head.Counts)
	if s.head.Counts == nil {
		s.head.Counts = map[string]uint64{}
	}
	binders := make([][]byte, len(batch))
	for i, j := range batch {
		binders[i] = j.decision.Binder[:]
	}
	known, err := w.Get(binderSpace, binders...)
	if err != nil {
		return nil, err
	}
	for i, j := range batch {
		outcomes[i].wipe()
		d := &decider{k: k, w: w, ring: ring, state: s}
		if fresh := j.decision.Fresh; j.release && fresh != nil && !fresh() {
			outcomes[i] = outcome{index: -1, err: broker.ErrStale}
		} else if known[i] != nil {
			outcomes[i], err = d.repeat(j, known[i])
		} else {
			outcomes[i], err = d.decide(j)
		}
		var ours *attest.Error
		if errors.As(err, &ours) { // of this decision alone, which has changed nothing
			outcomes[i] = outcome{err: err, index: -1}
		} else if err != nil {
			return nil, err
		}
	}
	if err := s.write(w, ring); err != nil {
		return nil, err
	}
	signed, err := ring.signer.Checkpoint(s.head.Log) // one for all of the batch
	if err != nil {
		return nil, err
	}
	for i := range outcomes {
		if outcomes[i].index < 0 {
			continue
		}
		proof, err := s.log.Prove(outcomes[i].index)
		if err != nil {
			return nil, err
		}
		outcomes[i].receipt = newReceipt(signed, outcomes[i].index, outcomes[i].entry, proof)
	}
	return s, nil
}

// decider decides one job in a transaction. Its errors are of the store: they end the transaction. Others are outcomes.
type decider struct {
	k     *Keystore
	w     store.Writer
	ring  *keys
	state *state
}

// decide records a new decision.
func (d *decider) decide(j *job) (outcome, error) {
	entry := entryOf(&j.decision)
	if j.dropped != nil {
		entry.Kind, entry.Dropped = releaselog.Unrecorded, j.dropped
		return d.record(j, entry, nil, nil)
	}
	if !j.release {
		entry.Kind = releaselog.Refusal
		return d.record(j, entry, nil, nil)
	}
	secrets, uses, refusal, err := d.grant(j.decision.Grants)
	if err != nil {
		return outcome{}, err
	}
	entry.Kind, entry.Secrets = releaselog.Release, uses
	if refusal != nil {
		entry.Kind, entry.Code, entry.Reason = releaselog.Refusal, string(attest.CodeOf(refusal)), refusal.Error()
	}
	return d.record(j, entry, secrets, refusal)
}

// grant reads the values of grants, all or none. refusal says why none.
func (d *decider) grant(grants []broker.Grant) (secrets []attest.Secret, uses []releaselog.SecretUse, refusal, err error) {
	refuse := func(why error) ([]attest.Secret, []releaselog.SecretUse, error, error) {
		(&outcome{secrets: secrets}).wipe()
		uses = nil
		for _, g := range grants {
			uses = append(uses, releaselog.SecretUse{Name: g.Secret, Rule: g.Rule, Version: g.Version, Limit: g.Limit})
		}
		return nil, uses, why, nil
	}
	taken := map[string]uint64{}
	for _, g := range grants {
		before := d.state.head.Counts[g.Secret] + taken[g.Secret]
		if err := g.Exhausted(before); err != nil {
			return refuse(err)
		}
		version, value, err := d.value(g.Secret, g.Version)
		if attest.CodeOf(err) == attest.CodeSecret {
			return refuse(err)
		}
		if err != nil {
			return nil, nil, nil, err
		}
		taken[g.Secret]++
		secrets = append(secrets, value)
		uses = append(uses, releaselog.SecretUse{Name: g.Secret, Version: version, Rule: g.Rule, Count: before + 1, Limit: g.Limit})
	}
	return secrets, uses, nil, nil
}

// value reads one value. The error's code is [attest.CodeSecret] if there is none.
func (d *decider) value(name, version string) (id string, value attest.Secret, err error) {
	if name == broker.RootKey {
		return "", copied(d.ring.root), nil
	}
	if fixed, ok := d.k.options.Fixed[name]; ok && (version == "" || version == versionOfFile) {
		return versionOfFile, copied(fixed), nil
	}
	v, ok := d.state.catalog.current(name, version)
	if !ok {
		return "", value, attest.Errorf(attest.CodeSecret, stepRelease, "See sesame secret list.",
			"secret %q has no such version, or it is withdrawn", name)
	}
	rows, err := d.w.Get(valueSpace, valueKey(name, v.ID))
	if err != nil {
		return "", value, err
	}
	value, err = d.ring.open(address{d.k.id, name, v.ID, v.Kind}, rows[0])
	return v.ID, value, err
}

func copied(s attest.Secret) attest.Secret {
	return attest.NewSecret(append([]byte(nil), s.Expose()...))
}

func valueKey(name, version string) []byte { return append(append([]byte(name), 0), version...) }

// record appends an entry, and counts what it releases.
func (d *decider) record(j *job, entry releaselog.Entry, secrets []attest.Secret, refusal error) (outcome, error) {
	o := outcome{secrets: secrets, err: refusal, index: -1}
	text, err := entry.Encode()
	if err != nil { // what cannot be recorded is not released
		o.wipe()
		o.err = attest.Errorf(attest.CodeInternal, "recording decision", "", "%w", err)
		return o, nil
	}
	if o.index, err = d.state.log.Append(text); err != nil {
		o.wipe()
		return o, err
	}
	o.entry = text
	if entry.Kind == releaselog.Release {
		for _, u := range entry.Secrets {
			d.state.head.Counts[u.Name]++
		}
	}
	if j.decision.Binder != [32]byte{} {
		err = d.w.Put(binderSpace, store.Row{Key: j.decision.Binder[:], Value: binary.BigEndian.AppendUint64(nil, uint64(o.index))})
	}
	return o, err
}

// repeat answers a decision that was recorded before.
func (d *decider) repeat(j *job, row []byte) (outcome, error) {
	o := outcome{index: -1}
	conflict := func(what string) (outcome, error) {
		o.err = attest.Errorf(attest.CodeInternal, "recording decision", "", "the session has a decision already, and %s", what)
		return o, nil
	}
	if len(row) != 8 {
		return o, errForged
	}
	index := int64(binary.BigEndian.Uint64(row))
	if _, err := releaselog.Prove(d.w, d.state.head.Log, index); err != nil {
		return o, err
	}
	texts, err := releaselog.Entries(d.w, index, 1)
	if err != nil || len(texts) != 1 {
		return o, errForged
	}
	entry, err := releaselog.Parse(texts[0])
	if err != nil || entry.Binder != hex.EncodeToString(j.decision.Binder[:]) {
		return o, errForged
	}
	o.entry = texts[0]
	if !j.release {
		if entry.Kind != releaselog.Refusal {
			return conflict("it was a release")
		}
		o.index = index
		return o, nil
	}
	if entry.Kind == releaselog.Refusal {
		o.index = index
		o.err = attest.Errorf(attest.Code(entry.Code), stepRelease, "", "%s", entry.Reason)
		return o, nil
	}
	if entry.Evidence != entryOf(&j.decision).Evidence || len(entry.Secrets) != len(j.decision.Grants) {
		return conflict("it was another one")
	}
	for i, g := range j.decision.Grants {
		if entry.Secrets[i].Name != g.Secret {
			return conflict("it was about other secrets")
		}
		_, value, err := d.value(g.Secret, entry.Secrets[i].Version)
		if attest.CodeOf(err) == attest.CodeSecret { // withdrawn in between
			o.wipe()
			o.err = err
			return o, nil
		}
		if err != nil {
			o.wipe()
			return o, err
		}
		o.secrets = append(o.secrets, value)
	}
	o.index = index
	return o, nil
}

func entryOf(d *broker.Decision) releaselog.Entry {
	e := releaselog.Entry{
		Time: releaselog.Timestamp(d.At), Peer: d.Peer, Wire: d.Wire, Workload: d.Workload,
		Claims: releaselog.ClaimsOf(d.Claims), Code: string(d.Code), Reason: d.Reason,
	}
	if d.Binder != [32]byte{} {
		e.Binder = hex.EncodeToString(d.Binder[:])
	}
	if d.Evidence != [32]byte{} {
		e.Evidence = hex.EncodeToString(d.Evidence[:])
	}
	for _, g := range d.Grants {
		e.Secrets = append(e.Secrets, releaselog.SecretUse{Name: g.Secret, Rule: g.Rule, Limit: g.Limit, Version: g.Version})
	}
	return e
}

// bucket is a token bucket.
type bucket struct {
	budget Budget

	mu     sync.Mutex
	tokens float64
	last   time.Time
}

func (b *bucket) take(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.last.IsZero() && now.After(b.last) {
		b.tokens = min(b.tokens+float64(now.Sub(b.last))/float64(b.budget.Every), float64(b.budget.Burst))
	}
	if b.last.IsZero() || now.After(b.last) {
		b.last = now
	}
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
