package occlum_test

import (
	"strings"
	"testing"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy/occlum"
)

const good = `{
 "verify_mr_enclave":"on","verify_mr_signer":"on","verify_isv_prod_id":"on","verify_isv_svn":"on",
 "verify_config_svn":"off","verify_enclave_debuggable":"on",
 "sgx_mrs":[{"mr_enclave":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
  "mr_signer":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
  "isv_prod_id":7,"isv_svn":2,"config_svn":9,"debuggable":false}]}`

func TestReadsWhatIsSwitchedOn(t *testing.T) {
	p, err := occlum.Parse([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	e := p.SGX[0]
	if len(p.SGX) != 1 || e.MREnclave[0] != 0xaa || e.MRSigner[31] != 0xbb || *e.ProductID != 7 || *e.MinSVN != 2 {
		t.Errorf("policy is %+v", p.SGX)
	}
	if e.MinConfigSVN != nil || e.Debug {
		t.Error("a check that is off was taken over, or debug was allowed")
	}
}

// Each of these is taken for "off" or for zero by the deployed programs.
func TestRefusesWhatWouldFailOpen(t *testing.T) {
	for name, c := range map[string]struct{ from, to, says string }{
		"capital On":        {`"verify_mr_enclave":"on"`, `"verify_mr_enclave":"On"`, "neither"},
		"boolean":           {`"verify_mr_signer":"on"`, `"verify_mr_signer":true`, "neither"},
		"missing switch":    {`"verify_isv_svn":"on",`, ``, "verify_isv_svn is missing"},
		"debug check off":   {`"verify_enclave_debuggable":"on"`, `"verify_enclave_debuggable":"off"`, "verify_enclave_debuggable"},
		"number as text":    {`"isv_prod_id":7`, `"isv_prod_id":"7"`, "isv_prod_id"},
		"number too large":  {`"isv_svn":2`, `"isv_svn":65537`, "isv_svn"},
		"short measurement": {`"mr_enclave":"aaaa`, `"mr_enclave":"`, "mr_enclave"},
		"unknown key":       {`"isv_svn":2`, `"isv_svm":2`, "isv_svm"},
		"empty list":        {`"sgx_mrs":[`, `"sgx_mrs":[],"x":[`, "x"},
		"trailing text":     {`"debuggable":false}]}`, `"debuggable":false}]} {}`, "after the closing"},
		"signer only": {`"verify_mr_enclave":"on","verify_mr_signer":"on","verify_isv_prod_id":"on"`,
			`"verify_mr_enclave":"off","verify_mr_signer":"on","verify_isv_prod_id":"off"`, "product_id"},
		"Occlum's public signer": {strings.Repeat("b", 64), "83d719e77deaca1470f6baf62a4d774303c899db69020f9c70ee1dfc08c7ce9e", "signer"},
	} {
		text := strings.Replace(good, c.from, c.to, 1)
		if text == good {
			t.Fatalf("%s: the case changes nothing", name)
		}
		_, err := occlum.Parse([]byte(text))
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		if attest.CodeOf(err) != attest.CodeConfig || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %q does not name %q", name, err, c.says)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{"sgx_mrs":[{}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if p, err := occlum.Parse(text); err == nil && p.Validate() != nil {
			t.Errorf("accepted a policy that does not validate: %s", text)
		}
	})
}
