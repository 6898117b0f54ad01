package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/sesame-init/sesame/internal/loopback"
	"github.com/sesame-init/sesame/internal/packaging/copytree"
)

// workloadProduct is the product id of the inference instance.
const workloadProduct = 200

// demo is one run: a work directory with a platform, instances and their keys, and the services of [service].
type demo struct {
	work, bin, model string
	start            time.Time

	occlumFiles bool   // the broker is built as Occlum's examples build it, with its secrets in the image
	occlumShape bool   // write init's config in Occlum's own shape
	attestedTLS bool   // the server's TLS key is made inside the enclave, its certificate carries evidence
	wire        string // protocol between init and broker: "session" or "legacy"

	backend  string             // the word in init's config
	services map[string]service // all, by that word
	service  service            // the chosen one

	environment []string // of the programs, as the host sets it

	pccs       string // address of the software platform's collateral service
	serverPort string
	mac        string // root MAC of the model volume

	servers  []*server
	reserved []func() // release ports
}

// address reserves a loopback address for a program that will listen there, until the demo ends.
func (d *demo) address() (string, error) {
	port, release, err := loopback.Reserve()
	if err != nil {
		return "", err
	}
	d.reserved = append(d.reserved, release)
	return "127.0.0.1:" + port, nil
}

func (d *demo) path(elem ...string) string {
	return filepath.Join(append([]string{d.work}, elem...)...)
}

// step runs f and prints one line with its time.
func (d *demo) step(ctx context.Context, text string, f func() (detail string, err error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	start := time.Now()
	detail, err := f()
	if err != nil {
		fmt.Printf("%7.2f s  FAILED %s\n", time.Since(start).Seconds(), text)
		return fmt.Errorf("%s: %w", text, err)
	}
	if detail != "" {
		text += ": " + detail
	}
	fmt.Printf("%7.2f s  %s\n", time.Since(start).Seconds(), text)
	return nil
}

// tool runs one of the built programs to its end and returns what it printed on standard output.
func (d *demo) tool(ctx context.Context, dir, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, program), args...)
	cmd.Dir = dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", program, strings.Join(args, " "), err, out.String(), errs.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// prepare makes everything that a deployment needs before anything runs.
