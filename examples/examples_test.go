// Package examples tests the examples: Debian's own programs, started by init-linux.
package examples

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/loopback"
	"github.com/sesame-init/sesame/internal/privatefile"
	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/swtpm"
)

// example is one that runs.
type example struct {
	t              *testing.T
	bin, dir, port string
	roots          *x509.CertPool
	words          *strings.Replacer
	tpm            string // the socket
}

func newExample(t *testing.T, program, debianPackage string) *example {
	t.Helper()
	testenv.Root(t)
	testenv.FUSE(t)
	testenv.Program(t, "swtpm", swtpm.Program, "swtpm swtpm-tools")
	testenv.Program(t, debianPackage, program, debianPackage)
	bin, err := filepath.Abs("../bin")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"init-linux", "sesame", "keybroker"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			testenv.Missing(t, "bin", "run make build first: "+err.Error())
		}
	}
	dir, err := os.MkdirTemp("", "example") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for path, mode := range map[string]fs.FileMode{dir: 0o755, filepath.Join(dir, "tmp"): 0o777} {
		_ = os.Mkdir(path, mode)
		if err := os.Chmod(path, mode); err != nil { // the application has a user of its own
			t.Fatal(err)
		}
	}
	machine, err := swtpm.New(t.Context(), filepath.Join(dir, "tpm"))
	if err != nil {
		t.Fatal(err)
	}
	running, err := machine.Start(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = running.Stop() })
	e := &example{t: t, bin: bin, dir: dir, port: reserve(t), tpm: running.Socket}
	e.words = strings.NewReplacer("@DIR@", dir, "@PORT@", e.port, "@TPM@", running.Socket)
	return e
}

func (e *example) path(name string) string { return filepath.Join(e.dir, name) }

func (e *example) write(name string, text []byte) {
	e.t.Helper()
	if err := os.WriteFile(e.path(name), text, 0o644); err != nil {
		e.t.Fatal(err)
	}
}

func (e *example) run(program string, args ...string) string {
	e.t.Helper()
	cmd := exec.Command(program, args...)
	var errs bytes.Buffer
	cmd.Stderr, cmd.Dir = &errs, e.dir
	out, err := cmd.Output()
	if err != nil {
		e.t.Fatalf("%s %s: %v\n%s%s", program, args, err, out, &errs)
	}
	return strings.TrimSpace(string(out))
}

// reserve reserves a port: the configs of init and of the applications name it before any server listens.
func reserve(t *testing.T) string {
	t.Helper()
	port, release, err := loopback.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return port
}

// fill copies an example's files with its words filled in.
func (e *example) fill(from, to string) {
	e.t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		name := filepath.Join(e.path(to), strings.TrimPrefix(path, from))
		if err != nil || d.IsDir() {
			return os.MkdirAll(name, 0o755)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(name, []byte(e.words.Replace(string(text))), 0o644)
	})
	if err != nil {
		e.t.Fatal(err)
	}
}

// identity makes the TLS key and certificate that the broker holds.
func (e *example) identity() (key, certificate []byte) {
	e.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		e.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		e.t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		e.t.Fatal(err)
	}
	certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	e.roots = x509.NewCertPool()
	e.roots.AppendCertsFromPEM(certificate)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), certificate
}

// start makes volume, policy and broker, and starts init with the example's config.
func (e *example) start(config, volume string) *output {
	e.t.Helper()
	e.run(filepath.Join(e.bin, "sesame"), "keygen", "image-key", e.path("site.key"))
	created := e.run(filepath.Join(e.bin, "sesame"), "volume", "create", "--key-file", e.path("site.key"), e.path(volume), e.path("site.volume"))
	key, certificate := e.identity()
	site, err := os.ReadFile(e.path("site.key"))
	if err != nil {
		e.t.Fatal(err)
	}
	secrets := map[string]string{}
	for name, value := range map[string][]byte{"tls_key": key, "tls_certificate": certificate, "site_key": site} {
		secrets[name] = base64.StdEncoding.EncodeToString(value)
	}
	text, err := json.Marshal(secrets)
	if err != nil {
		e.t.Fatal(err)
	}
	if err := privatefile.Create(e.path("secrets.json"), text); err != nil {
		e.t.Fatal(err)
	}
	identity, err := broker.OpenBareIdentity(e.path("broker.key"), privatefile.Rule{})
	if err != nil {
		e.t.Fatal(err)
	}
	address := "127.0.0.1:" + reserve(e.t)
	template, err := os.ReadFile(config)
	if err != nil {
		e.t.Fatal(err)
	}
	pinned := strings.NewReplacer("@BROKER@", address, "@BROKER_KEY@", fmt.Sprintf("%x", identity.Pin()),
		"@MAC@", created[strings.LastIndexAny(created, " \n")+1:]).Replace(string(template))
	e.write("init.json", []byte(e.words.Replace(pinned)))
	entry := e.run(filepath.Join(e.bin, "sesame"), "tpm", "enroll", "--device", e.tpm, "--pcrs", "0,7", "--config", "init.json", "--config-pcr", "12")
	e.write("policy.yaml", []byte("version: 1\nworkloads:\n  app:\n    versions:\n      - "+strings.ReplaceAll(entry, "\n", "\n        ")+
		"\nsecrets:\n  site_key: {workloads: [app]}\n  tls_key: {workloads: [app]}\n  tls_certificate: {workloads: [app]}\n"))
	e.launch("keybroker", "--policy", "policy.yaml", "--secrets", "secrets.json", "--key", "broker.key", address).wait("Server listening on")
	return e.launch("init-linux", "--config", "init.json")
}

