package config_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/config"
)

const oursAECS = `{
 "backend": "aecs",
 "aecs": {
  "servers": ["aecs:19527"], "generation": "auto", "allow_downgrade": true, "service": "service1",
  "secrets": {"model_key": {"service": "models", "name": "resnet", "type": "IMPORT_DATA", "encode": "base64"}},
  "tls": {"ca": "/etc/aecs/ca.pem", "certificate": "/etc/aecs/client.pem", "key": "/etc/aecs/client.key"},
  "user_data": "7465", "server_key": "` + signer + `",
  "server_policy": {"sgx": [{"mr_signer": "` + signer + `", "product_id": 100, "min_svn": 3}]}
 },
 "root": {"key": "image_key", "upper": "temporary"},
 "volumes": [{"source": "./model", "target": "/models/resnet", "key": "model_key",
	"mac": "00-11-22-33-44-55-66-77-88-99-aa-bb-cc-dd-ee-ff"}],
 "collateral": {"pccs_url": "https://pccs:8081/sgx/certification/v3/"}
}`

// occlumAECS is Occlum's template (etc/template/init_aecs.json) with the policy filled in that it leaves empty, and the
// word that the shape has no place for.
const occlumAECS = `{
 "kms_server": "localhost:19527",
 "kms_keys": [
  {"key": "demo_key", "path": "/dev/shm/demo_key", "service": "service"},
  {"key": "demo_key", "path": "/dev/shm/other_key", "service": "service2", "encode": "base64"}
 ],
 "ua_env_pccs_url": "",
 "ra_config": {
  "ua_ias_url": "https://api.trustedservices.intel.com/sgx/dev/attestation/v4", "ua_ias_spid": "", "ua_ias_apk_key": "",
  "ua_dcap_lib_path": "", "ua_dcap_pccs_url": "https://localhost:8081/sgx/certification/v3/",
  "ua_uas_url": "", "ua_uas_app_key": "", "ua_uas_app_secret": "",
  "ua_policy_str_tee_platform": "SGX_DCAP", "ua_policy_hex_platform_hw_version": "", "ua_policy_hex_platform_sw_version": "",
  "ua_policy_hex_secure_flags": "", "ua_policy_hex_platform_measurement": "", "ua_policy_hex_boot_measurement": "",
  "ua_policy_str_tee_identity": "", "ua_policy_hex_ta_measurement": "", "ua_policy_hex_ta_dyn_measurement": "",
  "ua_policy_hex_signer": "` + signer + `", "ua_policy_hex_prod_id": "100", "ua_policy_str_min_isvsvn": "3",
  "ua_policy_hex_user_data": "", "ua_policy_bool_debug_disabled": "true", "ua_policy_hex_hash_or_pem_pubkey": "",
  "ua_policy_hex_nonce": "", "ua_policy_hex_spid": ""
 },
 "aecs": {"plaintext": true}
}`

func TestReadsBothShapesOfAECS(t *testing.T) {
	own, err := config.Parse([]byte(oursAECS))
	if err != nil {
		t.Fatal(err)
	}
	if got := blockOf(t, own).Secrets["model_key"]; !maps.Equal(got,
		map[string]string{"service": "models", "name": "resnet", "type": "IMPORT_DATA", "encode": "base64"}) {
		t.Errorf("the model key is at %v", got)
	}
	old, err := config.Parse([]byte(occlumAECS))
	if err != nil {
		t.Fatal(err)
	}
	if err := old.MatchImage(true); err != nil {
		t.Fatal(err)
	}
	block := blockOf(t, old)
	if old.Backend != "aecs" || block.Generation != "a" || block.Servers[0] != "localhost:19527" ||
		old.Collateral.PCCSURL != "https://localhost:8081/sgx/certification/v3/" {
		t.Errorf("read %+v, %+v", old, block)
	}
	names := old.SecretNames()
	if len(names) != 3 || names[0] != "image_key" || names[1] != "demo_key" {
		t.Fatalf("asks for %q", names)
	}
	if _, elsewhere := block.Secrets["image_key"]; block.Service != "service1" || elsewhere {
		t.Errorf("the image key is at %+v of %s", block.Secrets["image_key"], block.Service)
	}
	if !maps.Equal(block.Secrets[names[1]], map[string]string{"service": "service", "name": "demo_key"}) ||
		!maps.Equal(block.Secrets[names[2]], map[string]string{"service": "service2", "name": "demo_key", "encode": "base64"}) {
		t.Errorf("secrets are at %+v", block.Secrets)
	}
	if remarks := strings.Join(old.Remarks(), "\n"); !strings.Contains(remarks, "ua_ias_url is not used") ||
		!strings.Contains(remarks, "without TLS") ||
		!strings.Contains(remarks, "generation a") || strings.Contains(remarks, "legacy wire") {
		t.Errorf("remarks are %s", remarks)
	}
	server := attest.Claims{Type: attest.SGX, SGX: &attest.SGXClaims{MRSigner: [32]byte(bytes.Repeat([]byte{0xbb}, 32)),
		ProductID: 100, SVN: 4}}
	debug := server
	debug.SGX = &attest.SGXClaims{MRSigner: server.SGX.MRSigner, ProductID: 100, SVN: 4, Attributes: attest.AttributeDebug}
	for name, c := range map[string]*config.Config{"own": own, "Occlum's": old} {
		if a := blockOf(t, c).ServerPolicy.Appraise(server, time.Now()); !a.Accepted {
			t.Errorf("%s refuses the server it names: %v", name, a.Err())
		}
		if a := blockOf(t, c).ServerPolicy.Appraise(debug, time.Now()); a.Accepted {
			t.Errorf("%s accepts a debug server", name)
		}
	}
}

