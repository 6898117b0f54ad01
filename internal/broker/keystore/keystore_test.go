package keystore_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store"
	"github.com/sesame-init/sesame/internal/broker/store/memory"
	"github.com/sesame-init/sesame/internal/broker/store/sqlite"
	"github.com/sesame-init/sesame/internal/privatefile"
	"github.com/sesame-init/sesame/lab/storetest"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func clock() time.Time { return now }

func open(t testing.TB, s store.Store, change ...func(*keystore.Options)) *keystore.Keystore {
	t.Helper()
	o := keystore.Options{Store: s, Root: &rootkey.Process{}, Now: clock}
	for _, c := range change {
		c(&o)
	}
	k, err := keystore.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

func secret(s string) attest.Secret { return attest.NewSecret([]byte(s)) }

func put(t testing.TB, k *keystore.Keystore, name, value string) (version string) {
	t.Helper()
	version, err := k.Put(t.Context(), "admin", name, keystore.Value, secret(value))
	if err != nil {
		t.Fatal(err)
	}
	return version
}

// decision is one about a session that n names.
func decision(n uint64, secrets ...string) broker.Decision {
	d := broker.Decision{At: now, Peer: "10.0.0.1:1", Wire: "session", Workload: "inference",
		Evidence: sha256.Sum256([]byte("evidence")),
		Claims:   attest.Claims{Type: attest.SGX, SGX: &attest.SGXClaims{ProductID: 7}}}
	binary.BigEndian.PutUint64(d.Binder[:], n+1)
	for _, s := range secrets {
		d.Grants = append(d.Grants, broker.Grant{Secret: s, Rule: "secrets." + s})
	}
	return d
}

func release(t testing.TB, k *keystore.Keystore, d broker.Decision) (values []string, r broker.Receipt) {
	t.Helper()
	secrets, r, err := k.Release(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	checkReceipt(t, k, r)
	for _, s := range secrets {
		values = append(values, string(s.Expose()))
	}
	return values, r
}

func checkReceipt(t testing.TB, k *keystore.Keystore, r broker.Receipt) *releaselog.Entry {
	t.Helper()
	key, err := k.LogKey()
	if err != nil {
		t.Fatal(err)
	}
	checkpoint, err := releaselog.Open(r.Checkpoint, key)
	if err != nil {
		t.Fatal(err)
	}
	var proof tlog.RecordProof
	for _, h := range r.Proof {
		proof = append(proof, tlog.Hash(h))
	}
	if err := checkpoint.CheckInclusion(proof, int64(r.Index), r.Entry); err != nil {
		t.Fatal(err)
	}
	e, err := releaselog.Parse(r.Entry)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// entries reads and verifies the whole log.
func entries(t testing.TB, k *keystore.Keystore) (out []*releaselog.Entry) {
	t.Helper()
	var tree releaselog.Recomputed
	for {
		texts, signed, err := k.Entries(t.Context(), tree.Size(), 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range texts {
			e, err := releaselog.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, e)
			if err := tree.Add(text); err != nil {
				t.Fatal(err)
			}
		}
		if len(texts) == 0 {
			key, err := k.LogKey()
			if err != nil {
				t.Fatal(err)
			}
			c, err := releaselog.Open(signed, key)
			if err != nil {
				t.Fatal(err)
			}
			if err := tree.Check(c); err != nil {
				t.Fatal(err)
			}
			return out
		}
	}
}

func count(t testing.TB, k *keystore.Keystore, name string) uint64 {
	t.Helper()
	list, err := k.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		if l.Name == name {
			return l.Releases
		}
	}
	return 0
}

func TestReleaseIsRecordedWithWhatDecidedIt(t *testing.T) {
	k := open(t, memory.New())
	a, b := put(t, k, "a", "value-a"), put(t, k, "b", "value-b")
	d := decision(1, "b", "a")
	d.Claims.TCB.Advisories = []string{"INTEL-SA-00001"}
	values, r := release(t, k, d)
	if !slices.Equal(values, []string{"value-b", "value-a"}) {
		t.Errorf("values are %q", values)
	}
	e := checkReceipt(t, k, r)
	if e.Kind != releaselog.Release || e.Workload != "inference" || e.Peer != d.Peer || e.Secrets[0].Version != b ||
		e.Secrets[1].Version != a || e.Secrets[0].Rule != "secrets.b" || !strings.Contains(string(e.Claims.Record), `"product_id":7,`) ||
		e.Evidence != fmt.Sprintf("%x", d.Evidence) || e.Claims.Advisories[0] != "INTEL-SA-00001" {
		t.Errorf("the entry is %s", r.Entry)
	}
	if bytes.Contains(r.Entry, []byte("value-")) {
		t.Error("the entry has a value")
	}
	if count(t, k, "a") != 1 {
		t.Error("the release is not counted")
	}
}

// TestAReleaseOfNothingIsRecorded: a peer may ask for no secret, to prove itself.
func TestAReleaseOfNothingIsRecorded(t *testing.T) {
	k := open(t, memory.New())
	values, r := release(t, k, decision(1))
	if len(values) != 0 {
		t.Errorf("%d secrets", len(values))
	}
	if e := checkReceipt(t, k, r); e.Kind != releaselog.Release || len(e.Secrets) != 0 {
		t.Errorf("%+v", e)
	}
}

func TestRepeatedDecisionIsRecordedAndCountedOnce(t *testing.T) {
	k := open(t, memory.New())
	put(t, k, "a", "value")
	d := decision(1, "a")
	d.Grants[0].Limit = limit(1)
	_, first := release(t, k, d)
	release(t, k, decision(2, "a")) // the tree grows
	values, again := release(t, k, d)
	if again.Index != first.Index || !bytes.Equal(again.Entry, first.Entry) || values[0] != "value" {
		t.Errorf("entry %d became %d", first.Index, again.Index)
	}
	if n := count(t, k, "a"); n != 2 {
		t.Errorf("%d releases are counted, want 2", n)
	}
	for name, change := range map[string]func(*broker.Decision){
		"other secrets":  func(d *broker.Decision) { d.Grants[0].Secret = "b" },
		"more secrets":   func(d *broker.Decision) { d.Grants = append(d.Grants, broker.Grant{Secret: "b"}) },
		"other evidence": func(d *broker.Decision) { d.Evidence[0] ^= 1 },
	} {
		other := d
		other.Grants = slices.Clone(d.Grants)
		change(&other)
		if secrets, _, err := k.Release(t.Context(), other); err == nil || secrets != nil {
			t.Errorf("%s: released under the binder of another decision", name)
		}
	}
}

func TestConcurrentRepetitionsAreOneRelease(t *testing.T) {
	k := open(t, memory.New())
	put(t, k, "a", "value")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if values, _ := release(t, k, decision(1, "a")); values[0] != "value" {
				t.Error("another value")
			}
		})
	}
	wg.Wait()
	if n := count(t, k, "a"); n != 1 {
		t.Errorf("%d releases", n)
	}
}

