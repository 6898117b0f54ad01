package config_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/maa"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/internal/config"
)

const signer = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

const ours = `{
 "backend": "grpc-ratls",
 "timeout": "90s",
 "grpc_ratls": {
  "servers": ["init-ra-server-svc:5000"], "protocol": "session",
  "broker_policy": {"sgx": [{"mr_signer": "` + signer + `", "product_id": 100, "min_svn": 3}]}
 },
 "root": {"key": "image_key", "upper": "temporary"},
 "app": {"path": "/opt/serving/bin/tensorflow_model_server", "entry_point": "/bin/tensorflow_model_server",
         "args": ["--port={number}", "--model_name=resnet"]},
 "volumes": [{"source": "./model", "target": "/models/resnet", "key": "model_key",
              "mac": "00-11-22-33-44-55-66-77-88-99-aa-bb-cc-dd-ee-ff"}],
 "secrets": [{"name": "ssl_config", "path": "/etc/tf_ssl.cfg"}, {"name": "image_key", "path": "/dev/shm/k", "mode": "0440"}],
 "collateral": {"pccs_url": "https://pccs:8081/sgx/certification/v4/", "minimum_tcb_evaluation": 17,
                "minimum_root_crl": 5, "minimum_pck_crl": 6}
}`

// legacy is Occlum's shape as the example of TensorFlow Serving fills it in, with the checks that Occlum's
// template leaves off, and the two blocks that the shape has no room for.
const legacy = `{
 "kms_server": "localhost:50051",
 "kms_keys": [{"key": "ssl_config", "path": "/etc/tf_ssl.cfg"}],
 "ra_config": {
  "verify_mr_enclave": "off", "verify_mr_signer": "on", "verify_isv_prod_id": "on", "verify_isv_svn": "on",
  "verify_config_svn": "off", "verify_enclave_debuggable": "on",
  "sgx_mrs": [{"mr_enclave": "", "mr_signer": "` + signer + `", "isv_prod_id": 100, "isv_svn": 3, "config_svn": 0, "debuggable": false}]
 },
 "root": {"upper": "temporary"},
 "collateral": {"pccs_url": "https://pccs:8081/sgx/certification/v4/"}
}`

// written is what the chosen block says.
type written struct {
	Servers      []string
	Protocol     string
	BrokerKey    policy.Hex `json:"broker_key"`
	Generation   string
	Service      string
	Secrets      map[string]map[string]string
	ServerPolicy *policy.Policy `json:"server_policy"`
	ServerKey    policy.Hex     `json:"server_key"`
	UserData     policy.Hex     `json:"user_data"`
	Endpoint     string
	Vault        string
	AAD          maa.AAD
	ReportData   string `json:"report_data"`
}

func blockOf(t *testing.T, c *config.Config) (w written) {
	t.Helper()
	text, err := json.Marshal(c.Block())
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &w); err != nil {
		t.Fatal(err)
	}
	return w
}