func TestOcclumsTemplateIsRefusedForWhatItLeavesOpen(t *testing.T) {
	text, err := os.ReadFile("../../lab/occlumsim/template/init_aecs.json")
	if err != nil {
		t.Fatal(err)
	}
	_, err = config.Parse(text)
	for _, want := range []string{"ra_config.ua_policy_hex_signer: is missing", "ua_policy_hex_prod_id",
		"ua_policy_str_min_isvsvn",
		"ua_policy_bool_debug_disabled", "aecs.tls: is missing", "collateral.pccs_url", "kms_keys[0].path"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
	if strings.Contains(err.Error(), "not a known key") {
		t.Errorf("a key of Occlum's is not known: %v", err)
	}
}

func TestRefusesAECSConfigsWithTheKeyAndWhatToWrite(t *testing.T) {
	for name, c := range map[string]struct{ text, from, to, says string }{
		"no block":                {ours, `"grpc-ratls"`, `"aecs"`, "aecs: is missing"},
		"unknown key":             {oursAECS, `"user_data"`, `"userdata"`, "aecs.userdata: is not a known key"},
		"unknown key of a secret": {oursAECS, `"type"`, `"kind"`, "aecs.secrets.model_key.kind: is not a known key"},
		"no servers":              {oursAECS, `["aecs:19527"]`, `[]`, "aecs.servers"},
		"a URL for a server":      {oursAECS, `"aecs:19527"`, `"http://aecs:19527"`, "aecs.servers[0]"},
		"no generation": {oursAECS, `"generation": "auto", "allow_downgrade": true,`, ``,
			"aecs.generation: is missing"},
		"unknown generation":         {oursAECS, `"auto"`, `"v2.0"`, "aecs.generation"},
		"downgrade from a":           {oursAECS, `"auto"`, `"a"`, "aecs.allow_downgrade"},
		"no service":                 {oursAECS, `"service": "service1",`, ``, "aecs.service: is missing"},
		"a service that is none":     {oursAECS, `"service1"`, `"a/b"`, "aecs.service"},
		"unknown type":               {oursAECS, `"IMPORT_DATA"`, `"PASSWORD"`, "aecs.secrets.model_key"},
		"unknown encoding":           {oursAECS, `"base64"`, `"hex"`, "aecs.secrets.model_key.encode"},
		"a secret that no one wants": {oursAECS, `{"model_key"`, `{"modelkey"`, "is not asked for"},
		"neither TLS nor plaintext":  {oursAECS, `"tls": {"ca": "/etc/aecs/ca.pem", "certificate": "/etc/aecs/client.pem", "key": "/etc/aecs/client.key"},`, ``, "aecs.tls: is missing"},
		"TLS and plaintext":          {oursAECS, `"tls"`, `"plaintext": true, "tls"`, "aecs.plaintext"},
		"no authority":               {oursAECS, `"/etc/aecs/ca.pem"`, `""`, "aecs.tls.ca"},
		"no key":                     {oursAECS, `"/etc/aecs/client.key"`, `""`, "only one of certificate and key"},
		"user data too long":         {oursAECS, `"7465"`, `"` + signer + `00"`, "aecs.user_data"},
		"short server key":           {oursAECS, `"server_key": "bb`, `"server_key": "`, "aecs.server_key"},
		"no policy":                  {oursAECS, `"server_policy": {"sgx": [{"mr_signer": "` + signer + `", "product_id": 100, "min_svn": 3}]}`, `"server_evidence": ""`, "aecs.server_policy: is missing"},
		"a server by its EK":         {oursAECS, `"sgx": [{"mr_signer": "` + signer + `", "product_id": 100, "min_svn": 3}]`, ekEntry, "a server is not challenged"},
		"weak policy":                {oursAECS, `, "min_svn": 3`, ``, "aecs.server_policy"},
		"policy of no evidence":      {oursAECS, `"user_data"`, `"server_evidence": "none", "user_data"`, "nothing to judge"},
		"no evidence and no key": {oursAECS, `"server_key": "` + signer + `",
  "server_policy": {"sgx": [{"mr_signer": "` + signer + `", "product_id": 100, "min_svn": 3}]}`, `"server_evidence": "none"`, "aecs.server_key: is missing"},
		"unknown evidence": {oursAECS, `"user_data"`, `"server_evidence": "some", "user_data"`, "aecs.server_evidence"},
		"no PCCS":          {oursAECS, `"pccs_url": "https://pccs:8081/sgx/certification/v3/"`, ``, "collateral.pccs_url"},

		"evidence of a TPM": {oursAECS, `"backend"`, `"platform": "linux", "attester": "tpm", "backend"`,
			"takes no evidence of"},
		"TDX to a": {strings.Replace(oursAECS, `"auto", "allow_downgrade": true`, `"a"`, 1), `"backend"`,
			`"platform": "linux", "attester": "tdx", "backend"`, "know no TDX"},

		"Occlum's, no server":         {occlumAECS, `"localhost:19527"`, `""`, "kms_server"},
		"Occlum's, unknown key":       {occlumAECS, `"ua_policy_hex_spid"`, `"ua_policy_hex_spd"`, "is not a known key"},
		"Occlum's, no word about TLS": {occlumAECS, `{"plaintext": true}`, `{}`, "aecs.tls: is missing"},
		"Occlum's, servers twice": {occlumAECS, `{"plaintext": true}`, `{"plaintext": true, "servers": ["x:1"]}`,
			"aecs.servers"},
		"Occlum's, no signer": {occlumAECS, `"ua_policy_hex_signer": "` + signer + `"`, `"ua_policy_hex_signer": ""`,
			"ra_config.ua_policy_hex_signer: is missing"},
		"Occlum's, short signer": {occlumAECS, `"ua_policy_hex_signer": "bb`, `"ua_policy_hex_signer": "`,
			"64 hexadecimal digits"},
		"Occlum's, public signer": {occlumAECS, `"ua_policy_hex_signer": "` + signer,
			`"ua_policy_hex_signer": "83d719e77deaca1470f6baf62a4d774303c899db69020f9c70ee1dfc08c7ce9e`, "Occlum's default signer"},
		"Occlum's, prod id": {occlumAECS, `"100"`, `"0x64"`, "ua_policy_hex_prod_id"},
		"Occlum's, debug allowed": {occlumAECS, `"ua_policy_bool_debug_disabled": "true"`,
			`"ua_policy_bool_debug_disabled": "false"`, "ua_policy_bool_debug_disabled"},
		"Occlum's, debug TRUE": {occlumAECS, `"ua_policy_bool_debug_disabled": "true"`,
			`"ua_policy_bool_debug_disabled": "TRUE"`, "ua_policy_bool_debug_disabled"},
		"Occlum's, TDX": {occlumAECS, `"SGX_DCAP"`, `"TDX"`, "ua_policy_str_tee_platform"},
		"Occlum's, a library": {occlumAECS, `"ua_dcap_lib_path": ""`, `"ua_dcap_lib_path": "/lib/x.so"`,
			"names a library"},
		"Occlum's, SPID":            {occlumAECS, `"ua_policy_hex_spid": ""`, `"ua_policy_hex_spid": "00"`, "EPID"},
		"Occlum's, central service": {occlumAECS, `"ua_uas_url": ""`, `"ua_uas_url": "https://x"`, "Ant's central"},
		"Occlum's, a platform version": {occlumAECS, `"ua_policy_hex_platform_hw_version": ""`,
			`"ua_policy_hex_platform_hw_version": "1"`, "nothing that an SGX quote"},
		"Occlum's, nonce": {occlumAECS, `"ua_policy_hex_nonce": ""`, `"ua_policy_hex_nonce": "1"`, "at random"},
		"Occlum's, key": {occlumAECS, `"ua_policy_hex_hash_or_pem_pubkey": ""`,
			`"ua_policy_hex_hash_or_pem_pubkey": "zz"`, "neither a hash nor PEM"},
		"Occlum's, encoding":   {occlumAECS, `"base64"`, `"hex"`, "not an encoding"},
		"Occlum's, no service": {occlumAECS, `"service": "service"`, `"service": ""`, "kms_keys[0].service"},
		"Occlum's, two PCCS": {occlumAECS, `"ua_env_pccs_url": ""`,
			`"ua_env_pccs_url": "https://other/sgx/certification/v3/"`, "another address"},
		"Occlum's, by EK": {occlumAECS, `{"plaintext": true}`, `{"plaintext": true, "server_policy": {` + ekEntry + `}}`, "a server is not challenged"},
		"Occlum's, two policies": {occlumAECS, `{"plaintext": true}`,
			`{"plaintext": true, "server_policy": {"sgx": []}}`, "one of them"},
	} {
		text := strings.Replace(c.text, c.from, c.to, 1)
		if text == c.text {
			t.Fatalf("%s: the case changes nothing", name)
		}
		_, err := config.Parse([]byte(text))
		if err == nil || attest.CodeOf(err) != attest.CodeConfig || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %v does not say %q", name, err, c.says)
		}
	}
}

