package config

import (
	"encoding/json"

	"github.com/sesame-init/sesame/internal/kind"
)

// imageKeyName is the name under which Occlum's inits ask for the image key.
const imageKeyName = "image_key"

// beside are Sesame's own members that may be in a file of another form.
var beside = []string{"timeout", "root", "app", "volumes", "app_tls", "collateral"}

// decode reads a config of either form.
func decode(text []byte, keys map[string]json.RawMessage) (*Config, Problems) {
	for _, k := range Backends() {
		if k.Shape == nil {
			continue
		}
		if shape := k.Shape(keys); shape != nil {
			return decodeShape(text, k, shape)
		}
	}
	c, problems := decodeOwn(text)
	if len(problems) > 0 {
		return nil, problems
	}
	return c, c.complete()
}

// decodeShape turns another form into ours. What the form leaves open, the source of collateral and that secrets must not
// persist, is asked for by name.
func decodeShape(text []byte, k kind.Kind, shape kind.Shape) (*Config, Problems) {
	c := &Config{Legacy: true, Backend: k.Name}
	var m members
	m.add(shape)
	m.add(c, beside...)
	if problems := m.decode(text); len(problems) > 0 {
		return nil, problems
	}
	var problems Problems
	settings := shape.Settings(problems.Add)
	c.Blocks = map[string]kind.Block{k.Name: settings.Block}
	c.remarks = settings.Remarks
	for _, s := range settings.Secrets {
		c.Secrets = append(c.Secrets, SecretFile{Name: s.Name, Path: s.Path})
	}
	for _, p := range settings.PCCS {
		switch {
		case p.URL == "" || p.URL == c.Collateral.PCCSURL:
		case c.Collateral.PCCSURL == "":
			c.Collateral.PCCSURL, c.pccsKey = p.URL, p.Key
		default:
			problems.Add(p.Key, "is another address than "+c.Collateral.PCCSURL, "one address")
		}
	}
	return c, append(problems, c.complete()...)
}
