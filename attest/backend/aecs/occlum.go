package aecs

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/internal/kind"
)

// shape is init_ra_conf.json as Occlum's AECS init reads it. The block aecs, which may be beside its four keys, says what the
// form has no word for: tls or plaintext, generation, and the places of keys of volumes.
type shape struct {
	Server string     `json:"kms_server"`
	Keys   []shapeKey `json:"kms_keys"`
	PCCS   string     `json:"ua_env_pccs_url"`
	Peer   shapeUA    `json:"ra_config"`
	AECS   block      `json:"aecs"`
}

type shapeKey struct {
	Key     string `json:"key"`
	Path    string `json:"path"`
	Service string `json:"service"`
	Encode  string `json:"encode"`
}

// shapeUA is ra_config. Occlum's init copies it to a place that nothing reads; here every field counts, or is refused.
type shapeUA struct {
	IASURL       string `json:"ua_ias_url"`
	IASSPID      string `json:"ua_ias_spid"`
	IASAPKKey    string `json:"ua_ias_apk_key"` // Occlum's templates say so
	IASAPIKey    string `json:"ua_ias_api_key"` // and mean this
	DCAPLib      string `json:"ua_dcap_lib_path"`
	DCAPPCCS     string `json:"ua_dcap_pccs_url"`
	UASURL       string `json:"ua_uas_url"`
	UASAppKey    string `json:"ua_uas_app_key"`
	UASAppSecret string `json:"ua_uas_app_secret"`

	Platform            string `json:"ua_policy_str_tee_platform"`
	HWVersion           string `json:"ua_policy_hex_platform_hw_version"`
	SWVersion           string `json:"ua_policy_hex_platform_sw_version"`
	SecureFlags         string `json:"ua_policy_hex_secure_flags"`
	PlatformMeasurement string `json:"ua_policy_hex_platform_measurement"`
	BootMeasurement     string `json:"ua_policy_hex_boot_measurement"`
	TEEIdentity         string `json:"ua_policy_str_tee_identity"`
	Measurement         string `json:"ua_policy_hex_ta_measurement"`
	DynMeasurement      string `json:"ua_policy_hex_ta_dyn_measurement"`
	Signer              string `json:"ua_policy_hex_signer"`
	ProductID           string `json:"ua_policy_hex_prod_id"`
	MinSVN              string `json:"ua_policy_str_min_isvsvn"`
	UserData            string `json:"ua_policy_hex_user_data"`
	DebugDisabled       string `json:"ua_policy_bool_debug_disabled"`
	Key                 string `json:"ua_policy_hex_hash_or_pem_pubkey"`
	Nonce               string `json:"ua_policy_hex_nonce"`
	SPID                string `json:"ua_policy_hex_spid"`
}

// imageKeyService is the service in which Occlum's AECS init looks for the image key.
const imageKeyService = "service1"

// newShape tells Occlum's two forms apart: by the key that only one has, or by the names in ra_config.
func newShape(members map[string]json.RawMessage) kind.Shape {
	occlums := false
	for _, key := range []string{"kms_server", "kms_keys", "ra_config"} {
		_, has := members[key]
		occlums = occlums || has
	}
	_, has := members["ua_env_pccs_url"]
	if occlums && (has || bytes.Contains(members["ra_config"], []byte(`"ua_`))) {
		return &shape{}
	}
	return nil
}

// Settings implements [kind.Shape].
func (s *shape) Settings(bad kind.Report) kind.Settings {
	b := &s.AECS
	b.occlum = true
	for key, set := range map[string]bool{"servers": b.Servers != nil, "service": b.Service != "",
		"server_key": b.ServerKey != nil} {
		if set {
			bad("aecs."+key, "is in Occlum's keys in this form", "nothing here")
		}
	}
	b.Servers = nil
	if s.Server != "" {
		b.Servers = []string{s.Server}
	}
	if b.Generation == "" {
		b.Generation = GenerationA
	}
	b.Service = imageKeyService
	files := s.secrets(bad)
	remarks := s.Peer.settings(b, bad)
	return kind.Settings{Block: b, Secrets: files, Remarks: remarks,
		PCCS: []kind.PCCS{{Key: "ua_env_pccs_url", URL: s.PCCS}, {Key: "ra_config.ua_dcap_pccs_url", URL: s.Peer.DCAPPCCS}}}
}

// report names what is wrong by the keys of Occlum's form.
func (b *block) report(bad kind.Report) kind.Report {
	return func(key, text, write string) {
		switch {
		case key == "servers" || key == "servers[0]":
			key = "kms_server"
		case key == "server_policy" && b.occlumPolicy:
			key = "ra_config"
		default:
			key = "aecs." + key
		}
		bad(key, text, write)
	}
}

// secrets are the secret files of kms_keys. Two services may have secrets of one name.
func (s *shape) secrets(bad kind.Report) []kind.SecretFile {
	var files []kind.SecretFile
	places := s.AECS.Secrets
	if places == nil {
		places = map[string]blockSecret{}
		s.AECS.Secrets = places
	}
	for i, k := range s.Keys {
		key := fmt.Sprintf("kms_keys[%d]", i)
		if k.Service == "" {
			bad(key+".service", "is missing", "the service in the AECS")
		}
		place := blockSecret{Service: k.Service, Name: k.Key, Encode: k.Encode}
		name := k.Key
		if name == imageKey && place != (blockSecret{Service: imageKeyService, Name: name}) {
			name = k.Service + "." + k.Key // that name alone is the key of the image
		}
		if other, taken := places[name]; taken && other != place {
			name = fmt.Sprintf("%s.%s.%s", k.Service, k.Key, k.Encode)
		}
		if other, taken := places[name]; taken && other != place {
			bad(key+".key", "cannot be told from another secret", "another name")
		}
		places[name] = place
		files = append(files, kind.SecretFile{Name: name, Path: k.Path})
	}
	return files
}