func (d *demo) prepare(ctx context.Context) error {
	steps := []struct {
		text string
		f    func() (string, error)
	}{
		{"software platform", func() (string, error) { return d.makePlatform(ctx) }},
		{"image key and model volume made", func() (string, error) { return d.makeVolume(ctx) }},
		{"TLS identity and signing keys made", func() (string, error) { return "", d.makeIdentities() }},
		{"inference instance built and measured", func() (string, error) { return d.buildWorkload(ctx) }},
		{"policy of " + d.backend + " names the measurement", func() (string, error) { return d.service.admit(ctx) }},
	}
	for _, s := range steps {
		if err := d.step(ctx, s.text, s.f); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) makePlatform(ctx context.Context) (string, error) {
	if _, err := d.tool(ctx, d.work, "occlum", "sim-platform", "new", d.path("platform")); err != nil {
		return "", err
	}
	urlFile := d.path("pccs.url")
	s, err := d.startServer(d.work, "occlum", "sim-pccs", "--platform", d.path("platform"), "--listen", "127.0.0.1:0", "--url-file", urlFile)
	if err != nil {
		return "", err
	}
	if err := s.waitFor(ctx, func() bool { text, err := os.ReadFile(urlFile); return err == nil && len(text) > 0 }); err != nil {
		return "", err
	}
	text, err := os.ReadFile(urlFile)
	d.pccs = strings.TrimSpace(string(text))
	return "own root, PCCS at " + d.pccs, err
}

func (d *demo) makeVolume(ctx context.Context) (string, error) {
	for _, key := range []string{"image.key", "model.key"} {
		if _, err := d.tool(ctx, d.work, "sesame", "keygen", "image-key", d.path(key)); err != nil {
			return "", err
		}
	}
	mac, err := d.tool(ctx, d.work, "sesame", "volume", "create", "--key-file", d.path("model.key"),
		filepath.Join(d.model, "resnet"), d.path("workload-model"))
	if err != nil {
		return "", err
	}
	d.mac = mac[strings.LastIndexAny(mac, " \n")+1:]
	return "MAC " + d.mac, nil
}

// buildWorkload packs init as the launcher, and the model server as it is, into an encrypted image.
func (d *demo) buildWorkload(ctx context.Context) (string, error) {
	dir := d.path("workload")
	files := map[string]string{
		"image/bin/tensorflow_model_server":             filepath.Join(d.bin, "init"),
		"image/opt/serving/bin/tensorflow_model_server": filepath.Join(d.bin, "tensorflow_model_server"),
	}
	for _, s := range d.services {
		more, err := s.prepare(ctx)
		if err != nil {
			return "", err
		}
		maps.Copy(files, more)
	}
	if err := d.newInstance(ctx, dir, files); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Join(dir, "image/models/resnet"), 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(d.path("workload-model"), filepath.Join(dir, "model")); err != nil {
		return "", err
	}
	address, err := d.address()
	if err != nil {
		return "", err
	}
	_, d.serverPort, _ = net.SplitHostPort(address)
	if err := d.writeInitConfig(filepath.Join(dir, "init_ra_conf.json"), "60s"); err != nil {
		return "", err
	}
	if err := d.writeOcclumJSON(dir, workloadProduct, 1, []string{"/bin/tensorflow_model_server"}); err != nil {
		return "", err
	}
	if _, err := d.tool(ctx, dir, "occlum", "build", "--sign-key", d.path("workload.pem"), "--image-key", d.path("image.key")); err != nil {
		return "", err
	}
	mrenclave, err := d.tool(ctx, dir, "occlum", "print", "mrenclave")
	return "MRENCLAVE " + short(mrenclave), err
}

// writeInitConfig writes the measured config of the inference instance.
func (d *demo) writeInitConfig(file, timeout string) error {
	conf := map[string]any{
		"timeout": timeout,
		"root":    map[string]any{"upper": "temporary"},
		"app": map[string]any{
			"entry_point": "/bin/tensorflow_model_server",
			"path":        "/opt/serving/bin/tensorflow_model_server",
			"args": []string{
				"--port=" + d.serverPort, "--model_name=resnet", "--model_base_path=/models/resnet",
				"--ssl_config_file=/etc/tf_ssl.cfg", "--listen_address=127.0.0.1",
			},
		},
		"volumes": []any{map[string]any{"source": "./model", "target": "/models/resnet", "key": "model_key", "mac": d.mac}},
		"collateral": map[string]any{
			"pccs_url": d.pccs, "allow_http": true, "root_ca": "/etc/sesame/root_ca.pem",
		},
	}
	if d.occlumShape {
		shape, err := d.service.(occlumService).occlumShape()
		if err != nil {
			return err
		}
		maps.Copy(conf, shape)
		return writeJSON(file, conf)
	}
	conf["backend"] = d.backend
	for _, s := range d.services {
		key, block, err := s.block()
		if err != nil {
			return err
		}
		conf[key] = block
	}
	conf["root"] = map[string]any{"key": "image_key", "upper": "temporary"}
	if d.attestedTLS {
		conf["app_tls"] = map[string]any{"format": "tf-serving", "path": "/etc/tf_ssl.cfg", "attested": true}
	} else {
		conf["secrets"] = []any{map[string]any{"name": "ssl_config", "path": "/etc/tf_ssl.cfg", "mode": "0400"}}
	}
	return writeJSON(file, conf)
}

// newInstance makes an instance directory with our init and the given files in it.
func (d *demo) newInstance(ctx context.Context, dir string, files map[string]string) error {
	if _, err := d.tool(ctx, d.work, "occlum", "new", "--init", filepath.Join(d.bin, "init"), dir); err != nil {
		return err
	}
	files["initfs/etc/sesame/root_ca.pem"] = d.path("platform", "root_ca.pem")
	for to, from := range files {
		if err := copytree.Copy(from, filepath.Join(dir, to)); err != nil {
			return err
		}
	}
	return nil
}

// writeOcclumJSON sets what an attested instance needs, and leaves the rest as occlum new wrote it.
func (d *demo) writeOcclumJSON(dir string, product, svn int, entryPoints []string) error {
	file := filepath.Join(dir, "Occlum.json")
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var conf map[string]any
	if err := json.Unmarshal(text, &conf); err != nil {
		return err
	}
	conf["entry_points"] = entryPoints
	metadata := conf["metadata"].(map[string]any)
	metadata["product_id"], metadata["version_number"], metadata["debuggable"] = product, svn, false
	env := conf["env"].(map[string]any)
	env["default"] = []string{"GOMAXPROCS=2"}
	env["untrusted"] = []string{"OCCLUM_INIT_RA_KMS_SERVER", "PCCS_URL", "AZURE_FEDERATED_TOKEN"}
	limits := conf["resource_limits"].(map[string]any)
	limits["user_space_size"], limits["kernel_space_heap_size"], limits["max_num_of_threads"] = "2GB", "64MB", 64
	var mounts []any
	for _, m := range conf["mount"].([]any) {
		entry := m.(map[string]any)
		if entry["type"] == "hostfs" {
			continue
		}
		if entry["type"] == "unionfs" && entry["target"] == "/" {
			layers := entry["options"].(map[string]any)["layers"].([]any)
			upper := layers[len(layers)-1].(map[string]any)
			options, _ := upper["options"].(map[string]any)
			if options == nil {
				options = map[string]any{}
			}
			options["temporary"] = true
			upper["options"] = options
		}
		mounts = append(mounts, entry)
	}
	conf["mount"] = mounts
	return writeJSON(file, conf)
}

// serveAndPredict is what the operator and the client do.
func (d *demo) serveAndPredict(ctx context.Context) error {
	if err := d.step(ctx, d.backend+" service up", func() (string, error) { return d.service.start(ctx) }); err != nil {
		return err
	}
	var workload *server
	if err := d.step(ctx, "inference server up", func() (_ string, err error) {
		workload, err = d.startWorkload("platform", nil)
		if err != nil {
			return "", err
		}
		return "127.0.0.1:" + d.serverPort, workload.waitForLine(ctx, "Running gRPC ModelServer at")
	}); err != nil {
		return err
	}
	d.printPhases(workload)
	if err := d.step(ctx, "prediction right", func() (string, error) { return d.predict(ctx) }); err != nil {
		return err
	}
	return d.step(ctx, "bench", func() (string, error) {
		trust, err := d.trust(ctx)
		if err != nil {
			return "", err
		}
		out, err := d.tool(ctx, d.work, "sesame", append([]string{"bench", "--server", "127.0.0.1:" + d.serverPort,
			"--cnum", "4", "--loop", "10", "--image", d.sample()}, trust...)...)
		lines := strings.Split(out, "\n")
		return lines[len(lines)-1], err
	})
}

// printPhases shows the boot as init itself reported it.
func (d *demo) printPhases(workload *server) {
	for _, line := range workload.lines() {
		if i := strings.Index(line, "took="); i >= 0 && strings.Contains(line, "msg=") {
			_, text, _ := strings.Cut(line, "msg=")
			text, _, _ = strings.Cut(text, " took=")
			fmt.Printf("           init: %s (%s)\n", strings.Trim(text, `"`), line[i+len("took="):])
		}
	}
}

// startWorkload asks for the server with the measured arguments; nil args are those, as the launcher fills them in.
func (d *demo) startWorkload(platform string, command []string) (*server, error) {
	if command == nil {
		command = []string{"/bin/tensorflow_model_server"}
	}
	return d.startServer(d.path("workload"), "occlum", append([]string{"run", "--platform", d.path(platform)}, command...)...)
}

// sample is a held-out picture whose class is in its name.
func (d *demo) sample() string {
	found, _ := filepath.Glob(filepath.Join(d.model, "samples", "*.jpg"))
	if len(found) == 0 {
		return ""
	}
	return found[0]
}

// trust are the client's flags that say which server is the right one: the one with the certificate that was made
// before, or the one whose certificate carries evidence of the workload's measurement.
func (d *demo) trust(ctx context.Context) ([]string, error) {
	if !d.attestedTLS {
		return []string{"--crt", d.path("server.crt")}, nil
	}
	mrenclave, err := d.tool(ctx, d.path("workload"), "occlum", "print", "mrenclave")
	if err != nil {
		return nil, err
	}
	err = writeJSON(d.path("client.json"), map[string]any{"sgx": []any{map[string]any{"mr_enclave": mrenclave}}})
	return []string{"--policy", d.path("client.json"), "--collateral", d.pccs, "--allow-http",
		"--root-ca", d.path("platform", "root_ca.pem")}, err
}

func (d *demo) predict(ctx context.Context) (string, error) {
	sample := d.sample()
	if sample == "" {
		return "", errors.New("no sample pictures; run make model")
	}
	want := strings.TrimSuffix(filepath.Base(sample), ".jpg")
	trust, err := d.trust(ctx)
	if err != nil {
		return "", err
	}
	out, err := d.tool(ctx, d.work, "sesame", append([]string{"predict", "--server", "127.0.0.1:" + d.serverPort,
		"--image", sample, "--labels", filepath.Join(d.model, "labels.txt")}, trust...)...)
	if err != nil {
		return "", err
	}
	if !strings.Contains(out, want) {
		return "", fmt.Errorf("the picture is %s, the answer is %q", want, out)
	}
	return out, nil
}
