package wire_test

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls/wire"
)

func TestBytesOnTheWireAreOcclums(t *testing.T) {
	request, err := proto.Marshal(&wire.SecretRequest{Name: "key"})
	if err != nil || !bytes.Equal(request, []byte("\x0a\x03key")) {
		t.Errorf("request is % x (%v)", request, err)
	}
	secret := attest.NewSecret([]byte("test sample key\n"))
	reply, err := proto.Marshal(&wire.SecretReply{Secret: wire.EncodeSecret(secret)})
	if want := "\x0a\x1a\"dGVzdCBzYW1wbGUga2V5Cg==\""; err != nil || string(reply) != want {
		t.Errorf("reply is %q (%v), want %q", reply, err, want)
	}
	if wire.GrSecret_GetSecret_FullMethodName != "/ratls.GrSecret/GetSecret" {
		t.Errorf("method is %s", wire.GrSecret_GetSecret_FullMethodName)
	}
}

func TestDecodeIsExactAndStrict(t *testing.T) {
	for _, c := range []struct {
		text, want string
		ok         bool
	}{
		{`"YWJj"`, "abc", true},
		{`"YWI="`, "ab", true},
		{`"YQ=="`, "a", true},
		{`""`, "", true},
		{`"YWJjZA=="`, "abcd", true},
		{`"YWJjZGU="`, "", false}, // five bytes where four are allowed
		{`YWJj`, "", false},       // no quotes
		{`"`, "", false},
		{``, "", false},
		{`"YWI"`, "", false}, // no padding
		{`"YQ=="YQ=="`, "", false},
		{`"YR=="`, "", false},     // stray bits
		{`"ab_-"`, "", false},     // another alphabet
		{"\"YW\nJj\"", "", false}, // a line break
		{`"YW\nJj"`, "", false},
		{` "YWJj"`, "", false},
	} {
		s, err := wire.DecodeSecret([]byte(c.text), 4)
		if (err == nil) != c.ok || string(s.Expose()) != c.want {
			t.Errorf("%s: %q, %v", c.text, s.Expose(), err)
		}
	}
}

func FuzzDecodeSecret(f *testing.F) {
	f.Add([]byte(`"dGVzdCBzYW1wbGUga2V5Cg=="`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := wire.DecodeSecret(text, 64)
		if err == nil && (s.Len() > 64 || !bytes.Equal(wire.EncodeSecret(s), text)) {
			t.Errorf("%q decodes to %d bytes, which encode otherwise", text, s.Len())
		}
	})
}
