package session_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/session"
)

// fill is 32 equal bytes.
func fill(b byte) (out [32]byte) {
	for i := range out {
		out[i] = b
	}
	return out
}

func sample() *session.Binding {
	return &session.Binding{
		Exporter: fill(1), ClientNonce: fill(2), BrokerNonce: fill(3), ClientKey: fill(4), BrokerKey: fill(5),
	}
}

func leaves(n int) []tlog.Hash {
	out := make([]tlog.Hash, n)
	for i := range out {
		out[i] = sha256.Sum256(fmt.Append(nil, i))
	}
	return out
}

func TestTheHashesAreThoseOfTheSpecification(t *testing.T) {
	text, err := os.ReadFile("testdata/session_v1.json")
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		ClientLeaf, BrokerLeaf                string
		ClientReportDataOne, BrokerDataOf5At3 string
		BrokerPathOf5At3                      []string
	}
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	check := func(name string, got []byte, want string) {
		t.Helper()
		if hex.EncodeToString(got) != want {
			t.Errorf("%s is %x, want %s", name, got, want)
		}
	}
	client, broker := sample().Leaf(session.Client), sample().Leaf(session.Broker)
	check("client leaf", client[:], want.ClientLeaf)
	check("broker leaf", broker[:], want.BrokerLeaf)
	one, err := (&session.Proof{Size: 1}).ReportData(session.Client, client)
	if err != nil {
		t.Fatal(err)
	}
	check("client report data", one[:], want.ClientReportDataOne)
	all := leaves(5)
	all[3] = broker
	_, proofs, err := session.Tree(all)
	if err != nil {
		t.Fatal(err)
	}
	if len(proofs[3].Path) != len(want.BrokerPathOf5At3) {
		t.Fatalf("path of %d hashes", len(proofs[3].Path))
	}
	for i, h := range proofs[3].Path {
		check(fmt.Sprintf("path[%d]", i), h[:], want.BrokerPathOf5At3[i])
	}
	data, err := proofs[3].ReportData(session.Broker, broker)
	if err != nil {
		t.Fatal(err)
	}
	check("broker report data", data[:], want.BrokerDataOf5At3)

	manual, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, vector := range []string{want.ClientLeaf, want.BrokerLeaf, want.ClientReportDataOne, want.BrokerDataOf5At3} {
		if len(vector) < 64 || !bytes.Contains(manual, []byte("`"+vector+"`")) {
			t.Errorf("docs/protocol.md does not have %s", vector)
		}
	}
}

func TestEveryPartOfABindingChangesTheLeaf(t *testing.T) {
	seen := map[tlog.Hash]string{}
	add := func(name string, leaf tlog.Hash) {
		if other, ok := seen[leaf]; ok {
			t.Errorf("%s and %s have the same leaf", name, other)
		}
		seen[leaf] = name
	}
	add("client", sample().Leaf(session.Client))
	add("broker", sample().Leaf(session.Broker))
	for name, change := range map[string]func(*session.Binding){
		"exporter":     func(b *session.Binding) { b.Exporter[31]++ },
		"client nonce": func(b *session.Binding) { b.ClientNonce[0]++ },
		"broker nonce": func(b *session.Binding) { b.BrokerNonce[0]++ },
		"client key":   func(b *session.Binding) { b.ClientKey[0]++ },
		"broker key":   func(b *session.Binding) { b.BrokerKey[0]++ },
		"swapped":      func(b *session.Binding) { b.ClientKey, b.BrokerKey = b.BrokerKey, b.ClientKey },
	} {
		b := sample()
		change(b)
		add(name, b.Leaf(session.Client))
	}
}

func TestAPathProvesItsLeafAndNothingElse(t *testing.T) {
	for _, size := range []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 31, 33, 1023, 1024} {
		all := leaves(size)
		root, proofs, err := session.Tree(all)
		if err != nil {
			t.Fatal(err)
		}
		for i := range proofs {
			p := proofs[i]
			if got, err := session.Root(&p, all[i]); err != nil || got != root {
				t.Fatalf("%d of %d: %v", i, size, err)
			}
			// The same tree by an independent reading of RFC 6962.
			if err := tlog.CheckRecord(p.Path, int64(size), root, int64(i), all[i]); err != nil {
				t.Fatalf("%d of %d: %v", i, size, err)
			}
			long := session.Proof{Size: p.Size, Index: p.Index, Path: append(append(tlog.RecordProof{}, p.Path...), root)}
			if _, err := session.Root(&long, all[i]); err == nil {
				t.Fatalf("%d of %d: a longer path was taken", i, size)
			}
			if len(p.Path) > 0 {
				short := session.Proof{Size: p.Size, Index: p.Index, Path: p.Path[1:]}
				if _, err := session.Root(&short, all[i]); err == nil {
					t.Fatalf("%d of %d: a shorter path was taken", i, size)
				}
			}
		}
	}
	for _, p := range []session.Proof{{}, {Size: 1, Index: 1}, {Size: 1025}, {Size: 5, Index: 7}} {
		if _, err := p.ReportData(session.Broker, tlog.Hash{}); err == nil {
			t.Errorf("session %d of %d was taken", p.Index, p.Size)
		}
	}
}

// counting is an attester that waits for a word before each quote and keeps what it was asked to bind.
type counting struct {
	begun, proceed chan struct{}
	mu             sync.Mutex
	asked          []attest.ReportData
}

func (*counting) Type() attest.EvidenceType { return attest.SGX }

func (c *counting) Evidence(_ context.Context, data attest.ReportData) (attest.Evidence, error) {
	c.begun <- struct{}{}
	<-c.proceed
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, data)
	return attest.Evidence{Type: attest.SGX, Raw: []byte("quote")}, nil
}

func TestSessionsThatArriveTogetherShareAQuote(t *testing.T) {
	a := &counting{begun: make(chan struct{}), proceed: make(chan struct{})}
	q := session.NewQuoter(session.QuoterOptions{Attester: a, Size: 8})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	const others = 13
	results := make(chan error, others+1)
	ask := func(leaf tlog.Hash) {
		made, err := session.Quote(q, ctx, leaf)
		if err == nil {
			var data attest.ReportData
			if data, err = made.ReportData(session.Broker, leaf); err == nil && !a.bound(data) {
				err = fmt.Errorf("session %d of %d is not in any quote", made.Index, made.Size)
			}
		}
		results <- err
	}
	all := leaves(others + 1)
	go ask(all[0])
	<-a.begun // the first quote is being made, for one session
	for _, leaf := range all[1:] {
		go ask(leaf)
	}
	session.WaitFor(q, others)
	close(a.proceed)
	go func() { // 13 more sessions in quotes of at most 8
		<-a.begun
		<-a.begun
	}()
	for range others + 1 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if len(a.asked) != 3 {
		t.Errorf("%d quotes were made, want 3", len(a.asked))
	}
}

func (c *counting) bound(data attest.ReportData) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.asked {
		if d == data {
			return true
		}
	}
	return false
}
