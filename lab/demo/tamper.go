package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
)

// tampering is one change from outside and the refusal that it must lead to.
type tampering struct {
	what string
	// change is made after everything was prepared and before anything is started.
	change func(context.Context) error
	// platform is the one that the workload runs on, "" for the right one.
	platform string
	// command is what the host asks for, nil for the right one.
	command []string
	// refusal must be in what the workload's side prints; if the service is the one that refuses, it must
	// give serviceSays as the reason.
	refusal     []string
	serviceSays string
}

// tamperings are those of every deployment, and those of the chosen service.
func (d *demo) tamperings() map[string][]tampering {
	all := map[string][]tampering{
		"model": {{
			what:    "a byte of the encrypted model volume",
			change:  d.tamperModel,
			refusal: []string{"input/output error"},
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
	maps.Copy(all, d.service.tamperings())
	return all
}

// mustRefuse runs the deployment with one change and checks that it is refused for the right reason.
func (d *demo) mustRefuse(ctx context.Context, t tampering) error {
	if t.change != nil {
		if err := d.step(ctx, "tampered: "+t.what, func() (string, error) { return "", t.change(ctx) }); err != nil {
			return err
		}
	} else if err := d.step(ctx, "tampered: "+t.what, func() (string, error) { return "", nil }); err != nil {
		return err
	}
	platform := t.platform
	if platform == "" {
		platform = "platform"
	}
	defer d.service.stop()
	if err := d.step(ctx, d.backend+" service up", func() (string, error) { return d.service.start(ctx) }); err != nil {
		return err
	}
	return d.step(ctx, "refused", func() (string, error) {
		s, err := d.startWorkload(platform, t.command)
		if err != nil {
			return "", err
		}
		defer s.stop()
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
		if t.serviceSays == "" {
			return s.lineWith(t.refusal[0]), nil
		}
		reason, err := d.service.refusal(ctx)
		if err != nil {
			return "", err
		}
		if !strings.Contains(reason, t.serviceSays) {
			return "", fmt.Errorf("the service refused, but not for the right reason (%q): %s", t.serviceSays, reason)
		}
		return d.backend + ": " + reason, nil
	})
}

func (s *server) lineWith(text string) string {
	for _, line := range s.lines() {
		if strings.Contains(line, text) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// otherImageKey makes another image key and returns the secrets' files with that one.
func (d *demo) otherImageKey(ctx context.Context) (map[string]string, error) {
	files := d.secretFiles()
	files["image_key"] = d.path("other.key")
	_, err := d.tool(ctx, d.work, "sesame", "keygen", "image-key", files["image_key"])
	return files, err
}

// tamperConfig changes one byte of the init config and builds again with the same keys, as an attacker would who
// has everything but a place in the service's policy.
func (d *demo) tamperConfig(ctx context.Context) error {
	if err := d.writeInitConfig(d.path("workload", "init_ra_conf.json"), "61s"); err != nil {
		return err
	}
	_, err := d.tool(ctx, d.path("workload"), "occlum", "build", "-f", "--sign-key", d.path("workload.pem"), "--image-key", d.path("image.key"))
	return err
}

// tamperModel flips one byte in the middle of the volume's largest file, the weights.
func (d *demo) tamperModel(_ context.Context) error {
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
func (d *demo) tamperQuote(ctx context.Context) error {
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

func writeJSON(file string, v any) error { return writeJSONAs(file, v, 0o644) }

// writeSecrets writes a file in the shape of Occlum's secret_config.json.
func writeSecrets(file string, secrets map[string]any) error {
	return writeJSONAs(file, secrets, 0o600)
}

func writeJSONAs(file string, v any, mode fs.FileMode) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), mode)
}
