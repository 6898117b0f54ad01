package standin

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/encoding/prototext"

	tf "github.com/sesame-init/sesame/client/tfserving"
	"github.com/sesame-init/sesame/internal/boundedfile"
)

const maxSSLConfig = 1 << 20

// Credentials reads the file of --ssl_config_file, TensorFlow Serving's SSLConfig as a text proto.
func Credentials(path string) (credentials.TransportCredentials, error) {
	text, err := boundedfile.Read(path, maxSSLConfig)
	if err != nil {
		return nil, fmt.Errorf("reading TLS config: %w", err)
	}
	c := &tf.SSLConfig{}
	if err := prototext.Unmarshal(text, c); err != nil {
		// The parser's message would quote the file, and the file holds a private key.
		return nil, fmt.Errorf("reading TLS config: %s is not an SSLConfig text proto", path)
	}
	config, err := tlsConfig(c)
	if err != nil {
		return nil, fmt.Errorf("reading TLS config: %s: %w", path, err)
	}
	return credentials.NewTLS(config), nil
}

func tlsConfig(c *tf.SSLConfig) (*tls.Config, error) {
	pair, err := tls.X509KeyPair([]byte(c.GetServerCert()), []byte(c.GetServerKey()))
	if err != nil {
		return nil, fmt.Errorf("server_cert and server_key: %w", err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	if c.GetClientVerify() {
		config.ClientAuth = tls.RequireAndVerifyClientCert
		config.ClientCAs = x509.NewCertPool()
		if !config.ClientCAs.AppendCertsFromPEM([]byte(c.GetCustomCa())) {
			return nil, errors.New("client_verify needs custom_ca, the certificates of the clients' authorities")
		}
	}
	return config, nil
}
