package standin_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	tf "github.com/sesame-init/sesame/client/tfserving"
	"github.com/sesame-init/sesame/lab/standin"
	"github.com/sesame-init/sesame/lab/standin/network"
	"github.com/sesame-init/sesame/lab/standin/standintest"
)

// dial connects as a client of TensorFlow Serving's own would, with the server's certificate as its only root.
func dial(t *testing.T, s *standintest.Server) *grpc.ClientConn {
	t.Helper()
	creds, err := credentials.NewClientTLSFromFile(s.Certificate, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	return connect(t, s.Address, creds)
}

func connect(t *testing.T, address string, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func image(seed int) []float32 {
	values := make([]float32, network.InputLength)
	for i := range values {
		values[i] = float32((i*i+seed)%251) / 250
	}
	return values
}

func content(values []float32) []byte {
	var b []byte
	for _, x := range values {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return b
}

func shape(sizes ...int64) *tf.TensorShapeProto {
	s := &tf.TensorShapeProto{}
	for _, n := range sizes {
		s.Dim = append(s.Dim, &tf.TensorShapeProto_Dim{Size: n})
	}
	return s
}

func request() *tf.PredictRequest {
	return &tf.PredictRequest{
		ModelSpec: &tf.ModelSpec{Name: "resnet"},
		Inputs: map[string]*tf.TensorProto{"input_1": {
			Dtype: tf.DataType_DT_FLOAT, TensorShape: shape(1, 224, 224, 3), FloatVal: image(1),
		}},
	}
}

func TestPredictAnswersWithWhatTheNetworkComputes(t *testing.T) {
	s := standintest.Start(t)
	service := tf.NewPredictionServiceClient(dial(t, s))
	probabilities := func(image []float32) []float32 {
		p, err := s.Model.Network.Predict(image)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	tensor := func(r *tf.PredictRequest) *tf.TensorProto { return r.Inputs["input_1"] }
	for _, test := range []struct {
		name   string
		change func(r *tf.PredictRequest)
		want   []float32
	}{
		{"values in float_val", func(*tf.PredictRequest) {}, probabilities(image(1))},
		{"values in tensor_content", func(r *tf.PredictRequest) {
			tensor(r).FloatVal, tensor(r).TensorContent = nil, content(image(1))
		}, probabilities(image(1))},
		{"one value for all", func(r *tf.PredictRequest) { tensor(r).FloatVal = []float32{0.5} },
			probabilities(slices.Repeat([]float32{0.5}, network.InputLength))},
		{"two images", func(r *tf.PredictRequest) {
			tensor(r).TensorShape, tensor(r).FloatVal = shape(2, 224, 224, 3), append(image(2), image(3)...)
		}, append(probabilities(image(2)), probabilities(image(3))...)},
		{"names spelled out", func(r *tf.PredictRequest) {
			r.ModelSpec.Version, r.ModelSpec.SignatureName = wrapperspb.Int64(7), "serving_default"
			r.OutputFilter = []string{"activation_49"}
		}, probabilities(image(1))},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := request()
			test.change(r)
			response, err := service.Predict(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			spec := &tf.ModelSpec{Name: "resnet", Version: wrapperspb.Int64(7), SignatureName: "serving_default"}
			if !proto.Equal(response.ModelSpec, spec) {
				t.Errorf("answer is from %v, not %v", response.ModelSpec, spec)
			}
			got := response.Outputs["activation_49"]
			if want := shape(int64(len(test.want)/standintest.Classes), standintest.Classes); !proto.Equal(got.GetTensorShape(), want) {
				t.Errorf("shape is %v, not %v", got.GetTensorShape(), want)
			}
			if !slices.Equal(got.GetFloatVal(), test.want) {
				t.Errorf("probabilities are %v, not %v", got.GetFloatVal(), test.want)
			}
		})
	}
}

func TestPredictRefusesAsTensorFlowServingDoes(t *testing.T) {
	service := tf.NewPredictionServiceClient(dial(t, standintest.Start(t)))
	tensor := func(r *tf.PredictRequest) *tf.TensorProto { return r.Inputs["input_1"] }
	for _, test := range []struct {
		name   string
		change func(r *tf.PredictRequest)
		code   codes.Code
		text   string
	}{
		{"no model", func(r *tf.PredictRequest) { r.ModelSpec = nil }, codes.InvalidArgument, "Missing ModelSpec"},
		{"another model", func(r *tf.PredictRequest) { r.ModelSpec.Name = "x" }, codes.NotFound, "Latest(x)"},
		{"another version", func(r *tf.PredictRequest) { r.ModelSpec.Version = wrapperspb.Int64(8) },
			codes.NotFound, "Specific(resnet, 8)"},
		{"another signature", func(r *tf.PredictRequest) { r.ModelSpec.SignatureName = "x" },
			codes.FailedPrecondition, `"x" not found`},
		{"another output", func(r *tf.PredictRequest) { r.OutputFilter = []string{"x"} }, codes.InvalidArgument, "x"},
		{"no input", func(r *tf.PredictRequest) { r.Inputs = nil }, codes.InvalidArgument, "input_1"},
		{"another input", func(r *tf.PredictRequest) { r.Inputs["x"] = tensor(r) }, codes.InvalidArgument, "input_1"},
		{"another type", func(r *tf.PredictRequest) { tensor(r).Dtype = tf.DataType_DT_DOUBLE },
			codes.InvalidArgument, "DT_DOUBLE, not DT_FLOAT"},
		{"no shape", func(r *tf.PredictRequest) { tensor(r).TensorShape = nil }, codes.InvalidArgument, "shape is []"},
		{"no image", func(r *tf.PredictRequest) { tensor(r).TensorShape = shape(0, 224, 224, 3) },
			codes.InvalidArgument, "shape is [0 224 224 3]"},
		{"unknown number", func(r *tf.PredictRequest) { tensor(r).TensorShape = shape(-1, 224, 224, 3) },
			codes.InvalidArgument, "shape is [-1 224 224 3]"},
		{"more images than fit", func(r *tf.PredictRequest) {
			tensor(r).TensorShape, tensor(r).FloatVal = shape(1<<40, 224, 224, 3), []float32{1}
		}, codes.InvalidArgument, "shape is"},
		{"channels first", func(r *tf.PredictRequest) { tensor(r).TensorShape = shape(1, 3, 224, 224) },
			codes.InvalidArgument, "not [N 224 224 3]"},
		{"a value less", func(r *tf.PredictRequest) { tensor(r).FloatVal = image(1)[1:] },
			codes.InvalidArgument, "150527 values"},
		{"a byte more", func(r *tf.PredictRequest) {
			tensor(r).FloatVal, tensor(r).TensorContent = nil, append(content(image(1)), 0)
		}, codes.InvalidArgument, "602113 bytes"},
		{"values twice", func(r *tf.PredictRequest) { tensor(r).TensorContent = content(image(1)) },
			codes.InvalidArgument, "both"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := request()
			test.change(r)
			_, err := service.Predict(t.Context(), r)
			if status.Code(err) != test.code || !strings.Contains(status.Convert(err).Message(), test.text) {
				t.Errorf("error is %v, not %v with %q", err, test.code, test.text)
			}
		})
	}
}

func TestMetadataDescribesTheSignature(t *testing.T) {
	service := tf.NewPredictionServiceClient(dial(t, standintest.Start(t)))
	ask := func(model string, fields ...string) (*tf.GetModelMetadataResponse, error) {
		return service.GetModelMetadata(t.Context(),
			&tf.GetModelMetadataRequest{ModelSpec: &tf.ModelSpec{Name: model}, MetadataField: fields})
	}
	response, err := ask("resnet", "signature_def")
	if err != nil {
		t.Fatal(err)
	}
	var signatures tf.SignatureDefMap
	if err := response.Metadata["signature_def"].UnmarshalTo(&signatures); err != nil {
		t.Fatal(err)
	}
	signature := signatures.SignatureDef["serving_default"]
	if signature.GetMethodName() != "tensorflow/serving/predict" ||
		!proto.Equal(signature.GetInputs()["input_1"].GetTensorShape(), shape(-1, 224, 224, 3)) ||
		!proto.Equal(signature.GetOutputs()["activation_49"].GetTensorShape(), shape(-1, standintest.Classes)) {
		t.Errorf("signature is %v", signature)
	}
	for _, test := range []struct {
		model, field string
		code         codes.Code
	}{
		{"x", "signature_def", codes.NotFound},
		{"resnet", "x", codes.InvalidArgument},
	} {
		if _, err := ask(test.model, test.field); status.Code(err) != test.code {
			t.Errorf("asking %s for %s: error is %v, not %v", test.model, test.field, err, test.code)
		}
	}
	if _, err := ask("resnet"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("asking for no field: error is %v, not %v", err, codes.InvalidArgument)
	}
}

func TestStatusSaysAvailable(t *testing.T) {
	service := tf.NewModelServiceClient(dial(t, standintest.Start(t)))
	response, err := service.GetModelStatus(t.Context(), &tf.GetModelStatusRequest{ModelSpec: &tf.ModelSpec{Name: "resnet"}})
	if err != nil {
		t.Fatal(err)
	}
	want := &tf.ModelVersionStatus{Version: 7, State: tf.ModelVersionStatus_AVAILABLE, Status: &tf.StatusProto{}}
	if len(response.ModelVersionStatus) != 1 || !proto.Equal(response.ModelVersionStatus[0], want) {
		t.Errorf("status is %v, not %v", response.ModelVersionStatus, want)
	}
	_, err = service.GetModelStatus(t.Context(), &tf.GetModelStatusRequest{ModelSpec: &tf.ModelSpec{Name: "x"}})
	if status.Code(err) != codes.NotFound {
		t.Errorf("asking for another model: error is %v, not %v", err, codes.NotFound)
	}
}

func TestClientVerifyWantsACertificateOfCustomCA(t *testing.T) {
	server := standintest.NewIdentity(t, pkix.Name{CommonName: "localhost"}, nil, "localhost")
	authority := standintest.NewIdentity(t, pkix.Name{CommonName: "clients"}, nil)
	ca := strings.ReplaceAll(string(authority.Certificate), "\n", `\n`)
	config := filepath.Join(t.TempDir(), "ssl.cfg")
	standintest.WriteFile(t, config, server.SSLConfig("client_verify: true", `custom_ca: "`+ca+`"`))
	creds, err := standin.Credentials(config)
	if err != nil {
		t.Fatal(err)
	}
	model := &standin.Model{Name: "resnet", Version: 1, Network: standintest.NewNetwork()}
	address := standintest.Serve(t, standin.NewServer(model, grpc.Creds(creds)))

	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(server.Certificate)
	ask := func(client *standintest.Identity) error {
		config := &tls.Config{RootCAs: roots, ServerName: "localhost"}
		if client != nil {
			pair, err := tls.X509KeyPair(client.Certificate, client.Key)
			if err != nil {
				t.Fatal(err)
			}
			config.Certificates = []tls.Certificate{pair}
		}
		_, err := tf.NewModelServiceClient(connect(t, address, credentials.NewTLS(config))).GetModelStatus(
			t.Context(), &tf.GetModelStatusRequest{ModelSpec: &tf.ModelSpec{Name: "resnet"}})
		return err
	}
	if err := ask(standintest.NewIdentity(t, pkix.Name{CommonName: "friend"}, authority)); err != nil {
		t.Errorf("a client of the authority was refused: %v", err)
	}
	if ask(nil) == nil {
		t.Error("a client without a certificate was accepted")
	}
	if ask(standintest.NewIdentity(t, pkix.Name{CommonName: "stranger"}, nil)) == nil {
		t.Error("a client of another authority was accepted")
	}
}

func TestCredentialsRefusesBadConfigsWithoutShowingTheKey(t *testing.T) {
	identity := standintest.NewIdentity(t, pkix.Name{CommonName: "localhost"}, nil)
	other := standintest.NewIdentity(t, pkix.Name{CommonName: "localhost"}, nil)
	good := string(identity.SSLConfig())
	keyBody := strings.Split(string(identity.Key), "\n")[1]
	for _, test := range []struct{ name, text, want string }{
		{"empty", "", "server_cert and server_key"},
		{"another key", string((&standintest.Identity{Certificate: other.Certificate, Key: identity.Key}).SSLConfig()),
			"does not match"},
		{"unknown field", good + "server_kee: 1\n", "not an SSLConfig"},
		{"string left open", strings.TrimRight(good, "\"\n"), "not an SSLConfig"},
		{"no authority", good + "client_verify: true\n", "custom_ca"},
		{"too long", good + strings.Repeat("# \n", 1<<20), "more than"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ssl.cfg")
			standintest.WriteFile(t, path, []byte(test.text))
			_, err := standin.Credentials(path)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error is %v, not one with %q", err, test.want)
			}
			if strings.Contains(err.Error(), keyBody) {
				t.Error("the error shows the private key")
			}
		})
	}
	if _, err := standin.Credentials(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a missing file was taken")
	}
}

