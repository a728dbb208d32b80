"""TensorFlow models: SavedModels and GraphDefs, each instance in a worker process of its own."""

from conch.backend.tensorflow.backend import TensorFlowBackend

__all__ = ["TensorFlowBackend"]
