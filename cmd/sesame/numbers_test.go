package main

import (
	"encoding/json"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	brokerpolicy "github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/internal/config"
)

// numbers are the keys below a type that hold a number or a span of time, with the text of zero.
func numbers(tag string, t reflect.Type, key string, found map[string]any) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch k := t.Kind(); {
	case k == reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			name, options, _ := strings.Cut(f.Tag.Get(tag), ",")
			switch {
			case !f.IsExported() || name == "-":
			case name == "" && options == "inline":
				numbers(tag, f.Type, key, found)
			case name != "":
				numbers(tag, f.Type, strings.TrimPrefix(key+"."+name, "."), found)
			}
		}
	case k == reflect.Map:
		numbers(tag, t.Elem(), key+".NAME", found)
	case k == reflect.Slice && t.Elem().Kind() != reflect.Uint8:
		numbers(tag, t.Elem(), key+"[]", found)
	case k >= reflect.Int && k <= reflect.Float64:
		var zero any = 0
		if strings.HasSuffix(t.Name(), "Duration") {
			zero = "0s"
		} else if t.Name() == "Mode" || t.Name() == "GuestPolicy" {
			zero = "0"
		}
		found[key] = zero
	}
}

// set puts a value into a document, at a key as [numbers] names it.
func set(at any, key string, value any) any {
	if key == "" {
		return value
	}
	if rest, ok := strings.CutPrefix(key, "[]"); ok {
		list, _ := at.([]any)
		if len(list) == 0 {
			return []any{set(nil, strings.TrimPrefix(rest, "."), value)}
		}
		list[0] = set(list[0], strings.TrimPrefix(rest, "."), value)
		return list
	}
	end := strings.IndexAny(key, ".[")
	if end < 0 {
		end = len(key)
	}
	name, rest := key[:end], strings.TrimPrefix(key[end:], ".")
	m, _ := at.(map[string]any)
	if m == nil {
		m = map[string]any{}
	}
	m[name] = set(m[name], rest, value)
	return m
}

func hexOf(size int) string { return strings.Repeat("ab", size) }

const (
	anySNP = `{"measurement":"M48","guest_policy":"0x30000","min_tcb":{"bootloader":1,"tee":1,"snp":1,"microcode":1}}`
	anySGX = `{"mr_signer":"M32","product_id":1,"min_svn":1}`
	grace  = `{"accept":["OutOfDate"]}`
)

var bases = map[string]string{
	"policy": `{"version":1,"trust":{"collateral":{"directory":"/c"}},"tcb":` + grace + `,"workloads":{"NAME":{"versions":[
		{"sgx":[` + anySGX + `],"snp":[` + anySNP + `],"tcb":` + grace + `}]}},"secrets":{"NAME":{"workloads":["NAME"]}},
		"broker":{"store":{"sqlite":"/s"},"witnesses":{"at":["/w"]}}}`,
	"config": `{"backend":"grpc-ratls","grpc_ratls":{"servers":["b:1"],"protocol":"session","broker_policy":{"sgx":[` + anySGX + `],
		"snp":[` + anySNP + `],"tcb":` + grace + `}},"collateral":{"pccs_url":"https://p/"}}`,
}

// document is a whole one of a kind that has a key.
func document(t *testing.T, kind, key string) any {
	t.Helper()
	text := strings.NewReplacer("M32", hexOf(32), "M48", hexOf(48)).Replace(bases[kind])
	var d any
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		t.Fatal(err)
	}
	if kind == "config" {
		if strings.HasPrefix(key, "linux.") || strings.HasPrefix(key, "tpm.") {
			d = set(set(d, "platform", "linux"), "attester", "tpm")
		}
		if strings.HasPrefix(key, "secrets[]") {
			d = set(set(d, "secrets[].name", "s"), "secrets[].path", "/run/secrets/s")
		}
		if strings.HasPrefix(key, "app_tls.") {
			d = set(set(set(d, "app_tls.format", "tf-serving"), "app_tls.path", "/run/secrets/tls"), "app_tls.attested", true)
		}
		if strings.HasPrefix(key, "maa.") {
			d = set(d, "backend", "maa")
		}
		if strings.HasPrefix(key, "aecs.") {
			d = set(d, "backend", "aecs")
		}
	}
	return d
}

