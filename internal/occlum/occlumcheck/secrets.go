package occlumcheck

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"unicode/utf8"
)

// What is looked at for secrets. Programs and weights are larger than a secret's file.
const (
	maxScanned      = 8 << 20   // bytes of a file; larger ones are not read
	maxConfig       = 256 << 10 // bytes of a file that is read as a config
	maxScannedFiles = 50000     // files of a file system
	maxScannedBytes = 2 << 30   // bytes of a file system
)

// secret is something in a file that a host must not read.
type secret struct {
	severity Severity
	what     string // what it is, never its value
}

// secretsIn finds secrets by a file's content. The name only says whether it is read as a config.
func secretsIn(name string, content []byte) (found []secret) {
	if len(content) > maxScanned {
		content = content[:maxScanned]
	}
	add := func(s Severity, what string) { found = append(found, secret{s, what}) }
	line := bytes.TrimSpace(content)
	switch {
	case keyForm.Match(line):
		add(Error, "looks like a key in Occlum's form")
	case hexForm.Match(line) && path.Base(name) != "machine-id":
		add(Warning, "is 32 hex digits, as a volume's key may be written")
	}
	if w, ok := privatePEM(content); ok {
		add(w, "holds a private key in PEM")
	}
	if len(content) <= maxConfig && privateDER(content) {
		add(Error, "holds a private key in DER")
	}
	if s, ok := secretConfig(line); ok {
		add(s, "is of the shape of Occlum's secret_config.json: names and base64 values")
	}
	if isConfig(name) && len(content) <= maxConfig {
		if s, what := literal(content); what != "" {
			add(s, what)
		}
	}
	return found
}

var hexForm = regexp.MustCompile(`^[0-9a-fA-F]{32}$`)

const pemEnd = "PRIVATE KEY-----"

// escapes are line ends as they stand in strings: of SSLConfig's text form, of JSON, and of JSON in JSON.
var escapes = strings.NewReplacer(`\\r`, "", `\\n`, "\n", `\r`, "", `\n`, "\n", "\r", "")

// privatePEM finds a private key in PEM, as it is or with escaped line ends. The words alone, which every TLS library
// holds, are none: a body must follow.
func privatePEM(text []byte) (Severity, bool) {
	const most = 64 << 10 // bytes of a body
	found := Severity("")
	for {
		k := bytes.Index(text, []byte(pemEnd))
		if k < 0 {
			return found, found != ""
		}
		begin := bytes.LastIndex(text[max(0, k-32):k], []byte("-----BEGIN "))
		after := text[k+len(pemEnd):]
		if begin >= 0 {
			kind := string(text[max(0, k-32)+begin : k])
			if !strings.Contains(kind, "\n") && hasBody(after[:min(len(after), most)]) {
				if !strings.Contains(kind, "ENCRYPTED") {
					return Error, true
				}
				found = Warning
			}
		}
		text = after
	}
}

// hasBody reports whether the base64 of a key follows: ASN.1, OpenSSH's form, or the headers of an encrypted key.
func hasBody(text []byte) bool {
	body := strings.TrimSpace(escapes.Replace(string(text)))
	body, _, _ = strings.Cut(body, "-----")
	if strings.HasPrefix(body, "Proc-Type:") {
		return true
	}
	body = strings.Join(strings.Fields(body), "")
	b, err := base64.StdEncoding.DecodeString(body[:min(len(body), 1024)&^3])
	return err == nil && len(b) >= 32 && (b[0] == 0x30 || bytes.HasPrefix(b, []byte("openssh-key-v1")))
}

func privateDER(b []byte) bool {
	if len(b) < 32 || b[0] != 0x30 {
		return false
	}
	if _, err := x509.ParsePKCS8PrivateKey(b); err == nil {
		return true
	}
	if _, err := x509.ParsePKCS1PrivateKey(b); err == nil {
		return true
	}
	_, err := x509.ParseECPrivateKey(b)
	return err == nil
}

// secretConfig tells Occlum's secret_config.json: one object, all of whose values are padded base64, and one of them
// evidently so. Values that are public (certificates, public keys) do not count; if all others have the length of a
// digest, it is a warning: so look lists of checksums.
func secretConfig(text []byte) (Severity, bool) {
	var members map[string]json.RawMessage
	if len(text) < 2 || text[0] != '{' || len(text) > maxScanned || json.Unmarshal(text, &members) != nil {
		return "", false
	}
	found := Severity("")
	for _, raw := range members {
		var value string
		if json.Unmarshal(raw, &value) != nil {
			return "", false
		}
		decoded, err := base64.StdEncoding.DecodeString(value)
		switch {
		case err != nil:
			return "", false
		case len(decoded) == 0 || !evidentlyBase64(value) || isPublic(decoded):
		case !utf8.Valid(decoded) && (len(decoded) == 20 || len(decoded) == 32 || len(decoded) == 48 || len(decoded) == 64):
			if found == "" {
				found = Warning
			}
		default:
			found = Error
		}
	}
	return found, found != ""
}

// evidentlyBase64 reports whether a string is more likely base64 than a word of the same letters.
func evidentlyBase64(s string) bool {
	return strings.HasSuffix(s, "=") || len(s) >= 24 && strings.ContainsAny(s, "0123456789+/") &&
		strings.ToLower(s) != s && strings.ToUpper(s) != s
}

