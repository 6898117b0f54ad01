// Package tfserving is the wire format of TensorFlow Serving, as far as predictions need it: PredictionService's
// Predict and GetModelMetadata, ModelService's GetModelStatus, the tensors they carry, and the SSLConfig text
// proto of --ssl_config_file.
//
// The messages are declared anew with the original package names and field numbers: tensorflow, tensorflow.error
// and tensorflow.serving. They are therefore the same bytes on the wire, and the protobuf registry does not accept
// a second package that declares them in the same program.
//
// # Compatibility
//
// Other modules may import this package. The messages are TensorFlow Serving's, and change only with it.
package tfserving
