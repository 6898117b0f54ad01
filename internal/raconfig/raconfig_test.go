package raconfig_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/edgelesssys/ego/attestation/tcbstatus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/raconfig"
)

var (
	enclave = strings.Repeat("aa", 32)
	signer  = strings.Repeat("bb", 32)
)

// valid is a file as Occlum's template has it, with everything on.
func valid() string {
	return fmt.Sprintf(`{"verify_mr_enclave":"on","verify_mr_signer":"on","verify_isv_prod_id":"on","verify_isv_svn":"on",
"verify_config_svn":"on","verify_enclave_debuggable":"on","sgx_mrs":[%s]}`, entry(enclave))
}

func entry(mrEnclave string) string {
	return fmt.Sprintf(`{"mr_enclave":"%s","mr_signer":"%s","isv_prod_id":3,"isv_svn":7,"config_svn":0,"debuggable":false}`,
		mrEnclave, signer)
}

func claims() attest.Claims {
	c := attest.Claims{Type: attest.SGX, SGX: &attest.SGXClaims{ProductID: 3, SVN: 7}}
	for i := range c.SGX.MREnclave {
		c.SGX.MREnclave[i], c.SGX.MRSigner[i] = 0xaa, 0xbb
	}
	c.TCB.Status = tcbstatus.UpToDate
	return c
}

func TestWhatOcclumReadsAsOffIsAnError(t *testing.T) {
	occlumSigner := "83d719e77deaca1470f6baf62a4d774303c899db69020f9c70ee1dfc08c7ce9e"
	off := func(s string, names ...string) string {
		for _, n := range names {
			s = strings.Replace(s, `"verify_`+n+`":"on"`, `"verify_`+n+`":"off"`, 1)
		}
		return s
	}
	for _, c := range []struct{ name, text, says string }{
		{"capital letter", strings.Replace(valid(), `"verify_mr_signer":"on"`, `"verify_mr_signer":"On"`, 1), "verify_mr_signer"},
		{"JSON true", strings.Replace(valid(), `"verify_isv_svn":"on"`, `"verify_isv_svn":true`, 1), "verify_isv_svn"},
		{"prefix", strings.Replace(valid(), `"verify_isv_svn":"on"`, `"verify_isv_svn":"o"`, 1), "verify_isv_svn"},
		{"missing switch", strings.Replace(valid(), `"verify_config_svn":"on",`, "", 1), "verify_config_svn is missing"},
		{"unknown key", strings.Replace(valid(), `"sgx_mrs"`, `"verify_tcb":"on","sgx_mrs"`, 1), "verify_tcb"},
		{"key of other case", strings.Replace(valid(), `"verify_isv_svn"`, `"Verify_isv_svn"`, 1), "Verify_isv_svn"},
		{"unknown key in an entry", strings.Replace(valid(), `"debuggable"`, `"min_svn":1,"debuggable"`, 1), "sgx_mrs[0].min_svn"},
		{"switch given twice", strings.Replace(valid(), `"sgx_mrs"`, `"verify_isv_svn":"off","sgx_mrs"`, 1), "twice"},
		{"number as text", strings.Replace(valid(), `"isv_svn":7`, `"isv_svn":"7"`, 1), "sgx_mrs[0].isv_svn"},
		{"number too large", strings.Replace(valid(), `"isv_svn":7`, `"isv_svn":65543`, 1), "sgx_mrs[0].isv_svn"},
		{"number null", strings.Replace(valid(), `"isv_svn":7`, `"isv_svn":null`, 1), "sgx_mrs[0].isv_svn"},
		{"short measurement", strings.Replace(valid(), enclave, enclave[:62], 1), "sgx_mrs[0].mr_enclave"},
		{"long measurement", strings.Replace(valid(), enclave, enclave+"aa", 1), "sgx_mrs[0].mr_enclave"},
		{"empty measurement", strings.Replace(valid(), enclave, "", 1), "sgx_mrs[0].mr_enclave"},
		{"debuggable as text", strings.Replace(valid(), `"debuggable":false`, `"debuggable":"false"`, 1), "debuggable"},
		{"no entries", strings.Replace(valid(), entry(enclave), "", 1), "sgx_mrs"},
		{"debug check off", off(valid(), "enclave_debuggable"), "verify_enclave_debuggable"},
		{"signer alone", off(valid(), "mr_enclave", "isv_prod_id", "isv_svn"), "verify_isv_prod_id"},
		{"signer and product", off(valid(), "mr_enclave", "isv_svn"), "verify_isv_svn"},
		{"everything off", off(valid(), "mr_enclave", "mr_signer", "isv_prod_id", "isv_svn"), "verify_mr_signer"},
		{"Occlum's default signer", strings.Replace(valid(), signer, occlumSigner, 1), "public"},
		{"something after it", valid() + "{}", "follows"},
		{"cut short", valid()[:len(valid())-1], "JSON"},
		{"a list", "[" + valid() + "]", "object"},
		{"too large", valid() + strings.Repeat(" ", raconfig.MaxSize), "at most"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := raconfig.Parse([]byte(c.text))
			if err == nil {
				t.Fatal("it was read")
			}
			if attest.CodeOf(err) != attest.CodeConfig || attest.HintOf(err) == "" && strings.Contains(c.says, "verify") {
				t.Errorf("code %s, hint %q", attest.CodeOf(err), attest.HintOf(err))
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q does not name %q", err, c.says)
			}
		})
	}
}