// Occlum's init copies ra_config to a place that nothing reads. Here a field that says something counts, or is refused by its
// name, or, if it has lost its meaning, is named in the log.
func TestNoFieldOfOcclumsShapeIsDroppedSilently(t *testing.T) {
	var template struct {
		Peer map[string]string `json:"ra_config"`
	}
	if err := json.Unmarshal([]byte(occlumAECS), &template); err != nil {
		t.Fatal(err)
	}
	if len(template.Peer) != 25 {
		t.Fatalf("the template has %d fields", len(template.Peer))
	}
	for key := range template.Peer {
		at := regexp.MustCompile(`"` + key + `": "[^"]*"`)
		changed := at.ReplaceAllLiteralString(occlumAECS, `"`+key+`": "odd"`)
		if changed == occlumAECS {
			t.Fatalf("%s: the case changes nothing", key)
		}
		c, err := config.Parse([]byte(changed))
		if said := err != nil && strings.Contains(err.Error(), "ra_config."+key); said {
			continue
		}
		if err != nil || !strings.Contains(strings.Join(c.Remarks(), "\n"), key) {
			t.Errorf("%s: neither an error nor a remark names it: %v", key, err)
		}
	}
}

func TestTheServersKeyInOcclumsShapeCounts(t *testing.T) {
	const pem = `-----BEGIN RSA PUBLIC KEY-----\nx\n-----END RSA PUBLIC KEY-----\n`
	for _, value := range []string{pem, strings.ToUpper(signer)} {
		c, err := config.Parse([]byte(strings.Replace(occlumAECS, `pem_pubkey": "`, `pem_pubkey": "`+value, 1)))
		if err != nil || len(blockOf(t, c).ServerKey) != 32 {
			t.Errorf("%v", err)
		}
	}
}

