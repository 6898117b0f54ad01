package postgres

import (
	"cmp"
	"errors"
	"io/fs"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/sesame-init/sesame/internal/privatefile"
)

// CheckFiles judges, by a rule for private files, those with a secret of the database's client that a URL or keyword string,
// the environment or the user's home names: the key of its certificate (sslkey) and its passwords (passfile). The driver
// reads both, and looks at no rights. The last of these places counts only for what the others do not name.
func CheckFiles(connection string, getenv func(string) string, rule privatefile.Rule) error {
	home := getenv("HOME")
	for _, path := range []string{
		cmp.Or(parameter(connection, "sslkey"), getenv("PGSSLKEY"), filepath.Join(home, ".postgresql", "postgresql.key")),
		cmp.Or(parameter(connection, "passfile"), getenv("PGPASSFILE"), filepath.Join(home, ".pgpass")),
	} {
		if err := rule.Check(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// assignment is one of a keyword string; a value in quotes may have blanks.
var assignment = regexp.MustCompile(`(\w+)\s*=\s*('(?:\\.|[^'\\])*'|(?:\\.|[^\s\\])*)`)

// parameter is the value that a URL or keyword string gives a parameter, "" if it gives none.
func parameter(connection, name string) (value string) {
	if strings.HasPrefix(connection, "postgres://") || strings.HasPrefix(connection, "postgresql://") {
		u, err := url.Parse(connection)
		if err != nil {
			return "" // Open refuses it
		}
		return u.Query().Get(name)
	}
	for _, m := range assignment.FindAllStringSubmatch(connection, -1) {
		if m[1] == name {
			value = unescaped.Replace(strings.TrimSuffix(strings.TrimPrefix(m[2], "'"), "'"))
		}
	}
	return value
}

var unescaped = strings.NewReplacer(`\\`, `\`, `\'`, `'`)