// writeModel makes a version folder.
func writeModel(t *testing.T, base, version string) {
	t.Helper()
	var file bytes.Buffer
	if err := standintest.NewNetwork().Write(&file); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(base, version), 0o755); err != nil {
		t.Fatal(err)
	}
	standintest.WriteFile(t, filepath.Join(base, version, standin.FileName), file.Bytes())
}

func TestLoadTakesTheHighestVersion(t *testing.T) {
	base := t.TempDir()
	for _, version := range []string{"9", "123", "00000010", "new", "-5", "999x"} {
		writeModel(t, base, version)
	}
	standintest.WriteFile(t, filepath.Join(base, "1000"), nil)
	m, err := standin.Load("resnet", base)
	if err != nil {
		t.Fatal(err)
	}
	if m.Name != "resnet" || m.Version != 123 || m.Network.Classes() != standintest.Classes {
		t.Errorf("loaded %s version %d of %d classes", m.Name, m.Version, m.Network.Classes())
	}
}

func TestLoadRefusesAFolderWithoutAModel(t *testing.T) {
	empty, broken, bare := t.TempDir(), t.TempDir(), t.TempDir()
	writeModel(t, broken, "1")
	standintest.WriteFile(t, filepath.Join(broken, "1", standin.FileName), []byte("not safetensors"))
	if err := os.Mkdir(filepath.Join(bare, "1"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, base, want string }{
		{"missing", filepath.Join(empty, "x"), "no such file"},
		{"no versions", empty, "no versions of servable resnet found"},
		{"no file", bare, "no such file"},
		{"damaged", broken, "not a safetensors file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := standin.Load("resnet", test.base); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, not one with %q", err, test.want)
			}
		})
	}
}

func TestPredictGivesUpWithItsContext(t *testing.T) {
	service := tf.NewPredictionServiceClient(dial(t, standintest.Start(t)))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := service.Predict(ctx, request()); status.Code(err) != codes.Canceled {
		t.Errorf("error is %v, not %v", err, codes.Canceled)
	}
}
