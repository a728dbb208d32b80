"""Models that OpenVINO reads: its own IR, ONNX, TensorFlow, TensorFlow Lite, PaddlePaddle."""
