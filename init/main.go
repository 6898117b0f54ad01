// Command init is the first program in an attested workload. It proves by remote attestation what it is,
// receives the keys that only that proof opens, mounts the encrypted root and volumes, hands the application
// its secrets, and lets it start unmodified.
//
// # What happens, in order
//
//  1. The measured config /etc/init_ra_conf.json is read (package internal/config is its manual). Anything wrong
//     in it ends the boot and is named with the key and what to write.
//  2. The enclave's own measurement is read from /dev/sgx and logged.
//  3. The backend attests and fetches all secrets under one deadline, or none.
//  4. The root is mounted with the image key, then each volume with its own key and MAC, then a memory file
//     system for secrets.
//  5. Secret files are written, each complete or not at all, and where asked the application's TLS key is made.
//  6. Keys are wiped, and init exits with 0: the LibOS starts the application in the mounted root.
//
// # When something fails
//
// Two lines go to standard error: what was refused, on which step and why; and what to do. What was mounted or
// written is taken back, and the exit status says the class:
//
//	10 config       the config is wrong, or verifies less than the minimum
//	11 attester     this enclave could not make evidence
//	12 unreachable  no broker could be reached before the deadline
//	13 denied       the broker refused to release
//	14 evidence     the broker's evidence is not genuine
//	15 policy       the broker is genuine, but not what the config wants
//	16 collateral   collateral is expired, not genuine or, with the code collateral-missing, not had by its service
//	17 secret       a secret is missing, malformed or could not be written
//	18 mount        a file system could not be mounted
//	19 launch       the application could not be started, or not with these arguments
//	20 internal     a fault of init itself; a panic, which no other line foretold, is told with its place in the source
//	21 stopped      a signal ended the boot: SIGTERM, SIGINT, SIGHUP or SIGQUIT
//
// Status 2 is a fault of the Go runtime, such as a lack of memory, or inside a library that starts goroutines, and never one
// of init or of the launcher.
//
// Until init has begun, some milliseconds, a signal has its usual effect; from then on none is lost.
//
// # The launcher
//
// In Occlum the host chooses the program and the arguments of what starts after init, and the LibOS checks the
// path only. So this same binary is also in the image at the path that the host asks for, as the single
// entry point: under any name but "init" it is the launcher. It compares the host's arguments with those of the
// measured config, refuses others, and execs the real program. What it may start reaches it through the trusted
// environment that init installs with the root, in the variable SESAME_APP; that name must never stand in
// Occlum.json's env.untrusted.
//
// # On plain Linux
//
// Built with the tag plainlinux ("make bin/init-linux") it boots a container, a confidential VM or a machine with a TPM,
// where the config says "platform": "linux":
//
//	init [--config FILE] [-- PROGRAM ARG...]
//
// Evidence comes from the attester that the config names. Mounts are made in a mount namespace of its own, volumes are
// served by processes with a user of their own (package init/internal/linux), secrets stand in memory that is never swapped out,
// and a root from a volume is entered by pivot_root. Then the application takes over this process, or is supervised
// (package init/internal/handover). It runs as the entry point of a container, under systemd, and as process 1 if
// /proc, /sys and /dev are mounted already. It needs the capabilities SYS_ADMIN, SETPCAP, SETUID, SETGID and DAC_OVERRIDE, and
// IPC_LOCK if there is swap; none of them reaches the application unless the config says so.
//
// The config is not measured by itself here: "config_pcr" measures it into the TPM, or it is in the image that the
// machine's own boot measures. docs/platforms.md says what each platform proves.
//
// # What it does not do
//
// It does not protect an application from its own clients, it does not keep the host from starving it of time,
// network or memory, and it cannot keep the application, which shares its measurement, from attesting again.
package main

import (
	"context"
	"os"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/init/internal/stop"
)

// buildTime raises the lower bound of every clock that init believes, in seconds since 1970, if a linker sets it. Programs
// that are to have the same measurement leave it alone.
var buildTime = "0"

// grace is how long a boot may go on after a signal, in a call that nothing interrupts, such as one to a TPM. Then init
// ends without it: what it has mounted is gone with its mount namespace, and processes behind volumes end with it.
const grace = 5 * time.Second

// boundBySignals runs a boot whose ctx ends at a signal. The boot takes back what it did then.
func boundBySignals(boot func(context.Context) error) error {
	ctx, done := stop.Watch(context.Background(), grace, func(err error) { os.Exit(refuse(os.Stderr, err)) })
	err := boot(ctx)
	if stopped := done(); stopped != nil {
		return stopped
	}
	return err
}

func newLogger() *logrus.Logger {
	log := logrus.New()
	log.SetOutput(os.Stderr)
	log.SetFormatter(&logrus.TextFormatter{DisableColors: true, DisableTimestamp: true})
	return log
}