// ofPeers is the prefix of the keys of an appraisal policy.
var ofPeers = regexp.MustCompile(`^(workloads\.NAME\.versions\[\]\.|grpc_ratls\.broker_policy\.|aecs\.server_policy\.)`)

// meanings are those of zero, by key, in the tables of a text.
func meanings(text string) map[string]string {
	rows := map[string]string{}
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if key := strings.TrimSpace(cells[0]); len(cells) == 3 && strings.HasPrefix(key, "`") {
			rows[strings.Trim(key, "`")] = strings.TrimSpace(cells[2])
		}
	}
	return rows
}

// TestTheManualSaysWhatEachNumberMeans if it is absent and if it is zero, and the programs refuse a zero where it says so.
func TestTheManualSaysWhatEachNumberMeans(t *testing.T) {
	text, err := os.ReadFile("../../docs/numbers.md")
	if err != nil {
		t.Fatal(err)
	}
	part := func(from, to string) map[string]string {
		_, text, found := strings.Cut(string(text), from)
		text, _, ends := strings.Cut(text, to)
		if !found || !ends {
			t.Fatalf("no section from %q to %q", from, to)
		}
		return meanings(text)
	}
	peers := part("## What a peer must be", "In `dynamic_config.json`")
	for _, c := range []struct {
		kind, tag string
		own       map[string]string
		of        reflect.Type
		parse     func([]byte) error
	}{
		{"policy", "yaml", part("## The broker's policy", "## init"), reflect.TypeFor[brokerpolicy.Policy](), func(b []byte) error { _, err := brokerpolicy.Parse(b); return err }},
		{"config", "json", part("## init's config", "## What"), reflect.TypeFor[config.Config](), func(b []byte) error { _, err := config.Parse(b); return err }},
	} {
		t.Run(c.kind, func(t *testing.T) {
			found, said := map[string]any{}, map[string]bool{}
			numbers(c.tag, c.of, "", found)
			if c.kind == "config" {
				for _, k := range config.Backends() {
					numbers(c.tag, reflect.TypeOf(k.New()), k.Key(), found)
				}
			}
			for key, zero := range found {
				rows, row := c.own, key
				if ofPeers.MatchString(key) || strings.HasPrefix(key, "tcb.") {
					rows, row = peers, ofPeers.ReplaceAllString(key, "")
				}
				meaning, ok := rows[row]
				if !ok {
					t.Errorf("the manual has no row for %s", key)
					continue
				}
				said[row] = true
				doc := document(t, c.kind, key)
				text, err := json.Marshal(doc)
				if err != nil {
					t.Fatal(err)
				}
				without := ""
				if err := c.parse(text); err != nil {
					without = err.Error()
				}
				if text, err = json.Marshal(set(doc, key, zero)); err != nil {
					t.Fatal(err)
				}
				refused := c.parse(text)
				last := key[strings.LastIndexAny(key, ".")+1:]
				if strings.HasPrefix(meaning, "refused") {
					if refused == nil || refused.Error() == without {
						t.Errorf("%s: zero is not refused, the manual says %q", key, meaning)
					}
				} else if refused != nil && without == "" || refused != nil && strings.Contains(refused.Error(), strings.TrimSuffix(last, "[]")+": ") {
					t.Errorf("%s: zero is refused, the manual says %q: %v", key, meaning, refused)
				}
			}
			for _, rows := range []map[string]string{c.own, peers} {
				for row := range rows {
					if !said[row] {
						t.Errorf("the manual has a row for %s, which holds no number", row)
					}
				}
			}
		})
	}
}
