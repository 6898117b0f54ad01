package session_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/session"
)

// logOf is a log of n entries, the receipt of the one at index, and the key that it is checked with.
func logOf(t testing.TB, n int, index uint64, binder [32]byte) (session.Receipt, note.Verifier) {
	t.Helper()
	private, public, err := note.GenerateKey(bytes.NewReader(make([]byte, 64)), "broker.example")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(public)
	if err != nil {
		t.Fatal(err)
	}
	var records []tlog.Hash
	var entry []byte
	for i := range n {
		text := fmt.Appendf(nil, `{"binder":"%064x"}`, i)
		if uint64(i) == index {
			text = fmt.Appendf(nil, `{"binder":%q,"secret":"k"}`, hex.EncodeToString(binder[:]))
			entry = text
		}
		records = append(records, tlog.RecordHash(text))
	}
	root, proofs, err := session.Tree(records)
	if err != nil {
		t.Fatal(err)
	}
	checkpoint, err := note.Sign(&note.Note{Text: fmt.Sprintf("broker.example\n%d\n%s\n", n, root)}, signer)
	if err != nil {
		t.Fatal(err)
	}
	r := session.Receipt{Index: index, Entry: entry, Checkpoint: checkpoint}
	for _, h := range proofs[index].Path {
		r.Proof = append(r.Proof, append([]byte(nil), h[:]...))
	}
	return r, verifier
}

func TestAReceiptHoldsForItsSessionInItsLogAndNowhereElse(t *testing.T) {
	binder := fill(7)
	for _, n := range []int{1, 2, 7, 100} {
		good, key := logOf(t, n, uint64(n/2), binder)
		if err := good.Check(key, binder); err != nil {
			t.Fatalf("%d entries: %v", n, err)
		}
	}
	_, key := logOf(t, 9, 4, binder)
	_, public, err := note.GenerateKey(bytes.NewReader(bytes.Repeat([]byte{1}, 64)), "broker.example")
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := note.NewVerifier(public)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*session.Receipt)
		key    note.Verifier
		binder [32]byte
		says   string
	}{
		"another session":     {nil, key, fill(8), "not about this session"},
		"another log":         {nil, stranger, binder, "not signed"},
		"another index":       {func(r *session.Receipt) { r.Index = 5 }, key, binder, "not in the tree"},
		"index out of bounds": {func(r *session.Receipt) { r.Index = 9 }, key, binder, "not in a tree of 9"},
		"huge index":          {func(r *session.Receipt) { r.Index = 1 << 63 }, key, binder, "not in a tree of 9"},
		"changed entry": {func(r *session.Receipt) {
			r.Entry = bytes.Replace(r.Entry, []byte(`"k"`), []byte(`"j"`), 1)
		}, key, binder, "not in the tree"},
		"no entry":    {func(r *session.Receipt) { r.Entry = nil }, key, binder, "not about this session"},
		"short proof": {func(r *session.Receipt) { r.Proof = r.Proof[1:] }, key, binder, "not in the tree"},
		"short hash":  {func(r *session.Receipt) { r.Proof[0] = r.Proof[0][1:] }, key, binder, "malformed"},
		"changed tree": {func(r *session.Receipt) {
			r.Checkpoint = bytes.Replace(r.Checkpoint, []byte("\n9\n"), []byte("\n8\n"), 1)
		}, key, binder, "not signed"},
		"no tree": {func(r *session.Receipt) { r.Checkpoint = nil }, key, binder, "not signed"},
	} {
		r, _ := logOf(t, 9, 4, binder)
		if c.change != nil {
			c.change(&r)
		}
		err := r.Check(c.key, c.binder)
		if attest.CodeOf(err) != attest.CodeEvidence || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var none *session.Receipt
	if err := none.Check(key, binder); attest.CodeOf(err) != attest.CodeEvidence {
		t.Errorf("no receipt: %v", err)
	}
}

// FuzzReceipt looks for a receipt that holds and is not the log's, and for a text that the check does not survive.
func FuzzReceipt(f *testing.F) {
	binder := fill(7)
	good, key := logOf(f, 9, 4, binder)
	f.Add(good.Index, good.Entry, good.Checkpoint, bytes.Join(good.Proof, nil))
	f.Add(uint64(0), []byte(`{"binder":""}`), []byte("a\n1\nAAAA\n\n— a b\n"), []byte{1})
	f.Fuzz(func(t *testing.T, index uint64, entry, checkpoint, proof []byte) {
		r := session.Receipt{Index: index, Entry: entry, Checkpoint: checkpoint}
		for len(proof) > 0 {
			n := min(len(proof), 32)
			r.Proof = append(r.Proof, proof[:n])
			proof = proof[n:]
		}
		err := r.Check(key, binder)
		if err == nil && (index != good.Index || !bytes.Equal(entry, good.Entry)) {
			t.Fatalf("entry %d, %q is not in the log", index, entry)
		}
		if err != nil && attest.CodeOf(err) != attest.CodeEvidence {
			t.Fatal(err)
		}
	})
}
