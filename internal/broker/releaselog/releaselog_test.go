package releaselog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
	"github.com/sesame-init/sesame/internal/broker/store"
	"github.com/sesame-init/sesame/internal/broker/store/memory"
)

// log is a log in a store whose head is kept here.
type log struct {
	t      testing.TB
	store  store.Store
	head   releaselog.Head
	signer *releaselog.Signer
	texts  string // in every entry
}

func newLog(t testing.TB) *log {
	t.Helper()
	signer, err := releaselog.NewSigner("test/log", bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return &log{t: t, store: memory.New(), signer: signer}
}

func (l *log) add(n int) {
	l.t.Helper()
	err := l.store.Update(l.t.Context(), func(w store.Writer) error {
		a, err := releaselog.NewAppender(w, l.head)
		if err != nil {
			return err
		}
		for range n {
			if _, err := a.Append(fmt.Appendf(nil, "entry %s%d", l.texts, l.head.Size)); err != nil {
				return err
			}
			l.head.Size++
		}
		l.head, err = a.Write()
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *log) checkpoint() releaselog.Checkpoint {
	l.t.Helper()
	signed, err := l.signer.Checkpoint(l.head)
	if err != nil {
		l.t.Fatal(err)
	}
	c, err := releaselog.Open(signed, l.signer.Key())
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

// Checkpoint implements [releaselog.Prover].
func (l *log) Checkpoint(context.Context) ([]byte, error) { return l.signer.Checkpoint(l.head) }

// ProveConsistency implements [releaselog.Prover].
func (l *log) ProveConsistency(ctx context.Context, old int64) (proof [][]byte, checkpoint []byte, err error) {
	err = l.store.View(ctx, func(r store.Reader) error {
		hashes, err := releaselog.ProveConsistency(r, l.head, old)
		for _, h := range hashes {
			proof = append(proof, bytes.Clone(h[:]))
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	checkpoint, err = l.signer.Checkpoint(l.head)
	return proof, checkpoint, err
}

// TestTreeIsThatOfRFC6962 compares with tlog's own tree, and proves every entry in every size.
func TestTreeIsThatOfRFC6962(t *testing.T) {
	l := newLog(t)
	var all []tlog.Hash // stored hashes by tlog alone
	read := tlog.HashReaderFunc(func(indexes []int64) (out []tlog.Hash, err error) {
		for _, i := range indexes {
			out = append(out, all[i])
		}
		return out, nil
	})
	var tree releaselog.Recomputed
	for size := int64(1); size <= 40; size++ {
		entry := fmt.Appendf(nil, "entry %d", size-1)
		l.add(1)
		added, err := tlog.StoredHashes(size-1, entry, read)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, added...)
		want, err := tlog.TreeHash(size, read)
		if err != nil {
			t.Fatal(err)
		}
		c := l.checkpoint()
		if c.Root != want || c.Size != size {
			t.Fatalf("size %d: another root", size)
		}
		if err := errors.Join(tree.Add(entry), tree.Check(c)); err != nil {
			t.Error(err)
		}
		err = l.store.View(t.Context(), func(r store.Reader) error {
			for i := range size {
				proof, err := releaselog.Prove(r, l.head, i)
				if err != nil {
					return err
				}
				if err := c.CheckInclusion(proof, i, fmt.Appendf(nil, "entry %d", i)); err != nil {
					return err
				}
				if c.CheckInclusion(proof, i, []byte("another")) == nil {
					t.Errorf("another entry %d is proved", i)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestChangedStoreIsNoticed: whatever is changed in the store, no proof comes out of it that is not of the signed tree.
func TestChangedStoreIsNoticed(t *testing.T) {
	l := newLog(t)
	l.add(13)
	err := l.store.Update(t.Context(), func(w store.Writer) error {
		rows, err := w.Scan("hash", nil, nil, 100)
		if err != nil {
			return err
		}
		for _, row := range rows {
			row.Value[0] ^= 1
			if err := w.Put("hash", row); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = l.store.View(t.Context(), func(r store.Reader) error {
		for i := range int64(13) {
			if _, err := releaselog.Prove(r, l.head, i); err == nil {
				t.Errorf("entry %d is proved", i)
			}
		}
		if _, err := releaselog.ProveConsistency(r, l.head, 5); err == nil {
			t.Error("consistency is proved")
		}
		return nil
	})
	l.add(1) // does not read them
	if c := l.checkpoint(); c.Size != 14 {
		t.Error("it does not go on")
	}
}

func TestCheckpointOfAnotherLogIsRefused(t *testing.T) {
	l := newLog(t)
	l.add(1)
	signed, err := l.signer.Checkpoint(l.head)
	if err != nil {
		t.Fatal(err)
	}
	other, err := releaselog.NewSigner("test/log", bytes.Repeat([]byte{8}, 32))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := releaselog.Open(signed, other.Key()); err == nil {
		t.Error("another key")
	}
	named, err := releaselog.NewSigner("test/other", bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := releaselog.Open(signed, named.Key()); err == nil {
		t.Error("another name")
	}
	if _, err := releaselog.Open(bytes.Replace(signed, []byte("\n1\n"), []byte("\n2\n"), 1), l.signer.Key()); err == nil {
		t.Error("another size")
	}
}

func TestRollbackAndForkAreNoticed(t *testing.T) {
	l := newLog(t)
	l.add(5)
	five := l.checkpoint()
	l.add(5)
	ten := l.checkpoint()
	if err := five.CheckConsistency(ten, nil); err == nil || !strings.Contains(err.Error(), "put back") {
		t.Errorf("a shorter log: %v", err)
	}
	fork := ten
	fork.Root[3] ^= 1
	if err := fork.CheckConsistency(ten, nil); err == nil {
		t.Error("another tree of the same size")
	}
	if err := ten.CheckConsistency(ten, nil); err != nil {
		t.Error(err)
	}
	if err := ten.CheckConsistency(five, nil); err == nil {
		t.Error("no proof")
	}
}

func TestWitnessFolder(t *testing.T) {
	l := newLog(t)
	dir := t.TempDir()
	w, err := releaselog.NewWitness(dir, l.signer.Key(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var old releaselog.Head
	for i := range 3 {
		l.add(3)
		if i == 1 {
			old = l.head
		}
		for range 2 { // the second push has nothing new
			if err := releaselog.Push(t.Context(), l, w); err != nil {
				t.Fatal(err)
			}
		}
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "0*")); len(files) != 3 {
		t.Errorf("kept %v", files)
	}
	l.head = old // the store was put back
	err = releaselog.Push(t.Context(), l, w)
	if err == nil || attest.HintOf(err) == "" {
		t.Errorf("a log that was put back: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "latest"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if releaselog.Push(t.Context(), l, w) == nil {
		t.Error("a witness that cannot be read")
	}
}

// TestWitnessService is one as https://c2sp.org/tlog-witness has it.
func TestWitnessService(t *testing.T) {
	l := newLog(t)
	known := releaselog.Checkpoint{}
	fail := false
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		head, signed, _ := strings.Cut(string(body), "\n\n")
		lines := strings.Split(head, "\n")
		var old int64
		if _, err := fmt.Sscanf(lines[0], "old %d", &old); err != nil || r.URL.Path != "/prefix/add-checkpoint" || fail {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		if old != known.Size {
			w.Header().Set("Content-Type", "text/x.tlog.size")
			w.WriteHeader(http.StatusConflict)
			fmt.Fprintln(w, known.Size)
			return
		}
		next, err := releaselog.Open([]byte(signed), l.signer.Key())
		var proof tlog.TreeProof
		for _, line := range lines[1:] {
			h, err := tlog.ParseHash(line)
			if err != nil {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			proof = append(proof, h)
		}
		if err == nil && known.Size > 0 {
			err = next.CheckConsistency(known, proof)
		}
		if err != nil {
			w.WriteHeader(http.StatusUnprocessableEntity)
			return
		}
		known = next
	}))
	defer service.Close()
	push := func() error {
		w, err := releaselog.NewWitness(service.URL+"/prefix/", l.signer.Key(), service.Client()) // a broker that has restarted
		if err != nil {
			t.Fatal(err)
		}
		return releaselog.Push(t.Context(), l, w)
	}
	for i := range int64(4) {
		l.add(3)
		if err := push(); err != nil || known.Size != 3*(i+1) {
			t.Fatalf("push %d: %v, the witness knows %d", i, err, known.Size)
		}
	}
	fail = true
	if err := push(); err == nil || releaselog.RolledBack(err) {
		t.Errorf("a witness that fails: %v", err)
	}
	fail = false
	other := newLog(t) // of the same key, with other entries: an older state was put back, and grew again
	other.texts = "other "
	other.add(1)
	l, stays := other, known
	for _, entries := range []int{0, 13} { // fewer than it knows, and more
		l.add(entries)
		if err := push(); !releaselog.RolledBack(err) || known != stays {
			t.Errorf("with %d entries more: %v", entries, err)
		}
	}
}

func TestRunPushesAgainAndAgain(t *testing.T) {
	l := newLog(t)
	l.add(1)
	w, err := releaselog.NewWitness(t.TempDir(), l.signer.Key(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	outcomes := 0
	releaselog.Run(ctx, l, w, time.Millisecond, func(err error) {
		if err != nil {
			t.Error(err)
		}
		if outcomes++; outcomes == 3 {
			cancel()
		}
	})
	if outcomes != 3 {
		t.Errorf("%d outcomes", outcomes)
	}
}

func FuzzParse(f *testing.F) {
	e := releaselog.Entry{Kind: releaselog.Release, Time: releaselog.Timestamp(time.Unix(0, 0)), Peer: "1.2.3.4:5",
		Secrets: []releaselog.SecretUse{{Name: "<a>", Version: "0"}}, Claims: &releaselog.Claims{Type: "sgx"}}
	text, err := e.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"format":1,"kind":"refusal","time":"x"} `))
	f.Add([]byte(`{"format":1,"kind":"release","time":"x","claims":{"type":"toy","a":["b",{"c":1}],"debug":true}}`))
	f.Add([]byte(`{"format":1,"kind":"release","time":"x","kind":"refusal"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := releaselog.Parse(text)
		if err != nil {
			return
		}
		again, err := releaselog.Parse(bytes.Clone(text))
		if err != nil || again.Kind != e.Kind {
			t.Errorf("%s is read in two ways", text)
		}
	})
}

func FuzzOpenCheckpoint(f *testing.F) {
	l := newLog(f)
	l.add(3)
	signed, err := l.signer.Checkpoint(l.head)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := releaselog.Open(text, l.signer.Key())
		if err == nil && (c.Size != 3 || c.Origin != "test/log") {
			t.Errorf("accepted %q", text)
		}
	})
}

func TestClaimsOfEveryKindAreKept(t *testing.T) {
	for want, c := range map[string]attest.Claims{
		`"mr_enclave":"0700`:   {Type: attest.SGX, SGX: &attest.SGXClaims{MREnclave: [32]byte{7}}},
		`"mr_td":"0700`:        {Type: attest.TDX, TDX: &attest.TDXClaims{MRTD: [48]byte{7}}},
		`"measurement":"0700`:  {Type: attest.SNP, SNP: &attest.SNPClaims{Measurement: [48]byte{7}}},
		`"pcrs":["4=00","7=07`: {Type: attest.TPM, TPM: &attest.TPMClaims{PCRs: map[int][32]byte{7: {7}, 4: {}}}},
	} {
		text, err := releaselog.Entry{Kind: releaselog.Release, Claims: releaselog.ClaimsOf(c)}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := releaselog.Parse(text); err != nil {
			t.Error(err)
		}
		if !strings.Contains(strings.ReplaceAll(string(text), strings.Repeat("0", 62)+`","7`, `","7`), want) {
			t.Errorf("%s is not in %s", want, text)
		}
	}
	if releaselog.ClaimsOf(attest.Claims{}) != nil {
		t.Error("claims of nothing")
	}
}