// output is what a program that was started says.
type output struct {
	t    *testing.T
	mu   sync.Mutex
	b    bytes.Buffer
	more chan struct{} // closed at the next write; nil if no one waits
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.more != nil {
		close(o.more)
		o.more = nil
	}
	return o.b.Write(p)
}

// grown returns the output, and what is closed when there is more.
func (o *output) grown() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.more == nil {
		o.more = make(chan struct{})
	}
	return o.b.String(), o.more
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// wait waits until it has said a text.
func (o *output) wait(text string) {
	o.t.Helper()
	late := time.After(60 * time.Second)
	for {
		said, more := o.grown()
		if strings.Contains(said, text) {
			return
		}
		select {
		case <-more:
		case <-late:
			o.t.Fatalf("no %q in:\n%s", text, said)
		}
	}
}

// eventually polls until a server listens.
func eventually(t *testing.T, connect func() error) {
	t.Helper()
	late, tick := time.After(60*time.Second), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for {
		err := connect()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatal(err)
		}
	}
}

func (e *example) launch(program string, args ...string) *output {
	e.t.Helper()
	o := &output{t: e.t}
	cmd := exec.Command(filepath.Join(e.bin, program), args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = e.dir, o, o, 20*time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if e.t.Failed() {
			e.t.Logf("%s:\n%s", program, o)
		}
	})
	return o
}

// dial connects with TLS, and tries again until a server listens.
func (e *example) dial(said *output) (conn *tls.Conn) {
	e.t.Helper()
	said.wait("secret files written")
	eventually(e.t, func() (err error) {
		conn, err = tls.Dial("tcp", "127.0.0.1:"+e.port, &tls.Config{RootCAs: e.roots})
		return err
	})
	return conn
}

func TestNginxServesPagesOfAVolumeWithAReleasedKey(t *testing.T) {
	e := newExample(t, "nginx", "nginx")
	e.fill("nginx/site", "site")
	said := e.start("nginx/init.json", "site")
	_ = e.dial(said).Close()
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: e.roots}, DisableKeepAlives: true}}
	answer, err := client.Get("https://127.0.0.1:" + e.port + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != 200 || string(page) != "<p>From an encrypted volume.</p>\n" {
		t.Errorf("%d %q: %v", answer.StatusCode, page, err)
	}
}

func TestRedisServesADataSetOfAVolumeWithAReleasedKey(t *testing.T) {
	e := newExample(t, "redis-server", "redis")
	e.fill("redis/data", "data")
	makeDataSet(e)
	conn := e.dial(e.start("redis/init.json", "data"))
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET greeting\r\n"); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || line != "$27\r\n" {
		t.Errorf("answer is %q: %v", line, err)
	}
}

// makeDataSet has an ordinary redis write dump.rdb.
func makeDataSet(e *example) {
	e.t.Helper()
	socket := e.path("r.sock")
	cmd := exec.Command("redis-server", "--port", "0", "--unixsocket", socket, "--dir", e.path("data"), "--save", "")
	if err := cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	var conn net.Conn
	eventually(e.t, func() (err error) {
		conn, err = net.Dial("unix", socket)
		return err
	})
	defer conn.Close()
	answers := bufio.NewReader(conn)
	for _, command := range []string{`SET greeting "from the encrypted data set"`, "SAVE"} {
		if _, err := io.WriteString(conn, command+"\r\n"); err != nil {
			e.t.Fatal(err)
		}
		if line, err := answers.ReadString('\n'); err != nil || line != "+OK\r\n" {
			e.t.Fatalf("%s: %q %v", command, line, err)
		}
	}
}