func TestLimitHoldsUnderConcurrency(t *testing.T) {
	k := open(t, memory.New())
	put(t, k, "a", "value")
	var wg sync.WaitGroup
	var mu sync.Mutex
	released, denied := 0, 0
	for i := range 40 {
		wg.Go(func() {
			d := decision(uint64(i), "a")
			d.Grants[0].Limit = limit(7)
			secrets, r, err := k.Release(t.Context(), d)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && len(secrets) == 1:
				released++
			case attest.CodeOf(err) == attest.CodeDenied && secrets == nil && checkReceipt(t, k, r).Kind == releaselog.Refusal:
				denied++
			default:
				t.Errorf("unexpected: %v", err)
			}
		})
	}
	wg.Wait()
	if released != 7 || denied != 33 || count(t, k, "a") != 7 {
		t.Errorf("%d released, %d denied, %d counted", released, denied, count(t, k, "a"))
	}
	if n := len(entries(t, k)); n != 41 {
		t.Errorf("%d entries", n)
	}
}

func TestNothingIsReleasedInPart(t *testing.T) {
	k := open(t, memory.New())
	put(t, k, "a", "value")
	secrets, r, err := k.Release(t.Context(), decision(1, "a", "missing"))
	if attest.CodeOf(err) != attest.CodeSecret || secrets != nil || checkReceipt(t, k, r).Kind != releaselog.Refusal {
		t.Errorf("got %d secrets and %v", len(secrets), err)
	}
	if count(t, k, "a") != 0 {
		t.Error("it was counted")
	}
}