// isPublic reports whether b is certificates or public keys, in PEM or DER, and nothing else.
func isPublic(b []byte) bool {
	if _, err := x509.ParseCertificate(b); err == nil {
		return true
	}
	if _, err := x509.ParsePKIXPublicKey(b); err == nil {
		return true
	}
	blocks := 0
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			return blocks > 0 && len(bytes.TrimSpace(b)) == 0
		}
		if block.Type != "CERTIFICATE" && !strings.HasSuffix(block.Type, "PUBLIC KEY") {
			return false
		}
		blocks++
		b = rest
	}
}

// isConfig reports whether a file is read as a config: by its ending, or below /etc without one.
func isConfig(name string) bool {
	switch strings.ToLower(path.Ext(name)) {
	case ".json", ".yaml", ".yml", ".toml", ".ini", ".conf", ".cfg", ".env", ".properties":
		return true
	case "":
		return strings.HasPrefix(name, "/etc/")
	}
	return false
}

var (
	// A key in Occlum's form under a name that says that it is one; MACs have the same form.
	namedKey = regexp.MustCompile(`(?i)(key|secret)[a-z0-9_.-]*["']?\s*[:=]\s*["']?[0-9a-f]{2}(-[0-9a-f]{2}){15}\b`)
	// A URL with a password in it.
	urlPassword = regexp.MustCompile(`(?i)\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@"'<>{}$]{1,128}:([^\s/@"'<>{}$]{1,256})@[a-z0-9\[]`)
	// A signed token: header, claims, signature.
	webToken = regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}`)
	// A value under a name that says that it is secret.
	namedSecret = regexp.MustCompile(`(?im)(?:password|passwd|passphrase|client_secret|api_key|secret_key|access_token)["']?\s*[:=]\s*["']?([^\s"',#;}]{8,256})`)
)

// literal finds a secret that is written out in a config.
func literal(text []byte) (Severity, string) {
	switch {
	case namedKey.Match(text):
		return Error, "holds a literal key in Occlum's form"
	case urlPassword.Match(text):
		return Error, "holds a URL with a password"
	case webToken.Match(text):
		return Error, "holds a signed token"
	}
	for _, m := range namedSecret.FindAllSubmatch(text, 64) {
		if v := string(m[1]); !strings.ContainsAny(v, "${}<>/") && strings.Trim(v, "*x.") != "" {
			return Warning, "holds what looks like a literal password or token"
		}
	}
	return "", ""
}

// sample reports whether a path is one of test data: the keys there are published with the program.
func sample(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "test", "tests", "testdata", "test_data", "testing":
			return true
		}
	}
	return false
}

// secrets looks for secrets in all that the host can read: the initfs, Occlum.json, and an image without encryption. A
// path that leads out by a link is not followed.
func (i *inspection) secrets() error {
	if err := i.secretsBelow("initfs", Error, "remove it and let init fetch it"); err != nil {
		return err
	}
	if text, err := i.read("Occlum.json", maxScanned); err != nil {
		return err
	} else if s, what := literal(text); what != "" {
		i.report(s, "Occlum.json", what+", which stands in the open", "give it to the application as a secret of init's config")
	}
	most := Error
	switch encrypted, known := i.imageEncrypted(); {
	case encrypted:
		return nil
	case !known:
		most = Warning
	}
	return i.secretsBelow("image", most,
		"take it out and put it into the key broker (sesame secret put); what was in such an image is known to the host: replace it")
}

// imageEncrypted says whether the image is, or will be, encrypted, and whether that is known.
func (i *inspection) imageEncrypted() (encrypted, known bool) {
	if h, err := i.readHeader("build/mount/__ROOT"); err == nil && h != nil {
		return !h.integrityOnly, true
	}
	if i.init == nil || i.init.Legacy {
		return false, i.init != nil && i.init.Backend == "none"
	}
	return i.init.Root.Key != "", true
}

func (i *inspection) report(s Severity, field, problem, write string) {
	i.found = append(i.found, Finding{s, field, problem, write})
}

// secretsBelow reports secrets in one of the instance's file systems, none worse than most.
func (i *inspection) secretsBelow(root string, most Severity, write string) error {
	named := map[string]bool{} // files of the initfs that the config names, also for backends that it does not choose
	if i.init != nil {
		for _, block := range i.init.Blocks {
			for _, name := range block.Files() {
				named[name] = true
			}
		}
	}
	files, total := 0, int64(0)
	base := filepath.Join(i.dir, root)
	err := filepath.WalkDir(base, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Size() > maxScanned {
			return err
		}
		if files, total = files+1, total+info.Size(); files > maxScannedFiles || total > maxScannedBytes {
			i.warn(root, fmt.Sprintf("is large: only %d files were searched for secrets", files-1), "look at the others yourself")
			return fs.SkipAll
		}
		content, err := readScanned(name)
		if err != nil {
			return err
		}
		in := filepath.ToSlash(strings.TrimPrefix(name, base))
		if root == "initfs" && in == "/etc/image_key" {
			i.error("initfs"+in, "holds the image key in a file system that anyone can read",
				"build without --buildin-image-key and let init fetch the key")
			return nil
		}
		for _, s := range secretsIn(in, content) {
			severity := s.severity
			if most == Warning || sample(in) {
				severity = Warning
			}
			if named[in] && root == "initfs" {
				i.warn("initfs"+in, "is a key that the config names, and keeps no one out: anyone can read it",
					"a key that opens nothing else")
				continue
			}
			i.report(severity, root+in, s.what+", in a file system that anyone can read", write)
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func readScanned(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxScanned))
}
