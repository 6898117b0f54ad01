package maatest

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/internal/testenv"
)

const issuer = "https://sharedweu.weu.attest.azure.net"

func policyOf(rules string) string {
	return `{"version":"1.0.0","anyOf":[{"authority":"` + issuer + `","allOf":[` + rules + `]}]}`
}

func TestReleasePoliciesDecideAsTheirGrammarSays(t *testing.T) {
	var claims map[string]any
	if err := json.Unmarshal([]byte(`{"s":"text","n":3,"t":true,"f":false,"o":{"i":{"n":7}},"list":[1]}`), &claims); err != nil {
		t.Fatal(err)
	}
	for rules, want := range map[string]bool{
		`{"claim":"s","equals":"text"}`:                                       true,
		`{"claim":"s","equals":"Text"}`:                                       false,
		`{"claim":"s","notEquals":"other"}`:                                   true,
		`{"claim":"s","greater":1}`:                                           false,
		`{"claim":"n","equals":3}`:                                            true,
		`{"claim":"n","equals":"3"}`:                                          false,
		`{"claim":"n","greater":2},{"claim":"n","less":4}`:                    true,
		`{"claim":"n","greater":3}`:                                           false,
		`{"claim":"n","greaterOrEquals":3},{"claim":"n","lessOrEquals":3}`:    true,
		`{"claim":"t","equals":true}`:                                         true,
		`{"claim":"t","equals":"true"}`:                                       true,
		`{"claim":"f","equals":false}`:                                        true,
		`{"claim":"f","equals":"true"}`:                                       false,
		`{"claim":"o.i.n","equals":7}`:                                        true,
		`{"claim":"o.i.missing","notEquals":7}`:                               false,
		`{"claim":"missing","notEquals":1}`:                                   false,
		`{"claim":"s","exists":true}`:                                         true,
		`{"claim":"missing","exists":true}`:                                   false,
		`{"anyOf":[{"claim":"n","equals":9},{"claim":"n","equals":3}]}`:       true,
		`{"anyOf":[{"claim":"n","equals":9},{"claim":"n","equals":8}]}`:       false,
		`{"allOf":[{"claim":"n","equals":3},{"claim":"s","equals":"other"}]}`: false,
	} {
		p, err := ParseReleasePolicy([]byte(policyOf(rules)))
		if err != nil {
			t.Errorf("%s: %v", rules, err)
			continue
		}
		if got, missed := p.Permits(issuer, claims); got != want || got == (missed != "") {
			t.Errorf("%s permits %t (%s), want %t", rules, got, missed, want)
		}
		if got, _ := p.Permits("https://other.attest.azure.net", claims); got {
			t.Errorf("%s: another authority is permitted", rules)
		}
	}
}

func TestMalformedReleasePoliciesAreRefused(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON":              `{`,
		"another version":      strings.Replace(policyOf(`{"claim":"a","equals":1}`), "1.0.0", "2", 1),
		"unknown member":       `{"version":"1.0.0","oneOf":[]}`,
		"no authority":         `{"version":"1.0.0","anyOf":[]}`,
		"authority in plain":   strings.Replace(policyOf(`{"claim":"a","equals":1}`), "https", "http", 1),
		"no rules":             policyOf(``),
		"two operators":        policyOf(`{"claim":"a","equals":1,"less":2}`),
		"no operator":          policyOf(`{"claim":"a"}`),
		"unknown operator":     policyOf(`{"claim":"a","matches":".*"}`),
		"operator, no claim":   policyOf(`{"equals":1}`),
		"claim and group":      policyOf(`{"claim":"a","equals":1,"allOf":[{"claim":"a","equals":1}]}`),
		"both groups":          policyOf(`{"anyOf":[{"claim":"a","equals":1}],"allOf":[{"claim":"a","equals":1}]}`),
		"authority in a group": policyOf(`{"authority":"` + issuer + `","allOf":[{"claim":"a","equals":1}]}`),
	} {
		if _, err := ParseReleasePolicy([]byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// The vault took these policies when the recordings were made.
func TestRecordedPoliciesAreRead(t *testing.T) {
	for _, name := range []string{"v0.7.0.KV", "v0.10.0.KV", "v0.7.0.MHSM", "v0.10.0.MHSM"} {
		text, err := os.ReadFile(testenv.Vectors(t, "maa", "akv-release", name+".jws"))
		if err != nil {
			t.Fatal(err)
		}
		release, err := decodeJWS(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		var payload struct {
			Response struct {
				Key struct {
					Policy struct {
						Data string `json:"data"`
					} `json:"release_policy"`
				} `json:"key"`
			} `json:"response"`
		}
		if err := json.Unmarshal(release.payload, &payload); err != nil {
			t.Fatal(err)
		}
		data, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(payload.Response.Key.Policy.Data, "="))
		if err != nil {
			t.Fatal(err)
		}
		p, err := ParseReleasePolicy(data)
		if err != nil {
			t.Errorf("%s: %v in %s", name, err, data)
			continue
		}
		claims := map[string]any{"sdk-test": true}
		if ok, missed := p.Permits(p.anyOf[0].authority, claims); !ok {
			t.Errorf("%s: the claims of the recording miss %s in %s", name, missed, data)
		}
	}
}

func FuzzReleasePolicy(f *testing.F) {
	f.Add([]byte(policyOf(`{"claim":"a","equals":1}`)))
	f.Fuzz(func(t *testing.T, text []byte) {
		if p, err := ParseReleasePolicy(text); err == nil {
			p.Permits(issuer, map[string]any{"a": 1.0})
		}
	})
}
