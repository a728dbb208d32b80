"""TensorRT engines (`model.plan`) on GPUs."""
