package client_test

import (
	"context"
	"crypto/x509/pkix"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/client"
	tf "github.com/sesame-init/sesame/client/tfserving"
	"github.com/sesame-init/sesame/lab/standin"
	"github.com/sesame-init/sesame/lab/standin/standintest"
)

func connect(t *testing.T, address string, pin client.Pin) *client.Client {
	t.Helper()
	if pin.Now == nil {
		pin.Now = time.Now
	}
	creds, err := client.Pinned(pin)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial(address, creds, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func grey() []float32 {
	image := make([]float32, client.ImageLength)
	for i := range image {
		image[i] = float32(i%7) / 6
	}
	return image
}

func TestPredictReturnsTheModelsOutput(t *testing.T) {
	s := standintest.Start(t)
	c := connect(t, s.Address, client.Pin{Certificate: read(t, s.Certificate)})
	got, err := c.Predict(t.Context(), client.ResNet("resnet"), grey())
	if err != nil {
		t.Fatal(err)
	}
	want, err := s.Model.Network.Predict(grey())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("output is %v, not %v", got, want)
	}
}

func TestPredictSaysWhatToDo(t *testing.T) {
	s := standintest.Start(t)
	pin := client.Pin{Certificate: read(t, s.Certificate)}
	other := standintest.NewIdentity(t, pkix.Name{CommonName: "localhost"}, nil, "localhost")
	expired, cancel := context.WithDeadline(t.Context(), time.Unix(0, 0))
	defer cancel()
	resnet := client.ResNet("resnet")
	output := resnet
	output.Output = "logits"
	for _, test := range []struct {
		name, address string
		pin           client.Pin
		ctx           context.Context
		model         client.Model
		code          attest.Code
		text          string
	}{
		{"nobody listens", "127.0.0.1:1", pin, t.Context(), resnet, attest.CodeUnreachable, "connection refused"},
		{"too late", s.Address, pin, expired, resnet, attest.CodeUnreachable, "DeadlineExceeded"},
		{"unknown model", s.Address, pin, t.Context(), client.ResNet("x"), attest.CodeDenied, "Servable not found"},
		{"unknown output", s.Address, pin, t.Context(), output, attest.CodeDenied, "logits"},
		{"another certificate", s.Address, client.Pin{Certificate: other.Certificate}, t.Context(), resnet,
			attest.CodeEvidence, "not the pinned one"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := connect(t, test.address, test.pin).Predict(test.ctx, test.model, grey())
			if attest.CodeOf(err) != test.code || !strings.Contains(err.Error(), test.text) {
				t.Errorf("error is %q (%s), not %s with %q", err, attest.CodeOf(err), test.code, test.text)
			}
		})
	}
}

// answers is a server that answers everything with one response.
type answers struct {
	tf.UnimplementedPredictionServiceServer
	response *tf.PredictResponse
}

func (a answers) Predict(context.Context, *tf.PredictRequest) (*tf.PredictResponse, error) {
	return a.response, nil
}

func TestPredictRefusesAnswersWithoutTheOutput(t *testing.T) {
	identity := standintest.NewIdentity(t, pkix.Name{CommonName: "localhost"}, nil)
	config := filepath.Join(t.TempDir(), "ssl.cfg")
	standintest.WriteFile(t, config, identity.SSLConfig())
	creds, err := standin.Credentials(config)
	if err != nil {
		t.Fatal(err)
	}
	tensor := func(t *tf.TensorProto) *tf.PredictResponse {
		return &tf.PredictResponse{Outputs: map[string]*tf.TensorProto{"activation_49": t}}
	}
	for _, test := range []struct {
		name     string
		response *tf.PredictResponse
		want     string // in the error; "" for none
	}{
		{"tensor content", tensor(&tf.TensorProto{Dtype: tf.DataType_DT_FLOAT, TensorContent: []byte{0, 0, 128, 63}}), ""},
		{"no output", &tf.PredictResponse{}, "missing"},
		{"another type", tensor(&tf.TensorProto{Dtype: tf.DataType_DT_INT64, FloatVal: []float32{1}}), "DT_INT64"},
		{"no values", tensor(&tf.TensorProto{Dtype: tf.DataType_DT_FLOAT}), "no values"},
		{"half a value", tensor(&tf.TensorProto{Dtype: tf.DataType_DT_FLOAT, TensorContent: []byte{0, 0}}), "half"},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := grpc.NewServer(grpc.Creds(creds))
			tf.RegisterPredictionServiceServer(server, answers{response: test.response})
			c := connect(t, standintest.Serve(t, server), client.Pin{Certificate: identity.Certificate})
			got, err := c.Predict(t.Context(), client.ResNet("resnet"), grey())
			switch {
			case test.want == "" && (err != nil || !slices.Equal(got, []float32{1})):
				t.Errorf("output is %v, error %v, not [1]", got, err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("error is %v, not one with %q", err, test.want)
			}
		})
	}
}