// brokerPolicyOf is what the broker must be.
func brokerPolicyOf(t *testing.T, c *config.Config) ratls.Appraiser {
	t.Helper()
	p, err := c.Block().(interface {
		Policy() (ratls.Appraiser, error)
	}).Policy()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestReadsBothShapesToTheSameMeaning(t *testing.T) {
	own, err := config.Parse([]byte(ours))
	if err != nil {
		t.Fatal(err)
	}
	if time.Duration(own.Timeout) != 90*time.Second || own.Secrets[0].Mode != 0o400 || own.Secrets[1].Mode != 0o440 {
		t.Errorf("read %+v", own)
	}
	if c := own.Collateral; c.MinimumTCBEvaluation != 17 || c.MinimumRootCRL != 5 || c.MinimumPCKCRL != 6 {
		t.Errorf("minimums of collateral are %+v", c)
	}
	if got := strings.Join(own.SecretNames(), " "); got != "image_key model_key ssl_config" {
		t.Errorf("secrets are %q: want each once, in order of use", got)
	}

	old, err := config.Parse([]byte(legacy))
	if err != nil {
		t.Fatal(err)
	}
	if err := old.MatchImage(true); err != nil {
		t.Fatal(err)
	}
	if !old.Legacy || blockOf(t, old).Protocol != "legacy" || old.Root.Key != "image_key" || old.Secrets[0].Name != "ssl_config" {
		t.Errorf("read %+v", old)
	}
	broker := attest.Claims{Type: attest.SGX, SGX: &attest.SGXClaims{
		MRSigner: [32]byte(bytes.Repeat([]byte{0xbb}, 32)), ProductID: 100, SVN: 3, Attributes: attest.AttributeInit,
	}}
	other := broker
	other.SGX = &attest.SGXClaims{MRSigner: broker.SGX.MRSigner, ProductID: 101, SVN: 3, Attributes: attest.AttributeInit}
	for name, c := range map[string]*config.Config{"own": own, "legacy": old} {
		if a := brokerPolicyOf(t, c).Appraise(broker, time.Now()); !a.Accepted {
			t.Errorf("%s refuses the broker it names: %v", name, a.Err())
		}
		if a := brokerPolicyOf(t, c).Appraise(other, time.Now()); a.Accepted {
			t.Errorf("%s accepts a broker with another product id", name)
		}
	}
}

const brokerPolicy = `"broker_policy": {"sgx": [{"mr_signer": "` + signer + `", "product_id": 100, "min_svn": 3}]}`

func TestABrokerOutsideAnEnclaveIsPinnedByItsKeyAndTheLogSaysSo(t *testing.T) {
	text := strings.Replace(ours, brokerPolicy, `"broker_key": "`+signer+`"`, 1)
	c, err := config.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(blockOf(t, c).BrokerKey) != 32 || !strings.Contains(strings.Join(c.Remarks(), "\n"), "by its key alone") {
		t.Errorf("%+v, %q", blockOf(t, c), c.Remarks())
	}
}

// Entries that only a client can prove.
var (
	ekEntry   = fmt.Sprintf(`"tpm": [{"ek": %[1]q, "wrap": true, "pcrs": {"7": %[1]q}}]`, strings.Repeat("07", 32))
	wrapEntry = fmt.Sprintf(`"tpm": [{"ak": %[1]q, "ek_roots": [%[1]q], "wrap": true, "pcrs": {"7": %[1]q}}]`, strings.Repeat("07", 32))
)

func TestRefusesWithTheKeyAndWhatToWrite(t *testing.T) {
	for name, c := range map[string]struct{ text, from, to, says string }{
		"unknown key":         {ours, `"timeout"`, `"timeuot"`, "timeuot: is not a known key"},
		"unknown inner key":   {ours, `"upper"`, `"uper"`, "root.uper"},
		"unknown policy key":  {ours, `"min_svn"`, `"min_snv"`, "grpc_ratls.broker_policy.sgx[0].min_snv"},
		"key given twice":     {ours, `"timeout": "90s"`, `"timeout": "90s", "timeout": "1s"`, "timeout: is given twice"},
		"no backend":          {ours, `"backend": "grpc-ratls",`, ``, "backend: is missing"},
		"unknown backend":     {ours, `"backend": "grpc-ratls"`, `"backend": "vault"`, "backend"},
		"key and policy":      {ours, brokerPolicy, brokerPolicy + `, "broker_key": "` + signer + `"`, "grpc_ratls.broker_key"},
		"short broker key":    {ours, brokerPolicy, `"broker_key": "abcd"`, "grpc_ratls.broker_key: has 2 bytes"},
		"key on legacy wire":  {ours, `"session",` + "\n  " + brokerPolicy, `"legacy", "broker_key": "` + signer + `"`, "grpc_ratls.protocol"},
		"bad log key":         {ours, brokerPolicy, brokerPolicy + `, "log_key": "x"`, "grpc_ratls.log_key"},
		"no servers":          {ours, `["init-ra-server-svc:5000"]`, `[]`, "grpc_ratls.servers"},
		"unknown protocol":    {ours, `"session"`, `"v2"`, "grpc_ratls.protocol"},
		"server without port": {ours, `svc:5000`, `svc`, "no port"},
		"policy too weak":     {ours, `, "min_svn": 3`, ``, "min_svn"},
		"empty policy":        {ours, `{"mr_signer": "` + signer + `", "product_id": 100, "min_svn": 3}`, ``, "broker_policy"},
		"persistent secret":   {ours, `, "upper": "temporary"`, ``, "persists on the host"},
		"relative target":     {ours, `"/models/resnet"`, `"models/resnet"`, "volumes[0].target"},
		"target with dots":    {ours, `"/models/resnet"`, `"/models/../etc"`, "volumes[0].target"},
		"comma in source":     {ours, `"./model"`, `"./model,key=0"`, "volumes[0].source"},
		"a broker by its EK":  {ours, `"sgx": [{"mr_signer": "` + signer + `", "product_id": 100, "min_svn": 3}]`, ekEntry, "a server is not challenged"},
		"a broker that wraps": {ours, `"sgx": [{"mr_signer": "` + signer + `", "product_id": 100, "min_svn": 3}]`, wrapEntry, "nothing is released to a server"},
		"volume without MAC": {ours, `,
              "mac": "00-11-22-33-44-55-66-77-88-99-aa-bb-cc-dd-ee-ff"`, ``, "roll the volume back"},
		"empty MAC":            {ours, `"00-11-22-33-44-55-66-77-88-99-aa-bb-cc-dd-ee-ff"`, `""`, "volumes[0].mac"},
		"malformed MAC":        {ours, `-ee-ff"`, `-ee-fg"`, "volumes[0].mac"},
		"brace in argument":    {ours, `{number}`, `{regexp}`, "app.args[0]"},
		"unchecked arguments":  {ours, `"/bin/tensorflow_model_server"`, `"/opt/serving/bin/tensorflow_model_server"`, "app.entry_point"},
		"mode":                 {ours, `"0440"`, `"4755"`, "secrets[1].mode: \"4755\" is not a file mode"},
		"negative timeout":     {ours, `"90s"`, `"-1s"`, "positive"},
		"none wants no secret": {ours, `"backend": "grpc-ratls"`, `"backend": "none"`, `"none" fetches nothing`},
		"not an object":        {`[]`, ``, ``, "not a JSON object"},
		"cut off":              {ours[:200], ``, ``, "not a JSON object"},
		"legacy, check off":    {legacy, `"verify_enclave_debuggable": "on"`, `"verify_enclave_debuggable": "off"`, "ra_config"},
		"legacy, all off":      {legacy, `"verify_mr_signer": "on"`, `"verify_mr_signer": "off"`, "ra_config"},
		"legacy, no server":    {legacy, `"localhost:50051"`, `""`, "kms_server"},
		"legacy, no PCCS":      {legacy, `"pccs_url": "https://pccs:8081/sgx/certification/v4/"`, ``, "collateral.pccs_url"},
	} {
		text := strings.Replace(c.text, c.from, c.to, 1)
		if c.from != "" && text == c.text {
			t.Fatalf("%s: the case changes nothing", name)
		}
		_, err := config.Parse([]byte(text))
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		if attest.CodeOf(err) != attest.CodeConfig || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %q does not say %q", name, err, c.says)
		}
	}
}

