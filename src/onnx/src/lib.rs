//! GLM checkpoints in, ONNX model directories out.
