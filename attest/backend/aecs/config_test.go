package aecs

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/internal/kind"
	"github.com/sesame-init/sesame/internal/pki"
)

func TestAKeyThatMayNotBeReadIsReportedByTheCheck(t *testing.T) {
	key, certificate, err := pki.NewClient("client", time.Now(), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	b := block{TLS: &blockTLS{CA: "/c", Certificate: "/c", Key: "/k"}}
	use := kind.Use{ReadFile: func(name string) ([]byte, error) {
		text, ok := map[string][]byte{"/c": certificate, "/k": key}[name]
		if !ok {
			return nil, os.ErrNotExist
		}
		return append([]byte(nil), text...), nil
	}}
	var ps kind.Problems
	if b.checkTLS(use, ps.Add); len(ps) > 0 {
		t.Error(ps)
	}
	use.ReadKey = func(string) ([]byte, error) { return nil, errors.New("others may read it") }
	if b.checkTLS(use, ps.Add); len(ps) != 1 || !strings.Contains(ps.Error(), "others may read it") {
		t.Error(ps)
	}
}
