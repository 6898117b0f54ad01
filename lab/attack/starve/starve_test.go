package starve_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/tpm"
	"github.com/sesame-init/sesame/lab/attack/starve"
)

// The long form has -crowd 2000 and the limits that a broker has by default.
var crowd = flag.Int("crowd", 100, "hostile connections without evidence, and half as many with evidence of each of two classes; "+
	"from 2000 on at a broker with its default limits")

// asTarget in the environment makes the test's program the broker that is attacked.
const asTarget = "STARVE_TARGET"

func TestMain(m *testing.M) {
	if os.Getenv(asTarget) != "" {
		if err := starve.ServeTarget(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	os.Exit(m.Run())
}

// most is how many bytes the broker may ever have. The race detector takes some five times as many.
const most = 192 << 20 * raced

// TestACrowdStarvesNobody: of two other addresses it holds up no honest peer, and behind the peer's own address it only
// slows it down.
func TestACrowdStarvesNobody(t *testing.T) {
	for name, behind := range map[string]bool{"two other addresses": false, "the same address": true} {
		t.Run(name, func(t *testing.T) {
			target := exec.Command(os.Args[0])
			target.Env = append(os.Environ(), asTarget+"=1")
			target.Stderr = os.Stderr
			plan := starve.Plan{Broker: target, Crowd: *crowd, Shows: *crowd / 2, Behind: behind,
				Pause: 2 * time.Second, Deadline: time.Minute, Rest: 5 * time.Second}
			if *crowd < 2000 {
				plan.Limits = fmt.Sprintf("connections: %d", *crowd)
			} else { // they are in each other's way, too
				plan.Pause, plan.Rest = 20*time.Second, time.Minute
			}
			report, err := plan.Run(t.Context())
			t.Log(report)
			if err != nil {
				t.Error(err)
			}
			if report.Leaked > 0 || report.PeakRSS > most {
				t.Error("leaked, or too much memory")
			}
		})
	}
}

// TestSelfMadeEvidenceIsWellFormed: else the attack with it would be a weaker one.
func TestSelfMadeEvidenceIsWellFormed(t *testing.T) {
	made, err := starve.NewSelfMade()
	if err != nil {
		t.Fatal(err)
	}
	data := attest.ReportData{1, 2, 3}
	e, err := made.Evidence(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := new(tpm.Verifier).Verify(t.Context(), e, time.Now())
	if err != nil || claims.ReportData != data {
		t.Errorf("%v, %v", claims, err)
	}
}
