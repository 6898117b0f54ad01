package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// tampering is one change from outside and the refusal that it must lead to.
type tampering struct {
	what string
	// change is made after everything was prepared and before anything is started.
	change func(context.Context, *demo) error
	// broker is the instance to start, "" for the right one; platform likewise.
	broker, platform string
	// command is what the host asks for, nil for the right one.
	command []string
	// refusal must stand in what the workload's side prints; where the broker is the one that refuses, its log
	// must give brokerSays as the reason.
	refusal    []string
	brokerSays string
}

var tampers = map[string][]tampering{
	"config": {{
		what:       "a byte of the measured init config, after the broker's policy was written",
		change:     tamperConfig,
		refusal:    []string{"refused [denied]"},
		brokerSays: "mr_enclave",
	}},
	"model": {{
		what:    "a byte of the encrypted model volume",
		change:  tamperModel,
		refusal: []string{"input/output error"},
	}},
	"quote": {{
		what:       "the signature in the workload's quote",
		change:     tamperQuote,
		platform:   "platform-tampered",
		refusal:    []string{"refused [denied]"},
		brokerSays: "signature",
	}},
	"broker": {
		{
			what: "the broker is signed by somebody else",
			change: func(ctx context.Context, d *demo) error {
				return d.otherBroker(ctx, "other-signer", "stranger", brokerProduct, brokerSVN)
			},
			broker:  "other-signer",
			refusal: []string{"refused [policy]", "mr_signer"},
		},
		{
			what: "the broker has another product id",
			change: func(ctx context.Context, d *demo) error {
				return d.otherBroker(ctx, "other-product", "broker", brokerProduct+1, brokerSVN)
			},
			broker:  "other-product",
			refusal: []string{"refused [policy]", "product_id"},
		},
		{
			what: "the broker has a lower SVN",
			change: func(ctx context.Context, d *demo) error {
				return d.otherBroker(ctx, "lower-svn", "broker", brokerProduct, brokerSVN-1)
			},
			broker:  "lower-svn",
			refusal: []string{"refused [policy]", "svn"},
		},
	},
	"key": {{
		what: "the broker holds another image key",
		change: func(ctx context.Context, d *demo) error {
			if _, err := d.tool(ctx, d.work, "sesame", "keygen", "image-key", d.path("other.key")); err != nil {
				return err
			}
			if err := d.writeSecrets(d.path("broker"), d.path("other.key")); err != nil {
				return err
			}
			_, err := d.tool(ctx, d.path("broker"), "occlum", "build", "-f", "--sign-key", d.path("broker.pem"))
			return err
		},
		refusal: []string{"refused [mount]", "mounting /"},
	}},
	"argv": {
		{
			what:    "the host asks for another program",
			command: []string{"/opt/serving/bin/tensorflow_model_server", "--port=1", "--model_base_path=/models/resnet"},
			refusal: []string{"entry point"},
		},
		{
			what:    "the host asks for other arguments",
			command: []string{"/bin/tensorflow_model_server", "--port=1", "--ssl_config_file="},
			refusal: []string{"refused [launch]", "app.args"},
		},
	},
}

// mustRefuse runs the deployment with one change and checks that it is refused for the right reason.
func (d *demo) mustRefuse(ctx context.Context, t tampering) error {
	if t.change != nil {
		if err := d.step(ctx, "tampered: "+t.what, func() (string, error) { return "", t.change(ctx, d) }); err != nil {
			return err
		}
	} else if err := d.step(ctx, "tampered: "+t.what, func() (string, error) { return "", nil }); err != nil {
		return err
	}
	broker, platform := t.broker, t.platform
	if broker == "" {
		broker = "broker"
	}
	if platform == "" {
		platform = "platform"
	}
	first := len(d.servers)
	if err := d.step(ctx, "broker up", func() (string, error) { return d.brokerAddr, d.startBroker(ctx, broker) }); err != nil {
		return err
	}
	brokerLog := d.servers[first]
	err := d.step(ctx, "refused", func() (string, error) {
		s, err := d.startWorkload(platform, t.command)
		if err != nil {
			return "", err
		}
		if err := s.waitEnd(ctx); err != nil {
			return "", err
		}
		output := strings.Join(s.lines(), "\n")
		if s.says("Running gRPC ModelServer") {
			return "", errors.New("the server was started:\n" + output)
		}
		if s.exitCode() == 0 {
			return "", errors.New("the run ended with exit status 0:\n" + output)
		}
		for _, want := range t.refusal {
			if !s.says(want) {
				return "", fmt.Errorf("refused, but not for the right reason (%q):\n%s", want, output)
			}
		}
		if t.brokerSays == "" {
			return s.lineWith(t.refusal[0]), nil
		}
		if err := brokerLog.waitForLine(ctx, "peer refused"); err != nil {
			return "", err
		}
		reason := brokerLog.lineWith("peer refused")
		if !strings.Contains(reason, t.brokerSays) {
			return "", fmt.Errorf("the broker refused, but not for the right reason (%q): %s", t.brokerSays, reason)
		}
		return "broker: " + reason, nil
	})
	for i := len(d.servers) - 1; i >= first; i-- {
		d.servers[i].stop()
	}
	d.servers = d.servers[:first]
	return err
}

func (s *server) lineWith(text string) string {
	for _, line := range s.lines() {
		if strings.Contains(line, text) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// otherBroker builds a second broker instance with the same files under another identity.
func (d *demo) otherBroker(ctx context.Context, name, signKey string, product, svn int) error {
	_, err := d.buildBroker(ctx, name, signKey, product, svn)
	return err
}

// tamperConfig changes one byte of the init config and builds again with the same keys, as an attacker would who
// has everything but a place in the broker's policy.
func tamperConfig(ctx context.Context, d *demo) error {
	if err := d.writeInitConfig(d.path("workload", "init_ra_conf.json"), "61s"); err != nil {
		return err
	}
	_, err := d.tool(ctx, d.path("workload"), "occlum", "build", "-f", "--sign-key", d.path("workload.pem"), "--image-key", d.path("image.key"))
	return err
}

// tamperModel flips one byte in the middle of the volume's largest file, the weights.
func tamperModel(_ context.Context, d *demo) error {
	largest, size := "", int64(0)
	err := filepath.WalkDir(d.path("workload", "model"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Size() > size {
			largest, size = path, info.Size()
		}
		return err
	})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(largest, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, size/2); err != nil {
		return err
	}
	b[0] ^= 1
	_, err = f.WriteAt(b, size/2)
	return err
}

// tamperQuote makes a copy of the platform whose provisioning key is not the one that its certificate names, so
// that the signature in every quote is wrong.
func tamperQuote(ctx context.Context, d *demo) error {
	if _, err := d.tool(ctx, d.work, "occlum", "sim-platform", "new", d.path("platform-other")); err != nil {
		return err
	}
	if err := os.CopyFS(d.path("platform-tampered"), os.DirFS(d.path("platform"))); err != nil {
		return err
	}
	key, err := os.ReadFile(d.path("platform-other", "pck.key"))
	if err != nil {
		return err
	}
	return os.WriteFile(d.path("platform-tampered", "pck.key"), key, 0o600)
}

func writeJSON(file string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}
