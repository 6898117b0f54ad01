// Package standin is a stand-in for TensorFlow Serving, for demo and tests only: real TensorFlow Serving loads
// any SavedModel, this one computes a single kind of network (package network).
//
// It answers PredictionService.Predict and GetModelMetadata and ModelService.GetModelStatus as TensorFlow Serving
// does, errors included, for one model with the names of the ResNet demo: signature "serving_default", input
// "input_1" (float32, N×224×224×3, values 0..1), output "activation_49" (float32, N×classes, probabilities). Other
// services, batching, several models and reloading are not there. A request is computed on one core; as many are
// computed at once as Go may use cores, the others wait for their turn or their deadline.
package standin

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"slices"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	tf "github.com/sesame-init/sesame/client/tfserving"
	"github.com/sesame-init/sesame/lab/standin/network"
)

// Names of the ResNet demo's signature.
const (
	Signature = "serving_default"
	Input     = "input_1"
	Output    = "activation_49"
)

// MaxRequest bounds a request in bytes; an image takes 602,112.
const MaxRequest = 64 << 20

// NewServer makes a gRPC server for a model. Further options give it credentials.
func NewServer(m *Model, options ...grpc.ServerOption) *grpc.Server {
	s := grpc.NewServer(append(options, grpc.MaxRecvMsgSize(MaxRequest))...)
	service := &service{model: m, cores: semaphore.NewWeighted(int64(runtime.GOMAXPROCS(0)))}
	tf.RegisterPredictionServiceServer(s, service)
	tf.RegisterModelServiceServer(s, service)
	return s
}

type service struct {
	tf.UnimplementedPredictionServiceServer
	tf.UnimplementedModelServiceServer
	model *Model
	cores *semaphore.Weighted
}

// Predict computes the probabilities of each image in the request.
func (s *service) Predict(ctx context.Context, r *tf.PredictRequest) (*tf.PredictResponse, error) {
	if err := s.checkModel(r.GetModelSpec()); err != nil {
		return nil, err
	}
	if name := r.GetModelSpec().GetSignatureName(); name != "" && name != Signature {
		return nil, status.Errorf(codes.FailedPrecondition, "Serving signature name: %q not found in signature def", name)
	}
	if r.GetInputs()[Input] == nil || len(r.GetInputs()) != 1 {
		return nil, status.Errorf(codes.InvalidArgument,
			"inputs do not match the signature: it takes %q and nothing else", Input)
	}
	if i := slices.IndexFunc(r.GetOutputFilter(), func(name string) bool { return name != Output }); i >= 0 {
		return nil, status.Errorf(codes.InvalidArgument,
			"output tensor alias not found in signature: %s Outputs expected to be in the set {%s}.", r.OutputFilter[i], Output)
	}
	images, err := pixels(r.Inputs[Input])
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "input %s: %v", Input, err)
	}
	if err := s.cores.Acquire(ctx, 1); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	defer s.cores.Release(1)
	var probabilities []float32
	for image := range slices.Chunk(images, network.InputLength) {
		if err := ctx.Err(); err != nil {
			return nil, status.FromContextError(err).Err()
		}
		p, err := s.model.Network.Predict(image)
		if err != nil {
			return nil, status.Errorf(codes.Internal, "computing: %v", err)
		}
		probabilities = append(probabilities, p...)
	}
	count := int64(len(images) / network.InputLength)
	return &tf.PredictResponse{
		ModelSpec: s.spec(),
		Outputs: map[string]*tf.TensorProto{Output: {
			Dtype:       tf.DataType_DT_FLOAT,
			TensorShape: shape(count, int64(s.model.Network.Classes())),
			FloatVal:    probabilities,
		}},
	}, nil
}