func TestOnlyPinnedServersAreAccepted(t *testing.T) {
	plain := pkix.Name{CommonName: "localhost"}
	self := standintest.NewIdentity(t, plain, nil)
	named := standintest.NewIdentity(t, plain, nil, "tf.example")
	authority := standintest.NewIdentity(t, pkix.Name{CommonName: "authority"}, nil)
	issued := standintest.NewIdentity(t, plain, authority, "tf.example")
	at := func(offset time.Duration) func() time.Time {
		return func() time.Time { return time.Now().Add(offset) }
	}
	for _, test := range []struct {
		name   string
		server *standintest.Identity
		pin    client.Pin
		want   string // in the error; "" for none
	}{
		{"the very certificate", self, client.Pin{Certificate: self.Certificate}, ""},
		{"one of two", self, client.Pin{Certificate: append(slices.Clone(named.Certificate), self.Certificate...)}, ""},
		{"common name", self, client.Pin{Certificate: self.Certificate, ServerName: "localhost"}, ""},
		{"another common name", self, client.Pin{Certificate: self.Certificate, ServerName: "x"}, "x"},
		{"alternative name", named, client.Pin{Certificate: named.Certificate, ServerName: "tf.example"}, ""},
		{"common name beside an alternative name", named, client.Pin{Certificate: named.Certificate, ServerName: "localhost"},
			"tf.example, not localhost"},
		{"before its time", self, client.Pin{Certificate: self.Certificate, Now: at(-2 * time.Hour)}, "valid from"},
		{"after its time", self, client.Pin{Certificate: self.Certificate, Now: at(2 * time.Hour)}, "valid from"},
		{"same names, another key", standintest.NewIdentity(t, plain, nil), client.Pin{Certificate: self.Certificate},
			"not the pinned one"},
		{"issued for the name", issued, client.Pin{Certificate: authority.Certificate, ServerName: "tf.example"}, ""},
		{"issued for another name", issued, client.Pin{Certificate: authority.Certificate, ServerName: "x"}, "not the pinned one"},
		{"issued, no name asked", issued, client.Pin{Certificate: authority.Certificate}, "not the pinned one"},
		{"issued, too late", issued,
			client.Pin{Certificate: authority.Certificate, ServerName: "tf.example", Now: at(2 * time.Hour)}, "not the pinned one"},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := filepath.Join(t.TempDir(), "ssl.cfg")
			standintest.WriteFile(t, config, test.server.SSLConfig())
			creds, err := standin.Credentials(config)
			if err != nil {
				t.Fatal(err)
			}
			server := grpc.NewServer(grpc.Creds(creds))
			tf.RegisterPredictionServiceServer(server, answers{response: &tf.PredictResponse{}})
			_, err = connect(t, standintest.Serve(t, server), test.pin).Predict(t.Context(), client.ResNet("resnet"), grey())
			// The empty answer is refused by another error, after the certificate was accepted.
			if code := attest.CodeOf(err); (code == attest.CodeEvidence) != (test.want != "") || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %q (%s), want one with %q", err, code, test.want)
			}
		})
	}
}

func TestPinnedRefusesWhatIsNoCertificate(t *testing.T) {
	identity := standintest.NewIdentity(t, pkix.Name{CommonName: "localhost"}, nil)
	for name, text := range map[string]string{
		"empty": "", "a key": string(identity.Key),
		"damaged": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
	} {
		if _, err := client.Pinned(client.Pin{Certificate: []byte(text), Now: time.Now}); attest.CodeOf(err) != attest.CodeConfig {
			t.Errorf("%s: error is %v, not one of code config", name, err)
		}
	}
}

func TestErrorsKeepTheirStatus(t *testing.T) {
	s := standintest.Start(t)
	c := connect(t, s.Address, client.Pin{Certificate: read(t, s.Certificate)})
	_, err := c.Predict(t.Context(), client.ResNet("x"), grey())
	if status.Code(err) != codes.NotFound {
		t.Errorf("status of %v is %v, not NotFound", err, status.Code(err))
	}
}

func TestBestIsTheFirstHighest(t *testing.T) {
	for _, test := range []struct {
		values []float32
		want   int
	}{{nil, -1}, {[]float32{-3}, 0}, {[]float32{1, 3, 3, 2}, 1}} {
		if got := client.Best(test.values); got != test.want {
			t.Errorf("best of %v is %d, not %d", test.values, got, test.want)
		}
	}
}
