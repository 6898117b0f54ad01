// Package layers holds the test that keeps the arrows between the packages pointing one way.
package layers

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/sesame-init/sesame/"

// forbidden lists, for the packages below a pattern, what they must not reach by any chain of imports.
var forbidden = []struct {
	from string
	to   []string
	why  string
}{
	{"./init", []string{"occlumsim", "attest/softsgx", "attest/tpm", "broker", "testing"}, "init must not be able to make evidence up"},
	// go-tpm-tools/client, the two programs' way to a TPM, imports testing itself.
	{"./cmd/keybroker", []string{"occlumsim", "attest/softsgx", "attest/tpm/swtpm", "init", "net/http/httptest"}, "a broker must not be able to make evidence up"},
	{"./cmd/sesame", []string{"occlumsim", "attest/softsgx", "attest/tpm/swtpm", "net/http/httptest"}, "operators' tools judge real evidence"},
	{"./broker", []string{"occlumsim", "attest/softsgx", "init", "client"}, "broker and init never import each other"},
	{"./fs/...", []string{"attest/sgx", "attest/dcap", "attest/ratls", "attest/backend", "broker", "init"}, "fs knows no evidence"},
	{"./client/...", []string{"broker", "init", "occlumsim", "attest/softsgx"}, "the client is its own program"},
	{"./attest", []string{"fs", "broker", "init", "client", "occlumsim", "attest/"}, "attest knows nobody"},
	{"./attest/dcap", []string{"attest/policy", "attest/ratls", "attest/backend", "attest/softsgx", "net/http"}, "is it genuine, without network and policy"},
	{"./attest/policy", []string{"attest/dcap", "attest/ratls", "attest/backend", "net/http"}, "do I like it, apart from is it genuine"},
}

func TestArrowsPointOneWay(t *testing.T) {
	for _, rule := range forbidden {
		out, err := exec.Command("go", "list", "-C", "../..", "-deps", rule.from).Output()
		if err != nil {
			t.Errorf("%s: %v", rule.from, err)
			continue
		}
		deps := strings.Fields(string(out))
		if len(deps) < 2 {
			t.Errorf("%s: go list names only %v", rule.from, deps)
		}
		for _, dep := range deps {
			local, ours := strings.CutPrefix(dep, module)
			for _, to := range rule.to {
				within := strings.TrimSuffix(to, "/") + "/"
				if dep == to || ours && (local == to || strings.HasPrefix(local, within)) {
					t.Errorf("%s reaches %s: %s", rule.from, dep, rule.why)
				}
			}
		}
	}
}
