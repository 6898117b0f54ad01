package aecs_test

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/sesame-init/sesame/attest/backend/aecs"
	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/attack/hostile"
)

// TestAHostileServerIsLeftForTheNextOneWithoutBeingBelieved without TLS, where anyone on the way can be the server, and
// with it, where only what comes before the certificate is judged is an attack.
func TestAHostileServerIsLeftForTheNextOneWithoutBeingBelieved(t *testing.T) {
	for name, plain := range map[string]bool{"plaintext": true, "TLS": false} {
		for _, kind := range hostile.Kinds() {
			t.Run(name+", "+kind.Name, func(t *testing.T) {
				if kind.Name == "silent" || kind.Name == "one byte a second" {
					testenv.Long(t, "seconds of silence")
				}
				begin := hostile.Start
				if plain {
					begin = hostile.StartPlain
				}
				b, err := begin(kind)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(b.Stop)
				var log bytes.Buffer
				d := newDeployment(t, aecs.GenerationB, &log)
				d.add("k", "value")
				if plain {
					d.plaintext()
				}
				d.client.Servers = []string{b.Address}
				client := d.start(t)
				ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
				defer cancel()
				fetchWithin(t, ctx, client, "", "")
				for line := range strings.Lines(log.String()) {
					line = strings.TrimSuffix(line, "\n")
					if !strings.HasPrefix(line, "time=") || len(line) > 4<<10 || strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
						t.Errorf("the server wrote into the log: %.300q", line)
					}
				}
			})
		}
	}
}
