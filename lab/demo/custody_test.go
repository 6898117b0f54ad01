package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/internal/packaging/copytree"
	"github.com/sesame-init/sesame/lab/admintest"
)

// custodyPolicy is a broker's own: store on the host, root key sealed.
const custodyPolicy = `version: 1
trust:
  roots:
    - |
%s
    - |
%s
  collateral: {url: "http://127.0.0.1:1/", allow_http: true}
workloads:
  demo: {versions: [{sgx: [{mr_enclave: %s}]}]}
secrets:
  image_key: {workloads: [demo]}
broker:
  store: {sqlite: /host/broker.db}
  root_key: {sealed: true}
  admin:
    listen: 127.0.0.1:0
    roots:
      - |
%s
`

// TestStoreIsSealedToItsMachineAndOpensElsewhereByShares runs a broker in an instance, under the LibOS's system calls,
// with its store on the host: it opens it again by itself on the same machine, not on another one, where operators
// unlock it.
func TestStoreIsSealedToItsMachineAndOpensElsewhereByShares(t *testing.T) {
	d := newDemo(t, "grpc-ratls")
	c := &custody{t: t, d: d}
	c.prepare()

	c.start("one")
	c.says("rootkey list", ", open", "sealed")
	c.sesame([]byte("canary-secret"), "secret", "put", "image_key", "--stdin")
	c.sesame(nil, "rootkey", "shares", "--threshold", "2", "--number", "3", "--out", d.path("shares"))
	c.stop()

	c.start("one")
	c.says("rootkey list", ", open")
	c.says("secret list", "image_key")
	c.stop()

	c.start("two")
	c.says("rootkey list", "locked: ", "does not open")
	if out, err := c.run(nil, "secret", "list"); err == nil {
		t.Errorf("a locked broker lists %s", out)
	}
	c.says("rootkey unlock --share "+d.path("shares", "share-3"), "1 more needed")
	c.says("rootkey unlock --share "+d.path("shares", "share-1"), "unlocked")
	c.says("secret list", "image_key")
	c.stop()

	c.start("two") // it has sealed the root key for this machine, too
	c.says("rootkey list", ", open")
	c.says("log verify", "all ")
	c.stop()

	store, err := os.ReadFile(d.path("custody", "broker.db"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(store, []byte("image_key")) || bytes.Contains(store, []byte("canary-secret")) {
		t.Error("the store's file has no names, or has values")
	}
}

// custody is a broker in an instance, on one of two machines.
type custody struct {
	t       *testing.T
	d       *demo
	machine string
	running []*server
}

func (c *custody) tool(dir, program string, args ...string) string {
	c.t.Helper()
	out, err := c.d.tool(c.t.Context(), dir, program, args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

func (c *custody) write(name, text string) {
	c.t.Helper()
	if err := os.WriteFile(c.d.path(name), []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// prepare makes two machines, an administrator, and the broker's instance.
func (c *custody) prepare() {
	c.t.Helper()
	d := c.d
	if err := d.makeIdentities(); err != nil {
		c.t.Fatal(err)
	}
	var roots []string
	for _, machine := range []string{"one", "two"} {
		c.tool(d.work, "occlum", "sim-platform", "new", d.path(machine))
		root, err := os.ReadFile(d.path(machine, "root_ca.pem"))
		if err != nil {
			c.t.Fatal(err)
		}
		roots = append(roots, indented(root, 6))
	}
	alice := admintest.Administrator(c.t, "alice")
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: alice.Certificate[0]})
	key, err := x509.MarshalPKCS8PrivateKey(alice.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		c.t.Fatal(err)
	}
	c.write("alice.crt", string(certificate))
	c.write("alice.key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))

	dir := d.path("custody")
	c.tool(d.work, "occlum", "new", "--init", filepath.Join(d.bin, "init"), dir)
	if err := copytree.Copy(filepath.Join(d.bin, "libos", "keybroker"), filepath.Join(dir, "image/bin/server")); err != nil {
		c.t.Fatal(err)
	}
	c.write("custody/image/policy.yaml", fmt.Sprintf(custodyPolicy, roots[0], roots[1], strings.Repeat("aa", 32), indented(certificate, 8)))
	c.write("custody/init_ra_conf.json", `{"backend":"none","root":{"upper":"temporary"},"collateral":{}}`)
	c.occlumJSON(filepath.Join(dir, "Occlum.json"))
	c.tool(dir, "occlum", "build", "-f", "--sign-key", d.path("broker.pem"))
	c.write("broker-policy.yaml", "sgx: [{mr_enclave: "+c.tool(dir, "occlum", "print", "mrenclave")+"}]\n")
}

// occlumJSON is the broker's: as writeOcclumJSON, but it keeps the host's folder, for the store.
func (c *custody) occlumJSON(file string) {
	c.t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		c.t.Fatal(err)
	}
	var before, after map[string]any
	if err := json.Unmarshal(text, &before); err != nil {
		c.t.Fatal(err)
	}
	var host any
	for _, m := range before["mount"].([]any) {
		if m.(map[string]any)["type"] == "hostfs" {
			host = m
		}
	}
	if err := c.d.writeOcclumJSON(filepath.Dir(file), brokerProduct, brokerSVN, []string{"/bin/server"}); err != nil {
		c.t.Fatal(err)
	}
	if text, err = os.ReadFile(file); err != nil {
		c.t.Fatal(err)
	}
	if err := json.Unmarshal(text, &after); err != nil {
		c.t.Fatal(err)
	}
	after["mount"] = append(after["mount"].([]any), host)
	if err := writeJSON(file, after); err != nil {
		c.t.Fatal(err)
	}
}

// start starts the broker on a machine, and returns when it answers administrators.
func (c *custody) start(machine string) {
	c.t.Helper()
	c.machine = machine
	file := c.d.path(machine + ".url")
	_ = os.Remove(file)
	pccs, err := c.d.startServer(c.d.work, "occlum", "sim-pccs", "--platform", c.d.path(machine), "--listen", "127.0.0.1:0", "--url-file", file)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := pccs.waitFor(c.t.Context(), func() bool { text, err := os.ReadFile(file); return err == nil && len(text) > 0 }); err != nil {
		c.t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		c.t.Fatal(err)
	}
	c.d.pccs = strings.TrimSpace(string(text)) // the host's word, in PCCS_URL
	b, err := c.d.startServer(c.d.path("custody"), "occlum", "run", "--strict-app", "--platform", c.d.path(machine), "/bin/server", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	c.running = []*server{b, pccs}
	const served = "administrators are served on "
	if err := b.waitForLine(c.t.Context(), served); err != nil {
		c.t.Fatal(err)
	}
	_, address, _ := strings.Cut(b.lineWith(served), served)
	c.write("context-"+machine+".yaml", fmt.Sprintf("broker: %s\npolicy: broker-policy.yaml\nroot_ca: %s/root_ca.pem\ncert: alice.crt\n"+
		"key: alice.key\n", strings.Trim(address, "\""), machine))
}

func (c *custody) stop() {
	for _, s := range c.running {
		s.stop()
	}
}

func (c *custody) run(stdin []byte, args ...string) (string, error) {
	cmd := exec.CommandContext(c.t.Context(), filepath.Join(c.d.bin, "sesame"), args...)
	cmd.Env = append(os.Environ(), "SESAME_CONTEXT="+c.d.path("context-"+c.machine+".yaml"))
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c *custody) sesame(stdin []byte, args ...string) string {
	c.t.Helper()
	out, err := c.run(stdin, args...)
	if err != nil {
		c.t.Fatalf("sesame %s: %v\n%s\n%s", strings.Join(args, " "), err, out, strings.Join(c.running[0].lines(), "\n"))
	}
	return out
}

func (c *custody) says(command string, texts ...string) {
	c.t.Helper()
	out := c.sesame(nil, strings.Fields(command)...)
	for _, text := range texts {
		if !strings.Contains(out, text) {
			c.t.Errorf("sesame %s does not say %q:\n%s", command, text, out)
		}
	}
}
