package config_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/internal/config"
)

// A reader who copies a config out of a backend's manual, and fills in what is there between dots, gets one that is accepted.
func TestConfigsInTheBackendsManualsAreAccepted(t *testing.T) {
	const digits = "5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c"
	fill := strings.NewReplacer("…base64 of sesame maa wrap…", "AAAA", "xx-…-xx", "00-11-22-33-44-55-66-77-88-99-aa-bb-cc-dd-ee-ff",
		"…64 hex digits…", digits, "…identity_hash of aecsadmin status, optional…", digits, "…identity_hash…", digits)
	block := regexp.MustCompile("(?s)```json\n(.*?)```")
	for name, want := range map[string]int{"maa": 2, "aecs": 2, "grpc-ratls": 2} {
		manual, err := os.ReadFile("../../docs/backends/" + name + ".md")
		if err != nil {
			t.Fatal(err)
		}
		found := block.FindAllSubmatch(manual, -1)
		if len(found) != want {
			t.Errorf("%s.md has %d configs, want %d", name, len(found), want)
		}
		for _, match := range found {
			text := fill.Replace(string(match[1]))
			if !strings.HasPrefix(text, "{") { // the block of the backend alone
				text = `{"backend": "` + name + `", ` + text + `, "root": {"key": "image_key"}, "collateral": {"pccs_url": "https://pccs:8081/"}}`
			}
			if _, err := config.Parse([]byte(text)); err != nil {
				t.Errorf("%s.md: %v in\n%s", name, err, text)
			}
		}
	}
}

func TestEachBackendHasAManual(t *testing.T) {
	pages, err := filepath.Glob("../../docs/backends/*.md")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	for _, k := range config.Backends() {
		if !strings.Contains(all.String(), `"backend": "`+k.Name+`"`) {
			t.Errorf("no page of docs/backends shows a config with backend %q", k.Name)
		}
	}
}
