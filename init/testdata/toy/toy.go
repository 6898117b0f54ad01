// Package toy is a backend for a test, as small as one can be: the service sends a challenge, gets evidence that binds it with
// the names of secrets, and answers with the secrets, in the open. The test adds it to init by a line in the list of backends.
package toy

import (
	"context"
	"encoding/json"
	"net"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
	"github.com/sesame-init/sesame/internal/kind"
)

// Kind is the backend "toy-keys".
func Kind() kind.Kind {
	return kind.Kind{Name: "toy-keys", New: func() kind.Block { return &block{} }}
}

// Request is what the service gets, a JSON value after its challenge of 64 bytes in base64.
type Request struct {
	Evidence attest.Evidence
	Names    []string
}

type block struct {
	Server string `json:"server"` // host:port
}

func (b *block) Check(_ kind.Use, bad kind.Report) {
	if host, port, err := net.SplitHostPort(b.Server); err != nil || host == "" || port == "" {
		bad("toy_keys.server", "has no host or no port", `"host:port"`)
	}
}

func (*block) Host() map[string]string {
	return map[string]string{"TOY_SERVER": "address of the toy"}
}

func (b *block) Apply(getenv func(string) string) {
	if v := getenv("TOY_SERVER"); v != "" {
		b.Server = v
	}
}

func (*block) Remarks() []string        { return []string{"toy-keys protects nothing on its way"} }
func (*block) Files() map[string]string { return nil }

func (b *block) Open(env kind.Env) (backend.Backend, error) {
	if err := kind.Check("toy-keys", b, env.Use); err != nil {
		return nil, err
	}
	return &client{b.Server, env.Attester}, nil
}

type client struct {
	server   string
	attester attest.Attester
}

func (*client) Name() string { return "toy-keys" }

func (c *client) Fetch(ctx context.Context, names []string) (map[string]attest.Secret, error) {
	refuse := func(code attest.Code, err error) (map[string]attest.Secret, error) {
		return nil, attest.Errorf(code, "asking the toy", "", "%w", err)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", c.server)
	if err != nil {
		return refuse(attest.CodeUnreachable, err)
	}
	defer conn.Close()
	in := json.NewDecoder(conn)
	var challenge []byte
	if err := in.Decode(&challenge); err != nil || len(challenge) != attest.ReportDataSize {
		return refuse(attest.CodeUnreachable, err)
	}
	evidence, err := c.attester.Evidence(ctx, attest.ReportData(challenge))
	if err != nil {
		return nil, err
	}
	if err := json.NewEncoder(conn).Encode(Request{evidence, names}); err != nil {
		return refuse(attest.CodeUnreachable, err)
	}
	var answer map[string][]byte
	if err := in.Decode(&answer); err != nil {
		return refuse(attest.CodeDenied, err)
	}
	secrets := map[string]attest.Secret{}
	for _, name := range names {
		secrets[name] = attest.NewSecret(answer[name])
	}
	return secrets, nil
}
