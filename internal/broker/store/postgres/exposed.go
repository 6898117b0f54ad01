package postgres

import (
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Exposed says how the way to the database of a URL, as for [Open], is open to others: "" if it is a socket or loopback,
// or if TLS verifies the server. Values in the database are encrypted and authenticated all the same, but names, counts
// and the password are not.
func Exposed(url string) string {
	config, err := pgconn.ParseConfig(url)
	if err != nil {
		return "" // Open says why
	}
	ways := []*pgconn.FallbackConfig{{Host: config.Host, TLSConfig: config.TLSConfig}}
	unverified := ""
	for _, way := range append(ways, config.Fallbacks...) {
		switch tls := way.TLSConfig; {
		case local(way.Host):
		case tls == nil:
			return "without TLS (sslmode disable, allow or prefer)"
		case tls.InsecureSkipVerify && tls.VerifyPeerCertificate == nil:
			unverified = "with TLS that verifies no server (sslmode require)"
		}
	}
	return unverified
}

// local reports whether a host is a unix socket or this machine.
func local(host string) bool {
	if strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") || host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
