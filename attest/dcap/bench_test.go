package dcap_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"slices"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/internal/testenv"
)

// benchVector is a genuine quote of an Ice Lake server with a TCB info of usual size.
const benchVector = "automata-dcap-attestation/268c0681_SGX3_00606A000000_eval17_1316ca"

// measure runs op and reports its time as a multiple of the P-256 verifications that it cannot do without. Both
// are measured in short turns, so that they see the same machine, and the medians are compared, so that a turn
// in which something else ran does not count.
func measure(b *testing.B, verifications int, op func()) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	hash := sha256.Sum256([]byte("floor"))
	sig, err := ecdsa.SignASN1(rand.Reader, key, hash[:])
	if err != nil {
		b.Fatal(err)
	}
	const turn = 16
	var spent, floor []time.Duration
	ops := 0
	b.ReportAllocs()
	start := time.Now()
	for b.Loop() {
		op()
		if ops++; ops%turn != 0 {
			continue
		}
		spent = append(spent, time.Since(start)/turn)
		b.StopTimer()
		start = time.Now()
		for range turn * verifications {
			if !ecdsa.VerifyASN1(&key.PublicKey, hash[:], sig) {
				b.Fatal("the floor does not verify")
			}
		}
		floor = append(floor, time.Since(start)/turn)
		b.StartTimer()
		start = time.Now()
	}
	if len(floor) > 0 {
		b.ReportMetric(float64(median(spent))/float64(median(floor)), "x-floor")
		b.ReportMetric(float64(median(spent).Microseconds()), "median-µs/op")
		b.ReportMetric(float64(median(floor).Microseconds()), "floor-µs/op")
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func mustVerify(b *testing.B, v *vector, d *dcap.Verifier) {
	if _, err := v.verify(d); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkVerifyCold knows nothing: nine verifications.
func BenchmarkVerifyCold(b *testing.B) {
	v := readVector(b, testenv.Vectors(b, "dcap", benchVector))
	measure(b, 9, func() { mustVerify(b, v, v.verifier()) })
}

// BenchmarkVerifyWarm knows collateral and PCK chain: two verifications. Each quote comes with another QE
// report, that of the same platform.
func BenchmarkVerifyWarm(b *testing.B) {
	v := readVector(b, testenv.Vectors(b, "dcap", benchVector))
	d := v.verifier()
	measure(b, 2, func() {
		dcap.ForgetQEReports(d)
		mustVerify(b, v, d)
	})
}

// BenchmarkVerifyHot knows the QE report, too: one verification.
func BenchmarkVerifyHot(b *testing.B) {
	v := readVector(b, testenv.Vectors(b, "dcap", benchVector))
	d := v.verifier()
	measure(b, 1, func() { mustVerify(b, v, d) })
}

// BenchmarkLoad verifies collateral alone: six verifications.
func BenchmarkLoad(b *testing.B) {
	v := readVector(b, testenv.Vectors(b, "dcap", benchVector))
	measure(b, 6, func() {
		if _, err := dcap.Load(&v.collateral, nil); err != nil {
			b.Fatal(err)
		}
	})
}
