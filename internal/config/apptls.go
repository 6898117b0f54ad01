package config

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest"
)

// AppTLS asks for a TLS identity of the application: a P-256 key that is made inside this environment at every boot and
// never leaves it, with a self-signed certificate that carries evidence over the key (package attest/ratls), so that a
// client can verify what it talks to.
type AppTLS struct {
	// Format is "tf-serving", one file as TensorFlow Serving's --ssl_config_file wants it, or "pem".
	Format string `json:"format"`
	// Path is the file; for "pem" that of the certificate.
	Path string `json:"path"`
	// KeyPath is the file of the private key (PKCS #8), for "pem" only.
	KeyPath string `json:"key_path,omitempty"`
	// Attested must be true: a self-signed certificate without evidence proves nothing. An identity that
	// all replicas share is a secret of the broker.
	Attested bool `json:"attested"`
	// Names are host names and IP addresses for clients that look at names. Default localhost.
	Names []string `json:"names,omitempty"`
	// Validity is the life of the certificate, after which clients refuse it and the workload must boot again.
	// Default 720h, at most 2160h.
	Validity Duration `json:"validity,omitempty"`
	// Binding is "legacy" for an application whose clients are Occlum's or other C++ verifiers of RA-TLS, which cannot read
	// the certificate that is made otherwise: Interoperable RA-TLS with Sesame's label and the role of an application. A
	// legacy certificate has the form of a legacy broker's, so such an image must share neither measurement nor product id
	// with a broker.
	Binding attest.Binding `json:"binding,omitempty"`
	Mode    Mode           `json:"mode,omitempty"` // of the file that holds the key; default 0400
	// UID and GID own the files. Default on Linux the application's, in Occlum init's own.
	UID *uint32 `json:"uid,omitempty"`
	GID *uint32 `json:"gid,omitempty"`
}

// Owner is the files' user and group, -1 for init's own.
func (a AppTLS) Owner() (uid, gid int) { return number(a.UID), number(a.GID) }

const (
	defaultAppValidity = 30 * 24 * time.Hour
	maxAppValidity     = 90 * 24 * time.Hour
)

// completeAppTLS fills in defaults and reports what is wrong.
func (c *Config) completeAppTLS(bad func(key, text, write string)) {
	a := c.AppTLS
	if !a.Attested {
		bad("app_tls.attested", "is not true: a certificate without evidence proves nothing", "true")
	}
	if c.Backend == "none" {
		bad("app_tls", `needs evidence, but backend is "none"`, "a backend, or leave app_tls out")
	}
	if a.Binding != "" && a.Binding != attest.BindingLegacy {
		bad("app_tls.binding", fmt.Sprintf("%.20q is not a binding", a.Binding), `nothing, or "legacy" for C++ verifiers`)
	}
	paths := []string{a.Path}
	switch a.Format {
	case "tf-serving":
		if a.KeyPath != "" {
			bad("app_tls.key_path", `belongs to format "pem"`, "nothing")
		}
	case "pem":
		paths = append(paths, a.KeyPath)
	default:
		bad("app_tls.format", fmt.Sprintf("%q is not a format", a.Format), `"tf-serving" or "pem"`)
	}
	for i, p := range paths {
		key := []string{"app_tls.path", "app_tls.key_path"}[i]
		c.checkSecretPath(key, p, bad)
		taken := func(s SecretFile) bool { return s.Path == p }
		if slices.ContainsFunc(c.Secrets, taken) || slices.Index(paths, p) < i {
			bad(key, "is also the path of another file", "one path each")
		}
	}
	if len(a.Names) == 0 {
		a.Names = []string{"localhost"}
	}
	for i, name := range a.Names {
		if name == "" || len(name) > 253 || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
			bad(fmt.Sprintf("app_tls.names[%d]", i), "is not a host name or an IP address", `"tf-demo-svc"`)
		}
	}
	if a.Validity == 0 {
		a.Validity = Duration(defaultAppValidity)
	}
	if a.Validity < Duration(time.Minute) || a.Validity > Duration(maxAppValidity) {
		bad("app_tls.validity", fmt.Sprintf("%s is not between 1m and 2160h", time.Duration(a.Validity)), `"720h"`)
	}
	if a.Mode == 0 {
		a.Mode = 0o400
	}
}
