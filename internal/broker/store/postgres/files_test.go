package postgres_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/store/postgres"
	"github.com/sesame-init/sesame/internal/privatefile"
)

func TestFilesOfTheClientMustBePrivate(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("secret"), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	open, private := file("open key", 0o644), file("private", 0o600)
	for name, c := range map[string]struct {
		connection string
		env        map[string]string
		refused    string
	}{
		"nothing is named":            {"postgres://user@host/db", nil, ""},
		"in a URL":                    {"postgres://user@host/db?sslcert=x&sslkey=" + strings.ReplaceAll(open, " ", "%20"), nil, open},
		"passwords, in a URL":         {"postgresql://user@host/db?passfile=" + strings.ReplaceAll(open, " ", "%20"), nil, open},
		"private, in a URL":           {"postgres://user@host/db?sslkey=" + private + "&passfile=" + private, nil, ""},
		"in a keyword string":         {"host=h sslkey = '" + open + "' user=x", nil, open},
		"private, in a string":        {`host=h options='a\'b' sslkey=` + private, map[string]string{"PGSSLKEY": open}, ""},
		"the last of two":             {"sslkey=" + private + " sslkey='" + open + "'", nil, open},
		"another's value":             {"host=h password='sslkey=" + private + "'", map[string]string{"PGSSLKEY": open}, open},
		"in the environment":          {"host=h", map[string]string{"PGPASSFILE": open}, open},
		"in the user's home":          {"host=h", map[string]string{"HOME": filepath.Dir(filepath.Dir(file("home/.postgresql/postgresql.key", 0o644)))}, filepath.Join(dir, "home/.postgresql/postgresql.key")},
		"passwords in the home":       {"host=h", map[string]string{"HOME": filepath.Dir(file("other/.pgpass", 0o644))}, filepath.Join(dir, "other/.pgpass")},
		"what is not there is no one": {"host=h sslkey=" + filepath.Join(dir, "none"), nil, ""},
	} {
		err := postgres.CheckFiles(c.connection, func(name string) string { return c.env[name] }, privatefile.Rule{})
		if (err == nil) != (c.refused == "") || err != nil && (!strings.Contains(err.Error(), c.refused) || !strings.Contains(attest.HintOf(err), "chmod 600 ")) {
			t.Errorf("%s: error %v, hint %q", name, err, attest.HintOf(err))
		}
	}
}
