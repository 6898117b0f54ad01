package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509/pkix"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/client"
	"github.com/sesame-init/sesame/lab/standin"
	"github.com/sesame-init/sesame/lab/standin/standintest"
)

func writeModel(t *testing.T) (base string) {
	t.Helper()
	base = t.TempDir()
	var file bytes.Buffer
	if err := standintest.NewNetwork().Write(&file); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(base, "123"), 0o755); err != nil {
		t.Fatal(err)
	}
	standintest.WriteFile(t, filepath.Join(base, "123", standin.FileName), file.Bytes())
	return base
}

func TestServesUntilItsContextEnds(t *testing.T) {
	identity := standintest.NewIdentity(t, pkix.Name{CommonName: "localhost"}, nil)
	config := filepath.Join(t.TempDir(), "tf_ssl.cfg")
	standintest.WriteFile(t, config, identity.SSLConfig("client_verify: false"))
	ctx, stop := context.WithCancel(t.Context())
	logs, stderr := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"--port=0", "--model_name=resnet", "--model_base_path=" + writeModel(t),
			"--ssl_config_file=" + config, "--listen_address=127.0.0.1"}, stderr)
		stderr.Close()
	}()

	address := ""
	lines := bufio.NewScanner(logs)
	for address == "" && lines.Scan() {
		if m := regexp.MustCompile(`Running gRPC ModelServer at (\S+:\d+) \.\.\.$`).FindStringSubmatch(lines.Text()); m != nil {
			address = m[1]
		}
	}
	go io.Copy(io.Discard, logs)
	creds, err := client.Pinned(client.Pin{Certificate: identity.Certificate, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial(address, creds, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Predict(ctx, client.ResNet("resnet"), make([]float32, client.ImageLength)); err != nil {
		t.Error(err)
	}
	stop()
	if got := <-code; got != 0 {
		t.Errorf("exit code is %d, not 0", got)
	}
}

func TestRefusals(t *testing.T) {
	base := writeModel(t)
	for _, test := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"help says what it is", []string{"--help"}, 0, "A stand-in for TensorFlow Serving, for demo and tests only."},
		{"no model", nil, 2, "--model_base_path is required"},
		{"flag of the original that is not there", []string{"--model_base_path=" + base, "--enable_batching"}, 2,
			"not defined: -enable_batching"},
		{"argument", []string{"--model_base_path=" + base, "now"}, 2, "unknown argument: now"},
		{"port", []string{"--model_base_path=" + base, "--port=65536"}, 2, "at most 65535"},
		{"empty folder", []string{"--model_base_path=" + t.TempDir()}, 1, "no versions of servable default found"},
		{"TLS config", []string{"--model_base_path=" + base, "--ssl_config_file=" + base}, 1, "reading TLS config"},
		{"address", []string{"--model_base_path=" + base, "--port=0", "--listen_address=nowhere.invalid"}, 1, "nowhere.invalid"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var stderr bytes.Buffer
			if got := run(t.Context(), test.args, &stderr); got != test.code {
				t.Errorf("exit code is %d, not %d", got, test.code)
			}
			if !strings.Contains(stderr.String(), test.want) {
				t.Errorf("printed %q, without %q", stderr.String(), test.want)
			}
		})
	}
}
