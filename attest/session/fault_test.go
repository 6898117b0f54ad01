package session_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/session"
)

// breaking is an attester with a fault in its code.
type breaking struct{ begun, proceed chan struct{} }

func (*breaking) Type() attest.EvidenceType { return attest.SGX }

func (b *breaking) Evidence(context.Context, attest.ReportData) (attest.Evidence, error) {
	b.begun <- struct{}{}
	<-b.proceed
	panic("it broke")
}

func TestAPanicWhileAQuoteIsMadeIsThatOfItsSessions(t *testing.T) {
	a := &breaking{make(chan struct{}), make(chan struct{})}
	q := session.NewQuoter(session.QuoterOptions{Attester: a})
	causes := make(chan any)
	all := leaves(3)
	ask := func(leaf tlog.Hash) {
		defer func() { causes <- recover() }()
		_, err := session.Quote(q, t.Context(), leaf)
		t.Errorf("a session got a quote, %v", err)
	}
	go ask(all[0])
	<-a.begun
	go ask(all[1])
	go ask(all[2])
	session.WaitFor(q, 2)
	a.proceed <- struct{}{}
	<-a.begun // the next batch is not forgotten
	a.proceed <- struct{}{}
	for range 3 {
		if text := fmt.Sprint(<-causes); !strings.Contains(text, "it broke") || !strings.Contains(text, "(*breaking).Evidence") {
			t.Errorf("a session got\n%s", text)
		}
	}
}