func TestVersionsTakeOverAndAreWithdrawn(t *testing.T) {
	k := open(t, memory.New())
	ctx := t.Context()
	first := put(t, k, "a", "one")
	second, err := k.Rotate(ctx, "admin", "a", keystore.Value, secret("two"))
	if err != nil {
		t.Fatal(err)
	}
	get := func(n uint64, version string) string {
		d := decision(n, "a")
		d.Grants[0].Version = version
		secrets, _, err := k.Release(ctx, d)
		if err != nil {
			return string(attest.CodeOf(err))
		}
		return string(secrets[0].Expose())
	}
	check := func(n uint64, version, want string) {
		t.Helper()
		if got := get(n, version); got != want {
			t.Errorf("version %q: %s, want %s", version, got, want)
		}
	}
	check(1, "", "two")
	check(2, first, "one")
	if err := k.Withdraw(ctx, "admin", "a", second); err != nil {
		t.Fatal(err)
	}
	check(3, "", "one")
	check(4, second, "secret")
	check(1, "", "secret") // a repetition releases nothing that was withdrawn in between
	if err := k.Delete(ctx, "admin", "a"); err != nil {
		t.Fatal(err)
	}
	check(5, "", "secret")
	var actions []string
	for _, e := range entries(t, k) {
		if e.Admin != nil {
			actions = append(actions, e.Admin.Action)
		}
	}
	if got := strings.Join(actions, " "); got != "secret.put secret.rotate secret.withdraw secret.delete" {
		t.Errorf("recorded: %s", got)
	}
}

func TestNamesResolveAsOcclumDoes(t *testing.T) {
	k := open(t, memory.New(), func(o *keystore.Options) {
		o.Fixed = map[string]attest.Secret{"Fixed": secret("of the file")}
	})
	put(t, k, "Image_Key", "value")
	for asked, want := range map[string]string{
		"Image_Key": "Image_Key", "image_key": "Image_Key", "FIXED": "Fixed", "other": "",
		broker.RootKey: broker.RootKey, strings.ToUpper(broker.RootKey): "",
	} {
		name, ok, err := k.Resolve(t.Context(), asked)
		if err != nil || name != want || ok != (want != "") {
			t.Errorf("%s: %q %v %v", asked, name, ok, err)
		}
	}
	for _, name := range []string{"image_key", "Fixed", "", "a b", "a\n", broker.RootKey, strings.Repeat("x", 256)} {
		if _, err := k.Put(t.Context(), "admin", name, keystore.Value, secret("v")); err == nil {
			t.Errorf("%q was put", name)
		}
	}
	if values, _ := release(t, k, decision(1, "Fixed")); values[0] != "of the file" {
		t.Errorf("%q", values)
	}
}