func TestEveryEnabledFieldMustMatch(t *testing.T) {
	cfg, err := raconfig.Parse([]byte(valid()))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_800_000_000, 0)
	if a := cfg.Appraise(claims(), now); !a.Accepted || a.Entry != "sgx_mrs[0]" || a.Err() != nil {
		t.Fatalf("the right claims are refused: %+v", a)
	}
	for name, change := range map[string]func(*attest.Claims){
		"mr_enclave":  func(c *attest.Claims) { c.SGX.MREnclave[31]++ },
		"mr_signer":   func(c *attest.Claims) { c.SGX.MRSigner[0]++ },
		"product_id":  func(c *attest.Claims) { c.SGX.ProductID++ },
		"isv_svn":     func(c *attest.Claims) { c.SGX.SVN++ }, // a newer one, too
		"min_svn":     func(c *attest.Claims) { c.SGX.SVN-- },
		"config_svn":  func(c *attest.Claims) { c.SGX.ConfigSVN++ },
		"debug":       func(c *attest.Claims) { c.SGX.Attributes |= attest.AttributeDebug },
		"tcb.accept":  func(c *attest.Claims) { c.TCB.Status = tcbstatus.OutOfDate },
		"config_id":   func(c *attest.Claims) { c.SGX.ConfigID[0]++ },
		"no sgx data": func(c *attest.Claims) { c.SGX = nil },
	} {
		c := claims()
		change(&c)
		a := cfg.Appraise(c, now)
		if a.Accepted || a.Err() == nil {
			t.Errorf("%s: accepted", name)
		} else if name != "no sgx data" && !strings.Contains(a.Err().Error(), name) {
			t.Errorf("%s: the refusal does not name it: %v", name, a.Err())
		}
	}
}

func TestTheSeventeenthEntryCounts(t *testing.T) {
	var entries []string
	for i := range 16 {
		entries = append(entries, entry(fmt.Sprintf("%064x", i)))
	}
	entries = append(entries, entry(enclave))
	cfg, err := raconfig.Parse([]byte(strings.Replace(valid(), entry(enclave), strings.Join(entries, ","), 1)))
	if err != nil {
		t.Fatal(err)
	}
	if a := cfg.Appraise(claims(), time.Unix(1_800_000_000, 0)); a.Entry != "sgx_mrs[16]" {
		t.Errorf("matched %q", a.Entry)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(valid()))
	f.Add([]byte(`{"verify_mr_enclave":"off","sgx_mrs":[{}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		cfg, err := raconfig.Parse(text)
		if err == nil && cfg.Policy.Validate() != nil {
			t.Error("accepted a config below the minimum")
		}
	})
}
