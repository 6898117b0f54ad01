// Package tfssl writes the file of TensorFlow Serving's --ssl_config_file: SSLConfig of
// tensorflow_serving/config/ssl_config.proto as text.
package tfssl

import "bytes"

// Encode writes the server's key and certificate, both PEM, for a server that asks clients for no certificate. It holds the key:
// the caller clears it.
func Encode(key, certificate []byte) []byte {
	var b bytes.Buffer
	b.Grow(2*(len(key)+len(certificate)) + 128) // no copy of the key is left behind by growing
	quote := func(name string, text []byte) {
		b.WriteString(name + `: "`)
		for line := range bytes.Lines(text) { // PEM needs no other escapes
			b.Write(bytes.TrimSuffix(line, []byte("\n")))
			b.WriteString(`\n`)
		}
		b.WriteString("\"\n")
	}
	quote("server_key", key)
	quote("server_cert", certificate)
	b.WriteString("client_verify: false\n")
	return b.Bytes()
}
