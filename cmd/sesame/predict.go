package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/credentials"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/client"
)

// inference holds the flags that all commands for inference servers share.
type inference struct {
	server, crt, serverName, model, image string
	timeout                               time.Duration
	attested                              verifyOptions // where policy is set
	dial                                  client.Options
}

func (o *inference) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.server, "server", "localhost:9000", "address of the inference server, `HOST:PORT`")
	f.StringVar(&o.crt, "crt", "", "`file` with the server's certificate, PEM")
	f.StringVar(&o.attested.policy, "policy", "",
		"`file` with the policy that the server's evidence must meet, YAML or JSON; instead of --crt")
	f.StringVar(&o.attested.collateral, "collateral", "", "directory or `URL` of the collateral for that evidence")
	f.StringVar(&o.attested.rootCA, "root-ca", "", "PEM `file` with the trusted root (default Intel's)")
	f.BoolVar(&o.attested.allowHTTP, "allow-http", false, "permit a URL of collateral without TLS; collateral is signed all the same")
	f.StringVar(&o.attested.pccsCA, "pccs-ca", "", "PEM `file` with the authority of that URL's TLS certificate (default the system's)")
	f.StringVar(&o.serverName, "server-name", "", "`name` that must be in the certificate")
	f.StringVar(&o.model, "model", "resnet", "`name` of the model")
	f.StringVar(&o.image, "image", "", "JPEG or PNG `file` (required)")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long one request may take, including retries")
	f.IntVar(&o.dial.Retries, "retries", 0, "`number` of times to retry a request that finds no server, at most 4")
}

// open reads the image and makes the credentials that accept the wanted server only.
// What is allowed and worth a word is written to warnings.
func (o *inference) open(warnings io.Writer) (image []float32, creds credentials.TransportCredentials, err error) {
	if o.image == "" || (o.crt == "") == (o.attested.policy == "") {
		return nil, nil, attest.Errorf(attest.CodeUsage, "reading command line",
			"The certificate is the one that the server's operator gave you; a policy with --collateral verifies an attested server.",
			"--image and one of --crt and --policy are required")
	}
	if o.timeout <= 0 {
		return nil, nil, attest.Errorf(attest.CodeUsage, "reading command line", "", "--timeout is not positive")
	}
	f, err := os.Open(o.image)
	if err != nil {
		return nil, nil, attest.Errorf(attest.CodeConfig, "reading image", "", "%w", err)
	}
	defer f.Close()
	if image, err = client.ReadImage(f); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", o.image, err)
	}
	if o.attested.policy != "" {
		creds, err = o.attest(warnings)
		return image, creds, err
	}
	text, err := readBounded(o.crt)
	if err != nil {
		return nil, nil, attest.Errorf(attest.CodeConfig, "reading server certificate", "", "%w", err)
	}
	creds, err = client.Pinned(client.Pin{Certificate: text, ServerName: o.serverName, Now: time.Now})
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", o.crt, err)
	}
	return image, creds, nil
}

// attest makes credentials that accept a server by the evidence in its certificate.
func (o *inference) attest(warnings io.Writer) (credentials.TransportCredentials, error) {
	verifies, err := o.attested.trust(time.Now())
	if err != nil {
		return nil, err
	}
	wanted, err := readServerPolicy(o.attested.policy)
	if err != nil {
		return nil, err
	}
	for _, key := range wanted.LegacyBindings() {
		fmt.Fprintf(warnings, "sesame: %s: %s: a certificate of this entry does not say that its key is an application's\n", o.attested.policy, key)
	}
	return client.Attested(&ratls.PeerVerifier{Verifier: verifies.Verifier(), Policy: wanted})
}

func predictCommand() *cobra.Command {
	var o inference
	var labels string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "predict",
		Short: "Ask an inference server what an image shows",
		Long: `predict sends an image to TensorFlow Serving and prints the most probable class and its probability.

predict scales the image to 224×224 pixels. Before it sends the image, it verifies the server. With --crt the server
must have exactly that certificate, or one issued by it for --server-name. With --policy it must have a certificate made
inside an attested workload that the policy accepts. If you give no --labels, classes have numbers instead of names.`,
		Example: "  sesame predict --server localhost:31001 --crt server.crt --image cat.jpg\n" +
			"  sesame predict --server localhost:31001 --policy workload.yaml --collateral https://localhost:8081/sgx/certification/v4/ --image cat.jpg\n" +
			"  sesame predict --server localhost:31001 --crt server.crt --image violet.jpg --labels labels.txt --json",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			image, creds, err := o.open(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			var names []string
			if labels != "" {
				text, err := readBounded(labels)
				if err != nil {
					return attest.Errorf(attest.CodeConfig, "reading labels", "", "%w", err)
				}
				names = strings.Split(strings.TrimRight(string(text), "\n"), "\n")
			}
			p, err := o.predict(cmd.Context(), creds, image)
			if err != nil {
				return err
			}
			best := client.Best(p)
			name := ""
			if best < len(names) {
				name = strings.TrimSpace(names[best])
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
					Index         int       `json:"index"`
					Class         string    `json:"class,omitempty"`
					Probability   float32   `json:"probability"`
					Probabilities []float32 `json:"probabilities"`
				}{best, name, p[best], p})
			}
			if name == "" {
				name = fmt.Sprint(best)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "class %s, probability %.4f\n", name, p[best])
			return err
		},
	}
	o.addFlags(cmd)
	cmd.Flags().StringVar(&labels, "labels", "", "`file` with the names of the classes, one per line")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the probability of every class")
	return cmd
}

func (o *inference) predict(ctx context.Context, creds credentials.TransportCredentials, image []float32) (_ []float32, err error) {
	c, err := client.Dial(o.server, creds, o.dial)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	return c.Predict(ctx, client.ResNet(o.model), image)
}
