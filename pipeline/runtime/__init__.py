"""How does ONNX Runtime run a model on samples, batch by batch?"""
