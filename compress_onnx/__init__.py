"""Low-rank compression of ONNX models."""
