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
	{"./init", []string{"attest/attesters", "github.com/google", "internal/broker", "testing"}, "init is small, and no broker"},
	// go-tpm-tools/client, the two programs' way to a TPM, imports testing itself.
	{"./cmd/keybroker", []string{"init", "net/http/httptest"}, "broker and init never import each other"},
	{"./cmd/sesame", []string{"net/http/httptest"}, "tests stay out of the tools"},
	{"./internal/broker/...", []string{"init", "client"}, "broker and init never import each other"},
	{"./fs/...", []string{"attest/sgx", "attest/dcap", "attest/ratls", "attest/backend", "internal/broker", "init"}, "fs knows no evidence"},
	{"./client/...", []string{"internal/broker", "init"}, "the client is its own program"},
	{"./attest", []string{"fs", "internal/broker", "init", "client", "attest/"}, "attest knows none of its users"},
	{"./attest/dcap", []string{"attest/policy", "attest/ratls", "attest/backend", "net/http"}, "is it genuine, without network and policy"},
	{"./attest/policy", []string{"attest/dcap", "attest/ratls", "attest/backend", "net/http"}, "do I like it, apart from is it genuine"},
}

// TestProductReachesNothingInTheLab holds for every package outside lab/, and so for every program that is shipped: none can
// make evidence up.
func TestProductReachesNothingInTheLab(t *testing.T) {
	for _, tags := range []string{"", "plainlinux"} {
		out, err := exec.Command("go", "list", "-C", "../..", "-tags", tags, "-f", "{{.ImportPath}}: {{join .Deps \" \"}}", "./...").Output()
		if err != nil {
			t.Fatal(err)
		}
		product := 0
		for line := range strings.Lines(string(out)) {
			name, deps, _ := strings.Cut(strings.TrimSpace(line), ": ")
			if strings.HasPrefix(name, module+"lab/") {
				continue
			}
			product++
			for _, dep := range strings.Fields(deps) {
				if strings.HasPrefix(dep, module+"lab/") {
					t.Errorf("%s reaches %s", name, dep)
				}
			}
		}
		if product < 20 {
			t.Errorf("go list names only %d packages of the product", product)
		}
	}
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
				if dep == to || strings.HasPrefix(dep, within) || ours && (local == to || strings.HasPrefix(local, within)) {
					t.Errorf("%s reaches %s: %s", rule.from, dep, rule.why)
				}
			}
		}
	}
}
