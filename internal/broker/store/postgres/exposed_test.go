package postgres_test

import (
	"strings"
	"testing"

	"github.com/sesame-init/sesame/internal/broker/store/postgres"
)

func TestExposedIsWhatOthersCanReadOrTakeOver(t *testing.T) {
	t.Setenv("PGSSLMODE", "")
	t.Setenv("PGSSLROOTCERT", "")
	for url, want := range map[string]string{
		"postgres://u@db.example/x":                                "without TLS", // prefer is the default
		"postgres://u@db.example/x?sslmode=disable":                "without TLS",
		"postgres://u@db.example/x?sslmode=allow":                  "without TLS",
		"postgres://u@10.1.2.3/x?sslmode=prefer":                   "without TLS",
		"postgres://u@[2001:db8::1]/x?sslmode=disable":             "without TLS",
		"postgres://u@127.0.0.1,db.example/x?sslmode=disable":      "without TLS",
		"postgres://u@db.example/x?sslmode=require":                "verifies no server",
		"postgres://u@db.example/x?sslmode=verify-full":            "",
		"host=db.example user=u sslmode=disable":                   "without TLS",
		"postgres://u@127.0.0.1/x?sslmode=disable":                 "",
		"postgres://u@127.9.0.1,[::1],localhost/x?sslmode=disable": "",
		"postgres:///x?host=/run/postgresql&user=u":                "",
		"host=/run/postgresql user=u sslmode=disable":              "",
		"postgres://u@localhost.example/x?sslmode=disable":         "without TLS",
	} {
		if got := postgres.Exposed(url); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
}
