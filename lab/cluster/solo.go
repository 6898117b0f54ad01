package main

import (
	"encoding/json"
	"fmt"
)

// soloManifest is a pod of its own with the deployment's template: image in the place of its own, and, if tamper is
// not empty, an init container that runs it as a Python program after the files were staged.
func soloManifest(name, spec, image, client, tamper string) (string, error) {
	var template map[string]json.RawMessage
	if err := json.Unmarshal([]byte(spec), &template); err != nil {
		return "", fmt.Errorf("reading the deployment's template: %w", err)
	}
	for _, kind := range []string{"initContainers", "containers"} {
		var containers []map[string]json.RawMessage
		if err := json.Unmarshal(template[kind], &containers); err != nil {
			return "", fmt.Errorf("reading the template's %s: %w", kind, err)
		}
		for _, c := range containers {
			if err := set(c, "image", image); err != nil {
				return "", err
			}
		}
		if kind == "initContainers" && tamper != "" {
			extra, err := tampering(client, tamper)
			if err != nil {
				return "", err
			}
			containers = append(containers, extra)
		}
		if err := set(template, kind, containers); err != nil {
			return "", err
		}
	}
	if err := set(template, "restartPolicy", "Never"); err != nil {
		return "", err
	}
	text, err := json.Marshal(struct {
		APIVersion string                     `json:"apiVersion"`
		Kind       string                     `json:"kind"`
		Metadata   map[string]string          `json:"metadata"`
		Spec       map[string]json.RawMessage `json:"spec"`
	}{"v1", "Pod", map[string]string{"name": name}, template})
	return string(text), err
}

// tampering is the init container; it has the rights of the node's owner.
func tampering(client, program string) (map[string]json.RawMessage, error) {
	type mount struct {
		Name      string `json:"name"`
		MountPath string `json:"mountPath"`
	}
	c := make(map[string]json.RawMessage)
	for key, value := range map[string]string{"name": "tamper", "image": client} {
		if err := set(c, key, value); err != nil {
			return nil, err
		}
	}
	if err := set(c, "command", []string{"python3", "-c", program}); err != nil {
		return nil, err
	}
	return c, set(c, "volumeMounts", []mount{{"instance", "/stage"}})
}

func set(m map[string]json.RawMessage, key string, value any) error {
	text, err := json.Marshal(value)
	m[key] = text
	return err
}