// settings puts the policy into b and refuses what cannot be honoured. It returns what a reader of the log should
// know.
func (u *shapeUA) settings(b *block, bad kind.Report) (remarks []string) {
	refuse := func(value, key, why string) {
		if value != "" {
			bad("ra_config."+key, why, `""`)
		}
	}
	const epid = "belongs to EPID, whose attestation service has ended"
	const uas = "belongs to Ant's central attestation service, which is not supported"
	const none = "is nothing that an SGX quote of a server says"
	refuse(u.IASSPID, "ua_ias_spid", epid)
	refuse(u.IASAPKKey, "ua_ias_apk_key", epid)
	refuse(u.IASAPIKey, "ua_ias_api_key", epid)
	refuse(u.DCAPLib, "ua_dcap_lib_path", "names a library of Intel's, which is not used: quotes come from /dev/sgx")
	refuse(u.UASURL, "ua_uas_url", uas)
	refuse(u.UASAppKey, "ua_uas_app_key", uas)
	refuse(u.UASAppSecret, "ua_uas_app_secret", uas)
	refuse(u.HWVersion, "ua_policy_hex_platform_hw_version", none)
	refuse(u.SWVersion, "ua_policy_hex_platform_sw_version", none)
	refuse(u.SecureFlags, "ua_policy_hex_secure_flags", none)
	refuse(u.PlatformMeasurement, "ua_policy_hex_platform_measurement", none)
	refuse(u.BootMeasurement, "ua_policy_hex_boot_measurement", none)
	refuse(u.TEEIdentity, "ua_policy_str_tee_identity", none)
	refuse(u.DynMeasurement, "ua_policy_hex_ta_dyn_measurement", none)
	refuse(u.UserData, "ua_policy_hex_user_data", "cannot be pinned: a server chooses it at random at every start")
	refuse(u.Nonce, "ua_policy_hex_nonce", "cannot be pinned: a server chooses it at random at every start")
	refuse(u.SPID, "ua_policy_hex_spid", epid)
	if u.IASURL != "" { // set in Occlum's template
		remarks = append(remarks, "ra_config.ua_ias_url is not used: EPID's attestation service has ended")
	}
	if u.Platform != "" && u.Platform != "SGX_DCAP" {
		bad("ra_config.ua_policy_str_tee_platform", fmt.Sprintf("%.40q cannot be verified here", u.Platform), `"SGX_DCAP"`)
	}
	b.ServerKey = u.serverKey(bad)
	if b.ServerEvidence == "none" || b.ServerPolicy != nil {
		if *u != u.withoutServer() {
			bad("ra_config", "names a server while the block aecs says what it must be", "one of them")
		}
		return remarks
	}
	b.ServerPolicy, b.occlumPolicy = u.policy(bad), true
	return remarks
}

// withoutServer is the block with nothing in it that a policy is made of.
func (u shapeUA) withoutServer() shapeUA {
	u.Platform, u.Measurement, u.Signer, u.ProductID, u.MinSVN, u.DebugDisabled = "", "", "", "", "", ""
	return u
}

// policy is what the fields of the policy say, as far as an SGX quote can say it, and only if that is enough.
func (u *shapeUA) policy(bad kind.Report) *policy.Policy {
	var s policy.SGX
	number := func(text, key string) *uint16 {
		if text == "" {
			return nil
		}
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			bad("ra_config."+key, fmt.Sprintf("%.40q is not a decimal number from 0 to 65535", text), `digits such as "1"`)
			return nil
		}
		n16 := uint16(n)
		return &n16
	}
	measurement := func(text, key string) policy.Hex {
		if text == "" {
			return nil
		}
		b, err := hex.DecodeString(text)
		if err != nil || len(b) != 32 {
			bad("ra_config."+key, "is not a measurement", "64 hexadecimal digits")
			return nil
		}
		return b
	}
	s.MREnclave = measurement(u.Measurement, "ua_policy_hex_ta_measurement")
	s.MRSigner = measurement(u.Signer, "ua_policy_hex_signer")
	s.ProductID = number(u.ProductID, "ua_policy_hex_prod_id")
	s.MinSVN = number(u.MinSVN, "ua_policy_str_min_isvsvn")
	switch u.DebugDisabled {
	case "true", "1":
	default:
		bad("ra_config.ua_policy_bool_debug_disabled", fmt.Sprintf("is %.20q: the host reads the memory of a debug server",
			u.DebugDisabled), `"true"`)
	}
	p := &policy.Policy{SGX: []policy.SGX{s}}
	if u.Measurement == "" {
		for key, text := range map[string]string{"ua_policy_hex_signer": u.Signer, "ua_policy_hex_prod_id": u.ProductID,
			"ua_policy_str_min_isvsvn": u.MinSVN} {
			if text == "" {
				bad("ra_config."+key, "is missing: nothing would say what the server must be",
					"it, or ua_policy_hex_ta_measurement alone")
			}
		}
	}
	return p
}

// serverKey reads ua_policy_hex_hash_or_pem_pubkey: the hash of the server's key, or its PEM text.
func (u *shapeUA) serverKey(bad kind.Report) policy.Hex {
	if u.Key == "" {
		return nil
	}
	if strings.Contains(u.Key, "BEGIN") {
		sum := sha256.Sum256([]byte(u.Key))
		return sum[:]
	}
	b, err := hex.DecodeString(u.Key)
	if err != nil || len(b) != sha256.Size {
		bad("ra_config.ua_policy_hex_hash_or_pem_pubkey", "is neither a hash nor PEM",
			"64 hexadecimal digits, or the server's key in PEM")
		return nil
	}
	return b
}