// pixels are the values of a batch of images.
func pixels(t *tf.TensorProto) ([]float32, error) {
	if t.GetDtype() != tf.DataType_DT_FLOAT {
		return nil, fmt.Errorf("type is %v, not DT_FLOAT", t.GetDtype())
	}
	dim := t.GetTensorShape().GetDim()
	if len(dim) != 4 || dim[0].GetSize() < 1 || dim[0].GetSize() > MaxRequest/4/network.InputLength ||
		dim[1].GetSize() != network.Size || dim[2].GetSize() != network.Size || dim[3].GetSize() != network.Channels {
		var sizes []int64
		for _, d := range dim {
			sizes = append(sizes, d.GetSize())
		}
		return nil, fmt.Errorf("shape is %d, not [N %d %d %d]", sizes, network.Size, network.Size, network.Channels)
	}
	length := int(dim[0].Size) * network.InputLength
	switch content := t.GetTensorContent(); {
	case len(content) > 0 && len(t.GetFloatVal()) > 0:
		return nil, fmt.Errorf("values are in both tensor_content and float_val")
	case len(content) > 0:
		if len(content) != 4*length {
			return nil, fmt.Errorf("tensor_content has %d bytes, the shape wants %d", len(content), 4*length)
		}
		values := make([]float32, length)
		for i := range values {
			values[i] = math.Float32frombits(binary.LittleEndian.Uint32(content[4*i:]))
		}
		return values, nil
	case len(t.GetFloatVal()) == 1:
		return slices.Repeat(t.FloatVal, length), nil
	case len(t.GetFloatVal()) != length:
		return nil, fmt.Errorf("float_val has %d values, the shape wants %d", len(t.GetFloatVal()), length)
	}
	return t.FloatVal, nil
}

// GetModelMetadata describes the one signature.
func (s *service) GetModelMetadata(_ context.Context, r *tf.GetModelMetadataRequest) (*tf.GetModelMetadataResponse, error) {
	if len(r.GetMetadataField()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "GetModelMetadataRequest must specify at least one metadata_field")
	}
	for _, field := range r.GetMetadataField() {
		if field != "signature_def" {
			return nil, status.Errorf(codes.InvalidArgument, "Metadata field %s is not supported", field)
		}
	}
	if err := s.checkModel(r.GetModelSpec()); err != nil {
		return nil, err
	}
	signatures, err := anypb.New(&tf.SignatureDefMap{SignatureDef: map[string]*tf.SignatureDef{Signature: {
		Inputs:     map[string]*tf.TensorInfo{Input: info("serving_default_input_1:0", network.Size, network.Size, network.Channels)},
		Outputs:    map[string]*tf.TensorInfo{Output: info("StatefulPartitionedCall:0", int64(s.model.Network.Classes()))},
		MethodName: "tensorflow/serving/predict",
	}}})
	if err != nil {
		return nil, status.Errorf(codes.Internal, "packing metadata: %v", err)
	}
	return &tf.GetModelMetadataResponse{
		ModelSpec: s.spec(),
		Metadata:  map[string]*anypb.Any{"signature_def": signatures},
	}, nil
}

// info describes a float tensor whose first dimension, the number of images, is open.
func info(name string, sizes ...int64) *tf.TensorInfo {
	return &tf.TensorInfo{
		Encoding:    &tf.TensorInfo_Name{Name: name},
		Dtype:       tf.DataType_DT_FLOAT,
		TensorShape: shape(append([]int64{-1}, sizes...)...),
	}
}

// GetModelStatus says that the one version is available.
func (s *service) GetModelStatus(_ context.Context, r *tf.GetModelStatusRequest) (*tf.GetModelStatusResponse, error) {
	if err := s.checkModel(r.GetModelSpec()); err != nil {
		return nil, err
	}
	return &tf.GetModelStatusResponse{ModelVersionStatus: []*tf.ModelVersionStatus{{
		Version: s.model.Version,
		State:   tf.ModelVersionStatus_AVAILABLE,
		Status:  &tf.StatusProto{ErrorCode: tf.Code_OK},
	}}}, nil
}

func (s *service) checkModel(spec *tf.ModelSpec) error {
	switch {
	case spec.GetName() == "":
		return status.Error(codes.InvalidArgument, "Missing ModelSpec")
	case spec.GetVersion() != nil && (spec.Name != s.model.Name || spec.Version.Value != s.model.Version):
		return status.Errorf(codes.NotFound, "Servable not found for request: Specific(%s, %d)", spec.Name, spec.Version.Value)
	case spec.Name != s.model.Name:
		return status.Errorf(codes.NotFound, "Servable not found for request: Latest(%s)", spec.Name)
	}
	return nil
}

func (s *service) spec() *tf.ModelSpec {
	return &tf.ModelSpec{Name: s.model.Name, Version: wrapperspb.Int64(s.model.Version), SignatureName: Signature}
}

func shape(sizes ...int64) *tf.TensorShapeProto {
	s := &tf.TensorShapeProto{}
	for _, n := range sizes {
		s.Dim = append(s.Dim, &tf.TensorShapeProto_Dim{Size: n})
	}
	return s
}