// TestRowsCannotBeSwapped moves values in the store to where others belong.
func TestRowsCannotBeSwapped(t *testing.T) {
	s := memory.New()
	k := open(t, s)
	one, two := put(t, k, "a", "value-a"), put(t, k, "b", "value-b")
	three, err := k.Rotate(t.Context(), "admin", "a", keystore.Value, secret("value-a2"))
	if err != nil {
		t.Fatal(err)
	}
	key := func(name, version string) []byte { return []byte(name + "\x00" + version) }
	read := func(key []byte) (value []byte) {
		_ = s.View(t.Context(), func(r store.Reader) error {
			rows, err := r.Get("value", key)
			value = rows[0]
			return err
		})
		return value
	}
	write := func(space store.Space, key, value []byte) {
		if err := s.Update(t.Context(), func(w store.Writer) error { return w.Put(space, store.Row{Key: key, Value: value}) }); err != nil {
			t.Fatal(err)
		}
	}
	target := key("a", three)
	good := read(target)
	n := uint64(0)
	denied := func(what string, value []byte) {
		t.Helper()
		write("value", target, value)
		n++
		if _, _, err := k.Release(t.Context(), decision(n, "a")); attest.CodeOf(err) != attest.CodeSecret {
			t.Errorf("%s: %v", what, err)
		}
		write("value", target, good)
	}
	denied("another secret", read(key("b", two)))
	denied("another version", read(key("a", one)))
	var mixed, other struct{ Key, Value []byte }
	if err := json.Unmarshal(good, &mixed); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(read(key("a", one)), &other); err != nil {
		t.Fatal(err)
	}
	mixed.Value = other.Value
	text, _ := json.Marshal(mixed)
	denied("another version's value under this one's key", text)
	denied("a flipped bit", append(good[:len(good)-6:len(good)-6], append([]byte{good[len(good)-6] ^ 1}, good[len(good)-5:]...)...))
	if _, _, err := k.Release(t.Context(), decision(99, "a")); err != nil {
		t.Errorf("the good row: %v", err)
	}
	if !bytes.Contains(good, []byte(`"key"`)) || bytes.Contains(good, []byte("value-a2")) {
		t.Error("the row is no envelope")
	}
}

// rootOf is the root key as a keystore hands it to a replica.
func rootOf(t testing.TB, k *keystore.Keystore) attest.Secret {
	t.Helper()
	secrets, _, err := k.Release(t.Context(), decision(1<<40, broker.RootKey))
	if err != nil {
		t.Fatal(err)
	}
	return secrets[0]
}

// TestStateCannotBeForged puts back parts of an older state, and changes them.
func TestStateCannotBeForged(t *testing.T) {
	for _, part := range []string{"head", "catalog"} {
		t.Run(part, func(t *testing.T) {
			s := memory.New()
			k := open(t, s)
			put(t, k, "a", "value")
			root := rootOf(t, k).Expose()
			var old []byte
			if err := s.View(t.Context(), func(r store.Reader) error {
				rows, err := r.Get("state", []byte(part))
				old = rows[0]
				return err
			}); err != nil {
				t.Fatal(err)
			}
			put(t, k, "b", "value")
			opens := func() bool {
				fresh, err := keystore.Open(t.Context(), keystore.Options{Store: s, Now: clock})
				if err != nil {
					t.Fatal(err)
				}
				defer fresh.Close()
				return fresh.UnlockWith(t.Context(), attest.NewSecret(slices.Clone(root))) == nil
			}
			if !opens() {
				t.Fatal("the good state does not open")
			}
			forged := bytes.Replace(slices.Clone(old), []byte(`:`), []byte(` :`), 1)
			for what, row := range map[string][]byte{"older": old, "changed": forged, "missing": {}} {
				if err := s.Update(t.Context(), func(w store.Writer) error {
					return w.Put("state", store.Row{Key: []byte(part), Value: row})
				}); err != nil {
					t.Fatal(err)
				}
				if opens() {
					t.Errorf("%s: it opens", what)
				}
				if k.Ready(t.Context()) == nil && part == "head" {
					t.Errorf("%s: the running broker goes on", what)
				}
			}
		})
	}
}

