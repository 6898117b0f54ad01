package main

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/internal/broker/policy"
)

// manual is docs/broker.md.
func manual(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/broker.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// section is the manual's text from one heading to another.
func section(t *testing.T, from, to string) string {
	t.Helper()
	_, text, begun := strings.Cut("\n"+manual(t), "\n"+from+"\n")
	text, _, ended := strings.Cut(text, "\n"+to+"\n")
	if !begun || !ended {
		t.Fatalf("the manual has no part from %q to %q", from, to)
	}
	return text
}

// rows are the tables of a text: the cells of each line.
func rows(text string) (all [][]string) {
	for line := range strings.Lines(text) {
		if line, ok := strings.CutPrefix(strings.TrimSpace(line), "|"); ok {
			var cells []string
			for _, cell := range strings.Split(strings.TrimSuffix(line, "|"), "|") {
				cells = append(cells, strings.TrimSpace(cell))
			}
			all = append(all, cells)
		}
	}
	return all
}

var code = regexp.MustCompile("`([^`]+)`")

// marked are the words that a text marks as what a person types.
func marked(text string) (all []string) {
	for _, m := range code.FindAllStringSubmatch(text, -1) {
		all = append(all, regexp.MustCompile(`[a-z][a-z0-9_]*`).FindAllString(m[1], -1)...)
	}
	return all
}

// TestTheManualHasEveryOptionOfTheProgram: and it has no other, in an enclave and outside.
func TestTheManualHasEveryOptionOfTheProgram(t *testing.T) {
	option := regexp.MustCompile(`--([a-z][a-z-]*)`)
	documented, bare := map[string]bool{}, map[string]bool{}
	for _, row := range rows(section(t, "# The key broker", "## Where it runs")) {
		if m := option.FindStringSubmatch(row[0]); m != nil {
			documented[m[1]] = true
			bare[m[1]] = strings.HasPrefix(row[1], "bare only")
		}
	}
	for _, enclave := range []bool{false, true} {
		var help buffer
		c := command{place: place{enclave: enclave}, stdout: &help, stderr: &help}
		if code := c.run(t.Context(), []string{"-h"}, ""); code != 0 {
			t.Fatalf("exit code %d\n%s", code, &help)
		}
		_, flags, _ := strings.Cut(help.String(), "\nFlags:\n")
		known := map[string]bool{}
		for line := range strings.Lines(flags) {
			if m := option.FindStringSubmatch(line); m != nil && m[1] != "help" {
				known[m[1]] = true
			}
		}
		if len(known) < 4 {
			t.Fatalf("no options in\n%s", &help)
		}
		for name := range known {
			if !documented[name] {
				t.Errorf("--%s is not in the manual (enclave: %t)", name, enclave)
			}
		}
		for name := range documented {
			if known[name] == (enclave && bare[name]) {
				t.Errorf("the manual has --%s, the program: %t (enclave: %t)", name, known[name], enclave)
			}
		}
	}
}

// keys are those that the policy's parser knows below a type.
func keys(of reflect.Type, found map[string]bool) {
	for of.Kind() == reflect.Pointer || of.Kind() == reflect.Slice || of.Kind() == reflect.Map {
		of = of.Elem()
	}
	if of.Kind() != reflect.Struct {
		return
	}
	for i := range of.NumField() {
		f := of.Field(i)
		name, options, tagged := strings.Cut(f.Tag.Get("yaml"), ",")
		if !f.IsExported() || name == "" && !(tagged && options == "inline") {
			continue
		}
		if name != "" {
			found[name] = true
		}
		keys(f.Type, found)
	}
}

// TestTheManualHasEveryKeyOfAPolicy and no other.
func TestTheManualHasEveryKeyOfAPolicy(t *testing.T) {
	known := map[string]bool{}
	keys(reflect.TypeFor[policy.Policy](), known)
	if len(known) < 60 || !known["min_config_svn"] || !known["begin"] {
		t.Fatalf("keys are %v", known)
	}
	text := section(t, "## The policy", "## Occlum's two files")
	said := marked(text)
	for key := range known {
		if !slices.Contains(said, key) {
			t.Errorf("the manual does not tell of %s", key)
		}
	}
	for _, row := range rows(text) {
		for _, key := range marked(row[0]) {
			if !known[key] && key != "true" {
				t.Errorf("the manual tells of %s, which no policy knows: %s", key, row[0])
			}
		}
	}
}

// TestTheManualHasTheDefaultsOfTheLimits as they are.
func TestTheManualHasTheDefaultsOfTheLimits(t *testing.T) {
	settings := policy.DefaultSettings()
	want := map[string]string{
		"quotes.window": time.Duration(*settings.Quotes.Window).String(), "quotes.size": fmt.Sprint(settings.Quotes.Size),
	}
	limits := reflect.ValueOf(settings.Limits)
	for i := range limits.NumField() {
		text := fmt.Sprint(limits.Field(i).Interface())
		if strings.HasSuffix(text, "m0s") {
			text = strings.TrimSuffix(text, "0s")
		}
		want["limits."+limits.Type().Field(i).Tag.Get("yaml")] = text
	}
	for _, row := range rows(section(t, "### Settings", "## Occlum's two files")) {
		group := ""
		names := code.FindAllStringSubmatch(row[0], -1)
		defaults := strings.Split(row[1], ", ")
		for i, m := range names {
			name := m[1]
			if before, _, ok := strings.Cut(name, "."); ok {
				group = before
			} else {
				name = group + "." + name
			}
			if text, ok := want[name]; ok && i < len(defaults) {
				if defaults[i] != text {
					t.Errorf("%s is %s, the manual says %s", name, text, defaults[i])
				}
				delete(want, name)
			}
		}
	}
	if len(want) != 0 {
		t.Errorf("the manual has no defaults of %v", want)
	}
}
