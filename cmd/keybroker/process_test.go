package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/internal/broker/admin"
	"github.com/sesame-init/sesame/internal/broker/admin/adminpb"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// programEnv makes the test's program the broker itself, for tests that kill it: "bare", or "PROCESSOR DIR" for the
// broker's enclave on a processor of the software platform in DIR.
const programEnv = "SESAME_TEST_KEYBROKER"

func TestMain(m *testing.M) {
	switch as := os.Getenv(programEnv); as {
	case "":
		if as := os.Getenv(faultEnv); as != "" {
			broken(as)
		}
		os.Exit(m.Run())
	case "bare":
		main()
	default:
		os.Exit(enclaved(as))
	}
}

// enclaved is main in an enclave.
func enclaved(as string) int {
	_ = protect()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var processor byte
	var dir string
	if _, err := fmt.Sscan(as, &processor, &dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	platform, err := softsgx.Load(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	here := inEnclave(func() (deviceAttester, error) {
		return sealing{enclave{platform.Attester(brokertest.Broker())}, processor}, nil
	})
	c := command{folder: ".", place: here, hangup: make(chan os.Signal), stdout: os.Stdout, stderr: os.Stderr}
	return c.run(ctx, os.Args[1:], "")
}

// process is a broker that runs as a process of its own. At every start the system chooses its ports.
type process struct {
	t   *testing.T
	dir string
	as  string // of programEnv

	out      *buffer // all that it has ever said
	cmd      *exec.Cmd
	lifetime atomic.Pointer[lifetime] // the last one in which it answered workloads
	end      context.CancelFunc       // of the lifetime that lasts
}

// lifetime is one run of a process. Its context ends when the process is stopped.
type lifetime struct {
	context.Context
	session, admin, http string        // addresses
	next                 chan struct{} // closed when there is another one
}

func newProcess(t *testing.T, dir, as string) *process {
	p := &process{t: t, dir: dir, as: as, out: &buffer{}}
	t.Cleanup(func() { p.stop(syscall.SIGKILL) })
	return p
}

var (
	servingSessions = regexp.MustCompile(`Server listening on (\S+)\n`)
	servingAdmins   = regexp.MustCompile(`administrators are served on ([0-9.:]+)"`)
	servingHTTP     = regexp.MustCompile(`health and metrics are served on ([0-9.:]+)"`)
)

// start returns when the broker answers workloads.
func (p *process) start() {
	p.t.Helper()
	l, said := p.launch()
	l.session = said.find(p.t, servingSessions)
	if last := p.lifetime.Swap(l); last != nil {
		close(last.next)
	}
}

// launch returns when the broker answers administrators. The buffer gets what it says in this lifetime.
func (p *process) launch() (*lifetime, *buffer) {
	p.t.Helper()
	p.cmd = exec.Command(os.Args[0], "--http", "127.0.0.1:0", "--log-level", "debug", "127.0.0.1:0")
	p.cmd.Dir, p.cmd.Env = p.dir, append(os.Environ(), programEnv+"="+p.as)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	said := &buffer{}
	both := io.MultiWriter(said, p.out) // one writer for exec, which then does not write from two goroutines
	p.cmd.Stdout, p.cmd.Stderr = both, both
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	l := &lifetime{next: make(chan struct{})}
	l.Context, p.end = context.WithCancel(context.Background())
	l.http, l.admin = said.find(p.t, servingHTTP), said.find(p.t, servingAdmins)
	return l, said
}

func (p *process) stop(s syscall.Signal) {
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(s)
		_ = p.cmd.Wait()
		p.cmd = nil
		p.end()
	}
}

// alive waits until the broker runs, or ctx ends.
func (p *process) alive(ctx context.Context) *lifetime {
	l := p.lifetime.Load()
	for l.Err() != nil {
		select {
		case <-l.next:
		case <-ctx.Done():
			return l
		}
		l = p.lifetime.Load()
	}
	return l
}

// dial reaches the admin channel.
func (l *lifetime) dial(ctx context.Context, who tls.Certificate, broker session.ClientConfig) (*admin.Client, error) {
	broker.Now = time.Now
	return admin.Dial(ctx, admin.DialOptions{Address: l.admin, Certificate: who, Broker: broker})
}

// put gives the canary to the broker that client reaches.
func put(ctx context.Context, client *admin.Client, name string) error {
	_, err := client.PutSecret(ctx, &adminpb.PutSecretRequest{Name: name, Kind: "value",
		Value: &adminpb.PutSecretRequest_Content{Content: []byte(canary)}})
	return err
}