// TestFaultsReleaseNothingAndLoseNothing is every way in which a store can fail at every space that a release writes.
func TestFaultsReleaseNothingAndLoseNothing(t *testing.T) {
	faults := []storetest.Fault{storetest.Begin, storetest.Write, storetest.Swallow, storetest.Commit, storetest.Lost}
	spaces := []store.Space{"entry", "hash", "binder", "state"}
	kinds := map[string]func(t *testing.T) store.Store{
		"memory": func(*testing.T) store.Store { return memory.New() },
		"sqlite": func(t *testing.T) store.Store {
			s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "db"), privatefile.Rule{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			return s
		},
	}
	for kind, fresh := range kinds {
		for _, fault := range faults {
			for _, space := range spaces {
				if fault != storetest.Write && fault != storetest.Swallow && space != spaces[0] {
					continue
				}
				t.Run(fmt.Sprintf("%s: %s (%s)", kind, fault, space), func(t *testing.T) {
					f := &storetest.Faulty{Store: fresh(t)}
					k := open(t, f)
					put(t, k, "a", "value")
					release(t, k, decision(1, "a"))
					f.Fail(fault, space, nil)
					secrets, r, err := k.Release(t.Context(), decision(2, "a"))
					if attest.CodeOf(err) != attest.CodeInternal || secrets != nil || r.Entry != nil {
						t.Errorf("released %d secrets in spite of the fault: %v", len(secrets), err)
					}
					if f.Hits != 1 {
						t.Fatal("the fault did not happen")
					}
					persisted := 0
					if fault == storetest.Lost {
						persisted = 1
					}
					if n := len(entries(t, k)); n != 2+persisted {
						t.Errorf("%d entries", n)
					}
					// The same session again: one entry in all, one count in all.
					if values, _ := release(t, k, decision(2, "a")); values[0] != "value" {
						t.Error("another value")
					}
					if n := len(entries(t, k)); n != 3 || count(t, k, "a") != 2 {
						t.Errorf("%d entries, %d counted", n, count(t, k, "a"))
					}
				})
			}
		}
	}
}

func TestTemporaryFaultIsWaitedOut(t *testing.T) {
	for _, fault := range []storetest.Fault{storetest.Begin, storetest.Commit, storetest.Lost} {
		f := &storetest.Faulty{Store: memory.New()}
		k := open(t, f)
		put(t, k, "a", "value")
		f.Fail(fault, "", store.ErrTemporary)
		if values, _ := release(t, k, decision(1, "a")); values[0] != "value" || count(t, k, "a") != 1 {
			t.Errorf("%s: %q, counted %d", fault, values, count(t, k, "a"))
		}
		f.Fail(fault, "", store.ErrTemporary)
		put(t, k, "b", "value")
		f.Fail(fault, "", store.ErrTemporary)
		if _, err := k.Rotate(t.Context(), "admin", "b", keystore.Value, secret("new")); err != nil {
			t.Error(err)
		}
		list, err := k.List(t.Context())
		if err != nil || len(list) != 2 || len(list[1].Versions) != 2 {
			t.Errorf("%s: %+v %v", fault, list, err)
		}
	}
}

func TestRefusalsOfStrangersAreBudgeted(t *testing.T) {
	ticks := make(chan time.Time)
	k := open(t, memory.New(), func(o *keystore.Options) {
		o.Refusals, o.Ticks = keystore.Budget{Burst: 3, Every: time.Hour}, ticks
	})
	put(t, k, "a", "value")
	stranger := decision(0)
	stranger.Workload, stranger.Code, stranger.Reason = "", attest.CodePolicy, strings.Repeat("no\x00", 10_000)
	stranger.Binder = [32]byte{}
	for range 40 {
		stranger.Grants = append(stranger.Grants, broker.Grant{Secret: strings.Repeat("n\xff", 5000)})
	}
	for i := range 10 {
		r, err := k.Refuse(t.Context(), stranger)
		if err != nil || (r.Entry == nil) != (i >= 3) {
			t.Errorf("refusal %d: %v, entry %v", i, err, r.Entry != nil)
		}
		if len(r.Entry) > 4<<10 {
			t.Errorf("an entry of %d bytes", len(r.Entry))
		}
	}
	// Every refusal of a stranger is of one budget, whatever its reason and wire; what is beyond it is told once a minute.
	for i := range 500 {
		stranger.Peer, stranger.Code, stranger.Wire = fmt.Sprintf("[2001:db8::%x]:%d", i/2, 1000+i), attest.CodeEvidence, "legacy"
		if r, err := k.Refuse(t.Context(), stranger); err != nil || r.Entry != nil {
			t.Fatalf("refusal %d: %v", i, err)
		}
	}
	known := decision(7)
	known.Code, known.Reason = attest.CodeDenied, "outside its window"
	r, err := k.Refuse(t.Context(), known)
	if err != nil || checkReceipt(t, k, r).Dropped != nil {
		t.Errorf("an entry between two ticks is %s, %v", r.Entry, err)
	}
	next := int64(r.Index) + 1
	ticks <- time.Time{}
	ticks <- time.Time{} // the first one is dealt with
	entries, _, err := k.Entries(t.Context(), next, 10)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	e, err := releaselog.Parse(entries[0])
	if err != nil || e.Kind != releaselog.Unrecorded || len(e.Dropped) != releaselog.MaxDropped {
		t.Fatalf("%s, %v", entries[0], err)
	}
	sum, rows := uint64(0), map[string]uint64{}
	for _, d := range e.Dropped {
		sum += d.Count
		rows[d.Peer+" "+d.Code] = d.Count
	}
	first := addressOf(decision(0).Peer) + " policy"
	if sum != 507 || rows[first] != 7 || rows["2001:db8::1 evidence"] != 2 || rows[" "] != 507-7-2*62 {
		t.Errorf("%d in all: %v", sum, rows)
	}
}

