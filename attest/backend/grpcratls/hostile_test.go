package grpcratls_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/attack/hostile"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

func against(t *testing.T, kind hostile.Kind) string {
	t.Helper()
	b, err := hostile.Start(kind)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Stop)
	return b.Address
}

func TestAHostileBrokerIsLeftForTheNextOneWithoutBeingBelieved(t *testing.T) {
	const most = 16 << 20 // of heap, garbage and the attacker's own included
	for _, kind := range hostile.Kinds() {
		for _, protocol := range []grpcratls.Protocol{grpcratls.SessionV1, grpcratls.Legacy} {
			t.Run(string(protocol)+", "+kind.Name, func(t *testing.T) {
				if kind.Name == "silent" || kind.Name == "one byte a second" {
					testenv.Long(t, "seconds of silence")
				}
				var log bytes.Buffer
				platform := brokertest.Platform(t, softsgx.Options{})
				honest := brokertest.Listen(t, brokertest.Config(t, platform, map[string][]byte{"k": []byte("v")}, io.Discard))
				client, err := grpcratls.New(grpcratls.Config{
					Servers: []string{against(t, kind), honest}, Protocol: protocol, Attester: platform.Attester(brokertest.Workload()),
					Verifier: brokertest.Verifier(platform), Policy: brokertest.BrokerPolicy(), Now: brokertest.Clock, Logger: brokertest.Logger(&log),
				})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
				defer cancel()
				growth := hostile.Heap()
				got, err := client.Fetch(ctx, []string{"k"})
				grown := growth()
				if err != nil || string(got["k"].Expose()) != "v" {
					t.Fatalf("%v\n%.2000s", err, log.String())
				}
				if grown > most {
					t.Errorf("the heap has grown by %d KiB", grown>>10)
				}
				t.Logf("heap %d KiB; %.500s", grown>>10, log.String())
				for line := range strings.Lines(log.String()) {
					line = strings.TrimSuffix(line, "\n")
					if !strings.HasPrefix(line, "time=") || len(line) > 4<<10 || strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
						t.Errorf("the broker wrote into the log: %.300q", line)
					}
				}
			})
		}
	}
}

func TestNoWordOfAHostileBrokerEndsTheBoot(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{})
	for _, name := range []string{"refusing", "no such secret", "not implemented", "pushback of 2^31 ms", "pushback without an end", "RST_STREAM"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		client, err := grpcratls.New(grpcratls.Config{
			Servers: []string{against(t, hostile.Named(name))}, Protocol: grpcratls.SessionV1, Attester: platform.Attester(brokertest.Workload()),
			Verifier: brokertest.Verifier(platform), Policy: brokertest.BrokerPolicy(), Now: brokertest.Clock, Pause: 10 * time.Millisecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Fetch(ctx, []string{"k"})
		cancel()
		if attest.CodeOf(err) != attest.CodeUnreachable || !strings.Contains(err.Error(), "rounds of tries") && ctx.Err() == nil ||
			strings.Contains(err.Error(), "after 1 rounds") {
			t.Errorf("%s: [%s] %v", name, attest.CodeOf(err), err)
		}
	}
}

func TestFourHostileBrokersBeforeAnHonestOne(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{})
	var servers []string
	for _, name := range []string{"silent", "one byte a second", "endless headers", "refusing"} {
		servers = append(servers, against(t, hostile.Named(name)))
	}
	servers = append(servers, brokertest.Listen(t, brokertest.Config(t, platform, map[string][]byte{"k": []byte("v")}, io.Discard)))
	client, err := grpcratls.New(grpcratls.Config{
		Servers: servers, Protocol: grpcratls.SessionV1, Attester: platform.Attester(brokertest.Workload()),
		Verifier: brokertest.Verifier(platform), Policy: brokertest.BrokerPolicy(), Now: brokertest.Clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if got, err := client.Fetch(ctx, []string{"k"}); err != nil || string(got["k"].Expose()) != "v" {
		t.Error(err)
	}
}
