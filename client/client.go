// Package client asks TensorFlow Serving for predictions and measures how long they take. Before a byte of an image
// is sent the server is verified: by a pinned certificate ([Pinned]), or by the evidence in a certificate whose key was
// made inside the attested workload ([Attested]).
//
// A [Client] spreads its requests over one connection or several. They are made lazily and again when they break, and
// it is safe for concurrent use. What is sent is a float32 tensor of one image, 1×224×224×3, as the ResNet demo's
// models want it; [ReadImage] makes it from a JPEG or PNG file. Answers are not interpreted: a model's outputs are as
// trustworthy as the certificate's private key, no more.
//
// Every call ends with its context. Errors are of type [attest.Error]: [attest.CodeUnreachable] if another try
// may help, [attest.CodeEvidence] if the server showed another certificate, [attest.CodeDenied] if the
// server refused the request.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning.
package client

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	tf "github.com/sesame-init/sesame/client/tfserving"
)

// maxResponse bounds what is read of an answer; a row of a thousand classes takes 4 KB.
const maxResponse = 16 << 20

// Model names a model and the tensors of its signature.
type Model struct {
	Name, Signature, Input, Output string
}

// ResNet is the signature of the ResNet demo's models, under the given model name.
func ResNet(name string) Model {
	return Model{Name: name, Signature: "serving_default", Input: "input_1", Output: "activation_49"}
}

// Client is one connection to a server or several.
type Client struct {
	server   string
	conn     *grpc.ClientConn
	creds    credentials.TransportCredentials
	attempts atomic.Int64
	calls    atomic.Int64
}

// Dial prepares to connect to server, HOST:PORT; nothing is sent yet. [Pinned] and [Attested] make credentials.
func Dial(server string, creds credentials.TransportCredentials, o Options) (*Client, error) {
	if _, _, err := net.SplitHostPort(server); err != nil {
		return nil, attest.Errorf(attest.CodeUsage, "connecting", "Give the server as HOST:PORT.", "%w", err)
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	c := &Client{server: server, creds: creds}
	conn, err := grpc.NewClient(scheme+":///"+server,
		grpc.WithResolvers(spread{server, o.connections()}),
		grpc.WithContextDialer(dialSpread),
		grpc.WithDefaultServiceConfig(o.serviceConfig()),
		grpc.WithTransportCredentials(creds),
		grpc.WithStatsHandler((*attemptCounter)(c)),
		grpc.WithNoProxy(), // the connection goes where the command line says, whatever the environment
		// gRPC gives up retrying a request that is larger than its buffer.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponse), grpc.MaxRetryRPCBufferSize(8*ImageLength)))
	if err != nil {
		return nil, attest.Errorf(attest.CodeUsage, "connecting", "", "%w", err)
	}
	c.conn = conn
	return c, nil
}

// Retries is how many tries of all requests were not the first one.
func (c *Client) Retries() int { return int(c.attempts.Load() - c.calls.Load()) }

// Close ends the connection and all calls on it.
func (c *Client) Close() error { return c.conn.Close() }

// Predict sends one image of [ImageLength] values and returns the model's output for it, usually a probability for
// each class.
func (c *Client) Predict(ctx context.Context, m Model, image []float32) ([]float32, error) {
	if len(image) != ImageLength {
		return nil, attest.Errorf(attest.CodeInternal, "predicting", "", "image has %d values, not %d", len(image), ImageLength)
	}
	content := make([]byte, 0, 4*len(image))
	for _, x := range image {
		content = binary.LittleEndian.AppendUint32(content, math.Float32bits(x))
	}
	c.calls.Add(1)
	response, err := tf.NewPredictionServiceClient(c.conn).Predict(ctx, &tf.PredictRequest{
		ModelSpec: &tf.ModelSpec{Name: m.Name, SignatureName: m.Signature},
		Inputs: map[string]*tf.TensorProto{m.Input: {
			Dtype: tf.DataType_DT_FLOAT,
			TensorShape: &tf.TensorShapeProto{Dim: []*tf.TensorShapeProto_Dim{
				{Size: 1}, {Size: ImageSize}, {Size: ImageSize}, {Size: 3},
			}},
			TensorContent: content,
		}},
		OutputFilter: []string{m.Output},
	})
	if err != nil {
		return nil, c.refusal(err)
	}
	values, err := floats(response.GetOutputs()[m.Output])
	if err != nil {
		return nil, attest.Errorf(attest.CodeDenied, "predicting",
			"Is it a model with these tensors? The server's GetModelMetadata lists them.",
			"%s: output %s: %w", c.server, m.Output, err)
	}
	return values, nil
}

// floats are the elements of a float tensor, of which there must be at least one.
func floats(t *tf.TensorProto) ([]float32, error) {
	switch {
	case t == nil:
		return nil, errors.New("missing in the answer")
	case t.Dtype != tf.DataType_DT_FLOAT:
		return nil, fmt.Errorf("type is %v, not DT_FLOAT", t.Dtype)
	case len(t.TensorContent)%4 != 0 || len(t.TensorContent)+len(t.FloatVal) == 0:
		return nil, errors.New("no values, or half of one")
	}
	values := t.FloatVal
	for b := t.TensorContent; len(b) > 0; b = b[4:] {
		values = append(values, math.Float32frombits(binary.LittleEndian.Uint32(b)))
	}
	return values, nil
}

// Best is the index of the highest value, the first one of several. It is -1 if there are none.
func Best(values []float32) int {
	best := -1
	for i, x := range values {
		if best < 0 || x > values[best] {
			best = i
		}
	}
	return best
}

// refusal says what a failed call means for the one who made it.
func (c *Client) refusal(err error) error {
	s := status.Convert(err)
	code, hint := attest.CodeDenied, ""
	switch s.Code() {
	case codes.Unavailable:
		code, hint = attest.CodeUnreachable, "Is the server up, and does it listen there?"
		if strings.Contains(s.Message(), "authentication handshake failed") {
			code, hint = attest.CodeEvidence, "Is the certificate the one that this server uses now?"
			if a, ok := c.creds.(*attestedCredentials); ok {
				if refused := a.refusal(); refused != nil {
					return &attest.Error{Code: attest.CodeOf(refused), Step: "predicting: verifying " + c.server, Err: &callError{s, refused.Error()},
						Hint: attest.HintOf(refused)}
				}
			}
		}
	case codes.DeadlineExceeded:
		code, hint = attest.CodeUnreachable, "The server is overloaded or does not answer; try again, or wait longer."
	case codes.Canceled:
		code = attest.CodeUnreachable
	case codes.NotFound:
		hint = "Is this the name that the server was given with --model_name?"
	}
	return &attest.Error{Code: code, Step: "predicting", Hint: hint,
		Err: &callError{s, fmt.Sprintf("%s: %s: %s", c.server, s.Code(), s.Message())}}
}

// callError keeps the gRPC status under a readable text.
type callError struct {
	status *status.Status
	text   string
}

func (e *callError) Error() string              { return e.text }
func (e *callError) GRPCStatus() *status.Status { return e.status }