func TestADecisionThatIsTooOldIsNotRecorded(t *testing.T) {
	k := open(t, memory.New())
	put(t, k, "a", "value")
	before, err := k.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d := decision(1, "a")
	fresh := false
	d.Fresh = func() bool { return fresh }
	if secrets, _, err := k.Release(t.Context(), d); !errors.Is(err, broker.ErrStale) || secrets != nil {
		t.Errorf("%d secrets, %v", len(secrets), err)
	}
	if after, err := k.Checkpoint(t.Context()); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the log has grown: %s, %v", after, err)
	}
	fresh = true
	release(t, k, d)
}

func addressOf(peer string) string {
	host, _, err := net.SplitHostPort(peer)
	if err != nil {
		return peer
	}
	return host
}

func TestPolicyVersionsOnlyRise(t *testing.T) {
	k := open(t, memory.New())
	adopt := func(version uint64, text string, pinned bool) error {
		r, err := k.Adopt(t.Context(), broker.Adoption{At: now, Version: version, Digest: sha256.Sum256([]byte(text)),
			By: "admin", Pinned: pinned})
		if err == nil && checkReceipt(t, k, r).Admin.Action != "policy.adopt" {
			t.Error("it is not recorded")
		}
		return err
	}
	for _, c := range []struct {
		version uint64
		text    string
		pinned  bool
		ok      bool
	}{
		{5, "five", true, true}, {5, "five", true, true}, {5, "other", true, false}, {4, "four", true, false},
		{4, "four", false, true}, {6, "six", true, true}, {5, "five", true, false},
	} {
		if err := adopt(c.version, c.text, c.pinned); (err == nil) != c.ok {
			t.Errorf("version %d, %s, pinned %v: %v", c.version, c.text, c.pinned, err)
		}
	}
}

// adopt puts a pinned policy in force.
func adopt(t testing.TB, k *keystore.Keystore, version uint64, text string) error {
	t.Helper()
	_, err := k.Adopt(t.Context(), broker.Adoption{At: now, Version: version, Digest: sha256.Sum256([]byte(text)),
		Text: []byte(text), By: "admin", Pinned: true})
	return err
}

func TestAdoptedPolicyReachesReplicas(t *testing.T) {
	shared := memory.New()
	way := &rootkey.Process{}
	same := func(o *keystore.Options) { o.Root = way }
	a, b := open(t, shared, same), open(t, shared.Replica(), same)
	taken := following(t, b)
	if err := adopt(t, a, 1, "version: 1"); err != nil {
		t.Fatal(err)
	}
	if text := <-taken; text != "version: 1" {
		t.Errorf("%q", text)
	}
	put(t, a, "a", "value")
	if values, _ := release(t, b, decision(1, "a")); values[0] != "value" {
		t.Errorf("%q", values)
	}
}

