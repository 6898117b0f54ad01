package wire_test

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/sesame-init/sesame/attest/backend/aecs/wire"
)

// recorded are messages that the upstream's code wrote, in protobuf and in its JSON.
var recorded = map[string]func() proto.Message{
	"gena_emptynonce.req":           func() proto.Message { return new(wire.GetEnclaveSecretRequest) },
	"gena_emptynonce.res":           func() proto.Message { return new(wire.GetEnclaveSecretResponse) },
	"gena_secret-my-aes256-key.req": func() proto.Message { return new(wire.GetEnclaveSecretRequest) },
	"gena_secret-my-aes256-key.res": func() proto.Message { return new(wire.GetEnclaveSecretResponse) },
	"gena_secret-my-keypair.req":    func() proto.Message { return new(wire.GetEnclaveSecretRequest) },
	"gena_secret-my-keypair.res":    func() proto.Message { return new(wire.GetEnclaveSecretResponse) },
	"gena_secret-my-password.req":   func() proto.Message { return new(wire.GetEnclaveSecretRequest) },
	"gena_secret-my-password.res":   func() proto.Message { return new(wire.GetEnclaveSecretResponse) },
	"genb_secret-my-aes256-key.req": func() proto.Message { return new(wire.TaRemoteCallRequest) },
	"genb_secret-my-aes256-key.res": func() proto.Message { return new(wire.TaRemoteCallResponse) },
	"genb_secret-my-keypair.req":    func() proto.Message { return new(wire.TaRemoteCallRequest) },
	"genb_secret-my-keypair.res":    func() proto.Message { return new(wire.TaRemoteCallResponse) },
	"genb_secret-my-password.req":   func() proto.Message { return new(wire.TaRemoteCallRequest) },
	"genb_secret-my-password.res":   func() proto.Message { return new(wire.TaRemoteCallResponse) },
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestMessagesAndTheirJSONAreTheUpstreams(t *testing.T) {
	for name, message := range recorded {
		pb, text := read(t, name+".pb"), strings.TrimSpace(read(t, name+".json"))
		fromPB, fromJSON := message(), message()
		if err := proto.Unmarshal([]byte(pb), fromPB); err != nil {
			t.Fatal(err)
		}
		if len(fromPB.ProtoReflect().GetUnknown()) > 0 {
			t.Errorf("%s has a field that is not declared", name)
		}
		if err := wire.Parse(text, fromJSON); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !proto.Equal(fromPB, fromJSON) {
			t.Errorf("%s: protobuf and JSON do not say the same", name)
		}
		if back, err := wire.JSON(fromPB); err != nil || back != text {
			t.Errorf("%s is written as another text (%v)", name, err)
		}
		if back, err := proto.Marshal(fromPB); err != nil || string(back) != pb {
			t.Errorf("%s is written as other bytes (%v)", name, err)
		}
	}
	for _, name := range []string{"gena_getpub.res", "genb_getpub.res", "genb_status.res"} {
		message := proto.Message(new(wire.GetEnclaveSecretPublicResponse))
		if name == "genb_status.res" {
			message = new(wire.GetAecsStatusResponse)
		}
		text := strings.TrimSpace(read(t, name+".json"))
		if err := wire.Parse(text, message); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if back, err := wire.JSON(message); err != nil || back != text {
			t.Errorf("%s is written as another text (%v)", name, err)
		}
	}
}

// TestCharactersAreEscapedAsByLibprotobuf compares every character that libprotobuf 3.21.12 escapes, their neighbours
// and some between with what it wrote.
func TestCharactersAreEscapedAsByLibprotobuf(t *testing.T) {
	f, err := os.Open("testdata/escapes.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := map[rune]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var r rune
		var text string
		if _, err := fmt.Sscanf(lines.Text(), "%x %s", &r, &text); err != nil {
			t.Fatal(err)
		}
		want[r] = text
	}
	if len(want) != 209 {
		t.Fatalf("%d characters in the record", len(want))
	}
	for r := rune(1); r < 0xe0100; r++ {
		_, next := want[r+1]
		_, before := want[r-1]
		if _, is := want[r]; !is && !next && !before && r%89 != 0 || !utf8.ValidRune(r) {
			continue // far from any that is escaped
		}
		text, err := wire.JSON(&wire.EnclaveSecret{Data: string(r)})
		if err != nil {
			t.Fatal(err)
		}
		expect, ok := want[r]
		if !ok {
			expect = string(r)
		}
		if text != `{"data":"`+expect+`"}` {
			t.Fatalf("U+%04X is written as %s, want %s", r, text, expect)
		}
	}
}

func TestWhatTheUpstreamsParserTakesIsTaken(t *testing.T) {
	want := &wire.TaGetSecretRequest{ServiceName: "s", SecretName: "n"}
	for _, text := range []string{`{"serviceName":"s","secretName":"n"}`, `{"service_name":"s","secret_name":"n"}`,
		" {\n\"secretName\" :\t\"n\", \"serviceName\":\"\\u0073\", \"nonce\":null} "} {
		var got wire.TaGetSecretRequest
		if err := wire.Parse(text, &got); err != nil || !proto.Equal(&got, want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{`"-_8="`, `"+/8="`, `"-_8"`} {
		var got wire.SymmetricKeyEncrypted
		if err := wire.Parse(`{"iv":`+text+`}`, &got); err != nil ||
			base64.StdEncoding.EncodeToString(got.GetIv()) != "+/8=" {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{`{"version":"4"}`, `{"version":4}`} {
		var got wire.SgxQlQveCollateral
		if err := wire.Parse(text, &got); err != nil || got.GetVersion() != 4 {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestOtherJSONIsRefusedWithoutQuotingIt(t *testing.T) {
	const canary = "canary-4711"
	for name, text := range map[string]string{
		"unknown field":      `{"data":"` + canary + `","more":1}`,
		"unknown inner":      `{"data":"` + canary + `","spec":{"more":1}}`,
		"name twice":         `{"data":"` + canary + `","data":"` + canary + `"}`,
		"a number":           `{"data":4711}`,
		"trailing comma":     `{"data":"` + canary + `",}`,
		"something after it": `{"data":"` + canary + `"}` + canary,
		"bare name":          `{` + canary + `:"x"}`,
		"single quotes":      `{'data':'` + canary + `'}`,
		"a list":             `["` + canary + `"]`,
		"nothing":            ``,
		"unknown type":       `{"spec":{"type":"` + canary + `"}}`,
		"not UTF-8":          "{\"data\":\"\xff" + canary + `"}`,
	} {
		var got wire.EnclaveSecret
		err := wire.Parse(text, &got)
		if err == nil || strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), "4711") {
			t.Errorf("%s: %v", name, err)
		}
		if unknown := strings.HasPrefix(name, "unknown"); errors.Is(err, wire.ErrUnknownField) != unknown {
			t.Errorf("%s: %v", name, err)
		}
		if !proto.Equal(&got, new(wire.EnclaveSecret)) {
			t.Errorf("%s: something is left in the message", name)
		}
	}
}