func TestReportsEverythingAtOnce(t *testing.T) {
	text := strings.NewReplacer(`"backend": "grpc-ratls"`, `"backend": ""`, `"/models/resnet"`, `""`, `"90s"`, `"1s"`, `"./model"`, `""`).Replace(ours)
	_, err := config.Parse([]byte(text))
	for _, want := range []string{"backend", "volumes[0].target", "volumes[0].source"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}

func TestOnlyListedEnvironmentCounts(t *testing.T) {
	asked := map[string]bool{}
	for _, text := range []string{ours, oursAECS, azure, dropIn} {
		c, err := config.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		c.ApplyHost(func(name string) string { asked[name] = true; return "host-chosen:1" })
		if servers := blockOf(t, c).Servers; len(servers) > 0 && servers[0] != "host-chosen:1" || c.Collateral.PCCSURL != "host-chosen:1" {
			t.Error("a listed variable has no effect")
		}
	}
	listed := config.HostEnvironment()
	for name := range asked {
		if _, ok := listed[name]; !ok {
			t.Errorf("%s is read and not listed", name)
		}
	}
	if len(asked) != len(listed) {
		t.Errorf("read %v, listed %v", asked, listed)
	}
}

func TestImageAndConfigMustAgree(t *testing.T) {
	c, err := config.Parse([]byte(ours))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.MatchImage(true); err != nil {
		t.Error(err)
	}
	if err := c.MatchImage(false); attest.CodeOf(err) != attest.CodeConfig {
		t.Errorf("a key for an integrity-only image: %v", err)
	}
	c.Root.Key = ""
	if err := c.MatchImage(true); attest.CodeOf(err) != attest.CodeConfig {
		t.Errorf("no key for an encrypted image: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(ours))
	f.Add([]byte(legacy))
	f.Add([]byte(oursAECS))
	f.Add([]byte(occlumAECS))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := config.Parse(text)
		if (c == nil) == (err == nil) {
			t.Errorf("config %v with error %v", c, err)
		}
	})
}