func TestReplicasWriteOneLog(t *testing.T) {
	shared := memory.New()
	way := &rootkey.Process{}
	same := func(o *keystore.Options) { o.Root = way }
	a, b := open(t, shared, same), open(t, shared.Replica(), same)
	put(t, a, "a", "value")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() { release(t, []*keystore.Keystore{a, b}[i%2], decision(uint64(i), "a")) })
	}
	wg.Wait()
	if n := len(entries(t, b)); n != 21 || count(t, a, "a") != 20 {
		t.Errorf("%d entries, %d counted", n, count(t, a, "a"))
	}
}

func TestLogStaysConsistent(t *testing.T) {
	k := open(t, memory.New())
	put(t, k, "a", "value")
	key, err := k.LogKey()
	if err != nil {
		t.Fatal(err)
	}
	var old []releaselog.Checkpoint
	for i := range 20 {
		signed, err := k.Checkpoint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c, err := releaselog.Open(signed, key)
		if err != nil {
			t.Fatal(err)
		}
		old = append(old, c)
		release(t, k, decision(uint64(i), "a"))
	}
	for _, before := range old {
		hashes, signed, err := k.ProveConsistency(t.Context(), before.Size)
		if err != nil {
			t.Fatal(err)
		}
		c, err := releaselog.Open(signed, key)
		if err != nil {
			t.Fatal(err)
		}
		var proof tlog.TreeProof
		for _, h := range hashes {
			proof = append(proof, tlog.Hash(h))
		}
		if err := c.CheckConsistency(before, proof); err != nil {
			t.Errorf("from %d: %v", before.Size, err)
		}
		before.Root[0] ^= 1
		if c.CheckConsistency(before, proof) == nil {
			t.Errorf("from %d: another root is accepted", before.Size)
		}
	}
}

func TestCancelledCallerReleasesNothing(t *testing.T) {
	k := open(t, memory.New())
	put(t, k, "a", "value")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if secrets, _, err := k.Release(ctx, decision(1, "a")); err == nil || secrets != nil {
		t.Error("released")
	}
}

func TestOnlyWhatIsVouchedForBoundsTheTimeAndItOutlivesARestart(t *testing.T) {
	s := memory.New()
	root := &rootkey.Process{}
	same := func(o *keystore.Options) { o.Root = root }
	k := open(t, s, same)
	wrong := decision(1)
	wrong.At, wrong.Code, wrong.Reason = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC), attest.CodeDenied, "no"
	if _, err := k.Refuse(t.Context(), wrong); err != nil {
		t.Fatal(err)
	}
	vouched := func(k *keystore.Keystore) time.Time {
		t.Helper()
		at, err := k.Vouched(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	if at := vouched(k); !at.IsZero() {
		t.Errorf("an entry's time bounds the clock: %s", at)
	}
	k.Vouch(now.Add(time.Hour))
	k.Vouch(now) // earlier
	put(t, k, "image_key", "v")
	k.Close()
	if at := vouched(open(t, s, same)); !at.Equal(now.Add(time.Hour)) {
		t.Errorf("after a restart the bound is %s", at)
	}
}

func limit(n uint64) *uint64 { return &n }

func TestALimitOfZeroReleasesNothing(t *testing.T) {
	k := open(t, memory.New())
	put(t, k, "image_key", "v")
	d := decision(1, "image_key")
	d.Grants[0].Limit = limit(0)
	if got, _, err := k.Release(t.Context(), d); attest.CodeOf(err) != attest.CodeDenied || got != nil {
		t.Errorf("released %d secrets, %v", len(got), err)
	}
	all := entries(t, k)
	if last := all[len(all)-1]; len(last.Secrets) != 1 || last.Secrets[0].Limit == nil || *last.Secrets[0].Limit != 0 {
		t.Errorf("the log has %+v", last)
	}
}
