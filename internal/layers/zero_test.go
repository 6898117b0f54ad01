package layers

import (
	"crypto/tls"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/aecs"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/backend/maa"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/trust"
	"github.com/sesame-init/sesame/client"
	sesamefs "github.com/sesame-init/sesame/fs"
	"github.com/sesame-init/sesame/fs/sefs"
)

// zeros says of every exported config why its zero value is safe: it is refused, or decides nothing that is.
var zeros = map[string]struct {
	refused func(t *testing.T) error
	because string // if it is not refused
}{
	"attest/policy.Policy": {refused: func(*testing.T) error { return (&policy.Policy{}).Validate() }},
	"attest/backend/grpcratls.Config": {refused: func(*testing.T) error {
		_, err := grpcratls.New(grpcratls.Config{})
		return err
	}},
	"attest/backend/aecs.Config": {refused: func(*testing.T) error {
		_, err := aecs.New(aecs.Config{})
		return err
	}},
	"attest/backend/maa.Config": {refused: func(*testing.T) error {
		_, err := maa.New(maa.Config{})
		return err
	}},
	"attest/backend/maa.TokenConfig": {refused: func(*testing.T) error {
		_, err := maa.NewTokenOnly(maa.TokenConfig{})
		return err
	}},
	"attest/dcap.Config": {refused: func(t *testing.T) error {
		_, err := dcap.NewVerifier(dcap.Config{}).Verify(t.Context(), attest.Evidence{Type: attest.SGX}, time.Now())
		return err
	}},
	"attest/dcap/pccs.Config": {refused: func(*testing.T) error {
		_, err := pccs.New(pccs.Config{})
		return err
	}},
	"attest/trust.Config": {refused: func(t *testing.T) error {
		made, err := trust.New(trust.Config{})
		if err == nil {
			_, err = made.Verifier().Verify(t.Context(), attest.Evidence{Type: attest.SGX}, time.Now())
		}
		return err
	}},
	"attest/session.ClientConfig": {refused: func(t *testing.T) error {
		_, err := session.ClientConfig{}.Fetch(t.Context(), nil, tls.ConnectionState{}, nil, nil)
		if err == nil {
			return nil
		}
		err = session.ClientConfig{}.VerifyProof(t.Context(), tls.ConnectionState{}, nil, [session.NonceSize]byte{}, nil)
		if attest.CodeOf(err) != attest.CodeConfig {
			t.Errorf("a session's client: %v", err)
		}
		return err
	}},
	"client.Pin": {refused: func(*testing.T) error {
		_, err := client.Pinned(client.Pin{})
		return err
	}},
	"fs.Volume": {refused: func(*testing.T) error { return sesamefs.Volume{}.Check() }},
	"fs/sefs.OpenOptions": {refused: func(t *testing.T) error {
		dir := path.Join(t.TempDir(), "volume")
		if _, err := sefs.Create(t.Context(), dir, os.DirFS(t.TempDir()), sefs.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		_, err := sefs.Open(dir, sefs.OpenOptions{})
		return err
	}},

	"attest/ratls.Options":               {because: "a certificate of the usual lifetime, for no names"},
	"internal/raconfig.Config":           {because: "its policy has no entry, so no peer is wanted"},
	"attest/session.BrokerConfig":        {because: "a broker that proves nothing; clients must have pinned its key"},
	"attest/session.QuoterOptions":       {because: "without an attester there is no quote"},
	"attest/tpm.Options":                 {because: "all registers are quoted, with the kept key"},
	"client.Options":                     {because: "one connection, no second try"},
	"fs/fuse.Options":                    {because: "no other user is let in"},
	"init/internal/linux.Options":        {because: "without a program to start no volume is served"},
	"fs/sefs.CreateOptions":              {because: "integrity only, as it says: what is made is not read as an encrypted volume"},
	"fs/sefs/internal/pfs.WriterOptions": {because: "node keys are random"},
}

func TestTheZeroValueOfEveryConfigIsTheSafeOne(t *testing.T) {
	found := map[string]bool{}
	for _, room := range []string{"attest", "fs", "client", "internal/raconfig", "init/internal/linux"} {
		err := fs.WalkDir(os.DirFS("../.."), room, func(name string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") ||
				strings.HasSuffix(name, ".pb.go") || strings.Contains(name, "/testdata/") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path.Join("../..", name), nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if spec, ok := n.(*ast.TypeSpec); ok {
					what := spec.Name.Name
					_, isStruct := spec.Type.(*ast.StructType)
					if isStruct && ast.IsExported(what) && (strings.HasSuffix(what, "Config") || strings.HasSuffix(what, "Options")) {
						found[path.Dir(name)+"."+what] = true
					}
				}
				_, function := n.(*ast.FuncDecl)
				return !function
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for what := range found {
		if _, ok := zeros[what]; !ok {
			t.Errorf("%s: say here why its zero value is safe", what)
		}
	}
	for what, zero := range zeros {
		if !found[what] && (strings.HasSuffix(what, "Config") || strings.HasSuffix(what, "Options")) {
			t.Errorf("%s is no more", what)
		}
		if zero.refused == nil {
			continue
		}
		if err := zero.refused(t); err == nil {
			t.Errorf("%s: the zero value is not refused", what)
		}
	}
}