func TestTheBlockMaySayWhatOcclumsShapeCannot(t *testing.T) {
	empty := strings.NewReplacer(`"ua_policy_hex_signer": "`+signer+`"`, `"ua_policy_hex_signer": ""`, `"100"`, `""`,
		`"3"`, `""`,
		`"true"`, `""`, `"SGX_DCAP"`, `""`).Replace(occlumAECS)
	policy := `"server_policy": {"sgx": [{"mr_enclave": "` + signer + `"}], "tcb": {"accept": ["UpToDate", "SWHardeningNeeded"]}}`
	c, err := config.Parse([]byte(strings.Replace(empty, `"plaintext": true`,
		`"plaintext": true, "generation": "b", `+policy, 1)))
	if err != nil || blockOf(t, c).Generation != "b" || len(blockOf(t, c).ServerPolicy.TCB.Accept) != 2 {
		t.Errorf("a policy: %v", err)
	}
	pinned := strings.Replace(empty, `pem_pubkey": "`, `pem_pubkey": "`+signer, 1)
	c, err = config.Parse([]byte(strings.Replace(pinned, `"plaintext": true`,
		`"plaintext": true, "server_evidence": "none"`, 1)))
	if err != nil || blockOf(t, c).ServerPolicy != nil || !strings.Contains(strings.Join(c.Remarks(), "\n"),
		"known by its key alone") {
		t.Errorf("no evidence: %v", err)
	}
}

func TestTheHostMayNameAECSAndPCCS(t *testing.T) {
	c, err := config.Parse([]byte(oursAECS))
	if err != nil {
		t.Fatal(err)
	}
	c.ApplyHost(func(name string) string {
		return map[string]string{"OCCLUM_INIT_RA_KMS_SERVER": "other:1", "UA_ENV_PCCS_URL": "https://other/"}[name]
	})
	if blockOf(t, c).Servers[0] != "other:1" || c.Collateral.PCCSURL != "https://other/" {
		t.Errorf("%+v", blockOf(t, c))
	}
}
