// Command releasebench measures the key broker under load: CPU time and time of an attested release on both wires, beside
// a reference that does the same TLS handshakes, gRPC exchange and cryptography and nothing else; and 1000 sessions at once.
//
//	releasebench [-n RELEASES] [-at-once SESSIONS]
//
// Every server and every client is a process of its own, on loopback. Collateral is warm. Quotes are software quotes,
// signed in the process that drives the measurement and fetched over a unix socket, so that their cost, which hardware
// does not have, is not the broker's. Secrets are kept in memory; two rows have them in an SQLite store with the
// release log, under few clients and many. Their reference decrypts, hashes and signs what the broker does, the latter as
// often as the broker has committed, but stores nothing. What counts are the ratios: both sides are measured one after the
// other on the same machine.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// clients is the number of processes that load a server.
const clients = 4

// warming is the number of releases before a measurement.
const warming = clients * 4

func main() {
	releases := flag.Int("n", 2000, "releases of a measurement")
	atOnce := flag.Int("at-once", 1000, "sessions at once")
	role := flag.String("role", "", "for its own use: what this process is")
	dir := flag.String("dir", "", "for its own use: the work directory")
	address := flag.String("address", "", "for its own use: the server")
	workers := flag.Int("workers", 1, "for its own use: loops of a client")
	ownEvery := flag.Float64("own-every", 1, "for its own use: releases for one quote of the server's own")
	commitEvery := flag.Float64("commit-every", 0, "for its own use: releases for one commit of the release log")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch kind, wire, _ := strings.Cut(*role, "-"); kind {
	case "":
		err = measure(ctx, *releases, *atOnce)
	case "broker":
		err = serveBroker(ctx, *dir, wire)
	case "reference":
		err = serveReference(ctx, *dir, *ownEvery, *commitEvery)
	default:
		err = load(ctx, *dir, kind, wire, *address, *releases, *workers)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "releasebench: "+err.Error())
		os.Exit(1)
	}
}

func measure(ctx context.Context, releases, atOnce int) error {
	dir, err := os.MkdirTemp("", "releasebench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	platform, err := softsgx.New(softsgx.Options{Now: time.Now().Add(-time.Hour)})
	if err != nil {
		return err
	}
	if err := platform.Save(filepath.Join(dir, "platform")); err != nil {
		return err
	}
	if err := pccs.WriteDir(filepath.Join(dir, "collateral"), platform.Collateral()); err != nil {
		return err
	}
	quotes, err := serveQuotes(filepath.Join(dir, "quotes"), platform.Attester(brokerEnclave()))
	if err != nil {
		return err
	}
	defer quotes.close()

	fmt.Printf("| wire | clients | releases/s | CPU per release | reference | ratio | goal | met |\n|---|---|---|---|---|---|---|---|\n")
	var perCommit []string
	for _, c := range []struct {
		text, server, wire string
		workers            int // of each client process
	}{
		{"session", "broker", "session", 2},
		{"legacy", "broker", "legacy", 2},
		{"session, SQLite and release log", "broker-sqlite", "session", 2},
		{"session, SQLite and release log", "broker-sqlite", "session", 8},
	} {
		before := quotes.made.Load()
		ours, err := run(ctx, dir, c.server, "fetch-"+c.wire, releases, c.workers)
		if err != nil {
			return err
		}
		perQuote := float64(ours.releases) / math.Max(1, float64(quotes.made.Load()-before))
		options := []string{"-own-every", fmt.Sprint(perQuote)}
		if c.server == "broker-sqlite" {
			made, err := readCommits(dir)
			if err != nil {
				return err
			}
			every := float64(ours.releases+warming) / math.Max(1, float64(made))
			options = append(options, "-commit-every", fmt.Sprint(every))
			perCommit = append(perCommit, fmt.Sprintf("%.1f", every))
		}
		reference, err := run(ctx, dir, "reference", "plain-"+c.wire, releases, c.workers, options...)
		if err != nil {
			return err
		}
		ratio := float64(ours.perRelease()) / float64(reference.perRelease())
		met := "yes"
		if ratio > 1.5 {
			met = "**no**"
		}
		fmt.Printf("| %s | %d | %.0f | %s | %s | %.2f | ≤ 1.5 | %s |\n", c.text, clients*c.workers, ours.rate(),
			micro(ours.perRelease()), micro(reference.perRelease()), ratio, met)
	}
	fmt.Printf("\n%s releases in a commit of the release log\n", strings.Join(perCommit, " and "))
	burst, err := run(ctx, dir, "broker", "fetch-session", atOnce, atOnce/clients)
	if err != nil {
		return err
	}
	fmt.Printf("\n%d sessions at once from %d processes: %d served, %d times told to come later, "+
		"p50 %s, p99 %s, peak resident memory %d MiB\n",
		atOnce, clients, burst.releases, burst.later, burst.quantile(.5), burst.quantile(.99), burst.peak>>20)
	return nil
}

func micro(d time.Duration) string { return fmt.Sprintf("%d µs", d.Microseconds()) }

// result is what a measurement has found.
type result struct {
	releases, later int
	took, cpu       time.Duration
	peak            int64 // bytes
	latencies       []time.Duration
}

func (r *result) perRelease() time.Duration { return r.cpu / time.Duration(r.releases) }

func (r *result) rate() float64 { return float64(r.releases) / r.took.Seconds() }

func (r *result) quantile(q float64) time.Duration {
	slices.Sort(r.latencies)
	return r.latencies[int(q*float64(len(r.latencies)-1))].Round(time.Millisecond)
}

// run starts a server, warms it up, and loads it from several processes.
func run(ctx context.Context, dir, server, client string, releases, workers int, options ...string) (*result, error) {
	s, address, err := startServer(ctx, dir, server, options...)
	if err != nil {
		return nil, err
	}
	defer s.stop()
	if _, err := runClients(ctx, dir, client, address, warming, 1); err != nil {
		return nil, fmt.Errorf("warming up: %w", err)
	}
	before, err := s.cpu()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	r, err := runClients(ctx, dir, client, address, releases, workers)
	if err != nil {
		return nil, err
	}
	r.took = time.Since(start)
	after, err := s.cpu()
	if err != nil {
		return nil, err
	}
	r.cpu = after - before
	r.peak, err = s.peak()
	return r, err
}

// report is what a client process prints.
type report struct {
	Latencies []time.Duration `json:"latencies"`
	Later     int             `json:"later"`
}

func runClients(ctx context.Context, dir, role, address string, releases, workers int) (*result, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	type answer struct {
		text []byte
		err  error
	}
	answers := make(chan answer, clients)
	for range clients {
		go func() {
			cmd := exec.CommandContext(ctx, self, "-role", role, "-dir", dir, "-address", address,
				"-n", fmt.Sprint(releases/clients), "-workers", fmt.Sprint(workers))
			cmd.Stderr = os.Stderr
			text, err := cmd.Output()
			answers <- answer{text, err}
		}()
	}
	r := &result{}
	for range clients {
		a := <-answers
		if a.err != nil {
			err = a.err
			continue
		}
		var one report
		if bad := json.Unmarshal(a.text, &one); bad != nil {
			err = bad
		}
		r.latencies = append(r.latencies, one.Latencies...)
		r.later += one.Later
	}
	r.releases = len(r.latencies)
	return r, err
}

var _ attest.Attester = (*remote)(nil)
